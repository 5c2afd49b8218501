"""Reporters on terminals, pipes and broken ends: what is shown, and that nothing is ever raised."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from selfkd.board import Board, Meter, clock_text
from selfkd.liveview import RichReporter
from selfkd.progress import JsonReporter, PlainReporter, make_reporter
from selfkd.roundtable import COLUMNS, fitting
from selfkd.terminal import SafeStream, one_line, visible

STARTED: dict[str, Any] = {
    "name": "em-001", "path": "runs/em-001", "loop": "rest_em", "model": "tiny", "judge": "number",
    "rounds": 4, "engine": "vllm bfloat16", "resumed": False,
}  # fmt: skip
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal(io.StringIO):
    """Looks like a terminal; `encoding` as given."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return True


class Watch:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def row(round: int, reward: float, heldout: float | None, **changes: Any) -> dict[str, Any]:
    return {
        "round": round, "policy": f"round-{round}" if round else "base", "samples": 512,
        "reward_mean": reward, "kept": 52, "heldout_reward": heldout,
        "pass_at_k": {"1": 0.1, "2": 0.2, "8": 0.4567}, "length_mean": 35.25, "unique": 0.5,
        "seconds": {"generate": 50.0, "judge": 3.0, "train": 60.0, "evaluate": None},
    } | changes  # fmt: skip


def step(verb: str, label: str = "", round: int = 1) -> dict[str, Any]:
    name = f"05-{verb}-{label}".rstrip("-")
    return {"round": round, "step": name, "verb": verb, "label": label}


