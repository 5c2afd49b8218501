"""The command line. Everything heavy is imported by the command that needs it."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from selfkd.errors import SelfkdError, Stopped, UsageError
from selfkd.judgecommands import Events, SkipBad, add_judge_commands, with_options
from selfkd.viewer.commands import Json, RunDir, RunsDir, add_commands, colour, find_run, resumable

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Self-improvement rounds for language models, with the model as its own teacher.",
)
model_app = typer.Typer(no_args_is_help=True, help="Models that selfkd can fetch by itself.")
app.add_typer(model_app, name="model")

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")]
Local = Annotated[
    bool, typer.Option("--local", help="Use this machine alone, ignoring RAY_ADDRESS.")
]


@app.callback()
def _top(
    debug: Annotated[bool, typer.Option(help="Show tracebacks of expected errors too.")] = False,
) -> None:
    from selfkd.imports import spare_pandas

    spare_pandas()
    if debug:
        os.environ["SELFKD_DEBUG"] = "1"


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="A YAML file, as beside each loop.")],
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="The run's name; default: LOOP-NNN.")] = None,
    runs: RunsDir = Path("runs"),
    dry_run: Annotated[
        bool, typer.Option(help="Check everything, print the plan, write nothing.")
    ] = False,
    resume: Annotated[
        bool, typer.Option(help="Go on with the run of this name if it exists.")
    ] = False,
    json_events: Events = False,
    skip_bad: SkipBad = False,
    local: Local = False,
) -> None:
    """Start a run: selfkd run loops/rest_em.yaml rounds=6 judge=my_judge.py:score"""
    from selfkd.config import load
    from selfkd.launch import name_of, new_run, resume_with

    resolved = load(config, with_options(overrides, skip_bad=skip_bad, local=local))
    if dry_run:
        from selfkd.plan import make_plan, render_plan

        plan = make_plan(resolved)
        print(json.dumps(plan) if json_events else render_plan(plan))
        return
    if resume and not name:
        raise UsageError("--resume needs to know which run", remedy="add --name NAME")
    if resume and name and (runs / name_of(name)).exists():
        path = runs / name_of(name)
        execute_run(path, resume_with(path, resolved), json_events)
        return
    from selfkd.assembly import prepare

    prepared = prepare(resolved)  # what is refused here leaves no directory behind
    execute_run(new_run(resolved, runs, name), resolved, json_events, prepared)


@app.command()
def resume(
    run: RunDir,
    overrides: Overrides = None,
    runs: RunsDir = Path("runs"),
    json_events: Events = False,
    skip_bad: SkipBad = False,
    local: Local = False,
) -> None:
    """Go on with a run where it ended; what is recorded is not done again."""
    from selfkd.launch import resume_run

    path = find_run(run, runs)
    changes = with_options(overrides, skip_bad=skip_bad, local=local)
    execute_run(path, resume_run(path, changes), json_events)


@app.command()
def fork(
    run: RunDir,
    round: Annotated[int, typer.Option("--round", min=0, help="First round to do anew.")],
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="The new run's name.")] = None,
    runs: RunsDir = Path("runs"),
    json_events: Events = False,
) -> None:
    """Start a run that shares the rounds before ROUND, with a changed config."""
    from selfkd.launch import fork_run, resume_run

    path = fork_run(find_run(run, runs), round, name, overrides or [])
    execute_run(path, resume_run(path), json_events)


add_judge_commands(app)
add_commands(app)


@app.command()
def show(
    run: RunDir,
    round: Annotated[int, typer.Option("--round", min=0, help="Round of the samples.")] = 0,
    kept: Annotated[bool, typer.Option("--kept", help="Only what was kept.")] = False,
    dropped: Annotated[bool, typer.Option("--dropped", help="Only what was dropped.")] = False,
    heldout: Annotated[
        bool, typer.Option("--heldout", help="The held-out answers instead.")
    ] = False,
    controls: Annotated[
        bool, typer.Option("--controls", help="The controls planted for the judge instead.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many samples.")] = 10,
    runs: RunsDir = Path("runs"),
    as_json: Json = False,
) -> None:
    """Print samples with their verdicts, and why each was kept or dropped."""
    from selfkd.viewer.show import render_samples, show_samples

    if kept and dropped:
        raise UsageError("--kept and --dropped exclude each other")
    which = True if kept else False if dropped else None
    if heldout and controls:
        raise UsageError("--heldout and --controls exclude each other")
    label = "heldout" if heldout else "controls" if controls else ""
    rows = show_samples(find_run(run, runs), round, kept=which, limit=limit, label=label)
    print(json.dumps(rows) if as_json else render_samples(rows))


@app.command("ls")
def list_command(runs: RunsDir = Path("runs"), as_json: Json = False) -> None:
    """List the runs of a folder."""
    from selfkd.viewer.listing import list_runs, render_runs

    rows = list_runs(runs)
    print(json.dumps(rows) if as_json else render_runs(rows))


@app.command()
def loops(name: Annotated[str | None, typer.Argument()] = None, as_json: Json = False) -> None:
    """List the loops, or describe one with its options."""
    from selfkd.describe import describe_loop, describe_plugins

    print(describe_loop(name, as_json) if name else describe_plugins("loop", as_json))


@app.command()
def judges(name: Annotated[str | None, typer.Argument()] = None, as_json: Json = False) -> None:
    """List the judges, or describe one with its options."""
    from selfkd.describe import describe_judge, describe_plugins

    print(describe_judge(name, as_json) if name else describe_plugins("judge", as_json))


@model_app.command("pull")
def model_pull(name: str) -> None:
    """Fetch a model into the cache and print where it is."""
    from selfkd.models import pull

    print(pull(name))


@model_app.command("list")
def model_list(as_json: Json = False) -> None:
    """List the models that can be fetched."""
    from selfkd.models import KNOWN, is_cached

    rows = [{"name": name, "cached": is_cached(name)} for name in KNOWN]
    text = "\n".join(f"{r['name']}{'  (cached)' if r['cached'] else ''}" for r in rows)
    print(json.dumps(rows) if as_json else text)


@app.command()
def doctor(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]")] = None,
    repair: Annotated[
        bool, typer.Option(help="Move damaged parts aside, to be made again.")
    ] = False,
    runs: RunsDir = Path("runs"),
    as_json: Json = False,
) -> None:
    """Check this machine, or the files of a run."""
    from selfkd.doctor import diagnose

    text, healthy = diagnose(find_run(run, runs) if run else None, repair=repair, as_json=as_json)
    print(text)
    if not healthy:
        raise typer.Exit(5 if run is None else 4)


def execute_run(path: Path, resolved: Any, json_events: bool, prepared: Any = None) -> None:
    """Carry a run out to its end, showing how it goes; an error says how to go on."""
    from selfkd.launch import execute
    from selfkd.progress import make_reporter

    with resumable(path), make_reporter(json_events) as reporter:
        best = execute(path, resolved, reporter, prepared=prepared)
    if not json_events:
        print(_closing(path, best))


def _closing(path: Path, best: str) -> str:
    from selfkd.launch import read_run
    from selfkd.ledger import policy_dir
    from selfkd.metrics import curves_document
    from selfkd.viewer.plots import terminal_curves

    drawn = terminal_curves([curves_document(path)], color=colour())
    parent = read_run(path)[1].get("parent") or {}
    if "again" in parent:
        return (
            f"{drawn}\n\nThe samples of {parent['run']}, judged again, are in {path}. Look closer "
            f"with\n  selfkd compare {path.parent / parent['run']} {path}\n"
            f"  selfkd show {path} --round 0"
        )
    where = "nothing better than the base" if best == "base" else policy_dir(path, best)
    return (
        f"{drawn}\n\nThe run is in {path}; its best policy: {where}. Look closer with\n"
        f"  selfkd show {path} --round 1 --dropped\n"
        f"  selfkd ui {path}\n"
        f"  selfkd curves {path} --png curves.png\n"
        f"  selfkd fork {path} --round 2 train.learning_rate=1e-5"
    )


def main() -> None:
    """Run the command line; expected errors are one message and an exit code."""
    try:
        app()
    except SelfkdError as error:
        if os.environ.get("SELFKD_DEBUG"):
            raise
        label = "stopped" if isinstance(error, Stopped) else "error"
        print(f"{label}: {error}", file=sys.stderr)
        if error.resume:
            print(f"  {error.resume}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of a pipe left (`| head`): nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
