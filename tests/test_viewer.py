"""What a run looks like from outside: curves, figures, samples and listings."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from selfkd.errors import DataError, InfrastructureError, UsageError
from selfkd.metrics import curves_document
from selfkd.viewer.listing import list_runs, render_runs
from selfkd.viewer.plots import save_figure, terminal_curves
from selfkd.viewer.show import render_samples, show_samples
from tests.synthetic import (
    generate,
    judge,
    keep,
    make_samples,
    measure,
    new_run,
    prompts,
    write_metrics,
)


def document(name: str, rewards: list[float | None], **others: Any) -> dict[str, Any]:
    rounds = [{"round": i, "reward_mean": r, "heldout_reward": None} for i, r in enumerate(rewards)]
    return {"run": name, "path": name, "rounds": rounds} | others


# -- curves ---------------------------------------------------------------------------------------


def test_curves_have_axes_whole_rounds_and_a_mark_for_each_metric():
    one = document("em", [0.104, 0.182, 0.49])
    one["rounds"][0]["heldout_reward"], one["rounds"][2]["heldout_reward"] = 0.24, 0.53
    text = terminal_curves([one], width=60, color=False, unicode=True)
    lines = text.splitlines()
    assert "\x1b" not in text and max(map(len, lines)) <= 60
    assert re.fullmatch(r" +0 +1 +2 +", next(x for x in lines if re.match(r" +0 +1", x)))
    assert [re.match(r" *([\d.]+)┤", x)[1] for x in lines if "┤" in x][::6] == ["0.6", "0"]  # type: ignore[index]
    assert sum(line.count("●") for line in lines[:-2]) == 3
    assert sum(line.count("◆") for line in lines[:-2]) == 2  # null is left out
    assert lines[-2:] == [
        "  ● reward of samples  0.104 → 0.490",
        "  ◆ held-out reward  0.240 → 0.530",
    ]


def test_curves_rise_where_the_reward_does():
    text = terminal_curves([document("em", [0.1, 0.5, 0.9])], width=50, color=False, unicode=True)
    places = [(line.index("●"), -y) for y, line in enumerate(text.splitlines()[:-1]) if "●" in line]
    assert len(places) == 3 and sorted(places) == sorted(places, key=lambda p: p[1])


def test_curves_of_several_runs_are_named():
    runs = [document("em-001", [0.1, 0.5]), document("raw-001", [0.1, 0.1])]
    legend = terminal_curves(runs, width=60, color=False, unicode=True).splitlines()[-2:]
    assert legend == [
        "  ● em-001: reward of samples  0.100 → 0.500",
        "  ◆ raw-001: reward of samples  0.100 → 0.100",
    ]


@pytest.mark.parametrize("rewards", [[0.3], [0.0, 0.0], [-2.0, 5.5], [1e-7, 2e-7], [3.0, None]])
def test_curves_of_little_or_odd_data_show_every_value(rewards):
    text = terminal_curves([document("em", rewards)], width=40, color=False, unicode=True)
    shown = sum(line.count("●") for line in text.splitlines()[:-1])
    assert shown == sum(r is not None for r in rewards)


def test_curves_without_unicode_are_ascii():
    text = terminal_curves([document("em", [0.1, 0.5])], width=50, color=False, unicode=False)
    assert text.isascii() and "0.100 -> 0.500" in text and "+--" in text


def test_colour_only_when_asked():
    assert "\x1b[" in terminal_curves([document("em", [0.1, 0.5])], width=50, color=True)


def test_nothing_to_draw_is_said():
    assert "nothing to draw" in terminal_curves([document("em", [None]), document("x", [])])


def test_a_long_run_has_few_whole_ticks():
    text = terminal_curves([document("em", [0.1] * 70)], width=40, color=False, unicode=True)
    ticks = next(x for x in text.splitlines() if x.strip().startswith("0  ")).split()
    assert ticks == [str(int(t)) for t in ticks] and 3 <= len(ticks) <= 6


# -- figures --------------------------------------------------------------------------------------


def full_run(path: Path) -> Path:
    ledger = new_run(path)
    for number in range(2):
        measure(ledger, number, [1.0, 0.0, 1.0])
        tokens = [(p, [1, k, 0]) for p in prompts(3) for k in range(4)]
        samples = make_samples(number, tokens)
        generate(ledger, number, samples)
        judge(ledger, number, samples, [0.2, 0.5, 1.0, 0.0] * 3)
    return path


def test_figures_are_png_or_svg_by_suffix(tmp_path):
    one = curves_document(full_run(tmp_path / "em_$x$_1"))
    other = curves_document(full_run(tmp_path / "_raw"))
    save_figure([one, other], tmp_path / "both.PNG")
    assert (tmp_path / "both.PNG").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    save_figure([one], tmp_path / "one.svg")
    svg = (tmp_path / "one.svg").read_text()
    for text in ("em_$x$_1", "reward of samples", "held-out reward", "10-90 % of samples", "k=4"):
        assert f">{text}" in svg
    save_figure([one], tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == svg


def test_a_single_unfinished_round_can_be_drawn(tmp_path):
    ledger = new_run(tmp_path / "run")
    generate(ledger, 0, make_samples(0, [(p, [1, 0]) for p in prompts(2)]), finish=False)
    save_figure([curves_document(ledger.path)], tmp_path / "one.svg")
    assert "tokens a completion" in (tmp_path / "one.svg").read_text()


def test_figures_that_cannot_be_are_refused(tmp_path):
    one = curves_document(full_run(tmp_path / "em"))
    with pytest.raises(UsageError, match=r"cannot draw a \.pdf.*\.png or \.svg"):
        save_figure([one], tmp_path / "curves.pdf")
    with pytest.raises(UsageError, match="nothing to draw"):
        save_figure([curves_document(new_run(tmp_path / "empty").path)], tmp_path / "x.png")
    with pytest.raises(InfrastructureError, match="cannot write"):
        save_figure([one], tmp_path / "no" / "such" / "curves.png")


# -- samples --------------------------------------------------------------------------------------

KEYS = {
    "sample_id", "prompt_id", "label", "prompt", "answer", "completion", "finish", "tokens",
    "policy", "view", "reward", "status", "verdict_answer", "rationale", "kept", "reason",
}  # fmt: skip


def judged_run(path: Path) -> Path:
    """Six samples in two shards; 1 and 4 are kept, 5 has no verdict, held-out answers beside."""
    ledger = new_run(path)
    measure(ledger, 0, [1.0, 0.0])
    samples = make_samples(0, [(p, [7, k, 0]) for p in prompts(3) for k in (1, 2)])
    generate(ledger, 0, samples)
    rewards = [0.0, 1.0, "timeout", 0.0, 1.0]
    judge(ledger, 0, samples[:5], rewards, answer="2", rationale="since")
    reasons = ["incorrect", None, "unscored", "incorrect", None]
    keep(ledger, 0, samples[:5], reasons)
    return path


def test_samples_are_joined_in_their_order(tmp_path):
    rows = show_samples(judged_run(tmp_path / "run"), 0)
    assert [r["sample_id"] for r in rows] == [f"0--{i}" for i in range(6)]
    assert all(r.keys() == KEYS for r in rows)
    assert rows[1] == {
        "sample_id": "0--1", "prompt_id": prompts(1)[0].id, "label": "", "prompt": "0 + 1 =",
        "answer": "1", "completion": "7 2 0", "finish": "stop", "tokens": 3, "policy": "base",
        "view": "plain", "reward": 1.0, "status": "ok", "verdict_answer": "2",
        "rationale": "since", "kept": True, "reason": "kept",
    }  # fmt: skip
    assert (rows[2]["reward"], rows[2]["status"], rows[2]["reason"]) == (
        None,
        "timeout",
        "unscored",
    )
    assert rows[5]["status"] is rows[5]["kept"] is rows[5]["reason"] is None
    json.dumps(rows)


def test_samples_by_decision_and_limit(tmp_path):
    run = judged_run(tmp_path / "run")
    assert [r["sample_id"] for r in show_samples(run, 0, kept=True)] == ["0--1", "0--4"]
    assert [r["sample_id"] for r in show_samples(run, 0, kept=False, limit=2)] == ["0--0", "0--2"]
    assert [r["sample_id"] for r in show_samples(run, 0, limit=3)] == ["0--0", "0--1", "0--2"]
    heldout = show_samples(run, 0, label="heldout")
    assert [r["label"] for r in heldout] == ["heldout"] * 2 and heldout[0]["kept"] is None
    assert show_samples(run, 0, label="heldout", kept=True) == []


def test_a_small_limit_leaves_later_shards_unread(tmp_path):
    run = judged_run(tmp_path / "run")
    last = next(run.glob("rounds/000/*-generate")) / "00001.parquet"
    last.write_bytes(b"damaged")
    assert len(show_samples(run, 0, limit=4)) == 4
    with pytest.raises(DataError, match=r"generate/00001\.parquet"):
        show_samples(run, 0, limit=5)


def test_hinted_samples_are_shown_with_their_label(tmp_path):
    ledger = new_run(tmp_path / "run")
    first = make_samples(0, [(prompts(1)[0], [1, 0])])
    second = make_samples(0, [(prompts(2)[1], [2, 0])], "rationalise")
    for samples, label in ((first, ""), (second, "rationalise")):
        generate(ledger, 0, samples, label)
        judge(ledger, 0, samples, [1.0], label)
        keep(ledger, 0, samples, [None], label)
    rows = show_samples(ledger.path, 0, kept=True)
    assert [r["label"] for r in rows] == ["", "rationalise"]
    only = show_samples(ledger.path, 0, label="rationalise")
    assert only == rows[1:] and only[0]["prompt"] == "1 + 1 ="


def test_a_round_that_only_decides_shows_the_samples_it_decides_on(tmp_path):
    run = judged_run(tmp_path / "run")
    ledger = new_run(tmp_path / "run")
    samples = make_samples(0, [(p, [7, k, 0]) for p in prompts(3) for k in (1, 2)])
    keep(ledger, 1, samples[:5], ["reward below 0.9"] * 4 + [None])
    (row,) = show_samples(run, 1, kept=True)
    assert (row["sample_id"], row["completion"], row["reward"]) == ("0--4", "7 1 0", 1.0)
    assert show_samples(run, 1)[0]["reason"] == "reward below 0.9"


def test_a_round_that_has_not_sampled_yet_has_no_samples(tmp_path):
    ledger = new_run(tmp_path / "run")
    ledger.step(0, "prompts", "", {})
    assert show_samples(ledger.path, 0) == []
    assert render_samples([]) == "no such samples"


def test_unknown_rounds_labels_and_runs_are_refused(tmp_path):
    run = judged_run(tmp_path / "run")
    with pytest.raises(UsageError, match=r"there is no round 7 — rounds: 0"):
        show_samples(run, 7)
    with pytest.raises(UsageError, match=r"no samples labelled 'hint' — labels: heldout"):
        show_samples(run, 0, label="hint")
    with pytest.raises(UsageError, match="not a run directory"):
        show_samples(tmp_path, 0)


def test_a_hostile_completion_stays_text(tmp_path):
    ledger = new_run(tmp_path / "run")
    evil = "\x1b]0;owned\x07\x1b[2J[bold red]x[/] \r\x9b31m\u202eabc\x00 <script>"
    samples = make_samples(0, [(prompts(1)[0], [1, 0])], completion=evil)
    generate(ledger, 0, samples)
    judge(ledger, 0, samples, [0.0], rationale="\x1b[5mblink")
    rows = show_samples(ledger.path, 0)
    assert rows[0]["completion"] == evil  # data is data
    text = render_samples(rows, width=200, color=False)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "\\x1b]0;owned\\x07\\x1b[2J[bold red]x[/] \\r\\x9b31m\\u202eabc\\x00 <script>" in text
    assert "\\x1b[5mblink" in text
    coloured = re.sub(r"\x1b\[[0-9;]*m", "", render_samples(rows, width=200, color=True))
    assert [line.rstrip() for line in coloured.splitlines()] == text.splitlines()


@pytest.mark.parametrize("width", [20, 40, 80])
def test_wide_text_is_wrapped(tmp_path, width):
    ledger = new_run(tmp_path / "run")
    samples = make_samples(0, [(prompts(1)[0], [1, 0])], completion="漢字" * 60 + " word " * 30)
    generate(ledger, 0, samples)
    text = render_samples(show_samples(ledger.path, 0), width=width, color=False)
    cells = [len(line) + sum(ord(c) > 0x2E80 for c in line) for line in text.splitlines()]
    assert max(cells) <= width
    assert text.count("漢") == 60 and text.count("word") == 30


def test_rendered_samples_say_why(tmp_path):
    text = render_samples(show_samples(judged_run(tmp_path / "run"), 0), width=80, color=False)
    assert re.search(r"verdict +reward 1, read '2'\n +because +since\n *decision +kept", text)
    assert "no reward (timeout)" in text and "dropped: unscored" in text and "not judged" in text


# -- listing --------------------------------------------------------------------------------------


def test_runs_are_listed_with_state_and_last_figures(tmp_path):
    done = new_run(tmp_path / "b-first", rounds=1)
    done.event("run_started", loop="rest_em", model="SmolLM2", judge="number")
    done.event("run_finished")
    measure(done, 1, [1.0])
    write_metrics(done, [
        {"reward_mean": 0.1, "heldout_reward": 0.24}, {"reward_mean": None, "heldout_reward": 0.5},
    ])  # fmt: skip
    new_run(tmp_path / "c-second", run={"schema": 1, "created": "2026-02-01"})
    damaged = tmp_path / "a-third"
    damaged.mkdir()
    (damaged / "run.yaml").write_text("loop: [")
    (tmp_path / "notes").mkdir()
    (tmp_path / ".tmp-fork").mkdir()
    (tmp_path / ".tmp-fork" / "run.yaml").write_text("loop: x")
    rows = list_runs(tmp_path)
    assert [(r["run"], r["state"]) for r in rows] == [
        ("a-third", "damaged"), ("b-first", "finished"), ("c-second", "stopped"),
    ]  # fmt: skip
    assert rows[1] | {"path": ""} == {
        "run": "b-first", "path": "", "loop": "rest_em", "model": "SmolLM2", "judge": "number",
        "planned_rounds": 1, "created": "2026-01-01T00:00:00.000+00:00", "state": "finished",
        "round": 1, "reward_mean": 0.1, "heldout_reward": 0.5,
    }  # fmt: skip
    json.dumps(rows)
    lines = render_runs(rows).splitlines()
    assert lines[2].split() == [
        "b-first", "rest_em", "SmolLM2", "number", "1/1", "finished", "0.100", "0.500",
    ]  # fmt: skip
    assert len({line.index(word) for line, word in zip(lines, (
        "state", "damaged", "finished", "stopped"), strict=True)}) == 1  # fmt: skip


def test_an_empty_or_missing_folder_lists_nothing(tmp_path):
    assert list_runs(tmp_path / "none") == list_runs(tmp_path) == []
    assert "selfkd run" in render_runs([])
