"""A run: the loop's view of it, and the processes, policies and records behind its verbs."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa

from selfkd.alarms import Alarm
from selfkd.batches import Batch
from selfkd.chat import render_all, same_tokenizer
from selfkd.cluster import Cluster, Place
from selfkd.config import Resolved
from selfkd.distillation import TeacherName
from selfkd.enginecalls import EngineCalls
from selfkd.errors import DataError, UsageError
from selfkd.files import write_atomically
from selfkd.gate import paired_test
from selfkd.judgepool import JudgePool
from selfkd.judging import JudgeSpec
from selfkd.ledger import MARKER, Ledger, Step
from selfkd.metrics import recorded_rows, run_alarms
from selfkd.modelcard import write_cards
from selfkd.models import check_model_dir, resolve_model
from selfkd.overlap import Asked, Overlap
from selfkd.policies import Policies, Policy
from selfkd.progress import Reporter
from selfkd.prompts import PromptSource
from selfkd.records import Message, Prompt
from selfkd.retention import prune
from selfkd.round import Round
from selfkd.rundir import HELDOUT
from selfkd.samplers import make_sampler
from selfkd.sampling.replicas import Sampler
from selfkd.setting import Setting
from selfkd.stopping import EndOfRun, SampledOnce
from selfkd.tables import Anchors, Samples, Scored
from selfkd.trainers import Trainers
from selfkd.training.base import TrainJob, TrainReport
from selfkd.verdictcache import VerdictCache, cache_file


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
        self.policies = Policies(ledger, setting.model_path, self._merge)
        self.best = "base"
        self.newest = "base"
        """The policy trained last, promoted or not."""
        self.only_samples = False
        """Whether to stop before the first training."""
        self.owed: list[Samples | Scored] = []
        """Handles that a loop may not have looked into when its round ends."""
        self.anchors: Anchors | None = None
        """Samples of the first round that the judge is shown again in later ones."""
        self.current = "base"
        """The policy that the next round begins with."""
        self.planned = 0
        """Rounds that the loop goes through, but for the final one."""
        self._round = 0
        self._overlap = Overlap(self) if self.config.engine.overlap else None
        self._telling = threading.Lock()
        """Held while something is told: a round may be sampled while another one trains."""
        self._heldout_rewards: dict[str, dict[str, float]] = {}
        self._cluster = cluster
        self._check_stop = check_stop
        self._judges: dict[str, JudgePool] = {}
        self.sampler = self._make_sampler()
        self._trainers = self._make_trainers()

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
        if self.judge.sees_answers:
            raise UsageError(
                f"{self.config.loop} learns without labels, and judge {name!r} compares with them",
                where="judge",
                remedy=f"write gold_judge: {name}, which only measures, and another judge",
            )
        return self.judge

    def rounds(self, count: int) -> Iterator[Round]:
        """Measure the base on held-out, then yield rounds 0 to `count - 1`, one trained policy
        each."""
        self.planned = count
        Round(self, 0, "base").evaluate(self.heldout, self.gold_judge, policy="base")
        for number in range(count):
            self._round = number
            yield Round(self, number, self.current)
            self._heed(number, self._end_round(number))
            self._check_stop()
        self._round = count

    def teacher(self, spec: str) -> TeacherName:
        """The teacher that a config names: a policy of this run, or a model that becomes `teacher`.

        `spec` is base, previous, best, live or ema, else a model directory, a known name or a hub
        id. Raises UsageError for a model with another tokenizer: its tokens would not be ours.
        """
        for name in get_args(TeacherName):
            if spec == name != "teacher":
                return name
        try:
            path = resolve_model(spec)
        except UsageError as error:
            error.where = "teacher"
            raise
        check_model_dir(path)
        same_tokenizer(self.setting.tokenizer, path)
        self.policies.add("teacher", path)
        return "teacher"

    def final_round(self) -> Round:
        """The round after the last training: its samples end the curve, and nothing is trained."""
        return Round(self, self._round, self.current)

    def heldout_mean(self, policy: str) -> float | None:
        """Mean held-out reward of a policy, or None where it was not measured."""
        rewards = self._heldout_rewards.get(policy)
        return sum(rewards.values()) / len(rewards) if rewards else None

    # -- for rounds -----------------------------------------------------------------------------

    def heldout_rewards(self, policy: str) -> dict[str, float] | None:
        """Held-out rewards by prompt id of a policy that was measured, else None."""
        return self._heldout_rewards.get(policy)

    def render_all(self, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
        """Tokens of chat messages, ready to be completed."""
        return render_all(self.setting.tokenizer, conversations)

    def calls_for(self, judge: JudgeSpec, policy: Policy | None) -> EngineCalls | None:
        """What answers a judge's calls with the run's own sampler, holding `policy`; None for a
        judge that asks no policy."""
        if policy is None:
            return None
        return EngineCalls(
            self.sampler, policy, self.setting.tokenizer, self.setting.context, keep=judge.writes
        )

    def judge_batches(
        self,
        judge: JudgeSpec,
        batches: Iterator[Batch],
        calls: EngineCalls | None = None,
        again: str = "",
    ) -> Iterator[pa.Table]:
        """Verdicts of each batch as rows of `VERDICTS`, in order, from processes of their own.

        `again` names an occasion on which samples are judged whatever is known of them."""
        identity, settings = judge.identity(), self.config.judging
        asked = calls.policy.fingerprint if calls else ""
        kept = cache_file() if settings.cache and not again else None
        cache = VerdictCache.of(judge, asked) if kept and judge.cacheable else None
        if identity not in self._judges:
            self._judges[identity] = JudgePool(
                judge,
                self._cluster,
                workers=settings.workers,
                timeout=settings.timeout,
                check=self._check_stop,
                folder=self.ledger.path / "judging",
                place=Place(cpus=self.config.cluster.judge_cpus),
            )
        yield from self._judges[identity].judge_batches(batches, calls, cache, kept, again)
        if cache:
            self._tell_of(cache, judge.name)

    def _tell_of(self, cache: VerdictCache, judge: str) -> None:
        """Say how much the cache saved, and what is wrong with it."""
        if cache.hits:
            text = f"judge {judge}: {cache.hits} verdicts were known and not asked for again"
            self.emit("message", text=text)
        if cache.complaint:
            self.emit("message", text=cache.complaint, level="warning")

    def train(self, job: TrainJob, follow: Callable[[dict[str, Any]], None]) -> TrainReport:
        """Run one training in the trainer's process; `follow` sees each logged step."""
        with self._training():
            return self._trainers.train(job, follow)

    def _merge(self, adapter: Path, start: Path, out: Path) -> None:
        """As `policies.Merge`; the driver itself never loads a model."""
        with self._training():
            self._trainers.merge(adapter, start, out)

    @contextlib.contextmanager
    def _training(self) -> Iterator[None]:
        """Memory for the trainer, where it takes turns with the sampler."""
        if self.setting.swap:
            self.sampler.rest()
        try:
            yield
        finally:
            if self.setting.swap:
                self._trainers.close()

    def begun(self, round: Round, asked: Asked) -> Samples | None:
        """What was sampled for a round before it was asked for, if runs overlap."""
        return self._overlap.taken(round, asked) if self._overlap else None

    def overlapping(self, round: Round, *, trains: bool) -> contextlib.AbstractContextManager[None]:
        """What goes on beside the training of a round."""
        if self._overlap is None:
            return contextlib.nullcontext()
        return self._overlap.during(round, trains=trains)

    def before_training(self) -> None:
        """Called before anything is trained; raises SampledOnce in a run that is only forecast."""
        if self.only_samples:
            for handle in self.owed:
                handle.wait()
            raise SampledOnce("everything is sampled and judged, and nothing is trained yet")

    def trained(self, policy: str) -> None:
        """A training made `policy`; it is current until a gate says otherwise."""
        self.newest = self.current = policy

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
            self.current = self.best
            if self.config.gate.on_fail == "stop":
                raise EndOfRun(
                    f"{policy} fell below {self.best} on held-out "
                    f"({result.delta:+.3f}, p={result.p_value:.3f}); rolled back"
                )
        elif result.delta >= 0:
            self.best = policy

    def emit(self, name: str, /, **fields: Any) -> None:
        """Record an event and show it."""
        with self._telling:
            self.ledger.event(name, **fields)
            self.reporter.event(name, **fields)

    def progress(self, round: int, step: Step, done: int, total: int, **fields: Any) -> None:
        """Show progress of a step."""
        with self._telling:
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

    @property
    def standing(self) -> str:
        """The policy that the run stands by: the best on held-out, or else the newest."""
        return self.best if self._measured else self.newest

    @property
    def _measured(self) -> bool:
        """Whether any held-out answer got a reward, so that there is a best policy."""
        return any(self._heldout_rewards.values())

    def finish(self) -> None:
        """Close the round that the loop ended in, where it has recorded anything, and the one after
        it where its policy was already measured."""
        for number in sorted(int(p.name) for p in (self.ledger.path / "rounds").iterdir()):
            if number >= self._round:
                self._end_round(number)

    def close(self) -> None:
        """End the processes of this run."""
        self.sampler.close()
        self._trainers.close()
        for pool in self._judges.values():
            pool.close()

    def _end_round(self, number: int) -> dict[str, Any]:
        """Record that a round is complete; the alarms that began in it, and what they led to."""
        for handle in self.owed:
            handle.wait()
        self.owed.clear()
        rows = recorded_rows(self.ledger.path)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(self.ledger.path / "metrics.jsonl", lines.encode())
        write_cards(self.ledger.path, (number, number + 1))
        row = next((r for r in rows if r["round"] == number), None)
        if row is None:
            raise DataError(f"round {number} recorded nothing", where=str(self.ledger.path))
        self.reporter.event("round_row", row=row)
        marker = self.ledger.step(number, MARKER, "", {})
        if not marker.finished:
            self._prune()
            known = [r for r in rows if r["round"] <= number]
            self._tell(
                marker, [a for a in run_alarms(self.ledger.path, known) if a.round == number]
            )
        return marker.summary

    def _tell(self, marker: Step, told: list[Alarm]) -> None:
        """Record that a round is complete, its alarms, and the policy they send the run back to."""
        back = [a.name for a in told if a.name in self.config.alarms.rollback]
        best = self.best if back and self._measured else None
        marker.finish({"alarms": [alarm.name for alarm in told], "back_to": best})
        self.emit("round_finished", round=marker.round)
        for alarm in told:
            facts = {"level": alarm.level, "alarm": alarm.name, "message": alarm.message}
            self.emit("alarm", round=marker.round, **facts)
        if best:
            text = f"alarm {', '.join(back)}: going on from {best}"
            self.reporter.event("message", text=text, level="warning")

    def _heed(self, number: int, ended: dict[str, Any]) -> None:
        """What the config wants of a round's alarms: end the run, or go on from its best policy."""
        config, best = self.config.alarms, ended.get("back_to")
        final = config.stop if best else [*config.stop, *config.rollback]
        if found := [name for name in ended.get("alarms", []) if name in final]:
            raise EndOfRun(f"round {number} raised the alarm {', '.join(found)}")
        self.current = best or self.current

    def _make_trainers(self) -> Trainers:
        return Trainers(
            self._cluster,
            self.setting.trainer,
            workers=self.config.cluster.trainer_workers,
            check=self._check_stop,
        )

    def _prune(self) -> None:
        """Let go of weights that the config does not keep and nothing here needs."""
        needed = {self.best, self.newest, self.current}
        needed |= self._overlap.samplers() if self._overlap else set()
        for name in prune(self.ledger, self.config.keep_policies, needed):
            self.policies.forget(name)
            self.reporter.event("policy_pruned", policy=name)

    def _make_sampler(self) -> Sampler:
        return make_sampler(
            self._cluster,
            self.config.engine,
            self.setting.engine,
            context=self.setting.context,
            seed=self.config.seed,
            place=self.setting.sampler,
            check=self._check_stop,
            tell=lambda text: self.emit("message", text=text, level="warning"),
        )
