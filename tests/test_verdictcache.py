"""Verdicts that were paid for are not paid for again, whatever becomes of process or file."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import selfkd.judges
import selfkd.loops
from selfkd.judging import JudgeSpec, resolve_judge
from selfkd.records import Prompt, Sample, Verdict
from selfkd.siblings import own_files
from selfkd.verdictcache import Store, VerdictCache, cache_file


def sample(completion: str, question: str = "q", number: int = 0, **columns: object) -> Sample:
    prompt = Prompt.of(question, "a", **columns)
    return Sample(f"{question}-{completion}-{number}", prompt, number, completion)


class Judge:
    """Counts what it is asked about; its verdicts are never the same twice."""

    def __init__(self, samples: list[Sample], **fields: object) -> None:
        self.samples = samples
        self.fields = fields
        self.asked: list[str] = []

    def __call__(self, owed: list[int], store: Store) -> list[Verdict]:
        verdicts = []
        for i in owed:
            self.asked.append(self.samples[i].id)
            verdict = self.samples[i].verdict(time.monotonic(), answer="7", rationale="why")
            verdict = replace(verdict, judge="mine", cost_usd=0.5, **self.fields)
            verdicts.append(verdict)
        store(list(enumerate(verdicts)))
        return verdicts


def serve(
    path: Path,
    samples: list[Sample],
    identity: str = "id",
    compares: bool = False,
    **fields: object,
) -> tuple[list[Verdict], list[str], VerdictCache]:
    cache, judge = VerdictCache(identity, compares=compares, path=path), Judge(samples, **fields)
    verdicts = cache.serve(samples, judge)
    cache.close()
    return verdicts, judge.asked, cache


def test_a_known_sample_is_not_judged_again_and_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "verdicts.sqlite3"
    first, asked, _ = serve(path, [sample("x"), sample("y")])
    assert asked == ["q-x-0", "q-y-0"]
    again, asked, cache = serve(path, [sample("y", number=5), sample("z"), sample("x")])
    assert asked == ["q-z-0"] and cache.hits == 2
    assert again[0] == replace(first[1], sample_id="q-y-5", cost_usd=0.0)
    assert again[1].cost_usd == 0.5 and again[2].reward == first[0].reward


def test_equal_texts_of_one_call_are_judged_once(tmp_path: Path) -> None:
    verdicts, asked, _ = serve(tmp_path / "v", [sample("x", number=k) for k in range(3)])
    assert asked == ["q-x-0"]
    assert [v.sample_id for v in verdicts] == ["q-x-0", "q-x-1", "q-x-2"]
    assert len({v.reward for v in verdicts}) == 1 and sum(v.cost_usd for v in verdicts) == 0.5


def test_whatever_the_judge_is_shown_is_part_of_the_key(tmp_path: Path) -> None:
    path, base = tmp_path / "v", sample("x", level=1)
    serve(path, [base])
    others = [
        sample("x", level=2),
        sample("x ", level=1),
        sample("x", "p", level=1),
        replace(base, finish="length"),
        replace(base, prompt=replace(base.prompt, answer="b")),
    ]
    for other in others:
        assert serve(path, [other])[1] == [other.id]
    assert serve(path, [replace(base, policy="round-3", tokens=(1,), round=3)])[1] == []
    assert serve(path, [base], identity="another judge")[1] == [base.id]


def test_a_verdict_on_a_prompt_depends_on_all_its_samples(tmp_path: Path) -> None:
    path = tmp_path / "v"
    both = [sample("x"), sample("y"), sample("x", "other")]
    serve(path, both, compares=True)
    assert serve(path, both, compares=True)[1] == []
    more = [*both, sample("z", "other")]
    assert serve(path, more, compares=True)[1] == ["other-x-0", "other-z-0"]
    copies = [sample("x", number=k) for k in range(2)]  # a vote counts them
    assert serve(path, copies, compares=True)[1] == [s.id for s in copies]


@pytest.mark.parametrize(
    ("status", "kept"),
    [
        *(("unparsed", True), ("refused", True), ("abstained", True)),
        *(("error", False), ("timeout", False)),
    ],
)
def test_failures_are_asked_again_judgements_are_not(
    tmp_path: Path, status: str, kept: bool
) -> None:
    serve(tmp_path / "v", [sample("x")], reward=None, status=status)
    verdicts, asked, _ = serve(tmp_path / "v", [sample("x")])
    assert (asked == []) == kept
    assert (verdicts[0].status == status) == kept


def test_text_that_is_no_utf8_survives(tmp_path: Path) -> None:
    odd = sample("\ud800 \0 \u202e")
    serve(tmp_path / "v", [odd], rationale="\ud800\0")
    (verdict,), asked, _ = serve(tmp_path / "v", [odd])
    assert asked == [] and verdict.rationale == "\ud800\0"


def test_a_damaged_file_is_passed_over_with_a_word(tmp_path: Path) -> None:
    path = tmp_path / "v"
    path.write_bytes(b"this is no database" * 500)
    verdicts, asked, cache = serve(path, [sample("x")])
    assert asked == ["q-x-0"] and verdicts[0].reward
    assert str(path) in cache.complaint and "delete it" in cache.complaint
    assert path.read_bytes().startswith(b"this is no database")


def test_a_damaged_page_is_passed_over_with_a_word(tmp_path: Path) -> None:
    path = tmp_path / "v"
    many = [sample(f"x{k}") for k in range(300)]
    serve(path, many)
    data = bytearray(path.read_bytes())
    data[4096 : len(data)] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    verdicts, asked, cache = serve(path, many)
    assert len(verdicts) == len(asked) == 300 and str(path) in cache.complaint


def test_a_flipped_verdict_is_asked_for_again_and_mended(tmp_path: Path) -> None:
    path = tmp_path / "v"
    serve(path, [sample("x"), sample("y")])
    with sqlite3.connect(path) as db:
        key, value = db.execute("select key, value from verdicts limit 1").fetchone()
        db.execute("update verdicts set value = ? where key = ?", (value.replace("7", "8"), key))
    _, asked, cache = serve(path, [sample("x"), sample("y")])
    assert len(asked) == 1 and "1 verdicts in" in cache.complaint
    assert serve(path, [sample("x"), sample("y")])[1] == []


def test_a_place_that_cannot_be_written_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    _, asked, cache = serve(tmp_path / "file" / "v", [sample("x")])
    assert asked == ["q-x-0"] and "cannot be used" in cache.complaint


WRITER = """
import sys, time
from pathlib import Path
from selfkd.records import Prompt, Sample
from selfkd.verdictcache import VerdictCache

