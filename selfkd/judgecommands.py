"""The commands about judging: try a judge, judge again what is recorded, forecast a round."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TextIO

import typer

from selfkd.errors import UsageError
from selfkd.viewer.commands import Json, RunDir, RunsDir, find_run, resumable

Events = Annotated[bool, typer.Option("--json", help="Print events, one JSON object a line.")]
SkipBad = Annotated[bool, typer.Option(help="Count and skip broken prompt rows.")]


def with_options(
    overrides: list[str] | None, *, skip_bad: bool = False, local: bool = False
) -> list[str]:
    """The overrides, with what options of the command line stand for."""
    options = {"cluster.address=local": local, "prompts.skip_bad=true": skip_bad}
    return [*(overrides or []), *(text for text, given in options.items() if given)]


def add_judge_commands(app: typer.Typer) -> None:
    """Put these commands on the command line."""
    judge_app = typer.Typer(no_args_is_help=True, help="Try a judge outside a run.")
    judge_app.command("test")(judge_test)
    app.add_typer(judge_app, name="judge")
    for command in (rejudge, refilter, forecast):
        app.command()(command)


def judge_test(
    judge: Annotated[str, typer.Argument(help="A name, or path.py:name.")],
    samples: Annotated[
        Path,
        typer.Option(help="JSONL with prompt, completion, maybe answer, gold, policy; or a run."),
    ],
    options: Annotated[list[str] | None, typer.Argument(metavar="[OPTION=VALUE]...")] = None,
    gold: Annotated[
        str | None, typer.Option(help="A judge that labels the samples without gold.")
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="Times that each sample is judged, to see the spread.")
    ] = 2,
    controls: Annotated[
        int, typer.Option(min=0, help="Prompts that controls are planted for.")
    ] = 8,
    top_score: Annotated[str, typer.Option(help="The score that planted orders ask for.")] = "5",
    threshold: Annotated[
        float | None, typer.Option(help="Reward from which a sample counts as right.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Who answers a judge that asks the run's own policy.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most samples to judge.")] = 400,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds a sample may take.")] = 60.0,
    show: Annotated[int, typer.Option(min=0, help="How many verdicts to print.")] = 10,
    as_json: Json = False,
) -> None:
    """Judge the samples of a file or a run, and print the judge's report card."""
    from selfkd.cardtext import render_card
    from selfkd.controls import ControlOptions
    from selfkd.judgetest import spec_of, try_judge
    from selfkd.reportcard import notes, report_card
    from selfkd.samplefile import read_samples

    spec = spec_of(judge, options or [])
    trial = try_judge(
        spec,
        read_samples(samples, limit=limit, needs_answer=spec.needs_answer),
        timeout=timeout,
        repeats=repeats,
        controls=ControlOptions.model_validate({"per_round": controls, "score": top_score}),
        gold_judge=spec_of(gold) if gold else None,
        model=model,
    )
    card = report_card(trial, threshold)
    if not as_json:
        print(render_card(card, trial, show))
        return
    verdicts = [asdict(v) for v in trial.verdicts]
    print(json.dumps({"card": card, "notes": notes(card), "verdicts": verdicts}))


def rejudge(
    run: RunDir,
    judge: Annotated[str, typer.Option(help="The other judge: a name, or path.py:name.")],
    options: Annotated[list[str] | None, typer.Argument(metavar="[OPTION=VALUE]...")] = None,
    name: Annotated[str | None, typer.Option(help="The new run's name.")] = None,
    runs: RunsDir = Path("runs"),
    json_events: Events = False,
) -> None:
    """Have another judge score what a run sampled, in a fork; nothing is sampled or trained."""
    from selfkd.again import rejudge_run
    from selfkd.cli import execute_run
    from selfkd.judgetest import spec_of
    from selfkd.launch import resume_run

    path, notes = rejudge_run(find_run(run, runs), spec_of(judge, options or []), name)
    for note in notes:
        print(note, file=sys.stderr)
    execute_run(path, resume_run(path), json_events)


def refilter(
    run: RunDir,
    rules: Annotated[
        str, typer.Option(help='What to keep: "finished | correct | at_most(2)", "best_worst".')
    ],
    name: Annotated[str | None, typer.Option(help="The new run's name.")] = None,
    runs: RunsDir = Path("runs"),
    json_events: Events = False,
) -> None:
    """Decide anew what of a run's samples is kept, in a fork; nothing is sampled or trained."""
    from selfkd.again import refilter_run
    from selfkd.cli import execute_run
    from selfkd.launch import resume_run

    path = refilter_run(find_run(run, runs), rules, name)
    execute_run(path, resume_run(path), json_events)


def forecast(
    target: Annotated[
        Path, typer.Argument(metavar="RUN|CONFIG", help="A run, or a YAML file to sample once.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    round: Annotated[
        int | None, typer.Option("--round", min=0, help="Round of a run; default: the last.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run that CONFIG starts.")] = None,
    runs: RunsDir = Path("runs"),
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Say what learning from a round's samples can gain; CONFIG samples that round and stops."""
    from selfkd.forecast import forecast as figures
    from selfkd.forecasttext import meanings, render_forecast

    begun = target.suffix in (".yaml", ".yml")
    if not begun and overrides:
        raise UsageError("a run is as it is recorded", remedy="give key=value with a config only")
    changes = with_options(overrides, skip_bad=skip_bad)
    shown = sys.stderr if as_json else sys.stdout  # of --json stdout holds the data alone
    path = _sample(target, changes, name, runs, shown) if begun else None
    row = figures(path or find_run(target, runs), round)
    if as_json:
        print(json.dumps(row | {"path": str(path or target), "meanings": meanings(row)}))
        return
    print(render_forecast(row))
    if path:
        print(f"\nNothing is trained yet. To go on with these samples:\n  selfkd resume {path}")


def _sample(
    config: Path, overrides: list[str], name: str | None, runs: Path, shown: TextIO
) -> Path:
    from selfkd.assembly import prepare
    from selfkd.config import load
    from selfkd.launch import new_run
    from selfkd.preview import sample_once
    from selfkd.progress import make_reporter

    resolved = load(config, overrides)
    prepared = prepare(resolved)
    path = new_run(resolved, runs, name)
    with resumable(path), make_reporter(False, shown) as reporter:
        sample_once(path, resolved, reporter, prepared)
    return path
