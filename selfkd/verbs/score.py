"""Records rewards that a loop worked out from other records, as verdicts like any judge's."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from selfkd.ledger import Step
from selfkd.records import VERDICTS, Sample, Verdict, rows_table
from selfkd.tally import Tally

if TYPE_CHECKING:
    from selfkd.round import Round


def record_scores(
    round: "Round",
    step: Step,
    samples: Sequence[Sample],
    rewards: Mapping[str, float | None],
    answers: Mapping[str, str],
    judge: str,
) -> None:
    """One verdict a sample; a sample without a reward is unparsed."""
    verdicts = [_verdict(s, rewards.get(s.id), answers.get(s.id), judge) for s in samples]
    step.write(0, rows_table(verdicts, VERDICTS))
    round.finish(step, Tally(verdicts).summary(judge))


def _verdict(sample: Sample, reward: float | None, answer: str | None, judge: str) -> Verdict:
    return Verdict(
        sample_id=sample.id,
        prompt_id=sample.prompt.id,
        judge=judge,
        reward=reward,
        status="ok" if reward is not None else "unparsed",
        answer=answer,
    )
