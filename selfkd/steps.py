"""The steps of a round: opened, followed, and finished, and told of each time."""

from typing import TYPE_CHECKING, Any

from selfkd.ledger import Step

if TYPE_CHECKING:
    from selfkd.run import Run


class Steps:
    """The steps that a run records for one round."""

    def __init__(self, run: "Run", number: int) -> None:
        self.run = run
        self.number = number

    def step(self, verb: str, label: str, args: dict[str, Any], total: int) -> Step:
        """Open the next step of the round, which has `total` things to do."""
        step = self.run.ledger.step(self.number, verb, label, args)
        if not step.finished:
            self.run.emit(
                "step_started",
                round=self.number,
                step=step.path.name,
                verb=verb,
                label=label,
                total=total,
            )
        return step

    def progress(self, step: Step, done: int, total: int, **fields: Any) -> None:
        """Tell how far a step is."""
        self.run.progress(self.number, step, done, total, **fields)

    def finish(self, step: Step, summary: dict[str, Any], *, seconds: float | None = None) -> None:
        """Record that a step is complete, and tell."""
        step.finish(summary, seconds=seconds)
        assert step.manifest is not None
        self.run.emit(
            "step_finished",
            round=self.number,
            step=step.path.name,
            verb=step.verb,
            label=step.label,
            seconds=step.manifest["seconds"],
            summary=summary,
        )
