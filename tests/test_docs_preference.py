"""docs/preference.md: its round runs as printed, and what it names is there."""

import importlib
import re
from pathlib import Path

import selfkd
from selfkd.metrics import round_rows
from tests.fakes import scripted_run
from tests.testbed.addition import write_prompts

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "preference.md").read_text()


def test_the_round_that_is_shown_makes_pairs_and_trains_on_them(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    prompts = write_prompts(tmp_path / "train.jsonl", [(1, 2), (3, 4)])
    heldout = write_prompts(tmp_path / "heldout.jsonl", [(5, 5)])
    source = {"source": str(prompts), "heldout_source": str(heldout), "fresh": False}
    run = scripted_run(tmp_path, prompts, lambda policy, text, k: f"{k}", prompts=source, rounds=2)
    names = {name: getattr(selfkd, name) for name in selfkd.__all__}
    exec(shown, names | {"run": run, "options": run.options})
    run.finish()
    first, second, last = round_rows(run.ledger.path)
    assert [first["samples"], second["samples"], last["heldout_reward"]] == [16, 16, 0.0]
    assert first["pairs"]["pairs"] == second["pairs"]["pairs"] == 8  # four a prompt
    assert [Path(job.start_path).name for job in run.jobs] == ["model", "round-001"]
    assert {job.objective_options["alpha"] for job in run.jobs} == {1.0}


def test_every_name_of_ours_that_the_page_gives_is_there() -> None:
    for name in re.findall(r"`(selfkd(?:\.\w+)+)`", PAGE):
        module, _, last = name.rpartition(".")
        found = importlib.import_module(module)
        assert hasattr(found, last) or importlib.import_module(name), name
    for path in re.findall(r"`((?:loops|judges|tests)/[\w./]+)`", PAGE):
        assert (ROOT / path).exists(), path
    for loop in re.findall(r"`selfkd run (loops/\w+\.yaml)`", PAGE):
        assert (ROOT / loop).exists(), loop


def test_every_rule_and_objective_of_its_tables_is_public() -> None:
    listed = re.findall(r"^\| `(\w+)\(", PAGE, re.MULTILINE)
    assert len(listed) == 8 and {*listed} <= {*selfkd.__all__}