def play(reporter: Any, watch: Watch | None = None) -> None:
    """Two rounds of a run, sampling with a judge behind it, and what may go wrong."""
    say = reporter.event
    say("run_started", **STARTED)
    say("message", text="loading the engine", level="info")
    for number, (reward, heldout) in enumerate([(0.104, 0.24), (0.312, 0.41)]):
        sampling, judging = step("generate", round=number), step("judge", round=number)
        say("step_started", **sampling, total=512)
        say("step_started", **judging, total=0)
        for done in (128, 256, 384):
            if watch:
                watch.now += 10
            say("step_progress", **sampling, done=done, total=512, tokens=done * 30)
            say("step_progress", **judging, done=done // 2, total=done // 2, reward_mean=reward)
        summary = {"prompts": 64, "samples": 512, "tokens": 18204, "policy": "base", "truncated": 3}
        say("step_finished", **sampling, seconds=40.0, summary=summary)
        summary = {"scored": 500, "unscored": {"timeout": 12}, "reward_mean": reward}
        say("step_finished", **judging, seconds=3.0, summary=summary)
        say("round_row", row=row(number, reward, heldout))
    say("alarm", round=1, level="warning", alarm="length_drift", message="completions grew")
    say(
        "gate", round=1, policy="round-1", decision="rolled_back", best="base", p_value=0.003,
        delta=-0.1,
    )  # fmt: skip
    say("something_new", whatever=1)
    say("run_finished", seconds=552.0, reason="")


def test_the_reporter_fits_the_stream(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(make_reporter(False, Terminal()), RichReporter)
    assert isinstance(make_reporter(False, io.StringIO()), PlainReporter)
    assert isinstance(make_reporter(True, Terminal()), JsonReporter)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(make_reporter(False, io.StringIO()), PlainReporter)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_reporter(False, Terminal()), PlainReporter)


def test_json_is_one_valid_object_a_line():
    out = io.StringIO()
    with make_reporter(True, out) as reporter:
        play(reporter)
        reporter.event("step_progress", loss=float("nan"), path=Path("x"), rows=[float("inf"), 1])
    lines = [
        json.loads(line, parse_constant=lambda c: pytest.fail(c))
        for line in out.getvalue().splitlines()
    ]
    assert lines[0] == {"event": "run_started", **STARTED}
    assert lines[-1] == {"event": "step_progress", "loss": None, "path": "x", "rows": [None, 1]}
    assert next(x for x in lines if x["event"] == "round_row")["row"]["reward_mean"] == 0.104


def test_plain_lines_hold_steps_rows_alarms_and_no_escape():
    out, watch = io.StringIO(), Watch()
    with PlainReporter(out, clock=watch) as reporter:
        play(reporter, watch)
    text = out.getvalue()
    assert "\x1b" not in text
    assert "em-001: rest_em on tiny, judged by number, 4 rounds, vllm bfloat16" in text
    assert "round 0/4  generate: 512 samples, 18,204 tokens, 3 truncated in 40.0 s" in text
    assert "round 1/4  judge: reward 0.312, without one: 12 timeout in 3.0 s" in text
    assert "alarm in round 1, length_drift: completions grew" in text
    assert "round-1 rolled back: held-out -0.100 against base, p=0.003" in text
    assert "finished in 9:12" in text


def test_plain_progress_comes_every_quarter_minute_and_names_pace():
    out, watch = io.StringIO(), Watch()
    with PlainReporter(out, clock=watch) as reporter:
        play(reporter, watch)
    progress = [line for line in out.getvalue().splitlines() if "ETA" in line]
    assert len(progress) == 2  # 60 s in all; steps that end speak too
    # 256 of 512 after 20 s, of which 128 in the last 10 s: 384 tokens/s, 20 s to go
    assert progress[0].split("  ")[-4:] == ["generate", "256/512", "384 tok/s", "ETA 0:20"]


def test_plain_rows_are_aligned_under_their_titles():
    out = io.StringIO()
    with PlainReporter(out) as reporter:
        play(reporter)
    lines = out.getvalue().splitlines()
    (first, second) = (i for i, line in enumerate(lines) if line.startswith("round  "))
    assert "pass@8" in lines[first]
    for title, value in (
        ("reward", "0.312"), ("held-out", "0.410 +0.170"), ("pass@8", "0.457"), ("time", "1:53"),
        ("policy", "round-1"), ("unique", "50%"), ("length", "35.2"), ("kept", "52"),
    ):  # fmt: skip
        end = lines[second].index(title) + len(title)
        assert lines[second + 1][:end].endswith(value), title


def frames(width: int, height: int, monkeypatch: Any, encoding: str = "utf-8") -> list[str]:
    """Every line that the live view drew, without colours and cursor movements."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LINES", str(height))
    monkeypatch.setenv("TERM", "xterm-256color")
    out = Terminal(encoding)
    with RichReporter(out) as reporter:
        play(reporter)
    return re.split("[\r\n]+", ANSI.sub("", out.getvalue()))  # a frame begins with \r


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
def test_the_live_view_fits_any_width(width, monkeypatch):
    lines = frames(width, 24, monkeypatch)
    assert max(map(len, lines)) <= width
    assert any("0.312" in line for line in lines)
    final = [line.split() for line in lines if line.strip().startswith(("0 ", "1 "))][-2:]
    assert [cells[0] for cells in final] == ["0", "1"] and "0.104" in final[0]


def test_the_live_view_ends_with_table_alarms_and_decisions(monkeypatch):
    text = "\n".join(frames(120, 30, monkeypatch))
    assert "rest_em on tiny · judge number · vllm bfloat16 · 4 rounds" in text
    assert "0.410 +0.170" in text and "0.457" in text and "1:53" in text
    tail = text[text.rindex("held-out  ") :]
    assert tail.index("length_drift") < tail.index("rolled back") < tail.index("finished in 9:12")


def test_the_live_view_without_unicode(monkeypatch):
    lines = frames(120, 30, monkeypatch, "ascii")
    text = "\n".join(lines)
    assert text.isascii() and "\\u" not in text
    assert "0.312  ###" in text


def test_bars_show_pace_reward_and_position(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm-256color")
    out, watch = Terminal(), Watch()
    with RichReporter(out, clock=watch) as reporter:
        reporter.event("run_started", **STARTED)
        reporter.event("step_started", **step("generate"), total=512)
        reporter.event("step_started", **step("judge"), total=0)
        for done in (0, 128, 256):
            watch.now += 10
            reporter.event("step_progress", **step("generate"), done=done, total=512, tokens=done)
            reporter.event(
                "step_progress", **step("judge"), done=done // 2, total=done // 2, reward_mean=0.25
            )
        reporter._live.refresh()
    lines = ANSI.sub("", out.getvalue()).splitlines()
    sampling = [line for line in lines if "round 1/4  generate" in line][-1]
    judging = [line for line in lines if "round 1/4  judge" in line][-1]
    assert re.search(r"256/512 +13 tok/s +ETA 0:20", sampling)
    assert re.search(r"128/512 +reward 0.250 +ETA 1:00", judging)  # as many as were sampled


def test_a_reader_that_leaves_ends_nothing(tmp_path):
    script = (
        "from selfkd.progress import make_reporter\n"
        "from tests.test_progress import play\n"
        "import sys\n"
        "with make_reporter('json' in sys.argv) as reporter:\n"
        "    for _ in range(2000): play(reporter)\n"
        "open(sys.argv[1], 'w').write('whole')\n"
    )
    for mode in ("plain", "json"):
        done = tmp_path / mode
        command = [sys.executable, "-c", script, str(done), mode]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 0 and done.read_text() == "whole"


def test_a_terminal_that_goes_away_ends_nothing(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    master, slave = pty.openpty()
    with os.fdopen(slave, "w", encoding="utf-8") as terminal:
        reporter = make_reporter(False, terminal)
        assert isinstance(reporter, RichReporter)
        with reporter:
            play(reporter)
            os.close(master)
            play(reporter)


def test_closed_stdout_is_no_reason_to_fail(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with make_reporter(False) as reporter:
        play(reporter)


def test_what_an_encoding_lacks_is_escaped():
    raw = io.BytesIO()
    stream = SafeStream(io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    stream.write("held-out → 0.5 \ud800")
    assert raw.getvalue() == b"held-out \\u2192 0.5 \\ud800"


def test_text_from_elsewhere_cannot_act_on_the_terminal():
    assert visible("a\x1b[2Jb\rc\x07\x9b1m\u202ed\u200b") == (
        "a\\x1b[2Jb\\rc\\x07\\x9b1m\\u202ed\\u200b"
    )
    assert visible("a\n\tb é 漢") == "a\n    b é 漢"
    assert one_line("a\n b\x1b") == "a b\\x1b"
    out = io.StringIO()
    with PlainReporter(out) as reporter:
        reporter.event("message", text="\x1b[31m[bold]x[/bold]")
    assert "\\x1b[31m[bold]x[/bold]" in out.getvalue()


def test_rich_markup_in_messages_is_shown_as_text(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    out = Terminal()
    with RichReporter(out) as reporter:
        reporter.event("message", text="[bold]:smile: [/nonsense]\x1b]0;title\x07")
    assert "[bold]:smile: [/nonsense]\\x1b]0;title\\x07" in ANSI.sub("", out.getvalue())


def test_narrow_tables_keep_the_columns_that_matter():
    assert [c.key for c in fitting(40)] == ["round", "reward", "kept", "heldout"]
    assert fitting(200) == list(COLUMNS)
    for width in range(20, 130):
        assert sum(c.width + 2 for c in fitting(width)) <= width


def test_rows_without_values_show_dashes():
    out = io.StringIO()
    nothing = dict.fromkeys(row(0, 0, 0)) | {"round": 3, "seconds": dict.fromkeys("ab")}
    with PlainReporter(out) as reporter:
        reporter.event("round_row", row=nothing)
    assert out.getvalue().splitlines()[-1].split() == ["3", *["-"] * 9]


def test_an_engine_that_starts_again_resets_the_pace():
    meter = Meter(1, "generate", "", 100, started=0.0)
    meter.update(60, 100, {"tokens": 6000}, 10.0)
    meter.update(20, 100, {"tokens": 100}, 20.0)
    meter.update(60, 100, {"tokens": 4100}, 30.0)
    assert meter.speed() == pytest.approx(400.0)
    assert meter.eta(30.0) == pytest.approx(10.0)
    assert meter.eta(35.0) == pytest.approx(5.0)


def test_a_finished_step_has_no_bar():
    board = Board()
    board.apply("step_started", step("train") | {"total": 0}, 0.0)
    board.apply("step_progress", step("train") | {"done": 2, "total": 8, "loss": 1.5}, 1.0)
    (meter,) = board.meters.values()
    assert (meter.count(), meter.fact()) == ("2/8", "loss 1.500")
    board.apply("step_finished", step("train") | {"seconds": 1.0, "summary": {}}, 2.0)
    assert board.meters == {}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (725, "12:05"), (10860, "3:01:00")]
)
def test_clock_text(seconds, text):
    assert clock_text(seconds) == text
