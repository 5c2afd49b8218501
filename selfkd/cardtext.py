"""A report card as text for a person."""

from collections.abc import Sequence
from typing import Any

from selfkd.judgetest import Trial
from selfkd.records import Verdict
from selfkd.reportcard import notes
from selfkd.terminal import one_line

Row = dict[str, Any]


def render_card(card: Row, trial: Trial, show: int) -> str:
    """The first `show` verdicts, then the card, then what to mind of it."""
    lines = [_line(v) for v in trial.verdicts[:show]]
    if 0 < show < card["samples"]:
        lines.append(f"... and {card['samples'] - show} more (--json has them all)")
    lines += [""] if lines else []
    lines += [_head(card), *_figures(card), *_controls(card["controls"])]
    minded = notes(card)
    return "\n".join([*lines, *(["mind:"] if minded else []), *(f"  {note}" for note in minded)])


def _line(verdict: Verdict) -> str:
    said = verdict.status if verdict.reward is None else f"{verdict.reward:g}"
    read = f"read {verdict.answer!r}" if verdict.answer is not None else ""
    parts = (verdict.sample_id, said, read, one_line(verdict.rationale))
    return "  ".join(p for p in parts if p)


def _head(card: Row) -> str:
    parts = [f"{card['samples']} samples", f"{card['scored']} scored"]
    parts += [f"{count} {status}" for status, count in sorted(card["unscored"].items())]
    parts += [f"cost ${card['cost_usd']:.4f}"] if card["cost_usd"] else []
    return f"judge {card['judge']}: " + ", ".join(parts)


def _figures(card: Row) -> list[str]:
    rows: list[tuple[str, str]] = []
    if reward := card["reward"]:
        rows.append(
            (
                "reward",
                f"mean {reward['mean']:.3f}, standard deviation {reward['std']:.3f}, "
                f"{reward['min']:g} to {reward['max']:g}",
            )
        )
    rows += _gold(card["gold"]) if card["gold"] else [("gold", "no labels: nothing to agree with")]
    length = card["length"]
    if length["spearman"] is not None:
        text = f"rank correlation with the reward {length['spearman']:+.2f}"
        rows.append(("length", text + _also(length["at_equal_gold"], "; at equal gold {:+.2f}")))
    if (retest := card["retest"]) and retest["changed"] is not None:
        rows.append(
            (
                "again",
                f"judged {retest['times']} times: {retest['changed']:.0%} of the rewards changed, "
                f"standard deviation {retest['std_mean']:.3f}, at most by {retest['largest']:g}",
            )
        )
    if (swap := card["swap"]) and swap["consistent"] is not None:
        text = f"of {swap['pairs']} pairs {swap['consistent']:.0%} keep their order when swapped"
        rows.append(("swap", text))
    for name, row in (card["policies"] or {}).items():
        text = f"{row['samples']} samples, reward {row['reward_mean']:.3f}"
        text += _also(row["gold_mean"], ", gold {:.3f}") + _also(row["excess"], ", excess {:+.3f}")
        rows.append(("policy", f"{one_line(name)}: {text}"))
    return [f"{name:<10} {text}" for name, text in rows]


def _gold(gold: Row) -> list[tuple[str, str]]:
    rows = [("gold", f"{gold['labels']} labels, mean {gold['mean']:.3f}")]
    if "threshold" in gold:
        text = f"{gold['accuracy']:.3f}{_within(gold['accuracy_interval'])}"
        text += f" at reward >= {gold['threshold']:g}"
        text += f"; at best {gold['best_accuracy']:.3f} at >= {gold['best_threshold']:g}"
        rows += [("accuracy", text)]
        if gold["auc"] is not None:
            rows.append(("AUC", f"{gold['auc']:.3f}{_within(gold['auc_interval'])}"))
        if gold["kappa"] is not None:
            rows.append(("kappa", f"{gold['kappa']:.3f}"))
        if gold["brier"] is not None:
            text = f"error {gold['calibration_error']:.3f}, Brier score {gold['brier']:.3f}"
            rows.append(("calibrated", text))
    elif gold["spearman"] is not None:
        rows.append(("order", f"rank correlation with gold {gold['spearman']:+.3f}"))
    if gold["pairs"]:
        text = f"of {gold['pairs']} pairs of one prompt {gold['pairwise']:.1%} in gold's order"
        rows.append(("pairs", text))
    return rows


def _controls(controls: dict[str, Row]) -> list[str]:
    lines = []
    for kind, row in controls.items():
        mean = "no reward" if row["reward_mean"] is None else f"mean {row['reward_mean']:.3f}"
        fate = f"{row['failed']} of {row['count']} fail" if row["count"] else ""
        mark = "  <- fails" if row["fails"] else ""
        lines.append(f"  {kind:<11} {mean:<12} {fate}{mark}".rstrip())
    return ["controls", *lines] if lines else []


def _within(interval: Sequence[float] | None) -> str:
    return f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""


def _also(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
