"""Rules by the names that steps record: `finished | correct | at_most(4)`, `best_worst(0.5)`.

The text is read, never run: only the names below, numbers and bare words.
"""

import ast
import difflib
from collections.abc import Callable
from typing import Any

from selfkd import pairs, rules
from selfkd.errors import UsageError
from selfkd.pairs import PairRule
from selfkd.rules import Rule

KEEP: dict[str, Callable[..., Rule]] = {
    "above": rules.above,
    "at_least": lambda threshold: rules.above(threshold, inclusive=True),
    "at_most": rules.at_most,
    "balanced": rules.balanced,
    "below": rules.below,
    "correct": rules.correct,
    "everything": rules.everything,
    "finished": rules.finished,
    "top": rules.top,
    "unique": rules.unique,
}
PAIR: dict[str, Callable[..., PairRule]] = {
    "all_above": pairs.all_above,
    "best_worst": pairs.best_worst,
    "given_own": pairs.given_own,
    "k_zip": pairs.k_zip,
    "length_controlled": pairs.length_controlled,
    "right_wrong": pairs.right_wrong,
}
COUNTED = ("at_most", "top", "k_zip", "right_wrong")
"""Rules whose number counts something."""
FLAGS = ("truncated", "ties")
"""Options that are recorded by their bare name."""


def parse_rule(text: str) -> Rule | PairRule:
    """The rule of a text. UsageError says what in it is no rule."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _unreadable(text, "it cannot be read") from error
    parts = [_rule(part, text) for part in _alternatives(tree)]
    if len(parts) == 1:
        return parts[0]
    keep = [part for part in parts if isinstance(part, Rule)]
    if len(keep) < len(parts):
        raise _unreadable(text, "a pair rule stands alone")
    found = keep[0]
    for part in keep[1:]:
        found = found | part
    return found


def _alternatives(tree: ast.expr) -> list[ast.expr]:
    """The operands of a chain of `|`, from left to right."""
    found: list[ast.expr] = []
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr):
        found.append(tree.right)
        tree = tree.left
    return [tree, *reversed(found)]


def _rule(tree: ast.expr, text: str) -> Rule | PairRule:
    call = tree if isinstance(tree, ast.Call) else None
    name = call.func if call else tree
    if not isinstance(name, ast.Name):
        raise _unreadable(text, f"{ast.unparse(tree)!r} is no rule")
    known = {**KEEP, **PAIR}
    if name.id not in known:
        close = difflib.get_close_matches(name.id, known, 1)
        guess = f", did you mean {close[0]!r}?" if close else ""
        raise _unreadable(text, f"there is no rule {name.id!r}{guess}")
    values: list[Any] = []
    named: dict[str, Any] = {}
    for argument in call.args if call else []:
        if isinstance(argument, ast.Name) and argument.id in FLAGS:
            named[argument.id] = True
        elif not (isinstance(argument, ast.Name) and argument.id == "all"):
            values.append(_number(argument, text))
    named |= {k.arg: _number(k.value, text) for k in (call.keywords if call else []) if k.arg}
    numbers = [*values, *(v for k, v in named.items() if k not in FLAGS)]
    if name.id in COUNTED and any(type(n) is not int or n < 1 for n in numbers):
        raise _unreadable(text, f"{name.id} takes a whole number of at least 1")
    try:
        return known[name.id](*values, **named)
    except TypeError as error:
        raise _unreadable(text, str(error).rpartition("<lambda>")[2]) from error


def _number(tree: ast.expr, text: str) -> int | float | bool:
    try:
        value = ast.literal_eval(tree)
    except (ValueError, TypeError) as error:
        raise _unreadable(text, f"{ast.unparse(tree)!r} is no number") from error
    if not isinstance(value, int | float):
        raise _unreadable(text, f"{value!r} is no number")
    return value


def _unreadable(text: str, why: str) -> UsageError:
    return UsageError(
        f"the rule {text[:120]!r}: {why}",
        where="--rules",
        remedy=f"write names joined by |: {', '.join(KEEP)}; or one of {', '.join(PAIR)}",
    )
