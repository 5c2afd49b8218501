"""vLLM behind the engine protocol: continuous batching, and weights replaced in place.

The engine runs inside its actor's own process (no second process to lose) and is fed request by
request, so that shards finish while others are still being written.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from selfkd.errors import InfrastructureError
from selfkd.hardware import compute_dtype, has_gpu
from selfkd.imports import large_imports
from selfkd.sampling.base import REFUSED, Answer, Completion, Sampling, Weighing, Work
from selfkd.sampling.weights import check_weights, stored_tensors

if TYPE_CHECKING:
    import torch


CPU_BLOCK = 32
"""Tokens that the prefix cache on a CPU keeps or drops together, the fewest that vLLM allows. Its
own 128 are more than most prompts have: each sample of a prompt would read the whole of it."""


def set_environment(kv_cache_gib: float) -> None:
    """Environment that vLLM reads while it is imported."""
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_KVCACHE_SPACE=str(max(1, round(kv_cache_gib))),
        VLLM_CPU_NUM_OF_RESERVED_CPU="0",
        VLLM_NO_USAGE_STATS="1",
        VLLM_LOGGING_LEVEL=os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
    )
    if not has_gpu():
        # The first score would wait seconds for a C++ compiler to build the counting of ranks.
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")


class VLLMEngine:
    """One vLLM engine holding one policy's weights."""

    structured = True

    def __init__(
        self,
        policy: str,
        path: str,
        *,
        dtype: str = "auto",
        max_model_len: int = 1024,
        max_num_seqs: int = 256,
        kv_cache_gib: float = 1.0,
        tensor_parallel_size: int = 1,
        gpu_memory: float = 0.9,
        transfer: str | None = None,
        seed: int = 0,
    ) -> None:
        """`gpu_memory` is a share of each card; `transfer` the backend that may send weights."""
        set_environment(kv_cache_gib)
        with large_imports():
            from vllm import LLM

        self.policy = policy
        self._tensors = stored_tensors(path)
        self._counter = 0
        self._refused: list[tuple[str, Answer]] = []
        self._asked: dict[str, _Asked] = {}
        self._weighed: dict[str, _Weighed] = {}
        self.workers = tensor_parallel_size
        self.dtype = compute_dtype(dtype)
        self._asleep = False
        self._on_gpu = has_gpu()
        own: dict[str, Any] = {"block_size": CPU_BLOCK}
        if self._on_gpu:
            own = {
                "tensor_parallel_size": tensor_parallel_size,
                "gpu_memory_utilization": gpu_memory,
                "enable_sleep_mode": True,
            }
            if transfer:
                own["weight_transfer_config"] = {"backend": transfer}
        self._llm = LLM(
            path,
            dtype=self.dtype,  # type: ignore[arg-type]
            enforce_eager=True,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            seed=seed,
            scheduling_policy="priority",
            disable_log_stats=True,
            **own,
        )
        self._engine = self._llm.llm_engine
        self.context: int = self._llm.model_config.max_model_len

    @property
    def busy(self) -> bool:
        """Whether a request or a refusal is left."""
        return bool(self._refused) or self._engine.has_unfinished_requests()

    def add(self, work: Work) -> None:
        """Hand the requests to vLLM; see `Engine.add`."""
        for request in work.requests:
            if isinstance(request, Weighing):
                self._weigh(request, work)
            elif len(request.prompt_tokens) >= self.context:
                self._refused.append((request.id, [REFUSED] * request.n))
            else:
                assert work.sampling is not None
                params = _drawing(work.sampling, request.n, work.schema)
                self._ask(request.prompt_tokens, params, work, _Asked(request.id, request.n))

    def _weigh(self, request: Weighing, work: Work) -> None:
        rows = request.rows()
        if max(map(len, rows)) >= self.context - 1:
            self._refused.append((request.id, []))
            return
        values = [0.0] * len(request.continuations)
        self._weighed[request.id] = _Weighed(values, len(rows))
        for row, indices in rows.items():
            wanted = {i: request.continuations[i] for i in indices}
            if len(row) == len(request.prompt_tokens):
                # One forward that the prefix cache helps with gives all of these.
                params = _next_token([tokens[0] for tokens in wanted.values()])
                self._ask(row, params, work, _Asked(request.id, 1, wanted))
                continue
            self._weighed[request.id].left += len(indices) - 1
            for index, tokens in wanted.items():
                prompt = (*request.prompt_tokens, *tokens)
                self._ask(prompt, _whole_prompt(), work, _Asked(request.id, 1, {index: tokens}))

    def _ask(self, prompt: Sequence[int], params: Any, work: Work, asked: "_Asked") -> None:
        self._counter += 1
        name = str(self._counter)
        tokens: Any = {"prompt_token_ids": list(prompt)}
        self._asked[name] = asked
        self._engine.add_request(name, tokens, params, priority=0 if work.urgent else 1)

    def step(self) -> list[tuple[str, Answer]]:
        """One step of vLLM's batch; see `Engine.step`."""
        found, self._refused = self._refused, []
        if not self._engine.has_unfinished_requests():
            return found
        for output in self._engine.step():
            if output.finished and (asked := self._asked.pop(output.request_id, None)):
                found += self._answer(asked, output)
        return found

    def _answer(self, asked: "_Asked", output: Any) -> list[tuple[str, Answer]]:
        if not asked.wanted:
            completions = [_completion(c) for c in output.outputs]
            # Greedy completions were asked for once.
            return [(asked.id, completions * (asked.n // len(completions)))]
        weighed = self._weighed[asked.id]
        for index, tokens in asked.wanted.items():
            weighed.values[index] = _weight(output, tokens)
        weighed.left -= 1
        return [] if weighed.left else [(asked.id, self._weighed.pop(asked.id).values)]

    def drop(self, ids: Iterable[str]) -> None:
        """Have vLLM abort requests."""
        gone = set(ids)
        names = [name for name, asked in self._asked.items() if asked.id in gone]
        self._engine.abort_request(names)
        for name in names:
            del self._asked[name]
        self._weighed = {id: w for id, w in self._weighed.items() if id not in gone}

    def load(self, policy: str, path: str) -> None:
        """Replace the weights in place; see `Engine.load`.

        Raises InfrastructureError where vLLM goes on using anything of the old weights; the engine
        is lost then.
        """
        check_weights(path, self._tensors)
        self.policy = ""  # until all is done, these are nobody's weights
        self._wake("weights")
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
        self._wake("kv_cache")
        if not self._on_gpu:  # only the CPU build keeps packed copies
            self._llm.apply_model(_repack)
            for stale in self._llm.apply_model(_stale_copies):
                if stale:
                    raise InfrastructureError(f"vLLM kept the old weights of {stale[0]}")
        self.took(policy)

    def took(self, policy: str) -> None:
        """All weights of `policy` are in place."""
        # Cached prompts hold keys and values of the old weights.
        if not self._llm.reset_prefix_cache():
            raise InfrastructureError("vLLM kept its prefix cache after a weight update")
        self.policy = policy

    def transfer(self, step: str, *info: Any) -> None:
        """A step of vLLM's weight transfer, by the name of the method that does it."""
        self.policy = ""
        if self._asleep:
            self._wake("weights")
            self._wake("kv_cache")
        getattr(self._llm, step)(*info)

    def sleep(self) -> bool:
        """Give the card's memory back, weights and all; on CPU vLLM cannot."""
        if self._on_gpu:
            self.policy, self._asleep = "", True
            self._llm.sleep(level=2)
        return self._on_gpu

    def _wake(self, what: str) -> None:
        if self._asleep:
            self._asleep = not self._llm.wake_up(tags=[what])

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token given those before it; 0.0 for the first."""
        from vllm import SamplingParams

        outputs = self._llm.generate(
            [{"prompt_token_ids": list(s)} for s in sequences],  # type: ignore[list-item]
            SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0),
            use_tqdm=False,
        )
        return [_prompt_logprobs(o) for o in outputs]

    def last_logprobs(self, sequence: Sequence[int], count: int) -> list[float]:
        """Log-probabilities of the last `count` tokens, from cached prefixes where there are any.

        `logprobs` never reads the prefix cache; completions do, and so does this.
        """
        from vllm import SamplingParams

        heads = [list(sequence[:end]) for end in range(len(sequence) - count, len(sequence))]
        outputs = self._llm.generate(
            [{"prompt_token_ids": head} for head in heads],  # type: ignore[list-item]
            [
                SamplingParams(max_tokens=1, temperature=0, logprobs=0, allowed_token_ids=[token])
                for token in sequence[-count:]
            ],
            use_tqdm=False,
        )
        return [output.outputs[0].cumulative_logprob or 0.0 for output in outputs]


@dataclass(slots=True)
class _Asked:
    """What a request to vLLM is for."""

    id: str
    n: int
    wanted: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Of a weighing: which continuations it settles."""


@dataclass(slots=True)
class _Weighed:
    """Log-probabilities found so far, and how many requests are still out."""

    values: list[float]
    left: int


def _drawing(sampling: Sampling, n: int, schema: str | None) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    # No request seed: vLLM's CPU sampler dies of one. The engine is seeded instead. And no
    # log-probabilities: on CPU they cost a tenth of the speed.
    return SamplingParams(
        n=n if sampling.temperature else 1,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        stop=list(sampling.stop) or None,
        structured_outputs=StructuredOutputsParams(json=schema) if schema else None,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _next_token(tokens: list[int]) -> Any:
    from vllm import SamplingParams

    return SamplingParams(max_tokens=1, temperature=0, logprob_token_ids=sorted(set(tokens)))


def _whole_prompt() -> Any:
    from vllm import SamplingParams

    return SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)


def _weight(output: Any, tokens: tuple[int, ...]) -> float:
    """Log-probability of `tokens`: after the prompt where it is one, else at the prompt's end."""
    if output.prompt_logprobs is None:
        return output.outputs[0].logprobs[0][tokens[0]].logprob
    return sum(_prompt_logprobs(output)[-len(tokens) :])


def _completion(output: Any) -> Completion:
    finish = "stop" if output.finish_reason == "stop" else "length"
    return Completion(output.text, tuple(output.token_ids), finish)


def _prompt_logprobs(output: Any) -> list[float]:
    tokens, entries = output.prompt_token_ids, output.prompt_logprobs
    return [
        0.0 if entry is None else entry[token].logprob
        for token, entry in zip(tokens, entries, strict=True)
    ]


def _packed(model: "torch.nn.Module") -> "Iterator[tuple[str, Any]]":
    """Layers that keep a packed copy of their weights beside them."""
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if hasattr(module, "cpu_linear") and weight is not None and weight.ndim == 2:
            yield name, module


def _repack(model: "torch.nn.Module") -> None:
    """Redo the packing of linear weights, which reloading leaves stale where weights are tied."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    for _, module in _packed(model):
        if module.weight.numel():
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


def _stale_copies(model: "torch.nn.Module") -> list[str]:
    """Names of layers whose packed weights are not their weights.

    A packed product is the exact one but for its rounding. Other weights break that bound in a good
    share of the outputs, however little training moved them.
    """
    import torch

    stale = []
    for name, module in _packed(model):
        weight = module.weight
        some = slice(None, None, max(1, len(weight) // 4096))  # outputs; all would cost memory
        draw = torch.Generator().manual_seed(0)
        probe = torch.randn(4, weight.shape[1], generator=draw).to(weight.dtype)
        exact = probe.float() @ weight[some].float().T
        rounding = exact.abs() * torch.finfo(weight.dtype).eps / 2 + 1e-4 * exact.abs().mean()
        error = (module.cpu_linear(probe, weight, None)[:, some].float() - exact).abs()
        if (error > rounding).float().mean() > 0.01:
            stale.append(name)
    return stale
