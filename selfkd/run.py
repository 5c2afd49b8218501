"""A run: the loop's view of it, and the processes, policies and records behind its verbs."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from selfkd.chat import render
from selfkd.cluster import ActorLost, Cluster, kill
from selfkd.config import Resolved
from selfkd.enginecalls import EngineCalls
from selfkd.errors import DataError, InfrastructureError, UsageError
from selfkd.gate import paired_test
from selfkd.judgepool import JudgePool
from selfkd.judging import JudgeSpec
from selfkd.ledger import Ledger, Step, write_atomically
from selfkd.metrics import alarms, round_rows
from selfkd.policies import Policies, Policy
from selfkd.progress import Reporter
from selfkd.prompts import PromptSource
from selfkd.records import Message, Prompt, Sample, Verdict
from selfkd.round import Round
from selfkd.rundir import HELDOUT
from selfkd.samplers import make_sampler
from selfkd.sampling.pool import SamplerPool
from selfkd.tables import Samples, Scored
from selfkd.training.base import TrainJob, TrainReport


class EndOfRun(Exception):
    """Raised to end a loop early but in order; `reason` is recorded."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Setting:
    """What was settled before a run starts: model, engine kind, memory, devices."""

    model_path: Path
    tokenizer: Any
    engine: Literal["vllm", "transformers"]
    swap: bool
    """Sampler and trainer take turns in memory."""
    context: int
    """Longest prompt plus completion, tokens."""
    sampler_gpus: float
    trainer_gpus: float


