"""The short version of `python -m tests.chaos`: a random kill of each kind, the same every time."""

import pytest

from tests.chaos.monkey import VICTIMS, Hunt, plan
from tests.chaos.world import tiny_world

pytestmark = pytest.mark.lengthy


def test_a_plan_follows_from_its_seed_and_leaves_nobody_out():
    assert plan(7, 30) == plan(7, 30) != plan(8, 30)
    for seed in range(5):
        assert {kill.victim for kill in plan(seed, 5)} == set(VICTIMS)


def test_random_kills_lose_nothing(tmp_path):
    world = tiny_world(tmp_path, prompts=24, heldout=4)
    hunt = Hunt(world)
    assert hunt.through(plan(1, 5, spread=8)) == []
