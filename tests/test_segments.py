"""Where a round's training is cut: no segment is longer than it may be, and none loses a prompt."""

import itertools
import math
from pathlib import Path

import pytest

from selfkd.config import load
from selfkd.errors import UsageError
from selfkd.records import Prompt
from selfkd.segments import cut
from selfkd.training.base import TrainOptions

LOOPS = Path(__file__).parents[1] / "loops"
PROMPTS = [Prompt.of(str(i)) for i in range(67)]


@pytest.mark.parametrize("epochs", [0.3, 0.5, 1, 1.5, 2, 2.2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 16, 100])
def test_no_segment_has_more_steps_than_steps_per_sync(epochs, batch_size) -> None:
    for n, most in itertools.product((1, 2, 3, 4, 7), (1, 2, 3, 4, 8, 187)):
        alone = math.ceil(epochs * math.ceil(n / batch_size))
        settings = {"n": n, "batch_size": batch_size, "epochs": epochs, "steps_per_sync": most}
        if alone > most:
            with pytest.raises(UsageError, match=f"take {alone} steps"):
                list(cut(PROMPTS, **settings))
            continue
        parts = list(cut(PROMPTS, **settings))
        assert [p for part, _ in parts for p in part] == PROMPTS
        for part, steps in parts:
            assert 1 <= steps <= most
            assert steps == math.ceil(epochs * math.ceil(len(part) * n / batch_size))
        # As long as it may be: with one more prompt the first would not be allowed.
        longer = math.ceil(epochs * math.ceil((len(parts[0][0]) + 1) * n / batch_size))
        assert len(parts) == 1 or longer > most


def test_without_syncs_there_is_one_segment() -> None:
    settings = {"n": 3, "batch_size": 16, "epochs": 2, "steps_per_sync": None}
    assert list(cut(PROMPTS, **settings)) == [(tuple(PROMPTS), 26)]
    assert list(cut([], **settings)) == []


def test_a_bound_that_cannot_hold_names_what_would_do() -> None:
    with pytest.raises(UsageError) as told:
        list(cut(PROMPTS, n=1, batch_size=16, epochs=2, steps_per_sync=1))
    assert "steps_per_sync is 1, and with train.epochs 2" in str(told.value)
    assert told.value.remedy == "set it to 2 or more, or lower train.epochs"


@pytest.mark.parametrize("file", sorted(LOOPS.glob("*.yaml")), ids=lambda f: f.stem)
def test_what_ships_can_be_cut(file) -> None:
    """A loop's config as it is, and its defaults with the trainer's defaults."""
    resolved = load(file)
    defaults = type(resolved.options).model_construct()
    for options, train in (
        (resolved.options, resolved.config.train),
        (defaults, TrainOptions.model_validate({})),
    ):
        given = options.model_dump()
        if "steps_per_sync" in given:
            n, most = given["samples_per_prompt"], given["steps_per_sync"]
            settings = {"batch_size": train.batch_size, "epochs": train.epochs}
            assert list(cut(PROMPTS, n=n, steps_per_sync=most, **settings))
