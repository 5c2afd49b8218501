"""Memory that waits for the next call: reused, never shared, never read, given back."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from selfkd.kernels import pages
from selfkd.kernels.pages import KEPT, STEP
from tests.kernels.cases import random_case

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_waits() -> Iterator[None]:
    pages.release()
    yield
    pages.release()


def taken(size: int) -> Tensor:
    return pages.empty((size // 4,), torch.float32, CPU)


def waiting() -> list[int]:
    return [len(block) for block in pages._waiting]


def test_a_freed_block_serves_the_next_tensor_of_about_its_size() -> None:
    first = taken(STEP)
    place = first.data_ptr()
    part = first[10:20]
    del first
    assert waiting() == []  # a view holds it
    del part
    assert waiting() == [STEP]
    again = taken(STEP * 3 // 4)
    assert again.data_ptr() == place and waiting() == []
    other = taken(STEP)
    assert other.data_ptr() != place
    del again, other
    assert waiting() == [STEP, STEP]
    large = taken(3 * STEP)  # nothing fits, and what is much too large is not taken either
    del large
    assert waiting() == [STEP, STEP, 3 * STEP]
    small = taken(STEP)
    assert waiting() == [STEP, 3 * STEP]
    del small


def test_what_waits_is_bounded_and_can_be_given_back() -> None:
    blocks = [taken(KEPT // 4) for _ in range(6)]
    blocks.clear()
    assert sum(waiting()) == KEPT
    huge = taken(KEPT + STEP)
    del huge
    assert sum(waiting()) <= KEPT
    pages.release()
    assert waiting() == []


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_what_an_earlier_call_left_in_memory_is_never_read(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "SMALL", 0)
    case = random_case(tokens=40, hidden=16, vocabulary=301, dtype=torch.bfloat16, bias=False)

    def solve() -> list[Tensor]:
        result, gradients = case.dense(backend=backend, chunk_size=16)
        return [result.loss, result.per_token_N, *gradients]

    first = solve()
    spoilt = [taken(STEP).fill_(math.nan) for _ in range(8)]
    del spoilt
    assert len(waiting()) >= 8
    for one, other in zip(first, solve(), strict=True):
        assert torch.equal(one, other)
