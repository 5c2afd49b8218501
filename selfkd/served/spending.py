"""What was asked of a server and what it cost: a record that outlives a process, and a budget.

Every answer is appended to a file at once. So a run that stops, for lack of money or otherwise,
never pays again for an answer that it had; and the budget counts what all judge processes of a run
spent, in all its sessions.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfkd.served.options import Budget


@dataclass(frozen=True, slots=True)
class Amount:
    """Requests, tokens read and written, US dollars."""

    calls: int = 0
    tokens: int = 0
    usd: float = 0.0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.calls + other.calls, self.tokens + other.tokens, self.usd + other.usd)

    def __sub__(self, other: "Amount") -> "Amount":
        return Amount(self.calls - other.calls, self.tokens - other.tokens, self.usd - other.usd)

    def beyond(self, budget: Budget) -> str:
        """Which limit this is beyond (`usd`, `tokens`, `calls`), or nothing."""
        limits = {name: getattr(budget, name) for name in ("calls", "tokens", "usd")}
        over = (n for n, most in limits.items() if most is not None and getattr(self, n) > most)
        return next(over, "")


class Spending:
    """The record of one judge's requests."""

    def __init__(self, file: Path | None) -> None:
        """`file` is made when it is needed; None: the record ends with this object."""
        self.spent = Amount()
        self._file = file
        self._offset = 0
        self._places: dict[str, int] = {}
        self._out: int | None = None
        self.catch_up(first=True)

    def known(self, key: str) -> Any:
        """The answer to this request from an earlier session, or None."""
        place = self._places.get(key)
        if place is None or self._file is None:
            return None
        with self._file.open("rb") as lines:
            lines.seek(place)
            return json.loads(lines.readline())["answer"]

    def add(self, key: str, answer: Any, amount: Amount) -> None:
        """Record an answer, or None for a request that was answered with nothing of use."""
        if self._file is None:
            self.spent += amount
            return
        row = {"key": key, "tokens": amount.tokens, "usd": amount.usd, "answer": answer}
        os.write(self._opened(self._file), json.dumps(row).encode() + b"\n")
        self.catch_up()

    def catch_up(self, *, first: bool = False) -> None:
        """Count what was recorded since, by whichever process."""
        for place, row in self._rows() if self._file and self._file.exists() else ():
            self.spent += Amount(1, int(row["tokens"]), float(row["usd"]))
            if first and row["answer"] is not None:
                self._places[row["key"]] = place

    def close(self) -> None:
        """Close the file."""
        if self._out is not None:
            os.close(self._out)
        self._out = None

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Offset and content of each row that was not read yet."""
        assert self._file
        with self._file.open("rb") as lines:
            lines.seek(self._offset)
            for line in lines:
                if not line.endswith(b"\n"):
                    return  # still being written, or torn by the end of a process
                place, self._offset = self._offset, self._offset + len(line)
                with contextlib.suppress(ValueError):
                    yield place, json.loads(line)

    def _opened(self, file: Path) -> int:
        if self._out is None:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._out = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            if os.fstat(self._out).st_size:
                # Ends a line that an earlier process left torn; an empty line is none.
                os.write(self._out, b"\n")
        return self._out


class Purse:
    """A budget, and what may be spent of it by requests under way."""

    def __init__(self, budget: Budget, spending: Spending) -> None:
        self._budget = budget
        self._spending = spending
        self._reserved = Amount()

    def reserve(self, most: Amount) -> str:
        """Set aside what a request may cost; the limit that forbids it, or nothing."""
        self._spending.catch_up()
        over = (self._spending.spent + self._reserved + most).beyond(self._budget)
        if not over:
            self._reserved += most
        return over

    def release(self, most: Amount) -> None:
        """The request is over: what it did cost is in the record."""
        self._reserved -= most

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return self._reserved.calls == 0

    def said(self, limit: str, more: Amount) -> str:
        """How much of a limit is used, and how much `more` may take, in words."""
        spent, most = getattr(self._spending.spent, limit), getattr(self._budget, limit)
        next_one = f", and one more request may take {getattr(more, limit):.4g}"
        if limit == "usd":
            return f"{spent:.4g} of {most:g} usd{next_one}"
        return f"{spent} of {most} {limit}{next_one if limit == 'tokens' else ''}"
