"""One round and its verbs. Each verb is durable: asked again, it returns what it recorded."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from selfkd.judging import OWN, JudgeSpec
from selfkd.objectives import Guide, Objective, Which
from selfkd.overlap import Asked
from selfkd.pairs import DEMONSTRATION, PairRule
from selfkd.prompts import PromptSource
from selfkd.records import Pair, Prompt, Teaching, content_hash, read_rows
from selfkd.rules import Rule
from selfkd.rundir import AUDIT, HELDOUT
from selfkd.sampling.base import Sampling
from selfkd.segments import Segment, cut
from selfkd.steps import Steps
from selfkd.tables import Kept, Pairs, Samples, Scored, Taught, decisions
from selfkd.teaching import ServedTeacher
from selfkd.verbs.control import watch_judge
from selfkd.verbs.demonstrate import record_demonstrations
from selfkd.verbs.generate import sample_shards
from selfkd.verbs.judge import judge_shards, judgement_steps
from selfkd.verbs.keep import record_decisions
from selfkd.verbs.pair import record_pairs
from selfkd.verbs.prompts import recorded_prompts
from selfkd.verbs.score import record_scores
from selfkd.verbs.teach import teach_shards
from selfkd.verbs.train import Plan, train_policy
from selfkd.views import View, plain
from selfkd.weights import Weighting

if TYPE_CHECKING:
    from selfkd.run import Run


class Round(Steps):
    """What policy `round-N` does: it samples, is judged, and its kept samples train the next."""

    def __init__(self, run: "Run", number: int, policy: str, *, behind: int = 0) -> None:
        """`behind` says that `policy` is not the newest, by so many rounds."""
        super().__init__(run, number)
        self.policy = policy
        self._behind = behind
        self.rng = np.random.default_rng([run.config.seed, number])
        self._reached = policy
        """The policy as the trainings of the round have left it."""
        self.controlled = False
        """Whether controls were planted, or are not wanted."""
        self.anchored = False
        """Whether the judge was shown the anchors, or need not be."""

    def ahead(self) -> "Round":
        """The round after this one as it is before this one's training: one policy behind."""
        return Round(self.run, self.number + 1, self.run.current, behind=1)

    def scheduled(self, values: Sequence[float]) -> float:
        """This round's value of a schedule by round, whose last value holds from then on."""
        return values[min(self.number, len(values) - 1)]

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
        parents: Scored | Samples | None = None,
    ) -> Samples:
        """Complete each prompt `n` times under `view`; returns a lazy handle.

        `sampling` defaults to the config's, `policy` to the round's own. Prompts too long for the
        engine are dropped and listed, never sent. Where these are second tries, `parents` are the
        first: each sample names those of its prompt.
        """
        special = self._behind or policy or label or parents
        whole = isinstance(prompts, PromptSource) and not special
        if whole and (begun := self.run.begun(self, Asked(n, sampling, view.name, view))):
            return begun
        version = self.run.policies.get(policy or self.policy)
        sampling = sampling or self.run.config.sampling
        prompts, tokens, recorded = recorded_prompts(self, prompts, view, sampling, label)
        args = {
            "prompts": recorded.fingerprint,
            "n": n,
            "sampling": sampling.model_dump(),
            "policy": version.fingerprint,
            "policy_name": version.name,
            "view": view.name,
        }
        if self._behind:
            args["behind"] = self._behind
        step = self.step("generate", label, args, len(prompts) * n)
        samples = Samples(
            step,
            prompts,
            n,
            lambda: sample_shards(self, step, prompts, tokens, n, sampling, version, view, parents),
            version.name,
        )
        self.run.owed.append(samples)
        return samples

    def demonstrate(
        self, prompts: Sequence[Prompt], texts: Mapping[str, str], *, label: str
    ) -> Samples:
        """Completions that were given, as samples: one a prompt, found by the prompt's id.

        Their policy is `demonstration`. SPIN prefers them to the policy's own; a seed stage learns
        from them.
        """
        sampling = self.run.config.sampling
        prompts, _, asked = recorded_prompts(self, prompts, plain, sampling, label)
        identity = content_hash([texts[p.id] for p in prompts])
        args = {"prompts": asked.fingerprint, "texts": identity, "policy_name": DEMONSTRATION}
        step = self.step("generate", label, args, len(prompts))
        if not step.finished:
            record_demonstrations(self, step, prompts, texts)
        return Samples(step, prompts, 1, lambda: iter(()), DEMONSTRATION)

    # -- judge ----------------------------------------------------------------------------------

    def judge(self, samples: Samples, judge: JudgeSpec, *, label: str = "") -> Scored:
        """Have every sample judged, shard by shard, while later shards are still being made.

        A judge that asks the run's sampler asks the round's own policy, or the one it names; where
        that is not the policy being sampled, judging begins once all is sampled. What such a judge
        is told is recorded as samples (`Scored.judgements`).
        """
        label = label or samples.step.label
        args = {"samples": samples.step.fingerprint, "judge": judge.identity()}
        asked = None
        if judge.engine:
            asked = self.run.policies.get(self.policy if judge.engine == OWN else judge.engine)
            args |= {"policy": asked.fingerprint, "policy_name": asked.name}
        step = self.step("judge", label, args, samples.count)
        told = judgement_steps(self, step, label) if judge.writes else None

        def produce() -> None:
            judge_shards(self, step, samples, judge, self.run.calls_for(judge, asked), told)

        scored = Scored(step, samples, produce, told)
        self.run.owed.insert(0, scored)  # before its samples, which it takes as they come
        watch_judge(self, samples, scored, judge, asked)
        return scored

    def audit(self, samples: Samples, gold: JudgeSpec | None) -> Scored | None:
        """Gold's verdicts on samples that the run's judge scores, to compare the two.

        Nothing is learnt from them. Without a gold judge, or where it needs answers that a prompt
        does not have, there are none.
        """
        if gold is None or (gold.needs_answer and any(p.answer is None for p in samples.prompts)):
            return None
        return self.judge(samples, gold, label=AUDIT)

    def score(
        self,
        samples: Samples,
        rewards: Mapping[str, float | None],
        *,
        judge: str,
        answers: Mapping[str, str] | None = None,
        label: str = "",
    ) -> Scored:
        """Give samples rewards that the loop worked out, by sample id; None: none could be read.

        For judgements that are samples themselves (`selfkd.judgements`). `judge` names how the
        rewards came about; `answers` may hold what was read out of a sample.
        """
        label = label or samples.step.label
        texts = dict(answers or {})
        given = content_hash([[s.id, rewards.get(s.id), texts.get(s.id)] for s in samples.rows])
        args = {"samples": samples.step.fingerprint, "judge": judge, "rewards": given}
        step = self.step("judge", label, args, samples.count)
        if not step.finished:
            record_scores(self, step, samples.rows, rewards, texts, judge)
        return Scored(step, samples, lambda: None)

    def teach(
        self, samples: Samples, teacher: ServedTeacher, *, view: View = plain, label: str = ""
    ) -> Taught:
        """Have a served teacher say what it would write at each token, for `GKD(teacher=...)`.

        The teacher sees prompts under `view`. Shards are recorded as they come, so what a server
        was paid for is never asked again.
        """
        label = label or samples.step.label
        names = {"teacher": teacher.name, "top_k": teacher.top_k, "view": view.name}
        args = {"samples": samples.step.fingerprint} | names
        step = self.step("teach", label, args, samples.count)
        if not step.finished:
            teach_shards(self, step, samples, teacher, view)
        rows = [t for table in step.tables() for t in read_rows(table, Teaching)]
        return Taught(step, samples, {row.sample_id: row for row in rows})

    # -- keep -----------------------------------------------------------------------------------

    def keep(
        self,
        scored: Scored | Samples,
        rule: Rule,
        *,
        weights: Weighting | None = None,
        label: str = "",
    ) -> Kept:
        """Decide which samples are learnt from; every drop has its reason on record.

        With `weights` each counts by its verdict; what has no weight, or weight 0, is dropped.
        """
        label = label or scored.step.label
        scored.wait()
        args = {"scored": scored.step.fingerprint, "rule": rule.name, "seed": self.run.config.seed}
        if weights:
            args["weights"] = weights.name
        step = self.step("keep", label, args, 0)
        if not step.finished:
            tables = decisions(scored, rule, [self.run.config.seed, self.number], weights)
            record_decisions(self, step, tables, rule.name)
        return Kept(step, scored)

    # -- pair -----------------------------------------------------------------------------------

    def pair(self, *parts: Scored | Samples, rule: PairRule, label: str = "") -> Pairs:
        """Decide which samples of a prompt are compared, within and across the given steps.

        Recorded twice: each sample's decision (step `keep`), and the pairs (step `pair`).
        """
        label = label or parts[0].step.label
        for part in parts:
            part.wait()
        inputs = [part.step.fingerprint for part in parts]
        args = {"scored": inputs, "rule": rule.name, "seed": self.run.config.seed}
        kept = self.step("keep", label, args, 0)
        step = self.step("pair", label, args, 0)
        record_pairs(self, kept, step, parts, rule)
        return Pairs(step, parts, [p for t in step.tables() for p in read_rows(t, Pair)])

    # -- train ----------------------------------------------------------------------------------

    def segments(
        self,
        prompts: PromptSource | Sequence[Prompt],
        *,
        n: int = 1,
        steps_per_sync: int | None = None,
    ) -> Iterator[Segment]:
        """Cut the round's training where the sampler gets fresh weights; None: nowhere.

        Each segment brings the policy to sample with, and prompts for at most `steps_per_sync`
        optimiser steps at `n` samples each. The loop's body generates under `segment.policy` and
        `segment.label`, and ends with `train(..., segment=segment)`.
        """
        drawn = prompts.train(self.number) if isinstance(prompts, PromptSource) else list(prompts)
        size, epochs = self.run.config.train.batch_size, self.run.config.train.epochs
        parts = list(cut(drawn, n=n, batch_size=size, epochs=epochs, steps_per_sync=steps_per_sync))
        total, first = sum(steps for _, steps in parts), 0
        for number, (part, steps) in enumerate(parts):
            yield Segment(self.number, number, part, self._reached, first, steps, total)
            first += steps

    def train(
        self,
        objective: Objective,
        *,
        start: Which = "previous",
        steps: int | None = None,
        learning_rate: float | None = None,
        segment: Segment | None = None,
    ) -> str:
        """Make the next policy from the objective's examples and return its name.

        `start` is what is trained: the base model, the round's own policy or the best one so far.
        `steps` fixes the number of optimiser steps, otherwise the config's epochs decide. With no
        example the weights stay as they are, and the run stops or goes on by `on_no_signal`.

        A `segment` goes on with the training of the segments before it, optimiser included.
        """
        origin = self.run.policies.get(self._which(start))
        reached = self.run.policies.get(self._reached)
        ref = self.run.policies.get(self._which(objective.ref)) if objective.ref else None
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
        if ref:
            args |= {"ref": ref.fingerprint, "ref_name": ref.name}
        plan = Plan(origin, reached, ref, options, steps, segment)
        if segment:
            args |= {"first": segment.first, "total": segment.total, "from": plan.here.fingerprint}
        step = self.step("train", segment.label if segment else "", args, 0)
        with self.run.overlapping(self, trains=not step.finished):
            if not step.finished:
                self.run.before_training()
                train_policy(self, step, objective, plan)
        self._reached = step.summary["policy"]
        if segment and not segment.last:
            self.run.policies.passing(self._reached, step.fingerprint)
        else:
            self.run.policies.let_go(f"round-{self.number + 1}")
            self.run.trained(self._reached)
        return self._reached

    def _which(self, which: Guide) -> str:
        return {"previous": self.policy, "best": self.run.best}.get(which, which)

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
