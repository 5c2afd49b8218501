"""Asks a served teacher about the shards of samples that it has not told of yet."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from selfkd.ledger import Step
from selfkd.records import TEACHINGS, Sample, Teaching, rows_table
from selfkd.tables import Samples
from selfkd.teaching import Lesson, ServedTeacher, record
from selfkd.views import View

if TYPE_CHECKING:
    from selfkd.round import Round


def teach_shards(
    round: "Round", step: Step, samples: Samples, teacher: ServedTeacher, view: View
) -> None:
    """Record what the teacher says of every missing shard, as its samples come."""
    done = sum(table.num_rows for table in step.tables())
    for index, batch in samples.batches():
        if step.has(index):
            continue
        step.write(index, rows_table(_ask(round, batch, teacher, view), TEACHINGS))
        done += len(batch)
        round.progress(step, done, samples.count)
    round.finish(step, {"teacher": teacher.name, "samples": done, "top_k": teacher.top_k})


def _ask(
    round: "Round", batch: Sequence[Sample], teacher: ServedTeacher, view: View
) -> list[Teaching]:
    asked = [sample for sample in batch if sample.tokens]
    prompts = round.run.render_all([view(s.prompt) for s in asked])
    lessons = [Lesson(tuple(p), s.tokens) for p, s in zip(prompts, asked, strict=True)]
    told = teacher.likeliest(lessons)
    return [record(s, places, teacher) for s, places in zip(asked, told, strict=True)]
