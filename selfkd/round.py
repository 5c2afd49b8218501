"""One round and its five verbs. Each verb is durable: asked again, it returns what it recorded."""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from selfkd.errors import DataError
from selfkd.judging import JudgeSpec, check_failures
from selfkd.ledger import Step
from selfkd.objectives import SFT
from selfkd.policies import Policy
from selfkd.prompts import PromptSource
from selfkd.records import (
    DECISIONS,
    EXAMPLES,
    VERDICTS,
    Decision,
    Prompt,
    Sample,
    Verdict,
    content_hash,
    prompts_table,
    read_prompts,
    read_rows,
    rows_table,
    samples_table,
)
from selfkd.rules import Rule
from selfkd.sampling.actor import Shard
from selfkd.sampling.base import Completion, Request, Sampling
from selfkd.tables import Batch, Kept, Samples, Scored
from selfkd.training.base import TrainJob, TrainReport
from selfkd.views import View, plain

if TYPE_CHECKING:
    from selfkd.run import Run

Start = Literal["base", "previous", "best"]
HELDOUT = "heldout"


class Round:
    """What policy `round-N` does: it samples, is judged, and its kept samples train the next."""

    def __init__(self, run: "Run", number: int, policy: str) -> None:
        self.run = run
        self.number = number
        self.policy = policy
        self.rng = np.random.default_rng([run.config.seed, number])

    # -- generate -------------------------------------------------------------------------------

    def generate(
        self,
        prompts: PromptSource | Sequence[Prompt],
        *,
        n: int,
        sampling: Sampling | None = None,
        policy: str | None = None,
        view: View = plain,
        label: str = "",
    ) -> Samples:
        """Complete each prompt `n` times under `view`; returns a lazy handle.

        `sampling` defaults to the config's, `policy` to the round's own. Prompts too long for the
        engine are dropped and counted, never sent.
        """
        version = self.run.policies.get(policy or self.policy)
        sampling = sampling or self.run.config.sampling
        prompts, fingerprint = self._prompts(prompts, view, sampling, label)
        args = {
            "prompts": fingerprint,
            "n": n,
            "sampling": sampling.model_dump(),
            "policy": version.fingerprint,
            "policy_name": version.name,
            "view": view.name,
        }
        step = self._step("generate", label, args, len(prompts) * n)
        plan = _plan(prompts, n)
        samples = Samples(
            step, prompts, n, lambda: self._sample(step, plan, n, sampling, version, view)
        )
        self.run.owed.append(samples)
        return samples

    def _prompts(
        self,
        source: PromptSource | Sequence[Prompt],
        view: View,
        sampling: Sampling,
        label: str,
    ) -> tuple[list[Prompt], str]:
        drawn = source.train(self.number) if isinstance(source, PromptSource) else list(source)
        args = {"prompts": content_hash([p.id for p in drawn]), "view": view.name}
        step = self._step("prompts", label, args, len(drawn))
        if not step.finished:
            limit = self.run.setting.context - sampling.max_tokens
            fits = [p for p in drawn if len(self.run.render(view(p))) <= limit]
            step.write(0, prompts_table(fits))
            self._finish(step, {"prompts": len(fits), "too_long": len(drawn) - len(fits)})
        return [p for table in step.tables() for p in read_prompts(table)], step.fingerprint

    def _sample(
        self,
        step: Step,
        plan: list[list[Prompt]],
        n: int,
        sampling: Sampling,
        policy: Policy,
        view: View,
    ) -> Iterator[Batch]:
        step.started = time.monotonic()
        missing = [i for i in range(len(plan)) if not step.has(i)]
        requests = [
            (i, tuple(Request(p.id, tuple(self.run.render(view(p))), n) for p in plan[i]))
            for i in missing
        ]
        total = sum(map(len, plan))
        before = total - sum(len(plan[i]) for i in missing)
        stream = self.run.sampler.generate(
            policy.name, policy.path, policy.canary, requests, sampling
        )
        for item in stream:
            if isinstance(item, Shard):
                batch = [
                    self._make_sample(step, prompt, k, completion, policy.name, view.name)
                    for prompt in plan[item.index]
                    for k, completion in enumerate(item.completions[prompt.id])
                ]
                step.write(item.index, samples_table(batch))
                yield item.index, batch
            else:
                done = (before + item.requests) * n
                self._progress(step, done, total * n, tokens=item.tokens)
        rows = [
            r for table in step.tables() for r in table.select(["finish", "tokens"]).to_pylist()
        ]
        self._finish(
            step,
            {
                "prompts": total,
                "samples": len(rows),
                "tokens": sum(len(r["tokens"]) for r in rows),
                "policy": policy.name,
                "truncated": sum(r["finish"] == "length" for r in rows),
            },
        )

    def _make_sample(
        self, step: Step, prompt: Prompt, index: int, completion: Completion, policy: str, view: str
    ) -> Sample:
        name = f"{self.number}-{step.name}-{prompt.id}-{index}"
        return Sample(
            id=name,
            prompt=prompt,
            index=index,
            completion=completion.text,
            tokens=completion.tokens,
            finish=completion.finish,
            policy=policy,
            view=view,
            round=self.number,
            logprob=completion.logprob,
        )

    # -- judge ----------------------------------------------------------------------------------

    def judge(self, samples: Samples, judge: JudgeSpec, *, label: str = "") -> Scored:
        """Have every sample judged, shard by shard, while later shards are still being made."""
        label = label or samples.step.label
        args = {"samples": samples.step.fingerprint, "judge": judge.identity()}
        step = self._step("judge", label, args, samples.count)
        scored = Scored(step, samples, lambda: self._judge(step, samples, judge))
        self.run.owed.insert(0, scored)  # before its samples, which it takes as they come
        return scored

    def _judge(self, step: Step, samples: Samples, judge: JudgeSpec) -> None:
        owed: list[int] = []
        step.started = time.monotonic()
        sampling = 0.0  # seconds spent waiting for samples, which are not judging

        def batches() -> Iterator[list[Sample]]:
            nonlocal sampling
            waiting = time.monotonic()
            for index, batch in samples.batches():
                sampling += time.monotonic() - waiting
                if not step.has(index):
                    owed.append(index)
                    yield batch
                waiting = time.monotonic()
            sampling += time.monotonic() - waiting

        recorded = [v for table in step.tables() for v in read_rows(table, Verdict)]
        scores = [v.reward for v in recorded if v.reward is not None]
        done = len(recorded)
        for position, verdicts in enumerate(self.run.judge_batches(judge, batches())):
            step.write(owed[position], rows_table(verdicts, VERDICTS))
            done += len(verdicts)
            scores += [v.reward for v in verdicts if v.reward is not None]
            mean = float(np.mean(scores)) if scores else None
            self._progress(step, done, samples.count, reward_mean=mean)
        verdicts = [v for table in step.tables() for v in read_rows(table, Verdict)]
        unscored: dict[str, int] = {}
        for verdict in verdicts:
            if verdict.reward is None:
                unscored[verdict.status] = unscored.get(verdict.status, 0) + 1
        rewards = [v.reward for v in verdicts if v.reward is not None]
        summary = {
            "judge": judge.spec,
            "scored": len(rewards),
            "unscored": unscored,
            "reward_mean": float(np.mean(rewards)) if rewards else None,
        }
        check_failures(verdicts, self.run.config.judging.max_failure_rate)
        self._finish(step, summary, seconds=time.monotonic() - step.started - sampling)

    # -- keep -----------------------------------------------------------------------------------

    def keep(self, scored: Scored, rule: Rule, *, label: str = "") -> Kept:
        """Decide which samples are learnt from; every drop has its reason on record."""
        label = label or scored.step.label
        scored.wait()
        args = {"scored": scored.step.fingerprint, "rule": rule.name, "seed": self.run.config.seed}
        step = self._step("keep", label, args, 0)
        if not step.finished:
            candidates = scored.candidates()
            reasons = rule.apply(
                candidates, np.random.default_rng([self.run.config.seed, self.number])
            )
            decisions = [
                Decision(sample, prompt, reason is None, reason or "kept")
                for sample, prompt, reason in zip(
                    candidates.sample_ids, candidates.prompt_ids, reasons, strict=True
                )
            ]
            step.write(0, rows_table(decisions, DECISIONS))
            dropped: dict[str, int] = {}
            for decision in decisions:
                if not decision.kept:
                    dropped[decision.reason] = dropped.get(decision.reason, 0) + 1
            kept = sum(d.kept for d in decisions)
            self._finish(step, {"kept": kept, "dropped": dropped, "rule": rule.name})
        return Kept(step, scored, [d for t in step.tables() for d in read_rows(t, Decision)])

    # -- train ----------------------------------------------------------------------------------

    def train(
        self,
        objective: SFT,
        *,
        start: Start = "previous",
        steps: int | None = None,
        learning_rate: float | None = None,
    ) -> str:
        """Make the next policy from the objective's examples and return its name.

        `start` is what is trained: the base model, the round's own policy or the best one so far.
        `steps` fixes the number of optimiser steps, otherwise the config's epochs decide. With no
        example the weights stay as they are, and the run stops or goes on by `on_no_signal`.
        """
        origin = self.run.policies.get(self._start(start))
        options = self.run.config.train
        if learning_rate is not None:
            options = options.model_copy(update={"learning_rate": learning_rate})
        args = {
            "objective": objective.name,
            "settings": objective.settings(),
            "inputs": objective.inputs(),
            "start": origin.fingerprint,
            "start_name": origin.name,
            "options": options.model_dump(),
            "steps": steps,
            "seed": self.run.config.seed,
        }
        step = self._step("train", "", args, 0)
        if not step.finished:
            self._train(step, objective, origin, options, steps)
        self.run.trained(step.summary["policy"])
        return step.summary["policy"]

    def _start(self, start: Start) -> str:
        return {"base": "base", "previous": self.policy, "best": self.run.best}[start]

    def _train(
        self, step: Step, objective: SFT, origin: Policy, options: Any, steps: int | None
    ) -> None:
        if not step.has(0):
            step.write(0, rows_table(objective.examples(self.run.setting.tokenizer), EXAMPLES))
        count = step.read(0).num_rows
        if not count:
            self._no_signal(step)
            return
        name = f"round-{self.number + 1}"
        report = self.run.policies.committed(name, step.fingerprint)
        if report is None:
            job = TrainJob(
                objective=objective.name,
                objective_options=objective.settings(),
                example_files=(str(step.shard_path(0)),),
                start_path=str(origin.path),
                out_dir=str(self.run.policies.staging(name)),
                log_file=str(step.path / "log.jsonl"),
                seed=self.run.config.seed * 1000 + self.number,
                options=options,
                max_steps=steps,
            )
            result = self.run.train(job, lambda row: self._training_progress(step, row))
            report = _report(result)
            canary = [(list(t), list(lp)) for t, lp in result.canary]
            self.run.policies.commit(name, step.fingerprint, report, canary)
        self._finish(step, {"policy": name, "start": origin.name, **report})

    def _no_signal(self, step: Step) -> None:
        if self.run.config.on_no_signal == "stop":
            raise DataError(
                f"no signal: round {self.number} kept no sample, so there is nothing to train on",
                where=str(step.path.parent),
                remedy=f"see why with `selfkd show {self.run.ledger.path} --round {self.number} "
                "--dropped`, or set on_no_signal=continue",
            )
        self._finish(step, {"policy": self.policy, "no_signal": True, "steps": 0, "examples": 0})

    def _training_progress(self, step: Step, row: dict[str, Any]) -> None:
        total = row.get("total_steps") or row["step"]
        self._progress(step, row["step"], total, loss=row.get("loss"))

    # -- evaluate -------------------------------------------------------------------------------

    def evaluate(
        self, prompts: Sequence[Prompt], judge: JudgeSpec | None, *, policy: str | None = None
    ) -> dict[str, float]:
        """Greedy answers of the newest policy to held-out prompts; mean reward by prompt id.

        Recorded in the round of the policy it measures, and handed to the gate. Without held-out
        prompts or a judge for them this does nothing.
        """
        if not prompts or judge is None:
            return {}
        measured = policy or self.run.newest
        if (known := self.run.heldout_rewards(measured)) is not None:
            return known  # the round trained nothing, so there is nothing new to measure
        place = self if measured == self.policy else Round(self.run, self.number + 1, measured)
        greedy = self.run.config.sampling.model_copy(update={"temperature": 0.0})
        samples = place.generate(prompts, n=1, sampling=greedy, policy=measured, label=HELDOUT)
        rewards = place.judge(samples, judge).mean_rewards()
        self.run.gate(place, measured, rewards)
        return rewards

    # -- records --------------------------------------------------------------------------------

    def _step(self, verb: str, label: str, args: dict[str, Any], total: int) -> Step:
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

    def _progress(self, step: Step, done: int, total: int, **fields: Any) -> None:
        self.run.progress(self.number, step, done, total, **fields)

    def _finish(self, step: Step, summary: dict[str, Any], *, seconds: float | None = None) -> None:
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


def _plan(prompts: Sequence[Prompt], n: int) -> list[list[Prompt]]:
    """Prompts by shard: between 64 and 4096 samples each, about 32 shards where that allows it."""
    samples = min(4096, max(64, len(prompts) * n // 32))
    size = max(1, samples // n)
    return [list(prompts[i : i + size]) for i in range(0, len(prompts), size)]


def _report(result: TrainReport) -> dict[str, Any]:
    names = ("steps", "examples", "tokens", "loss_first", "loss_last", "seconds")
    return {name: getattr(result, name) for name in names}
