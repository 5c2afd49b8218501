"""docs/trust.md: every snippet runs, and what it shows of a command is what the command prints."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from selfkd.config import load
from selfkd.controls import KINDS
from selfkd.judging import resolve_judge
from selfkd.records import Prompt, Sample
from selfkd.rulesyntax import KEEP
from tests.commandline import carried_out

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "trust.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def printed(
    command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> str:
    return carried_out(monkeypatch, capfd, *shlex.split(command)[1:]).out


def shown(command: str) -> str:
    """What the page shows of a command's output."""
    (block,) = [b for b in blocks("console") if b.startswith(f"$ {command}\n")]
    return block.partition("\n")[2]


def test_what_a_forecast_prints(monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    command = "selfkd forecast runs/example --round 0"
    assert printed(command, monkeypatch, capfd) == shown(command)


def test_what_a_report_card_prints(tmp_path, monkeypatch, capfd):
    (tmp_path / "runs").mkdir()
    shutil.copytree(ROOT / "runs" / "example", tmp_path / "runs" / "example")
    (tmp_path / "my_judge.py").write_text(blocks("python")[0])
    monkeypatch.chdir(tmp_path)
    command = "selfkd judge test my_judge.py:believer --samples runs/example --show 2"
    assert printed(command, monkeypatch, capfd) == shown(command)


def test_the_paid_judge_is_cacheable(tmp_path):
    (tmp_path / "mine.py").write_text(blocks("python")[1])
    spec = resolve_judge("mine.py:paid", tmp_path)
    assert spec.cacheable
    assert spec.build()(Sample("a", Prompt.of("q"), 0, "short")) == 1.0


def test_the_controls_of_a_config(tmp_path):
    (block,) = blocks("yaml")
    config = yaml.safe_load((ROOT / "loops" / "rest_em.yaml").read_text()) | yaml.safe_load(block)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    controls = load(tmp_path / "run.yaml").config.controls
    assert (controls.per_round, controls.action, controls.margin) == (8, "stop", 0.25)


def test_controls_and_rules_are_all_named():
    for kind in KINDS:
        assert f"`{kind}`" in PAGE, kind
    for name in KEEP:
        assert re.search(rf"`{name}(\(.\))?`", PAGE), name
