"""A forecast as text for a person: the figures, and what they mean for each kind of method."""

import textwrap
from typing import Any

Row = dict[str, Any]

STARVED = 0.20
"""Coverage below which rejection sampling was seen to gain nothing."""
WIDTH = 96
"""Cells that a sentence is broken at."""
CHANCE = 0.55
"""Area under the ROC curve up to which a judge's choice is taken for chance."""


def render_forecast(row: Row) -> str:
    """Figures, then a sentence for each method."""
    lines = [
        f"round {row['round']}, policy {row['policy']}: {row['prompts']} prompts, "
        f"{row['samples']} samples, {_percent(row['scored_share'])} of them scored"
    ]
    lines += [f"{name:<10} {text}" for name, text in _figures(row)]
    return "\n".join([*lines, "", *map(_sentence, meanings(row))])


def meanings(row: Row) -> list[str]:
    """What each kind of method can gain from such samples, in words."""
    if row["gold"] is None:
        return [
            "nothing says what is right, so no gain can be forecast: name a gold_judge, or have "
            "one look with `selfkd rejudge RUN --judge GOLD`",
            *_vote(row),
        ]
    return [*_rejection(row), *_vote(row), *_pairs(row), *_judge(row), *_privileged(row)]


def _sentence(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="- ", subsequent_indent="  ")


def _figures(row: Row) -> list[tuple[str, str]]:
    found = []
    if row["gold"] is not None:
        found += [
            ("right", f"{_share(row['accuracy'])} of the samples, by {row['gold']}"),
            ("pass@k", "  ".join(f"{k}: {v:.3f}" for k, v in row["pass_at_k"].items())),
            ("coverage", f"{_share(row['coverage'])} of the prompts have a right sample"),
            ("contested", f"{_share(row['contested'])} have right and wrong ones"),
        ]
    if majority := row["majority"]:
        right = f"{_share(majority['accuracy'])} right, " if majority["accuracy"] else ""
        text = f"{right}{majority['share']:.0%} of the votes, {majority['tied']} ties"
        found.append(("majority", text))
    if row["selected"] and row["agreement"]:
        found.append(("selected", f"{_share(row['selected'])} of the judge's favourites are right"))
    if (agreement := row["agreement"]) and agreement["auc"] is not None:
        text = f"AUC {agreement['auc']:.3f} against gold"
        if agreement["pair_accuracy"] is not None:
            text += f", {agreement['pair_accuracy']:.0%} of {agreement['pairs']} pairs in its order"
        found.append(("judge", text))
    if row["kept"]:
        found.append(("kept", f"{row['kept']['kept']} samples by the recorded rule"))
    if row["heldout"] is not None:
        found.append(("held-out", f"{row['heldout']:.3f}, greedy"))
    if teacher := row["teacher"]:
        text = (
            f"{teacher['privileged']:.3f} right with the reference shown, {teacher['plain']:.3f} "
        )
        found.append(("privileged", f"{text}without"))
    return found


def _rejection(row: Row) -> list[str]:
    coverage, accuracy = row["coverage"]["mean"], row["accuracy"]["mean"]
    if coverage < STARVED:
        return [
            f"rejection sampling (rest_em, star, rest) will starve: {coverage:.0%} of the prompts "
            "have a right sample; draw more, show worked examples, or take easier prompts"
        ]
    return [
        f"rejection sampling (rest_em, star, rest) can learn from {coverage:.0%} of the prompts; "
        f"from {accuracy:.2f} right in one try there are {coverage - accuracy:.2f} to gain on these"
    ]


def _vote(row: Row) -> list[str]:
    majority = row["majority"]
    if not majority:
        return ["a vote (lmsi) needs a judge that reads answers, and this one read none"]
    if not majority["accuracy"]:
        return [f"a vote (lmsi) would learn answers with {majority['share']:.0%} of the votes"]
    right = majority["accuracy"]["mean"]
    before = row["heldout"] if row["heldout"] is not None else row["accuracy"]["mean"]
    what = "greedy" if row["heldout"] is not None else "one try"
    mostly = "; most votes are wrong, which rounds of voting make surer" if right < 0.5 else ""
    return [
        f"a vote (lmsi) has its ceiling at {right:.2f}, where {what} stands at {before:.2f}: "
        f"{max(0.0, right - before):.2f} to gain at most{mostly}"
    ]


def _pairs(row: Row) -> list[str]:
    return [
        f"preference pairs by correctness (iterative_rpo) come from {row['contested']['mean']:.0%} "
        "of the prompts"
    ]


def _judge(row: Row) -> list[str]:
    agreement = row["agreement"]
    if not agreement or agreement["auc"] is None:
        return []
    selected, accuracy = row["selected"], row["accuracy"]["mean"]
    if agreement["auc"] <= CHANCE:
        return [
            "the judge ranks right over wrong hardly better than chance "
            f"(AUC {agreement['auc']:.2f}): what is learnt by its choice is noise"
        ]
    if selected is None:
        return []
    return [
        f"choosing by this judge takes {accuracy:.2f} right to {selected['mean']:.2f}: what a "
        "self-judged round (self_rewarding) can pass on"
    ]


def _privileged(row: Row) -> list[str]:
    if not row["teacher"]:
        return []
    gain = row["teacher"]["gain"]
    said = f"shown the reference the policy gains {gain['mean']:+.2f} +- {gain['stderr']:.2f}: "
    if gain["mean"] <= 0:
        return [f"{said}as its own teacher it has nothing to teach"]
    if gain["mean"] <= 2 * gain["stderr"]:
        return [f"{said}too little to tell from noise on so few prompts"]
    return [f"{said}that view has something to distil (star's hints, self-distillation)"]


def _share(share: Row) -> str:
    return f"{share['mean']:.3f} +- {share['stderr']:.3f}"


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.0%}"
