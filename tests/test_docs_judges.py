"""Every snippet of docs/judges.md that says how to use or write a judge does what it says."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfkd.batches import Copies
from selfkd.cardtext import render_card
from selfkd.cluster import Cluster
from selfkd.controls import ControlOptions
from selfkd.errors import UsageError
from selfkd.judgerun import JudgeRunner
from selfkd.judgetest import spec_of, try_judge
from selfkd.judging import JudgeSpec, resolve_judge
from selfkd.plugins import find_judge, list_plugins
from selfkd.records import Prompt, Sample, Verdict
from selfkd.reportcard import report_card
from selfkd.samplefile import read_samples_file

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "judges.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def judged(spec: JudgeSpec, samples: list[Sample]) -> list[Verdict]:
    """As in a run, but in this process."""
    rows = [r for r in JudgeRunner(spec).rows(Copies.of(samples)) if r]
    return [
        Verdict(samples[i].id, samples[i].prompt.id, spec.name, *said)  # type: ignore[arg-type]
        for i, *said in sorted(rows)
    ]


def sample(completion: str, answer: str | None = None) -> Sample:
    return Sample(completion, Prompt.of("q", answer), 0, completion)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], JudgeSpec]:
    """The judge of a snippet, from the file that it names."""

    def spec(name: str, **options: Any) -> JudgeSpec:
        file = name.partition(":")[0]
        (code,) = [block for block in blocks("python") if block.startswith(f"# {file}\n")]
        (tmp_path / file).write_text(code)
        return resolve_judge({"use": name, **options}, tmp_path)

    return spec


def test_every_judge_is_on_the_page_and_every_link_leads_somewhere() -> None:
    for name, _, source in list_plugins("judge"):
        if Path(source).is_relative_to(ROOT):
            assert re.search(rf"\b{name}\b", PAGE), name
    headings = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        file, _, anchor = target.partition("#")
        assert (ROOT / "docs" / file).exists(), target
        assert file or anchor in anchors, target


def test_judges_in_configs_are_valid(tmp_path: Path) -> None:
    configs = [yaml.safe_load(text) for text in blocks("yaml") if text.startswith("# part of")]
    assert len(configs) == 9
    for config in configs:
        for key in ("judge", "gold_judge"):
            if key in config:
                resolve_judge(config[key], tmp_path).validate()


def test_what_is_said_of_resuming_holds() -> None:
    (config,) = [text for text in blocks("yaml") if "use: teacher" in text]
    options = yaml.safe_load(config)["judge"]
    spec = resolve_judge(options, ROOT)
    changed = {**options, "base_url": "http://other/v1", "budget": {"usd": 10}, "timeout": 9}
    assert resolve_judge(changed, ROOT).identity() == spec.identity()
    assert "selfkd resume RUN judge.budget.usd=10" in PAGE
    with pytest.raises(UsageError, match="TEACHER_KEY is not set"):
        spec.check_ready()


def test_the_first_judge_prints_what_the_page_shows(
    written: Callable[..., JudgeSpec],
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written("short.py:short")
    (command,) = [c for c in blocks("sh") if c.startswith("selfkd judge test")]
    judge, _, file, option = command.split()[3:]
    (lines,) = blocks("json")
    assert all(json.loads(line) for line in lines.splitlines())
    (tmp_path / file).write_text(lines)
    monkeypatch.chdir(tmp_path)
    spec = spec_of(judge, [option])
    controls = ControlOptions.model_validate({"per_round": 4})
    samples = read_samples_file(tmp_path / file)
    trial = try_judge(spec, samples, repeats=2, controls=controls, cluster=cluster)
    assert render_card(report_card(trial), trial, 2) == blocks("text")[0].rstrip("\n")
    with pytest.raises(UsageError, match="limit = 'many'"):
        spec_of(judge, ["limit=many"])


def test_a_judge_that_says_more(written: Callable[..., JudgeSpec]) -> None:
    spec = written("capital.py:capital")
    assert (spec.name, spec.gold, spec.needs_answer) == ("capital", True, True)
    right, wrong, none = judged(spec, [sample(t, "Paris") for t in ("in Paris", "Rome", "no")])
    assert (right.reward, right.answer) == (1.0, "Paris") and wrong.reward == 0
    assert (none.reward, none.status, none.rationale) == (None, "unparsed", "no capitalised word")


def test_a_class_with_options(written: Callable[..., JudgeSpec]) -> None:
    spec = written("wordy.py:Wordy", favourite="thanks", worth=0.5)
    assert [v.reward for v in judged(spec, [sample("thanks, thanks"), sample("please")])] == [1, 0]
    with pytest.raises(UsageError, match=r"option worth = -1: should be greater than 0 .*Reward"):
        written("wordy.py:Wordy", worth=-1).validate()


def test_a_judge_that_needs_a_tool(
    written: Callable[..., JudgeSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="there is no no-such-tool — apt-get install hunspell"):
        written("spelled.py:spelled", command="no-such-tool").check_ready()
    tool = tmp_path / "hunspell"
    tool.write_text("#!/bin/sh\ngrep -o teh; true\n")
    tool.chmod(0o755)
    spec = written("spelled.py:spelled", command=str(tool))
    spec.check_ready()
    assert [v.reward for v in judged(spec, [sample("the cat"), sample("teh cat")])] == [1, 0]


def test_a_package_with_a_judge(tmp_path: Path) -> None:
    (project,) = blocks("toml")
    (code,) = [block for block in blocks("python") if block.startswith("# short.py\n")]
    package = tmp_path / "source" / "my_judges"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "short.py").write_text(code)
    (tmp_path / "source" / "pyproject.toml").write_text(project)
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-build-isolation"]
    command += ["--no-deps", "--target", str(tmp_path / "site"), str(tmp_path / "source")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path / "site"))
        plugin = find_judge("short")
        assert (plugin.name, plugin.doc) == ("short", "1 for at most `limit` words.")
        assert [row for row in list_plugins("judge") if row[0] == "short"]
        spec = JudgeSpec("short", {"limit": 2})
        assert [v.reward for v in judged(spec, [sample("a b"), sample("a b c")])] == [1, 0]
        del sys.modules["my_judges.short"], sys.modules["my_judges"]
