"""Judgements that the policy wrote itself, as samples: read again, and compared.

A judgement is a sample whose prompt shows another sample; the id of that prompt is the id of the
sample judged. A run records those of its judge (`Scored.judgements`), so they may be trained on,
and judged in turn (Meta-Rewarding).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from selfkd.contests import elo
from selfkd.errors import UsageError
from selfkd.judgeprompts import Truncated, fenced, last, readable, score_reader, shown
from selfkd.judging import JudgeSpec
from selfkd.records import Prompt, Sample, Verdict, content_hash
from selfkd.views import placeholders

LIMIT = 4000
"""Characters of a text that are shown where judgements are compared."""

Reader = Callable[[Sample], float | None]
"""The score that a judgement gives, or None where there is none to be read."""


def reader(judge: JudgeSpec) -> Reader:
    """Reads scores as the judge itself reads them; UsageError where it writes none."""
    options = judge.validate()
    pattern, highest = (getattr(options, name, None) for name in ("score_pattern", "highest"))
    if pattern is None or highest is None or not judge.writes:
        raise UsageError(
            f"judge {judge.name!r} writes no judgements that a policy could learn from",
            where="judge",
            remedy="write judge: self_reward, which does",
        )
    truncated: Truncated = getattr(options, "truncated", "out")
    read = score_reader(pattern, highest)
    return lambda j: read(j.completion) if readable(j.finish, truncated) else None


def ask_which(pairs: Sequence[tuple[Sample, Sample, Sample]], versus: str) -> list[Prompt]:
    """For each (sample, judgement A, judgement B) a prompt that asks which of the two is better.

    `versus` shows {question}, {response}, {first} and {second}, between marks that name {mark}.
    """
    names = {"question", "response", "first", "second"}
    if missing := names - placeholders(versus):
        raise UsageError(
            f"the comparison shows nothing of {', '.join(sorted(missing))}",
            where="versus",
            remedy=f"write {{{min(missing)}}} where it goes",
        )
    return [_which(sample, first, second, versus) for sample, first, second in pairs]


def _which(sample: Sample, first: Sample, second: Sample, versus: str) -> Prompt:
    texts = {
        "question": sample.prompt.text,
        "response": sample.completion,
        "first": first.completion,
        "second": second.completion,
    }
    message = fenced(versus, {name: shown(text, LIMIT) for name, text in texts.items()})
    # The id says who is compared; what is shown of them tells one step of comparisons from another.
    told = {"text": content_hash(message)}
    return Prompt(f"{first.id}|{second.id}", (message,), columns=told)


def winners_of(comparisons: Iterable[Sample], pattern: str) -> dict[str, str | None]:
    """Comparison's prompt id -> A or B, the first group of its last line that `pattern` matches.

    None where that is something else, or the comparison was cut off.
    """
    compiled = re.compile(pattern)
    said = {
        c.prompt.id: last(compiled, c.completion) if readable(c.finish, "out") else None
        for c in comparisons
    }
    return {id: winner if winner in ("A", "B") else None for id, winner in said.items()}


def agreement(
    judgements: Iterable[Sample],
    read: Reader,
    truth: Mapping[str, Verdict],
    pass_score: float,
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Judgement's id -> 1 if its score and the truth agree, else 0; and the score as it was read.

    `truth` holds a verdict for each judged sample, right from reward 1; a score from `pass_score`
    says that it is right.
    """
    found = {j.id: (j.prompt.id, score) for j in judgements if (score := read(j)) is not None}
    agrees: dict[str, float | None] = {
        id: float((score >= pass_score) == ((truth[judged].reward or 0) >= 1))
        for id, (judged, score) in found.items()
        if judged in truth  # a second try is asked in other words, and not learnt from
    }
    return agrees, {id: f"{score:g}" for id, (_, score) in found.items()}


def contested(
    samples: Iterable[Sample],
    judgements: Iterable[Sample],
    read: Reader,
    count: int,
) -> list[tuple[Sample, list[Sample]]]:
    """Of each prompt the sample whose scores vary most, with `count` judgements of it at most."""
    drawn: dict[str, list[tuple[float, Sample]]] = {}
    for judgement in judgements:
        if (score := read(judgement)) is not None:
            drawn.setdefault(judgement.prompt.id, []).append((score, judgement))
    best: dict[str, tuple[float, Sample]] = {}
    for sample in samples:
        spread = float(np.var([score for score, _ in drawn.get(sample.id, [])] or [0.0]))
        if spread > best.get(sample.prompt.id, (0.0, sample))[0]:
            best[sample.prompt.id] = (spread, sample)
    return [(s, [j for _, j in drawn[s.id]][:count]) for _, s in best.values()]


def strengths(
    contests: Iterable[tuple[Sample, list[Sample]]], winners: Mapping[str, str | None]
) -> dict[str, float | None]:
    """Judgement's id -> its strength, from who won when both orders were asked (`ask_which`).

    A win in a position counts for as much as the other position wins overall, so that a
    meta-judge which prefers a position does not decide by it.
    """
    sides = [w for w in winners.values() if w]
    first = sides.count("A") / len(sides) if sides else 0.5
    weight = {"A": 1 - first, "B": first}
    found: dict[str, float | None] = {}
    for _, judgements in contests:
        wins = np.zeros((len(judgements), len(judgements)))
        for i, one in enumerate(judgements):
            for j, other in enumerate(judgements):
                winner = winners.get(f"{one.id}|{other.id}")
                if i != j and winner:
                    wins[(i, j) if winner == "A" else (j, i)] += weight[winner]
        if wins.any():
            values = elo(wins).tolist()
            found |= {judgement.id: v for judgement, v in zip(judgements, values, strict=True)}
    return found
