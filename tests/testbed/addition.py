"""Addition as text, answered directly (`D`) or with a digit-by-digit scratchpad (`R`).

`27+85=` is answered `112.` in style D and `7+5=12,2+8+1=11;112.` in style R.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

Sum = tuple[int, int]


def prompt(a: int, b: int) -> str:
    """The question."""
    return f"{a}+{b}="


def hinted(a: int, b: int) -> str:
    """The question with its answer given away, as STaR's second try shows it."""
    return f"{a}+{b}=[{a + b}]"


def direct(a: int, b: int) -> str:
    """Style D."""
    return f"{a + b}"


def scratchpad(a: int, b: int) -> str:
    """Style R: digit sums from the right with their carry, then the answer."""
    steps, carry = [], 0
    x, y = str(a)[::-1], str(b)[::-1]
    for i in range(max(len(x), len(y))):
        terms = [t[i] for t in (x, y) if i < len(t)] + (["1"] if carry else [])
        total = sum(map(int, terms))
        carry = total // 10
        steps.append("+".join(terms) + f"={total}")
    return ",".join(steps) + f";{a + b}"


def draw(count: int, rng: np.random.Generator, digits: Sequence[int], avoid: set[Sum]) -> list[Sum]:
    """`count` different sums whose terms have one of the given numbers of digits."""
    found: dict[Sum, None] = {}
    while len(found) < count:
        size = int(rng.choice(list(digits)))
        low, high = (0 if size == 1 else 10 ** (size - 1)), 10**size
        pair = (int(rng.integers(low, high)), int(rng.integers(low, high)))
        if pair not in avoid:
            found[pair] = None
    return list(found)


def write_prompts(path: Path, sums: Sequence[Sum]) -> Path:
    """Sums as a JSONL prompt file; `worked` is the answer in style R."""
    rows = (
        {
            "prompt": prompt(a, b),
            "answer": str(a + b),
            "digits": len(str(a)),
            "worked": scratchpad(a, b),
        }
        for a, b in sums
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
