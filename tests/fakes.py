"""A run whose sampler and trainer are scripted: every verb and every record is real.

For tests of loops and of the run's bookkeeping, where a model would only cost time.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from selfkd.batches import Batch
from selfkd.cluster import ANYWHERE
from selfkd.config import Resolved, resolve
from selfkd.enginecalls import EngineCalls
from selfkd.files import writing
from selfkd.judgecalls import Call, Choices
from selfkd.judging import JudgeSpec
from selfkd.launch import new_run
from selfkd.ledger import Ledger
from selfkd.nested import Nested
from selfkd.prompts import open_prompts
from selfkd.records import VERDICTS, rows_table
from selfkd.run import Run
from selfkd.sampling.actor import Progress, Shard
from selfkd.sampling.base import Completion, Sampling, Work
from selfkd.setting import Setting
from selfkd.stopping import EndOfRun
from selfkd.training.base import TrainJob, TrainReport
from tests.testbed.charmodel import char_tokenizer
from tests.testbed.play import JUDGES

Answer = Callable[[str, str, int], str]
"""(policy, rendered prompt, index) -> completion."""

TOKENIZER = char_tokenizer()


class Silent:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def event(self, name: str, /, **fields: Any) -> None:
        self.events.append((name, fields))


class ScriptedSampler:
    """Answers by a function; remembers what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str]] = []
        self.samplings: list[Sampling] = []

    def generate(
        self, policy: str, path: Path, canary: Any, shards: Sequence[Any], sampling: Any
    ) -> Iterator[Shard | Progress]:
        self.samplings.append(sampling)
        for index, requests in shards:
            yield Shard.of(index, self._answers(policy, requests, sampling))

    def serve(
        self, policy: str, path: Path, canary: Any, work: Sequence[Work], check: Any
    ) -> list[dict[str, Any]]:
        """Judges' calls, answered by the same function."""
        return [self._answers(policy, piece.requests, piece.sampling) for piece in work]

    def _answers(
        self, policy: str, requests: Sequence[Any], sampling: Any
    ) -> dict[str, list[Completion]]:
        completions = {}
        for request in requests:
            text = str(TOKENIZER.decode(list(request.prompt_tokens))).replace(" ", "")
            self.asked += [(policy, text)] * request.n
            completions[request.id] = [
                self._complete(self.answer(policy, text, k), sampling.max_tokens)
                for k in range(request.n)
            ]
        return completions

    def _complete(self, text: str, limit: int) -> Completion:
        tokens = [*TOKENIZER(text)["input_ids"], TOKENIZER.eos_token_id]
        finish = "stop" if len(tokens) <= limit else "length"
        return Completion(text, tuple(tokens[:limit]), finish)

    def close(self) -> None: ...


class DirectCaller:
    """Passes a judge's calls on without a process in between."""

    name = "scripted"
    structured = False

    def __init__(self, calls: EngineCalls) -> None:
        self._calls = calls

    def complete(self, calls: Sequence[Call]) -> list[Any]:
        return self._calls.answer(calls, lambda: None)

    def weigh(self, choices: Sequence[Choices]) -> list[Any]:
        return self._calls.answer(choices, lambda: None)


class ScriptedRun(Run):
    """A Run without processes."""

    def __init__(self, resolved: Resolved, *args: Any, answer: Answer) -> None:
        self.resolved = resolved
        self.loop = resolved.loop
        self.scripted = ScriptedSampler(answer)
        self.jobs: list[TrainJob] = []
        super().__init__(resolved, *args)

    @property
    def asked(self) -> list[tuple[str, str]]:
        """(policy, rendered prompt) of every completion, in order."""
        return self.scripted.asked

    def _make_sampler(self) -> Any:
        return self.scripted

    def judge_batches(
        self,
        judge: JudgeSpec,
        batches: Iterator[Batch],
        calls: EngineCalls | None = None,
        again: str = "",
    ) -> Iterator[pa.Table]:
        judged = Nested(judge, DirectCaller(calls) if calls else None)
        return (rows_table(judged.judge(batch.samples), VERDICTS) for batch in batches)

    def train(self, job: TrainJob, follow: Callable[[dict[str, Any]], None]) -> TrainReport:
        self.jobs.append(job)
        with writing(Path(job.out_dir)):  # as the real one does
            for file in Path(job.start_path).iterdir():
                if file.name != "MANIFEST.json":
                    shutil.copy(file, job.out_dir)
        return TrainReport(job.max_steps or 1, 1, 1, 1.0, 0.5, 0.0)


def scripted_run(folder: Path, source: Path, answer: Answer, **settings: Any) -> ScriptedRun:
    """A scripted run in `folder`, on the addition testbed's tokenizer and judge."""
    model = folder / "model"
    if not model.exists():
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_bytes(b"weights")
    config: dict[str, Any] = {
        "loop": "rest_em",
        "model": str(model),
        "prompts": {"source": str(source), "fresh": False, "heldout": 0},
        "judge": f"{JUDGES}:right",
        "sampling": {"max_tokens": 40},
    }
    resolved = resolve(config | {k: v for k, v in settings.items() if k != "name"})
    path = new_run(resolved, folder / "runs", settings.get("name"))
    return _open(resolved, path, model, folder, answer)


def resumed(run: ScriptedRun, answer: Answer) -> ScriptedRun:
    """The same run again, as a resumed one finds it."""
    folder = run.ledger.path.parents[1]
    return _open(run.resolved, run.ledger.path, folder / "model", folder, answer)


def _open(resolved: Resolved, path: Path, model: Path, folder: Path, answer: Answer) -> ScriptedRun:
    opened = open_prompts(resolved.config.prompts, seed=resolved.config.seed, base=folder)
    setting = Setting(model, TOKENIZER, "transformers", False, 96, ANYWHERE, ANYWHERE)
    ledger = Ledger(path)
    cluster: Any = None
    return ScriptedRun(
        resolved, ledger, cluster, setting, opened, Silent(), lambda: None, answer=answer
    )


def play_script(run: ScriptedRun) -> str:
    """Run the loop to its end; the reason if it ended early."""
    reason = ""
    try:
        run.loop.fn(run, run.options)
    except EndOfRun as end:
        reason = end.reason
    run.finish()
    return reason
