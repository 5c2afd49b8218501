"""Loops of other people's packages, found by the entry points that they install."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfkd.errors import UsageError
from selfkd.launch import resume_run
from selfkd.plugins import find_loop, list_plugins
from tests.fakes import play_script, resumed, scripted_run
from tests.testbed.addition import write_prompts

LOOP = '''
"""Learn from whatever ends."""

from selfkd import SFT, LoopOptions, Run, finished, loop


class TheirOptions(LoopOptions):
    draws: int = 2


@loop("theirs", paper="arXiv:0000.00000")
def play(run: Run, options: TheirOptions) -> None:
    """Learns from whatever ends."""
    for round in run.rounds(options.rounds):
        samples = round.generate(run.prompts, n=options.draws)
        kept = round.keep(round.judge(samples, run.judge), finished())
        round.train(SFT(kept), start="previous")
    run.final_round().generate(run.prompts, n=1)
'''
POINTS = "[selfkd.loops]\ntheirs = their_loops.ours:play\nbroken = their_loops.broken:play\n"


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `pip install` of a package with two loops leaves; one cannot be imported."""
    site = tmp_path / "site"
    for folder in ("their_loops", "their_loops-1.0.dist-info"):
        (site / folder).mkdir(parents=True)
    (site / "their_loops" / "__init__.py").touch()
    (site / "their_loops" / "ours.py").write_text(LOOP)
    (site / "their_loops" / "broken.py").write_text("import no_such_module\n")
    info = site / "their_loops-1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-loops\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(str(site))
    yield
    for name in [n for n in sys.modules if n.partition(".")[0] == "their_loops"]:
        del sys.modules[name]


def test_a_loop_of_another_package_is_listed_unimported_and_found() -> None:
    assert ("theirs", "from their-loops", "their_loops.ours:play") in list_plugins("loop")
    assert "their_loops" not in sys.modules
    found = find_loop("theirs")
    assert (found.name, found.spec, found.paper) == ("theirs", "theirs", "arXiv:0000.00000")
    assert found.doc == "Learns from whatever ends." and found.source.endswith("ours.py")


def test_a_loop_of_another_package_runs_and_resumes_by_its_name(tmp_path: Path) -> None:
    sums = write_prompts(tmp_path / "sums.jsonl", [(1, 2), (3, 4)])
    run = scripted_run(
        tmp_path, sums, lambda policy, text, k: str(k), loop="theirs", rounds=2, draws=3
    )
    play_script(run)
    assert len(run.jobs) == 2
    assert [policy for policy, _ in run.asked] == ["base"] * 6 + ["round-1"] * 6 + ["round-2"] * 2
    assert resume_run(run.ledger.path).loop.identity == run.loop.identity
    again = resumed(run, lambda policy, text, k: "never asked")
    play_script(again)
    assert (again.jobs, again.asked) == ([], [])


def test_mistakes_with_a_loop_of_another_package_are_named(tmp_path: Path) -> None:
    sums = write_prompts(tmp_path / "sums.jsonl", [(1, 2)])
    with pytest.raises(UsageError, match=r"drws.*did you mean.*draws"):
        scripted_run(tmp_path, sums, lambda *asked: "", loop="theirs", drws=3)
    with pytest.raises(UsageError, match=r"unknown loop 'thiers'.*did you mean 'theirs'"):
        find_loop("thiers")
    with pytest.raises(UsageError, match=r"broken: the plug-in cannot be imported.*no_such_module"):
        find_loop("broken")
