"""Curves over rounds as a PNG or SVG figure of three panels."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfkd.errors import UsageError
from selfkd.ledger import disk_error
from selfkd.terminal import one_line
from selfkd.viewer.lines import Document, lines_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.fontsize": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "selfkd",
}


def save_figure(documents: Sequence[Document], path: Path) -> None:
    """Write reward, pass@k and the shape of the samples over rounds as one .png or .svg figure.

    Runs are told apart by colour, metrics by line style. Raises UsageError for another suffix.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in {"png", "svg"}:
        raise UsageError(
            f"cannot draw a {path.suffix or 'file without suffix'}",
            where=str(path),
            remedy="name a .png or .svg file",
        )
    if not any(document["rounds"] for document in documents):
        raise UsageError(
            "nothing to draw yet: no round has recorded anything", where=str(documents[0]["path"])
        )
    data = _figure(documents, kind)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise disk_error(error, path) from error


def _figure(documents: Sequence[Document], kind: str) -> bytes:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(13.5, 5), layout="constrained")
        reward, solved, shape = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
        for number, document in enumerate(documents):
            _draw_reward(reward, document, _colors(number, len(documents)), len(documents) > 1)
            _draw_pass(solved, document, _colors(number, len(documents))[0], len(documents) > 1)
        twin = _draw_shape(shape, documents)
        reward.set(title="Reward", ylabel="mean reward")
        solved.set(title="Pass@k", ylabel="prompts solved by k samples", ylim=(-0.02, 1.02))
        shape.set(title="Length and diversity", ylabel="tokens a completion")
        for axes in (reward, solved, shape):
            _dress(axes)
        twin.spines["right"].set_visible(True)
        figure.suptitle(_figure_title(documents), x=0.01, ha="left", fontsize=12)
        out = io.BytesIO()
        figure.savefig(
            out, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None
        )
    return out.getvalue()


def _colors(number: int, runs: int) -> tuple[str, str]:
    """Colours of samples and of held-out: two for one run, else one for each run."""
    if runs == 1:
        return ("#4477aa", "#dd7711")
    palette = ("#4477aa", "#cc3311", "#228833", "#aa3377", "#bb8800", "#33aabb", "#666666")
    return (palette[number % len(palette)], palette[number % len(palette)])


def _draw_reward(axes: "Axes", document: Document, colors: tuple[str, str], named: bool) -> None:
    prefix = f"{_plain(document['run'])}: " if named else ""
    for metric, color, dashes in zip(
        ("reward_mean", "heldout_reward"), colors, ("-", "--" if named else "-"), strict=True
    ):
        for line in lines_of([document], [metric]):
            label = f"{prefix}{line.label} ({line.values[-1]:.3f})"
            axes.plot(line.rounds, line.values, dashes, marker="o", color=color, label=label)
    if not named:
        _draw_band(axes, document, colors[0])
    _draw_errors(axes, document, colors[1])


def _draw_band(axes: "Axes", document: Document, color: str) -> None:
    """Quantiles of the rewards, unless those are only right or wrong and fill the whole range."""
    keys = ("reward_p10", "reward_p50", "reward_p90")
    rows = [r for r in document["rounds"] if r.get(keys[0]) is not None]
    if {r[key] for r in rows for key in keys} <= {0.0, 1.0}:
        return
    rounds, low, high = ([r[key] for r in rows] for key in ("round", keys[0], keys[2]))
    axes.fill_between(rounds, low, high, color=color, alpha=0.12, lw=0).set_label(
        "10-90 % of samples"
    )


def _draw_errors(axes: "Axes", document: Document, color: str) -> None:
    rows = [r for r in document["rounds"] if r.get("heldout_stderr") is not None]
    axes.errorbar(
        [r["round"] for r in rows],
        [r["heldout_reward"] for r in rows],
        yerr=[r["heldout_stderr"] for r in rows],
        fmt="none", ecolor=color, elinewidth=1, capsize=2, alpha=0.7,
    )  # fmt: skip


def _draw_pass(axes: "Axes", document: Document, color: str, named: bool) -> None:
    rows = [r for r in document["rounds"] if r.get("pass_at_k")]
    ks = sorted({int(k) for r in rows for k in r["pass_at_k"]})
    shown = [k for k in ks if k in (ks[0], ks[-1])] if named else ks
    for position, k in enumerate(shown):
        points = [(r["round"], r["pass_at_k"][str(k)]) for r in rows if str(k) in r["pass_at_k"]]
        label = f"{_plain(document['run'])}: k={k}" if named else f"k={k}"
        strength = 0.35 + 0.65 * position / max(1, len(shown) - 1)
        axes.plot(*zip(*points, strict=True), marker="o", color=color, alpha=strength, label=label)


def _draw_shape(axes: "Axes", documents: Sequence[Document]) -> "Axes":
    """Lengths on the left axis, shares of distinct text on the right one, which is returned."""
    named = len(documents) > 1
    right = axes.twinx()
    right.set(ylabel="share distinct", ylim=(0, 1.05))
    parts = [
        ("length_mean", axes, "-", "o", "#555555"),
        ("unique", right, "--", "s", "#228833"),
        ("distinct_2", right, ":", "^", "#aa3377"),
    ]
    for number, document in enumerate(documents):
        for metric, side, dashes, mark, color in parts[:2] if named else parts:
            look: Any = {"ls": dashes, "marker": mark, "ms": 5, "color": color}
            if named:
                look["color"] = _colors(number, len(documents))[0]
            for line in lines_of([document], [metric]):
                label = f"{_plain(document['run'])}: {line.label}" if named else line.label
                side.plot(line.rounds, line.values, **look)
                axes.plot([], [], **look, label=label)  # one legend for both axes
    axes.set_ylim(bottom=0)
    return right


def _dress(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("round (0 is the base model)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(-0.02, -0.14), ncols=2)


def _figure_title(documents: Sequence[Document]) -> str:
    if len(documents) > 1:
        return "  ".join(_plain(d["run"]) for d in documents)
    facts = documents[0]
    return _plain(
        f"{facts['run']}: {facts['loop']} on {facts['model']}, judged by {facts['judge']}"
    )


def _plain(text: str) -> str:
    """Text that matplotlib neither reads as mathematics nor hides from a legend."""
    return one_line(text).replace("$", r"\$").lstrip("_") or "run"
