"""New prompts that the policy makes up from examples, kept where they are new (Self-Instruct).

Wang et al. 2023, arXiv:2212.10560, section 2.2, as Self-Rewarding uses it.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from selfkd.records import Prompt, content_hash
from selfkd.rules import Candidates, Reasons, Rule, finished

if TYPE_CHECKING:
    from selfkd.round import Round

NOT_TEXT = re.compile(r"\b(images?|graphs?|pictures?|files?|plots?|maps?|draw|go to)\b", re.I)
"""What a language model cannot do or see."""


def rouge_l(one: str, other: str) -> float:
    """F1 of the longest common subsequence of words, case and punctuation aside; 0 to 1."""
    a, b = (re.findall(r"\w+|[+*/=-]", text.lower()) for text in (one, other))
    if not a or not b:
        return 0.0
    row = [0] * (len(b) + 1)
    for word in a:
        previous = 0
        for j, candidate in enumerate(b, 1):
            above = row[j]
            row[j] = previous + 1 if word == candidate else max(row[j], row[j - 1])
            previous = above
    return 2 * row[-1] / (len(a) + len(b))


def self_instruct(round: "Round", made: list[Prompt], count: int, limit: float) -> list[Prompt]:
    """The prompts of a round: new ones, which are also added to `made`, or the config's own.

    With `count` the round's policy is asked that often for one more task like the config's and
    those made before; what resembles one of these is dropped (ROUGE-L from `limit`). With 0 the
    config's prompts are taken as they are. It may be that no prompt is new.
    """
    prompts = round.run.prompts.train(round.number)
    if not count:
        return prompts
    seeds, old = [p.text for p in prompts], [p.text for p in made]
    asked = creation_prompts(seeds, old, count, round.rng)
    drawn = round.generate(asked, n=1, label="instructions")
    kept = round.keep(drawn, finished() | novel([*seeds, *old], limit))
    made += [Prompt.of(instruction(sample.completion)) for sample, _ in kept]
    return made[len(old) :]


def creation_prompts(
    seeds: Sequence[str], made: Sequence[str], count: int, rng: np.random.Generator
) -> list[Prompt]:
    """`count` prompts that each show 6 seed tasks and 2 made ones, shuffled, and ask for the next.

    While fewer than 2 are made, seeds take their place.
    """
    return [_creation(seeds, made, rng, i) for i in range(count)]


def _creation(
    seeds: Sequence[str], made: Sequence[str], rng: np.random.Generator, number: int
) -> Prompt:
    shown = [*_some(seeds, 8 - min(2, len(made)), rng), *_some(made, 2, rng)]
    shown = [shown[i] for i in rng.permutation(len(shown))]
    lines = [f"{i}. {' '.join(text.split())}" for i, text in enumerate(shown, 1)]
    text = "\n".join(["Come up with one more task of this kind.", "", *lines, ""])
    text += f"\nWrite task {len(shown) + 1} in one line, and nothing else."
    # What is shown is part of the id: two steps of as many prompts are not the same step.
    id = f"create-{number}-{content_hash(text, 8)}"
    return Prompt(id, ({"role": "user", "content": text},))


def _some(texts: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    return [texts[int(i)] for i in rng.permutation(len(texts))[:count]]


def instruction(completion: str) -> str:
    """The first line of a completion without its number, if any."""
    lines = [line.strip() for line in completion.strip().splitlines() if line.strip()]
    return re.sub(r"^(?:task\s*)?\d+[.):]\s+", "", lines[0], flags=re.I) if lines else ""


def novel(pool: Sequence[str], limit: float = 0.7, *, words: tuple[int, int] = (3, 150)) -> Rule:
    """Instructions that are like none of `pool`, nor like one kept before: ROUGE-L below `limit`.

    Also drops what is too short, too long, or asks for what text cannot do.
    """

    def drop(c: Candidates, alive: list[int], rng: np.random.Generator) -> Reasons:
        known = list(pool)
        reasons = {}
        for i in alive:
            text = instruction(c.completions[i])
            if not words[0] <= len(text.split()) <= words[1]:
                reasons[i] = "too short or too long"
            elif NOT_TEXT.search(text):
                reasons[i] = "not a task for text"
            elif any(rouge_l(text, other) >= limit for other in known):
                reasons[i] = "like one before"
            else:
                known.append(text)
        return reasons

    return Rule(f"novel({limit:g}, {words[0]}-{words[1]} words)", drop)
