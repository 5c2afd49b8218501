"""The documentation says what the code does."""

import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfkd import judgetest
from selfkd.doctor import Check
from selfkd.errors import DataError, InfrastructureError, LockHeld, Stopped, UsageError
from tests.commandline import carried_out
from tests.fakes import play_script, scripted_run
from tests.testbed.addition import write_prompts
from tests.testbed.inprocess import InProcess

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]

Type = Callable[[str], str]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Type:
    """Carries a command line out, here and without a cluster, and returns what it prints."""
    monkeypatch.setattr(judgetest, "Cluster", InProcess)

    def carry_out(command: str) -> str:
        program, *arguments = shlex.split(command)
        assert program == "selfkd"
        said = carried_out(monkeypatch, capfd, *arguments)
        assert not said.code, said.err
        return said.out

    return carry_out


def test_generated_pages_are_up_to_date():
    code = """
import generate
for page, text in generate.pages().items():
    assert text == (generate.FOLDER / page).read_text(), page
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT / "docs", capture_output=True, text=True)
    assert done.returncode == 0, f"run python docs/generate.py\n{done.stderr}"


def test_records_page_lists_every_key_of_a_round_and_every_column(tmp_path):
    from selfkd import records
    from selfkd.metrics import round_rows

    page = (ROOT / "docs" / "records.md").read_text()
    prompts = write_prompts(tmp_path / "sums.jsonl", [(1, 2)])
    run = scripted_run(tmp_path, prompts, lambda *a: "3", rounds=1, samples_per_prompt=2)
    play_script(run)
    row = round_rows(run.ledger.path)[0]
    for key in row:
        assert f"`{key}`" in page or f" {key}" in page, key
    assert [key for key in row["train"] if f'"{key}"' not in page] == []
    for schema in (
        records.PROMPTS,
        records.SAMPLES,
        records.VERDICTS,
        records.DECISIONS,
        records.PAIRS,
        records.EXAMPLES,
    ):
        for name in schema.names:
            assert f"`{name}`" in page, name


COMMANDS = {
    # as the page names it: what is typed, and the keys whose objects are looked into; what there is
    # in a round and in verdicts stands in the tables
    "status RUN": ("status runs/example", ("round", "alarms")),
    "compare A B": ("compare runs/example runs/example", ("heldout", "prompts")),
    "show RUN --round N": ("show runs/example --round 1", ()),
    "ls": ("ls", ()),
    "loops": ("loops", ()),
    "loops NAME": ("loops star", ("options",)),
    "judges": ("judges", ()),
    "judges NAME": ("judges number", ("options",)),
    "judge test JUDGE --samples FILE": (
        "judge test number --samples runs/example --limit 8",
        ("card", "verdicts"),
    ),
    "forecast RUN": ("forecast runs/example", ()),
    "model list": ("model list", ()),
    "doctor": ("doctor", ("checks",)),
    "doctor RUN": ("doctor runs/example", ("problems",)),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_records_page_names_every_key_that_a_command_prints(command, typed, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("selfkd.doctor.checks", lambda: [Check("python", True, "3.13")])
    page = (ROOT / "docs" / "records.md").read_text()
    tables, _, commands = page.partition("## The other commands")
    (said,) = (text for text in commands.split("\n- ") if f"`selfkd {command} --json`" in text)
    if "`curves`" in said:
        said += tables.split("## `selfkd curves")[1].partition("\n|")[0]
    arguments, inside = COMMANDS[command]
    printed = json.loads(typed(f"selfkd {arguments} --json"))
    assert printed and not [key for key in keys(printed) if f"`{key}`" not in said]
    for name in inside:
        text = tables if name in ("round", "verdicts") else said
        assert not [key for key in keys(printed[name]) if f"`{key}`" not in text]


def keys(value: Any) -> set[str]:
    """The keys of an object, or of an array's objects."""
    return {key for row in (value if isinstance(value, list) else [value]) for key in row}


def test_exit_codes_are_documented():
    page = (ROOT / "docs" / "records.md").read_text()
    for error in (UsageError, Stopped, DataError, InfrastructureError, LockHeld):
        assert f"| {error.exit_code} |" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), target
        titles = re.findall(r"^#+ (.+)", file.read_text(), re.MULTILINE) if anchor else []
        names = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
        assert not anchor or anchor in names, f"{target}#{anchor}"


def test_the_readme_shows_the_loop_as_it_is():
    readme = (ROOT / "README.md").read_text()
    shown = re.search(r"```python\n(@loop.*?)```", readme, re.DOTALL)
    assert shown and shown[1] in (ROOT / "loops" / "rest_em.py").read_text()