who, path = sys.argv[1], Path(sys.argv[2])
cache = VerdictCache("id", path=path)
for k in range(100_000):
    one = Sample("s", Prompt.of("q", "a"), 0, f"{who} {k}")
    def ask(owed, store):
        verdict = one.verdict(float(k))
        store([(0, verdict)])
        print(k, flush=True)
        return [verdict]
    cache.serve([one], ask)
"""


def test_two_writers_killed_at_once_lose_nothing_that_was_told(tmp_path: Path) -> None:
    path = tmp_path / "v"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, who, str(path)], stdout=subprocess.PIPE, text=True
        )
        for who in ("a", "b")
    ]
    for writer in writers:
        assert writer.stdout
        for _ in range(20):
            assert writer.stdout.readline().strip().isdigit()
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
    for who, writer in zip("ab", writers, strict=True):
        out, _ = writer.communicate()
        told = 20 + out.count("\n")
        samples = [sample(f"{who} {k}", "q") for k in range(told)]
        verdicts, asked, cache = serve(path, samples)
        assert asked == [] and not cache.complaint
        assert [v.reward for v in verdicts] == list(range(told))
    with sqlite3.connect(path) as db:
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)


def test_the_file_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SELFKD_CACHE", str(tmp_path))
    assert cache_file() == tmp_path / "verdicts.sqlite3"


def test_a_judge_says_whether_its_verdicts_may_be_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import selfkd\n"
        "@selfkd.judge('paid', cacheable=True)\n"
        "def paid(sample):\n    return 1\n"
        "class Group:\n"
        "    cacheable = compares = True\n"
        "    def judge(self, samples):\n        return [1.0] * len(samples)\n"
        "@selfkd.judge('either', cacheable=lambda options: options.frozen)\n"
        "def either(sample, *, frozen: bool = False):\n    return 1\n"
        "@selfkd.judge('own', cacheable=True)\n"
        "def own(sample, caller):\n    return 1\n"
    )

    def kept(use: str, **options: object) -> bool:
        return resolve_judge({"use": f"mine.py:{use}", **options}, tmp_path).cacheable

    assert kept("paid") and kept("Group")
    assert not kept("either") and kept("either", frozen=True)
    assert not kept("own")  # what it is told is recorded, so it has to be told
    assert not resolve_judge("number", tmp_path).cacheable
    teacher = {"use": "teacher", "judge": "self_reward", "model": "m", "base_url": "http://a:1/v1"}
    served = resolve_judge(teacher, tmp_path)
    assert served.cacheable and served.calls and not served.writes
    assert served.identity() != resolve_judge(teacher | {"model": "n"}, tmp_path).identity()
    composed = {"use": "ensemble", "judges": ["mine.py:paid"]}
    assert not resolve_judge(composed, tmp_path).cacheable  # the judge inside keeps its own


def test_another_server_has_verdicts_of_its_own(tmp_path: Path) -> None:
    teacher = {"use": "teacher", "judge": "self_reward", "model": "m"}

    def at(url: str) -> JudgeSpec:
        return resolve_judge(teacher | {"base_url": url}, tmp_path)

    def asked(judge: JudgeSpec, policy: str = "") -> list[str]:
        cache, samples = VerdictCache.of(judge, policy, tmp_path / "v"), [sample("x")]
        cache.serve(samples, ask := Judge(samples))
        cache.close()
        return ask.asked

    here, there = at("http://a:1/v1"), at("http://b:1/v1")
    # A run may go on at another address: whoever moves it knows that the weights are the same.
    # What is kept for good outlives that knowledge: other weights may go by the name elsewhere.
    assert here.identity() == there.identity()
    assert asked(here) == ["q-x-0"] and asked(here) == asked(at("http://a:1/v1/")) == []
    assert asked(there) == ["q-x-0"]
    assert asked(here, "another policy") == ["q-x-0"]


def test_what_a_judges_file_imports_from_its_folder_is_part_of_the_judge(tmp_path: Path) -> None:
    files = {
        "mine.py": "import json, words\nfrom kit.near import near\nimport random\n"
        "def f(sample):\n    import late\n    return 1\n",
        "words.py": "import deep\nGOOD = 1\n",
        "deep.py": "import words\nWORSE = 0\n",
        "late.py": "LATE = 1\n",
        "kit/__init__.py": "",
        "kit/near.py": "from . import far\ndef near(): return 1\n",
        "kit/far.py": "FAR = 1\n",
        "random.py": "raise SystemExit('it shadows nothing')\n",
        "other.py": "",
    }
    (tmp_path / "kit").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    def identity() -> str:
        return resolve_judge("mine.py:f", tmp_path).identity()

    first = identity()
    for name, text in files.items():
        if name not in ("random.py", "other.py"):
            (tmp_path / name).write_text(f"{text}# changed\n")
            assert identity() != first, name
            (tmp_path / name).write_text(text)
    for name in ("random.py", "other.py"):
        (tmp_path / name).write_text("# changed\n")
    (tmp_path / "unused.py").write_text("")
    assert identity() == first


def test_files_of_a_package_are_found_by_its_name() -> None:
    judges = Path(selfkd.judges.__path__[0])
    names = [f.name for f in own_files(judges / "majority.py", "selfkd.judges")]
    assert names == ["choice.py", "majority.py", "number.py"]
    loops = Path(selfkd.loops.__path__[0])
    names = [f.name for f in own_files(loops / "meta_rewarding.py", "selfkd.loops")]
    assert names == ["meta_rewarding.py", "self_rewarding.py"]
