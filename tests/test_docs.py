"""The documentation says what the code does."""

import re
import subprocess
import sys
from pathlib import Path

from selfkd.errors import DataError, InfrastructureError, LockHeld, Stopped, UsageError
from tests.fakes import play_script, scripted_run
from tests.testbed.addition import write_prompts

ROOT = Path(__file__).parents[1]


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
    for key in round_rows(run.ledger.path)[0]:
        assert f"`{key}`" in page or f" {key}" in page, key
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


def test_exit_codes_are_documented():
    page = (ROOT / "docs" / "records.md").read_text()
    for error in (UsageError, Stopped, DataError, InfrastructureError, LockHeld):
        assert f"| {error.exit_code} |" in page


def test_the_readme_shows_the_loop_as_it_is_and_names_files_that_exist():
    readme = (ROOT / "README.md").read_text()
    shown = re.search(r"```python\n(@loop.*?)```", readme, re.DOTALL)
    assert shown and shown[1] in (ROOT / "loops" / "rest_em.py").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", readme):
        assert (ROOT / target).exists(), target


def test_the_readme_judge_works_as_printed(tmp_path):
    from selfkd.judging import resolve_judge
    from selfkd.records import Prompt, Sample

    readme = (ROOT / "README.md").read_text()
    code = re.search(r"```python\n(# my_judge\.py.*?)```", readme, re.DOTALL)
    assert code and len(code[1].splitlines()) <= 10
    (tmp_path / "my_judge.py").write_text(code[1])
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
    caller = ScriptedCaller(weigh=lambda text, choices: [-len(text), -40.0])
    found = judged(f"{tmp_path}/brevity.py:Brevity", [answer("Hi."), answer("a" * 60)], caller)
    assert [v.reward for v in found] == [1.0, 0.0]


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