def readme_judge() -> str:
    readme = (ROOT / "README.md").read_text()
    code = re.search(r"```python\n(# my_judge\.py.*?)```", readme, re.DOTALL)
    assert code and len(code[1].splitlines()) <= 10
    return code[1]


def test_the_readme_sends_whoever_writes_a_judge_to_where_that_is_told():
    readme = (ROOT / "README.md").read_text()
    (target, anchor) = re.findall(r"entry\s+points: \[.*?\]\((.*?)#(.*?)\)", readme)[0]
    page = (ROOT / target).read_text()
    told = page.split(f"## {anchor.replace('-', ' ').capitalize()}\n")[1].split("\n## ")[0]
    assert all(word in told for word in ("Options", "What it needs", "entry-points"))


def test_the_readme_commands_work_as_printed_on_prompts_without_answers(
    tmp_path, tiny_model, typed, monkeypatch
):
    readme = (ROOT / "README.md").read_text()
    shown = re.search(r"```console\n(\$ selfkd judge test.*?)```", readme, re.DOTALL)
    assert shown
    (tmp_path / "loops").symlink_to(ROOT / "loops")
    (tmp_path / "my_judge.py").write_text(readme_judge())
    rows = [{"prompt": f"greet guest {i}", "completion": "Yes, please."} for i in range(12)]
    (tmp_path / "some_samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    prompts = [json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows]
    (tmp_path / "my.jsonl").write_text("".join(prompts))
    monkeypatch.chdir(tmp_path)
    tried, started = shown[1].replace("/path/to/hf-model", str(tiny_model)).splitlines()
    assert "judge my_judge.py:polite: 12 samples, 12 scored" in typed(tried.removeprefix("$ "))
    plan = typed(started.removeprefix("$ ") + " --dry-run")
    assert "judge      my_judge.py:polite; held-out: none" in plan


def test_the_readme_judge_works_as_printed(tmp_path):
    from selfkd.judging import resolve_judge
    from selfkd.records import Prompt, Sample

    (tmp_path / "my_judge.py").write_text(readme_judge())
    judge = resolve_judge("my_judge.py:polite", tmp_path).build()
    prompt = Prompt.of("hello")
    assert judge(Sample("a", prompt, 0, "Yes, please.")) == 1.0
    assert judge(Sample("b", prompt, 0, "Go away.")) == 0.0
    assert judge(Sample("c", prompt, 0, "")) is None


def test_the_judge_of_the_judges_page_works_as_printed(tmp_path):
    from tests.callers import ScriptedCaller, answer, judged

    page = (ROOT / "docs" / "judges.md").read_text()
    code = re.search(r"```python\n(# brevity\.py.*?)```", page, re.DOTALL)
    assert code
    (tmp_path / "brevity.py").write_text(code[1])
    told = {"Hi.": [-0.5, -1.5], "So": [-0.5, None], "a" * 60: [None, -1.0], "?": [None, None]}
    caller = ScriptedCaller(weigh=lambda text, choices: told[text.partition("\n\n")[2]])
    samples = [answer(text) for text in told]
    found = judged(f"{tmp_path}/brevity.py:Brevity", samples, caller)
    assert [v.reward for v in found] == [pytest.approx(1 / (1 + math.exp(-1))), 1.0, 0.0, None]


def test_the_compositions_of_the_judges_page_can_be_built(tmp_path):
    import yaml

    from selfkd.judging import resolve_judge

    page = (ROOT / "docs" / "judges.md").read_text()
    configs = re.findall(r"```yaml\n(judge:.*?)```", page, re.DOTALL)
    specs = [resolve_judge(yaml.safe_load(text)["judge"], tmp_path) for text in configs]
    assert [spec.engine for spec in specs] == ["own", "own"]
    assert [len(spec.identity()) for spec in specs] == [16, 16]


def test_the_snippets_of_the_kernel_page_run_one_after_the_other():
    page = (ROOT / "docs" / "kernel.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(snippets) == 4
    scope: dict[str, object] = {}
    for snippet in snippets:
        exec(snippet, scope)


def test_the_kernel_page_shows_the_arithmetic_that_the_benchmark_prints(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr("sys.argv", ["kernel_gpu.py", "--roofline"])
    import kernel_gpu

    kernel_gpu.main()
    assert capsys.readouterr().out in (ROOT / "docs" / "kernel.md").read_text()
