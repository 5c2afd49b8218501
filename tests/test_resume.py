"""A run that is killed in each of its verbs, or asked to stop, loses nothing that was recorded.

Real drivers, a real engine and trainer on the character model, through the command line; the judge
and the loop are a user's own files, found from another working directory. The drivers join one Ray
cluster that outlives them: whatever works for a driver has to end with it. `tests/chaos` has
clusters of their own.
"""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.check import Recorded, lost, recorded, rows, snapshot, wrong
from tests.chaos.processes import Driver, WarmRay, gone
from tests.chaos.world import World, tiny_world

pytestmark = pytest.mark.lengthy


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A user's folder: config, prompts, judge, loop and a model."""
    return tiny_world(tmp_path_factory.mktemp("project"), prompts=48)


Moment = Callable[[Path], bool]
"""Whether a run directory has got that far."""


def made(pattern: str) -> Moment:
    return lambda run: any(run.glob(f"rounds/{pattern}"))


def trained_a_step(run: Path) -> bool:
    return any("loss" in p.read_text() for p in run.glob("rounds/000/*-train/log.jsonl"))


def saving(run: Path) -> bool:
    return any(run.glob("policies/.tmp-round-2/*"))


ENDS: list[tuple[str, Moment, tuple[signal.Signals, ...], int]] = [
    # while, until, signals, exit code
    ("starting", made("000"), (signal.SIGTERM,), 3),
    ("evaluating the base", made("000/*-judge-heldout/step.json"), (signal.SIGKILL,), -9),
    ("generating", made("000/*-generate/00001.parquet"), (signal.SIGKILL,), -9),
    ("judging", made("000/*-judge/00003.parquet"), (signal.SIGKILL,), -9),
    ("keeping", made("000/*-keep/step.json"), (signal.SIGKILL,), -9),
    ("training", trained_a_step, (signal.SIGKILL,), -9),
    ("evaluating", made("001/*-generate-heldout/00000.parquet"), (signal.SIGKILL,), -9),
    ("generating again", made("001/*-generate/00001.parquet"), (signal.SIGINT,), 3),
    ("saving a policy", saving, (signal.SIGKILL,), -9),
    ("sampling at last", made("002/*-generate/00000.parquet"), (signal.SIGINT,) * 2, 3),
    ("starting again", made("002"), (signal.SIGHUP,), 3),
]


@pytest.fixture(scope="module")
def finished(
    warm_ray: WarmRay, world: World, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, list[tuple[str, Recorded]]]]:
    """A run that was ended in each of those ways and resumed, and what it held after each."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    run = elsewhere / "runs" / "killed"
    states: list[tuple[str, Recorded]] = []
    # What reports to a tracker beside a run is killed with it in tests/chaos.
    settings = [*world.overrides, "report_to=[]"]
    arguments = ["run", str(world.folder / "run.yaml"), "--name", "killed", *settings]
    for moment, reached, signals, code in ENDS:
        driver = Driver(elsewhere, *arguments, f"cluster={warm_ray.address}")
        driver.wait_for(lambda: bool(driver.events()))  # noqa: B023
        driver.wait_for(lambda: reached(run))  # noqa: B023
        os.kill(driver.pid, signals[0])
        for number in signals[1:]:
            driver.wait_for(lambda: "once more stops at once" in driver.said())  # noqa: B023
            os.kill(driver.pid, number)
        assert driver.end(60) == code, f"{moment}: {driver.said()}"
        if code == 3:
            last = "stopped at once" if len(signals) > 1 else "selfkd resume runs/killed"
            assert last in driver.said() and "Traceback" not in driver.said()
        assert gone(warm_ray.actors) == [], f"left over after an end while {moment}"
        states.append((moment, recorded(run, world)))
        arguments = ["resume", "runs/killed"]
    driver = Driver(elsewhere, *arguments, f"cluster={warm_ray.address}")
    assert driver.end() == 0, driver.said()
    yield run, states
    assert gone(warm_ray.actors) == []


def test_ends_in_every_verb_lose_nothing(finished, world):
    run, states = finished
    for moment, before in states:
        assert list(lost(run, world, before)) == [], f"ended while {moment}"
    assert list(wrong(run, world)) == []


def test_a_takeover_is_told(finished):
    text = (finished[0].parents[1] / "out.txt").read_text()
    kills = sum(code == -signal.SIGKILL for *_, code in ENDS)
    # Nobody released the lock either where the second signal ended the process at once.
    assert text.count("ended without finishing this run; going on") == kills + 1


def test_a_changed_config_is_refused_with_the_difference(finished, world):
    run, _ = finished
    elsewhere = run.parents[1]
    before = snapshot(run)
    config = str(world.folder / "run.yaml")
    again = Driver(elsewhere, "run", config, "--name", "killed", "--resume", *world.overrides,
                   "report_to=[]", "samples_per_prompt=4")  # fmt: skip
    assert again.end() == 2
    assert "samples_per_prompt: 8 -> 4" in again.said() and "selfkd fork" in again.said()
    taken = Driver(elsewhere, "run", config, "--name", "killed")
    assert taken.end() == 2 and "--resume" in taken.said()
    assert snapshot(run) == before


def test_a_fork_takes_the_change_and_shares_what_came_before(finished, warm_ray, world):
    run, _ = finished
    before = snapshot(run)
    driver = Driver(run.parents[1], "fork", "runs/killed", "--round", "1", "rounds=1",
                    "samples_per_prompt=4", "--name", "two", "cluster=auto",
                    env={"RAY_ADDRESS": warm_ray.address})  # fmt: skip
    assert driver.end() == 0, driver.said()
    forked = snapshot(run.parent / "two")
    assert {k: v for k, v in before.items() if k.startswith("rounds/000")}.items() <= forked.items()
    assert len(rows(run.parent / "two", "001/*-generate", ["id"])) == world.prompts * 4