class Run:
    """What a loop is given: prompts, held-out prompts, judges, and rounds to work in."""

    def __init__(
        self,
        resolved: Resolved,
        ledger: Ledger,
        cluster: Cluster,
        setting: Setting,
        prompts: PromptSource,
        reporter: Reporter,
        check_stop: Callable[[], None],
    ) -> None:
        self.config = resolved.config
        self.options = resolved.options
        self.ledger = ledger
        self.setting = setting
        self.prompts = prompts
        self.judge = resolved.judge
        self.gold_judge = resolved.gold_judge
        self.reporter = reporter
        self.policies = Policies(ledger, setting.model_path)
        self.best = "base"
        self.newest = "base"
        """The policy trained last, promoted or not."""
        self.owed: list[Samples | Scored] = []
        """Handles that a loop may not have looked into when its round ends."""
        self._current = "base"
        self._round = 0
        self._heldout_rewards: dict[str, dict[str, float]] = {}
        self._cluster = cluster
        self._check_stop = check_stop
        self._trainer: Any = None
        self._judges: dict[str, JudgePool] = {}
        self.sampler = self._make_sampler()

    # -- for loops ------------------------------------------------------------------------------

    @cached_property
    def heldout(self) -> list[Prompt]:
        """The fixed held-out prompts; never trained on."""
        return self.prompts.heldout()

    @property
    def blind_judge(self) -> JudgeSpec:
        """The judge, which must not see reference answers: UsageError where it compares with them.

        For loops that are to learn without labels.
        """
        name = self.judge.name
        if self.judge.gold:
            raise UsageError(
                f"{self.config.loop} learns without labels, and judge {name!r} compares with them",
                where="judge",
                remedy=f"write gold_judge: {name}, which only measures, and another judge",
            )
        return self.judge

    def rounds(self, count: int) -> Iterator[Round]:
        """Measure the base on held-out, then yield rounds 0 to `count - 1`, one trained policy
        each."""
        Round(self, 0, "base").evaluate(self.heldout, self.gold_judge, policy="base")
        for number in range(count):
            self._round = number
            yield Round(self, number, self._current)
            self._end_round(number)
            self._check_stop()
        self._round = count

    def final_round(self) -> Round:
        """The round after the last training: its samples end the curve, and nothing is trained."""
        return Round(self, self._round, self._current)

    def heldout_mean(self, policy: str) -> float | None:
        """Mean held-out reward of a policy, or None where it was not measured."""
        rewards = self._heldout_rewards.get(policy)
        return sum(rewards.values()) / len(rewards) if rewards else None

    # -- for rounds -----------------------------------------------------------------------------

    def heldout_rewards(self, policy: str) -> dict[str, float] | None:
        """Held-out rewards by prompt id of a policy that was measured, else None."""
        return self._heldout_rewards.get(policy)

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of chat messages, ready to be completed."""
        return render(self.setting.tokenizer, list(messages))

    def engine_calls(self, judge: JudgeSpec, policy: Policy) -> EngineCalls:
        """What answers a judge's calls with the run's own sampler, holding `policy`."""
        return EngineCalls(
            self.sampler,
            policy,
            self.setting.tokenizer,
            self.setting.context,
            keep=judge.writes,
        )

    def judge_batches(
        self,
        judge: JudgeSpec,
        batches: Iterator[list[Sample]],
        calls: EngineCalls | None = None,
    ) -> Iterator[list[Verdict]]:
        """Verdicts of each batch in order; judging runs in worker processes of its own."""
        identity = judge.identity()
        if identity not in self._judges:
            settings = self.config.judging
            self._judges[identity] = JudgePool(
                judge,
                self._cluster,
                workers=settings.workers,
                timeout=settings.timeout,
                check=self._check_stop,
                folder=self.ledger.path / "judging",
            )
        return self._judges[identity].judge_batches(batches, calls)

    def train(self, job: TrainJob, follow: Callable[[dict[str, Any]], None]) -> TrainReport:
        """Run one training in the trainer process; `follow` sees each logged step."""
        from selfkd.training.trainer import LocalTrainer

        if self.setting.swap:
            self.sampler.close()
        if self._trainer is None:
            self._trainer = self._cluster.start(LocalTrainer, gpus=self.setting.trainer_gpus)
        tail = _Tail(Path(job.log_file), follow)

        def check() -> None:
            tail.read()
            self._check_stop()

        try:
            return self._cluster.get(
                self._trainer.train.remote(job), "the training", timeout=7 * 86_400, check=check
            )
        except ActorLost as error:
            self._trainer = None
            raise InfrastructureError(
                f"the trainer's process was killed, likely for lack of memory ({error.message})",
                where="train",
                remedy="lower train.micro_batch_size or set train.lora_rank, then resume",
            ) from error
        finally:
            if self.setting.swap:
                self._end_trainer()

    def trained(self, policy: str) -> None:
        """A training made `policy`; it is current until a gate says otherwise."""
        self.newest = self._current = policy

    def gate(self, round: Round, policy: str, rewards: dict[str, float]) -> None:
        """Promote a measured policy, or go back to the best one if it is worse (paired test)."""
        self._heldout_rewards[policy] = rewards
        if policy == self.best or not rewards:
            return
        result = paired_test(rewards, self._heldout_rewards[self.best], seed=self.config.seed)
        gated = self.config.gate.mode != "off"
        fell = gated and result.delta < 0 and result.p_value < self.config.gate.alpha
        decision = "rolled_back" if fell else "promoted"
        facts = {
            "policy": policy,
            "decision": decision,
            "best": self.best,
            "p_value": result.p_value,
            "delta": result.delta,
        }
        step = self.ledger.step(
            round.number, "gate", HELDOUT, {"policy": policy, "best": self.best, "gated": gated}
        )
        if not step.finished:
            step.finish(facts)
            self.emit("gate", round=round.number, **facts)
        if fell:
            self._current = self.best
            if self.config.gate.on_fail == "stop":
                raise EndOfRun(
                    f"{policy} fell below {self.best} on held-out "
                    f"({result.delta:+.3f}, p={result.p_value:.3f}); rolled back"
                )
        elif result.delta >= 0:
            self.best = policy

    def emit(self, name: str, /, **fields: Any) -> None:
        """Record an event and show it."""
        self.ledger.event(name, **fields)
        self.reporter.event(name, **fields)

    def progress(self, round: int, step: Step, done: int, total: int, **fields: Any) -> None:
        """Show progress of a step, and give way to a requested stop."""
        self.reporter.event(
            "step_progress",
            round=round,
            step=step.path.name,
            verb=step.verb,
            label=step.label,
            done=done,
            total=total,
            **fields,
        )
        self._check_stop()

    @property
    def standing(self) -> str:
        """The policy that the run stands by: the best on held-out, or else the newest."""
        return self.best if self._heldout_rewards else self.newest

    def finish(self) -> None:
        """Close the round that the loop ended in, and the one after it where its policy was
        already measured."""
        recorded = (int(p.name) for p in (self.ledger.path / "rounds").iterdir())
        for number in sorted({self._round, *recorded}):
            if number >= self._round:
                self._end_round(number)

    def close(self) -> None:
        """End the processes of this run."""
        self.sampler.close()
        self._end_trainer()
        for pool in self._judges.values():
            pool.close()

    def _end_trainer(self) -> None:
        if self._trainer is not None:
            kill(self._trainer)
        self._trainer = None

    def _end_round(self, number: int) -> None:
        for handle in self.owed:
            handle.wait()
        self.owed.clear()
        rows = round_rows(self.ledger.path)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(self.ledger.path / "metrics.jsonl", lines.encode())
        row = next((r for r in rows if r["round"] == number), None)
        if row is None:
            raise DataError(f"round {number} recorded nothing", where=str(self.ledger.path))
        self.reporter.event("round_row", row=row)
        self._finish_round(number, rows)

    def _finish_round(self, number: int, rows: list[dict[str, Any]]) -> None:
        marker = self.ledger.step(number, "round", "", {})
        if marker.finished:
            return
        marker.finish({})
        self.emit("round_finished", round=number)
        for alarm in alarms([r for r in rows if r["round"] <= number]):
            if alarm.round == number:
                self.emit(
                    "alarm",
                    round=number,
                    level=alarm.level,
                    alarm=alarm.name,
                    message=alarm.message,
                )

    def _make_sampler(self) -> SamplerPool:
        return make_sampler(
            self._cluster,
            self.config.engine,
            self.setting.engine,
            context=self.setting.context,
            seed=self.config.seed,
            gpus=self.setting.sampler_gpus,
            check=self._check_stop,
        )


class _Tail:
    """Follows a JSON-lines file that another process appends to."""

    def __init__(self, path: Path, follow: Callable[[dict[str, Any]], None]) -> None:
        self._path = path
        self._follow = follow
        self._offset = 0

    def read(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self._follow(json.loads(line))
