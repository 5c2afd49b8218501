"""How likely a policy finds the completion: its log-probability, per token or in all.

The policy may be the round's own (a confidence, as in Kadavath et al. 2022, arXiv:2207.05221), the
base or an earlier one (how far has the policy drifted?), or another model (how fluent is it?). The
end of the turn does not count. Low perplexity is not quality: what repeats itself is likely.
"""

import math
import re
from typing import Literal

from selfkd import Sample, Verdict, judge
from selfkd.judgecalls import Caller, Choices, Likelihoods
from selfkd.judging import OWN, JudgeOptions
from selfkd.localcalls import LocalCalls
from selfkd.models import check_model_dir, resolve_model

_POLICY = re.compile(r"previous|base|round-\d+")


class PerplexityOptions(JudgeOptions):
    """Options of the judge `perplexity`."""

    policy: str = "previous"
    """Who reads: previous (the policy whose round it is), base, round-N; or another model: its
    directory (relative to the config if it begins with ./ or ../) or hub id."""
    reward: Literal["mean_logprob", "sum_logprob", "likelihood"] = "mean_logprob"
    """Log-probability of a token on average, or of all tokens together, in nats; or e to the mean,
    from 0 to 1, which is one over the perplexity."""


def _is_policy(options: PerplexityOptions) -> bool:
    return bool(_POLICY.fullmatch(options.policy))


def _engine(options: PerplexityOptions) -> str | None:
    if not _is_policy(options):
        return None
    return OWN if options.policy == "previous" else options.policy


def _check_model(options: PerplexityOptions) -> None:
    if not _is_policy(options):
        check_model_dir(resolve_model(options.policy))


@judge("perplexity", calls=True, engine=_engine, writes=False, ready=_check_model)
class Perplexity:
    """How likely a policy finds the completion: its log-probability, per token or in all."""

    def __init__(self, options: PerplexityOptions, caller: Caller) -> None:
        self._options = options
        self._caller = caller if _is_policy(options) else LocalCalls(options.policy)

    def judge(self, samples: list[Sample]) -> list[Verdict]:
        """A verdict for each sample, from one forward each; an empty one has no reward."""
        written = [s for s in samples if s.completion]
        asked = [Choices(s.id, s.prompt.messages, (s.completion,)) for s in written]
        told = dict(zip((s.id for s in written), self._caller.weigh(asked), strict=True))
        return [self._verdict(s, told.get(s.id)) for s in samples]

    def _verdict(self, sample: Sample, told: Likelihoods | None) -> Verdict:
        if told is None:
            return sample.verdict(None, status="abstained", rationale="empty")
        total = told.logprobs[0] if told.logprobs else None
        if told.error or total is None:
            why = told.error or "the server does not say how likely the completion is"
            return sample.verdict(None, status="error", rationale=why, cost_usd=told.cost_usd)
        if self._options.reward == "sum_logprob":
            return sample.verdict(total, cost_usd=told.cost_usd)
        if not told.lengths:
            raise ValueError("who answers does not say how many tokens it counted")
        mean = total / told.lengths[0]
        said = f"perplexity {math.exp(min(-mean, 700.0)):.4g} over {told.lengths[0]} tokens"
        reward = math.exp(mean) if self._options.reward == "likelihood" else mean
        return sample.verdict(reward, rationale=said, cost_usd=told.cost_usd)
