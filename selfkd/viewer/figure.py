"""Curves over rounds as a PNG or SVG figure of three panels."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfkd.errors import UsageError
from selfkd.files import disk_error
from selfkd.terminal import one_line
from selfkd.viewer.lines import TITLES, Document, lines_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#4477aa", "#cc3311", "#228833", "#aa3377", "#bb8800", "#33aabb", "#666666")
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


def save_figure(documents: Sequence[Document], path: Path, metrics: Sequence[str] = ()) -> None:
    """Write reward, pass@k and the shape of the samples over rounds as one .png or .svg figure.

    Where `metrics` are named, those in one panel instead. Runs are told apart by colour, metrics
    by line style. Raises UsageError for another suffix.
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
    data = _figure(documents, kind, metrics)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise disk_error(error, path) from error


def _figure(documents: Sequence[Document], kind: str, metrics: Sequence[str]) -> bytes:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        size = (8.5, 5) if metrics else (13.5, 5)
        figure = Figure(figsize=size, layout="constrained")
        if metrics:
            _draw_metrics(figure, documents, metrics)
        else:
            _draw_panels(figure, documents)
        _name_runs(figure, documents)
        out = io.BytesIO()
        figure.savefig(
            out, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None
        )
    return out.getvalue()


def _draw_panels(figure: "Figure", documents: Sequence[Document]) -> None:
    reward, solved, shape = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    twin = shape.twinx()
    for number, document in enumerate(documents):
        color = PALETTE[number % len(PALETTE)] if len(documents) > 1 else None
        _draw_reward(reward, document, color)
        _draw_pass(solved, document, color)
        _draw_shape(shape, twin, document, color)
    reward.set(title="Reward", ylabel="mean reward")
    low, high = reward.get_ylim()
    reward.set_ylim(min(0.0, low), high)
    solved.set(title="Pass@k", ylabel="prompts solved by k samples", ylim=(-0.02, 1.02))
    shape.set(title="Length and diversity", ylabel="tokens a completion")
    shape.set_ylim(bottom=0)
    twin.set(ylabel="share distinct", ylim=(0, 1.05))
    twin.spines["right"].set_visible(True)
    for axes in (reward, solved, shape):
        _dress(axes, several=len(documents) > 1)


def _draw_metrics(figure: "Figure", documents: Sequence[Document], metrics: Sequence[str]) -> None:
    axes = figure.subplots()
    dashes = ("-", "--", ":", "-.")
    for number, document in enumerate(documents):
        for place, metric in enumerate(metrics):
            color = PALETTE[(number if len(documents) > 1 else place) % len(PALETTE)]
            look: Any = {"ls": dashes[place % len(dashes)], "marker": "o", "color": color}
            for line in lines_of([document], [metric]):
                axes.plot(line.rounds, line.values, label=line.label, **look)
    if len(metrics) == 1:
        axes.set_ylabel(TITLES.get(metrics[0], metrics[0]))
    _dress(axes, several=len(documents) > 1)


def _draw_reward(axes: "Axes", document: Document, color: str | None) -> None:
    samples, heldout = color or "#4477aa", color or "#dd7711"
    for metric, pen, dashes in (
        ("reward_mean", samples, "-"),
        ("heldout_reward", heldout, "--" if color else "-"),
    ):
        for line in lines_of([document], [metric]):
            axes.plot(line.rounds, line.values, dashes, marker="o", color=pen, label=line.label)
    if color is None:
        _draw_band(axes, document, samples)
    rows = [r for r in document["rounds"] if r.get("heldout_stderr") is not None]
    rounds, middle, error = (
        [r[key] for r in rows] for key in ("round", "heldout_reward", "heldout_stderr")
    )
    look: Any = {"fmt": "none", "ecolor": heldout, "elinewidth": 1, "capsize": 2, "alpha": 0.7}
    axes.errorbar(rounds, middle, yerr=error, **look)


def _draw_band(axes: "Axes", document: Document, color: str) -> None:
    """Quantiles of the rewards, unless those are only right or wrong and fill the whole range."""
    keys = ("reward_p10", "reward_p50", "reward_p90")
    rows = [r for r in document["rounds"] if r.get(keys[0]) is not None]
    if {r[key] for r in rows for key in keys} <= {0.0, 1.0}:
        return
    rounds, low, high = ([r[key] for r in rows] for key in ("round", keys[0], keys[2]))
    band = axes.fill_between(rounds, low, high, color=color, alpha=0.12, lw=0)
    band.set_label("10-90 % of samples")


def _draw_pass(axes: "Axes", document: Document, color: str | None) -> None:
    rows = [r for r in document["rounds"] if r.get("pass_at_k")]
    ks = sorted({int(k) for r in rows for k in r["pass_at_k"]})
    shown = [k for k in ks if k in (ks[0], ks[-1])] if color else ks
    for position, k in enumerate(shown):
        points = [(r["round"], r["pass_at_k"][str(k)]) for r in rows if str(k) in r["pass_at_k"]]
        look: Any = {"marker": "o", "color": color or "#4477aa", "label": f"k={k}"}
        look["alpha"] = 0.35 + 0.65 * position / max(1, len(shown) - 1)
        axes.plot(*zip(*points, strict=True), **look)


def _draw_shape(left: "Axes", right: "Axes", document: Document, color: str | None) -> None:
    parts = [
        ("length_mean", left, "-", "o", "#555555"),
        ("unique", right, "--", "s", "#228833"),
        ("distinct_2", right, ":", "^", "#aa3377"),
    ]
    for metric, axes, dashes, mark, own in parts[:2] if color else parts:
        look: Any = {"ls": dashes, "marker": mark, "ms": 5, "color": color or own}
        for line in lines_of([document], [metric]):
            axes.plot(line.rounds, line.values, **look)
            left.plot([], [], **look, label=line.label)  # one legend for both axes


def _dress(axes: "Axes", *, several: bool) -> None:
    """Whole rounds below, light lines across, and a legend of line styles under the panel."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("round (0 is the base model)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        named = dict(zip(labels, handles, strict=True))
        place: Any = {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.14), "ncols": 2}
        legend = axes.legend(named.values(), named.keys(), frameon=False, **place)
        for line in legend.get_lines() if several else ():
            line.set_color("#555555")


def _name_runs(figure: "Figure", documents: Sequence[Document]) -> None:
    """The run in the title, or which colour is which run."""
    from matplotlib.lines import Line2D

    if len(documents) > 1:
        colors = [PALETTE[number % len(PALETTE)] for number in range(len(documents))]
        handles = [Line2D([], [], color=color, lw=3) for color in colors]
        names = [_plain(d["run"]) for d in documents]
        figure.legend(handles, names, loc="outside upper left", ncols=5, frameon=False, fontsize=11)
        return
    facts = documents[0]
    title = f"{facts['run']}: {facts['loop']} on {facts['model']}, judged by {facts['judge']}"
    figure.suptitle(_plain(title), x=0.01, ha="left", fontsize=12)


def _plain(text: str) -> str:
    """Text that matplotlib neither reads as mathematics nor hides from a legend."""
    return one_line(text).replace("$", r"\$").lstrip("_") or "run"
