"""The commands that look at runs, and those that pass on what they made."""

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from selfkd.errors import SelfkdError, UsageError
from selfkd.terminal import DULL

RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory, or its name.")]
RunDirs = Annotated[list[Path], typer.Argument(metavar="RUN...")]
RunsDir = Annotated[Path, typer.Option("--runs", help="Folder that runs land in.")]
Json = Annotated[bool, typer.Option("--json", help="Print only data, as JSON.")]


def add_commands(app: typer.Typer) -> None:
    """Put these commands on the command line."""
    for command in (curves, status, compare, ui, report, export, push):
        app.command()(command)


def find_run(run: Path, runs: Path) -> Path:
    """A run given by its directory, by its name under `runs`, or by the place it is stored in:
    then a copy under `runs`."""
    # A path has lost one of the slashes of s3://bucket/runs/NAME.
    if stored := re.fullmatch(r"([a-z][a-z0-9+.-]+):/+(.+)", str(run)):
        from selfkd.mirror import fetch_run

        root = "/" if stored[1] == "file" else ""
        return fetch_run(f"{stored[1]}://{root}{stored[2]}", runs)
    if (run / "run.yaml").exists() or not (runs / run / "run.yaml").exists():
        return run
    return runs / run


@contextlib.contextmanager
def resumable(run: Path) -> Iterator[None]:
    """Within it, an error of a run says how to go on."""
    try:
        yield
    except SelfkdError as error:
        if error.exit_code in (3, 4, 5):
            error.resume = f"selfkd resume {run}"
        raise


def colour() -> bool:
    """Whether stdout wants colour."""
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM", "") in DULL
    return bool(sys.stdout and sys.stdout.isatty()) and not plain


def curves(
    run: RunDirs,
    runs: RunsDir = Path("runs"),
    metric: Annotated[
        list[str] | None, typer.Option(help="Draw this key of a round instead; repeat for more.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Write a figure, .png or .svg.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write a figure, .svg.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print only data, one row a round.")] = False,
    as_json: Json = False,
) -> None:
    """Draw reward, held-out and more per round, of one or several runs."""
    from selfkd.metrics import curves_document
    from selfkd.viewer.lines import check_metrics, curves_csv
    from selfkd.viewer.plots import save_figure, terminal_curves

    if csv and as_json:
        raise UsageError("--csv and --json exclude each other")
    documents = [curves_document(find_run(r, runs)) for r in run]
    metrics = check_metrics(documents, metric or [])
    files = [path for path in (png, svg) if path]
    for path in files:
        save_figure(documents, path, metrics)
    if as_json:
        print(json.dumps(documents[0] if len(documents) == 1 else documents))
    elif csv:
        print(curves_csv(documents, metrics), end="")
    else:
        drawn = metrics or ["reward_mean", "heldout_reward"]
        print(terminal_curves(documents, drawn, color=colour()))
        for path in files:
            print(f"written: {path}")


def status(
    run: RunDir,
    runs: RunsDir = Path("runs"),
    watch: Annotated[
        bool, typer.Option("--watch", help="Again whenever something changes, until it ends.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what a run does now, how far it is, and what to look at."""
    from selfkd.viewer.status import render_status, run_status, watch_status

    path = find_run(run, runs)
    if watch:
        watch_status(path, as_json=as_json)
        return
    found = run_status(path)
    print(json.dumps(found) if as_json else render_status(found))


def compare(run: RunDirs, runs: RunsDir = Path("runs"), as_json: Json = False) -> None:
    """Put two to six runs beside each other: curves, held-out difference, config."""
    from selfkd.viewer.comparison import compare_runs
    from selfkd.viewer.difference import render_comparison

    found = compare_runs([find_run(r, runs) for r in run])
    print(json.dumps(found) if as_json else render_comparison(found, color=colour()))


def ui(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="A folder of runs, or one run.")
    ] = Path("runs"),
    host: Annotated[
        str, typer.Option(help="Where to listen; beyond this machine a token is asked for.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="0: any free one; in use: the next free one.")
    ] = 8642,
    browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Serve a page with the runs of a folder: curves, samples, comparisons; it only reads."""
    from selfkd.viewer.web.serve import serve

    serve(folder, host=host, port=port, browser=browser)


def report(
    run: RunDir,
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write.")] = Path(
        "report.html"
    ),
    runs: RunsDir = Path("runs"),
    samples: Annotated[int, typer.Option(min=0, help="Samples a round.")] = 8,
) -> None:
    """Write one run as a single HTML file that opens anywhere, without a server."""
    from selfkd.viewer.web.report import write_report

    size: Any = write_report(find_run(run, runs), out, samples=samples)
    print(f"written: {out} ({size / 1e6:.1f} MB)")


def export(
    run: RunDir,
    to: Annotated[str, typer.Option("--to", help="tensorboard, wandb, trackio or mlflow.")],
    runs: RunsDir = Path("runs"),
    again: Annotated[
        bool, typer.Option("--again", help="Send everything anew, as another run there.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on sending until the run ends.")
    ] = False,
) -> None:
    """Send a run's figures to a tracker: what it does not have yet, found by its own settings."""
    from selfkd.tracking import TRACKERS, export

    if to not in TRACKERS:
        known = ", ".join(TRACKERS)
        raise UsageError(f"no tracker {to!r}", where="--to", remedy=f"name one of {known}")
    sent = export(find_run(run, runs), to, again=again, follow=follow)
    print(f"{sent} points sent to {to}" if sent else f"{to} has everything already")


def push(
    run: RunDir,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the hub.")],
    round: Annotated[
        int | None,
        typer.Option("--round", min=1, help="Push policy round-N; default: the one it stands by."),
    ] = None,
    runs: RunsDir = Path("runs"),
    public: Annotated[
        bool, typer.Option("--public", help="A repository made by this is open to all.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the card and the files; send nothing.")
    ] = False,
) -> None:
    """Put a policy with its model card on a Hugging Face hub, by default where only you see it."""
    from selfkd.push import prepare, push

    upload = prepare(find_run(run, runs), repo, round)
    if not dry_run:
        print(f"{upload.policy} is at {push(upload, public=public)}")
        return
    card = upload.files["README.md"]
    print(card.decode() if isinstance(card, bytes) else "")
    print("\n".join(f"would push {name}" for name in upload.files))
    print(f"{upload.size / 1e6:.1f} MB to {repo}; nothing was sent")
