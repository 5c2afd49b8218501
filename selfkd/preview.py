"""Samples what a run's first round is made of, and stops before anything is trained.

The run is an ordinary one that can be resumed: what was sampled for the forecast is what the first
round then learns from. What only the forecast needs is recorded apart, in the run's `forecast`.
"""

import contextlib
import copy
from pathlib import Path

from selfkd.assembly import Prepared
from selfkd.config import Resolved
from selfkd.forecast import FOLDER
from selfkd.launch import execute
from selfkd.ledger import Ledger
from selfkd.progress import Reporter
from selfkd.records import Prompt, read_prompts
from selfkd.round import Round
from selfkd.run import Run
from selfkd.rundir import of_verb, round_steps
from selfkd.stopping import SampledOnce
from selfkd.views import hint

PROMPTS = 64
"""Most prompts that are answered under the privileged view."""
DRAWS = 4
"""Completions of each of them."""


def sample_once(path: Path, resolved: Resolved, reporter: Reporter, prepared: Prepared) -> None:
    """Play the run's loop up to its first training; what is recorded is not done again."""

    def play(run: Run) -> None:
        run.only_samples = True
        try:
            resolved.loop.fn(run, resolved.options)
        except SampledOnce:
            sample_privileged(run)
            raise

    with contextlib.suppress(SampledOnce):
        execute(path, resolved, reporter, prepared=prepared, play=play)


def sample_privileged(run: Run) -> None:
    """Have the policy answer with the reference shown, and gold judge it; both recorded once."""
    gold = run.gold_judge
    prompts = [p for p in _prompts(run.ledger.path) if p.answer is not None][:PROMPTS]
    if gold is None or not prompts:
        return
    apart = copy.copy(run)
    apart.ledger = Ledger(run.ledger.path / FOLDER)
    round = Round(apart, 0, "base")
    round.controlled = True
    round.judge(round.generate(prompts, n=DRAWS, view=hint()), gold).wait()


def _prompts(path: Path) -> list[Prompt]:
    """The prompts of the first round's own samples."""
    steps = [s for s in of_verb(round_steps(path, 0), "prompts") if not s.label]
    columns = ("id", "messages", "answer", "columns")
    return [p for s in steps for table in s.tables(columns) for p in read_prompts(table)]
