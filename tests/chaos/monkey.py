"""Shoots at runs: starts them, kills one of their processes, resumes them, and looks for losses."""

import os
import random
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.chaos.check import Recorded, lost, recorded, wrong
from tests.chaos.processes import Driver
from tests.chaos.world import World

VICTIMS = ("driver", "sampler", "trainer", "judge", "raylet")
SURVIVED = {"sampler", "judge"}
"""Victims that a run replaces by itself."""
ENDING = 120.0
"""Seconds in which a driver must have noticed that its node is gone."""
LINGER = 90.0
"""Seconds that Ray's own agents may outlive a killed cluster: they report to it in vain."""


@dataclass(frozen=True)
class Kill:
    """SIGKILL for a process of that role: so many events into a start, and once there is one, so
    many seconds later."""

    victim: str
    events: int
    delay: float


def plan(seed: int, kills: int, *, spread: int = 30) -> list[Kill]:
    """Random kills that are the same for the same seed; every role has its turn."""
    rng = random.Random(seed)
    found: list[Kill] = []
    while len(found) < kills:
        for victim in rng.sample(VICTIMS, len(VICTIMS)):
            delay = rng.choice((0.0, rng.uniform(0, 0.3), rng.uniform(0, 3)))
            found.append(Kill(victim, rng.randint(0, spread), round(delay, 3)))
    return found[:kills]


@dataclass
class Hunt:
    """Kills that were made, and what they broke."""

    world: World
    env: dict[str, str] = field(default_factory=dict)
    say: Callable[[str], None] = print
    problems: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """How long drivers went on that could not."""

    def through(self, kills: Sequence[Kill]) -> list[str]:
        """Make every kill, in as many runs as it takes; the problems, in words."""
        pending = deque(enumerate(kills, 1))
        number = 0
        while pending and not self.problems:
            self._run(f"run-{number:02d}", pending)
            number += 1
        return self.problems

    def calm(self) -> list[str]:
        """A run that nobody disturbs."""
        self._run("calm", deque())
        return self.problems

    def _run(self, name: str, pending: deque[tuple[int, Kill]]) -> None:
        path = self.world.folder / "runs" / name
        before: list[Recorded] = []
        ended: list[tuple[Driver, float]] = []
        command = ["run", "run.yaml", "--name", name, *self.world.overrides]
        while True:
            driver = Driver(self.world.folder, *command, env=self.env)
            code = self._shoot(driver, name, pending)
            # The next one starts while what was killed is still on its way out, as people do.
            ended.append((driver, time.monotonic() + (0 if code == 0 else LINGER)))
            if (path / "run.yaml").exists():
                command = ["resume", f"runs/{name}"]
                before.append(recorded(path, self.world))
            if code == 0 or self.problems:
                break
        for driver, until in ended:
            # What reports a killed run to a tracker goes on with the resumed one, and ends with it.
            left = driver.leftovers(max(10.0, until - time.monotonic()))
            self.problems += [f"{name}: left over: {p}" for p in left]
        for moment in before:
            self.problems += [f"{name}: {p}" for p in lost(path, self.world, moment)]
        if code == 0:
            self.problems += [f"{name}: {p}" for p in wrong(path, self.world)]
        self.say(f"{name}: {len(before)} starts, {len(self.problems)} problems")

    def _shoot(self, driver: Driver, name: str, pending: deque[tuple[int, Kill]]) -> int:
        """Kill as planned until the driver ends; its exit code."""
        hit: set[str] = set()
        while pending:
            number, kill = pending[0]
            seen = self._await(driver, kill)
            pid = driver.find(kill.victim)
            if seen is None or pid is None:
                break
            pending.popleft()
            os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            hit.add(kill.victim)
            self.say(f"{number:3}. {name}: {kill.victim} {kill.delay:.2f} s after {seen}")
            if kill.victim not in SURVIVED and kill.victim != "trainer":
                driver.end(ENDING)
                self.seconds.append(time.monotonic() - killed)
                break
        code = driver.end(900)
        self.problems += [f"{name}: {p}" for p in _amiss(driver, code, hit)]
        return code

    def _await(self, driver: Driver, kill: Kill) -> str | None:
        """Wait for the moment of a kill; the last event before it, or None if the driver ended."""
        count, last = 0, "its start"
        while count < kill.events or driver.find(kill.victim) is None:
            for event in driver.events():
                count += 1
                last = " ".join(str(event[k]) for k in ("event", "step", "done") if k in event)
            if driver.code is not None:
                return None
            time.sleep(0.01)
        time.sleep(kill.delay)
        return last


def _amiss(driver: Driver, code: int, hit: set[str]) -> Iterator[str]:
    """What is wrong with how a driver ended, given what was killed of it."""
    fatal = hit - SURVIVED
    allowed = {-signal.SIGKILL} if "driver" in fatal else {0, 5} if fatal else {0}
    if code not in allowed:
        yield f"exit {code} after the death of {sorted(hit) or 'nobody'}: {driver.said()}"
    if code == 5 and "selfkd resume " not in driver.said():
        yield f"no resume line: {driver.said()}"
    if "Traceback" in driver.said():
        yield f"a traceback: {driver.said()}"
