"""vLLM with the real model, in its own process: what it answers, and updates of its weights.

One engine serves all tests; it is started anew only where a test is about that.
"""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from selfkd.chat import load_tokenizer, render
from selfkd.cluster import Cluster
from selfkd.errors import DataError, InfrastructureError
from selfkd.hardware import compute_dtype
from selfkd.records import EXAMPLES, Example, rows_table
from selfkd.sampling.actor import Agreement, Canary, Shard
from selfkd.sampling.base import Completion, Request, Sampling, Weighing, Work
from selfkd.sampling.pool import CACHES_LIMIT, WEIGHTS_LIMIT, SamplerPool
from selfkd.training.base import TrainJob, TrainOptions
from tests.engines import (
    by_request,
    canary_of,
    drawn,
    edited,
    inside,
    make_pool,
    process,
    resident_mib,
)

pytestmark = pytest.mark.lengthy

CONTEXT = 512
DTYPE = compute_dtype("auto")  # bfloat16 takes minutes where the processor does not multiply it
GREEDY = drawn(temperature=0.0, max_tokens=24)


@pytest.fixture(scope="module")
def opinionated(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with generation defaults that would show, if they were heeded."""
    path = tmp_path_factory.mktemp("opinionated") / "model"
    shutil.copytree(smollm2, path)
    file = path / "generation_config.json"
    defaults = {"top_k": 1, "temperature": 0.1, "repetition_penalty": 9.0, "max_new_tokens": 2}
    file.write_text(json.dumps(json.loads(file.read_text()) | defaults))
    return path


@pytest.fixture(scope="module")
def pool(cluster: Cluster, opinionated: Path) -> Iterator[SamplerPool]:
    made = make_pool(
        cluster, "vllm", dtype=DTYPE, max_model_len=CONTEXT, max_num_seqs=64, kv_cache_gib=1
    )
    made.hold("base", opinionated, [])
    yield made
    made.close()


@pytest.fixture(scope="module")
def requests(smollm2: Path) -> list[Request]:
    """Eight sums as chat prompts."""
    tokenizer = load_tokenizer(smollm2)
    questions = [f"What is {a} + {a + 3}?" for a in range(2, 18, 2)]
    prompts = [render(tokenizer, [{"role": "user", "content": q}]) for q in questions]
    return [Request(f"r{i}", tuple(prompt)) for i, prompt in enumerate(prompts)]


def sampled(
    pool: SamplerPool, path: Path, requests: Sequence[Request], sampling: Sampling
) -> dict[str, list[Completion]]:
    items = pool.generate("base", path, [], [(0, tuple(requests))], sampling)
    (shard,) = [item for item in items if isinstance(item, Shard)]
    return by_request(shard)


def test_completions_end_as_they_say(
    pool: SamplerPool, smollm2: Path, requests: list[Request]
) -> None:
    tokenizer = load_tokenizer(smollm2)
    many = [Request(r.id, r.prompt_tokens, n=3) for r in requests]
    too_long = Request("long", requests[0].prompt_tokens * 20, n=3)
    answers = sampled(pool, smollm2, [too_long, *many], drawn(max_tokens=24))
    assert answers.pop("long") == [Completion("", (), "error")] * 3
    completions = [c for r in requests for c in answers[r.id]]
    assert len(completions) == 24 and {c.finish for c in completions} == {"stop", "length"}
    assert len({c.tokens for c in answers["r0"]}) > 1
    for c in completions:
        assert (c.finish == "stop") == (c.tokens[-1] == tokenizer.eos_token_id)
        assert tokenizer.eos_token_id not in c.tokens[:-1]
        assert c.finish == "stop" or len(c.tokens) == 24
        assert c.text == tokenizer.decode(list(c.tokens), skip_special_tokens=True)


def test_stop_strings_and_repeated_greedy(
    pool: SamplerPool, smollm2: Path, requests: list[Request]
) -> None:
    tokenizer = load_tokenizer(smollm2)
    one = Request("r0", requests[0].prompt_tokens, n=2)
    first, second = sampled(pool, smollm2, [one], GREEDY)["r0"]
    assert first == second
    stop = first.text[8:11]
    stopped = sampled(pool, smollm2, [one], GREEDY.model_copy(update={"stop": (stop,)}))["r0"][0]
    assert (stopped.text, stopped.finish) == (first.text[: first.text.index(stop)], "stop")
    assert stop in tokenizer.decode(list(stopped.tokens))
    assert stop not in tokenizer.decode(list(stopped.tokens[:-1]))


def test_log_probabilities_agree_with_transformers(
    pool: SamplerPool, smollm2: Path, requests: list[Request]
) -> None:
    (completion,) = sampled(pool, smollm2, requests[:1], GREEDY)["r0"]
    tokens = [*requests[0].prompt_tokens, *completion.tokens]
    ((_, expected),) = canary_of(smollm2, tokens)
    (got,) = inside(pool, lambda actor: actor._engine.logprobs([tokens]))
    assert got[0] == 0.0
    assert np.mean(np.abs(np.subtract(got, expected))) < 0.1


def asked(pool: SamplerPool, path: Path, work: Work) -> dict[str, Any]:
    (answers,) = pool.serve("base", path, [], [work], lambda: None)
    return answers


def test_continuations_are_weighed_as_transformers_does(
    pool: SamplerPool, smollm2: Path, requests: list[Request]
) -> None:
    tokenizer = load_tokenizer(smollm2)
    texts = ["The", "It", "The sum", "The answer is 7."]
    continuations = tuple(tuple(tokenizer(t)["input_ids"]) for t in texts)
    assert [len(c) for c in continuations][:2] == [1, 1]
    weighings = tuple(Weighing(r.id, r.prompt_tokens, continuations) for r in requests[:2])
    long = Weighing("long", requests[0].prompt_tokens * 20, continuations)
    found = asked(pool, smollm2, Work((*weighings, long), urgent=True))
    assert found.pop("long") == []
    off = []
    for weighing in weighings:
        for tokens, got in zip(continuations, found[weighing.id], strict=True):
            ((_, expected),) = canary_of(smollm2, [*weighing.prompt_tokens, *tokens])
            off.append(abs(got - sum(expected[-len(tokens) :])) / len(tokens))
    # Logits of 16 to 32 are 0.125 apart in bfloat16: a single token's may be off by that and more.
    assert np.mean(off) < (0.1 if DTYPE == "bfloat16" else 0.01), off
    assert max(off) < (0.2 if DTYPE == "bfloat16" else 0.02), off


def test_an_answer_is_held_to_its_schema(
    pool: SamplerPool, smollm2: Path, requests: list[Request]
) -> None:
    from selfkd.judging import JudgeSpec

    judge = JudgeSpec("rubric").build(None)  # the schema that a judge really asks for
    work = Work(tuple(requests[:4]), drawn(max_tokens=200), json.dumps(judge._schema), urgent=True)
    ended = [c for (c,) in asked(pool, smollm2, work).values() if c.finish == "stop"]
    assert ended and pool.structured("base", smollm2, [])
    for completion in ended:
        assert list(json.loads(completion.text)) == ["reason", "answers", "correct", "clear"]


def test_a_judges_call_does_not_wait_until_all_is_generated(
    pool: SamplerPool, smollm2: Path, requests: list[Request]
) -> None:
    # Four times as many sequences as run at once. A quarter is done when the judge asks, the next
    # one may run by then, and what is urgent comes before the other two.
    shards = [(i, (Request(f"j{i}", requests[i % 8].prompt_tokens, n=8),)) for i in range(32)]
    stream = pool.generate("base", smollm2, [], shards, drawn(max_tokens=8))
    next(stream)
    answers = asked(pool, smollm2, Work(tuple(requests[:2]), drawn(max_tokens=4), urgent=True))
    assert len(answers) == 2
    left = inside(pool, lambda actor: actor._desk.engine._engine.get_num_unfinished_requests())
    assert left >= 64
    assert len([item for item in stream if isinstance(item, Shard)]) >= 31


# -- updates ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(
    smollm2: Path, requests: list[Request], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Canary]:
    """A policy after a small round of training, and its canary."""
    from selfkd.training.actor import LocalTrainer

    folder = tmp_path_factory.mktemp("trained")
    tokenizer = load_tokenizer(smollm2)
    rows = [
        Example(
            id=f"e{a}",
            prompt_id=f"p{a}",
            sample_ids=(f"s{a}",),
            prompt_tokens=requests[a % 8].prompt_tokens,
            completion_tokens=tuple(tokenizer(f"The sum is {a}.<|im_end|>")["input_ids"]),
        )
        for a in range(16)
    ]
    pq.write_table(rows_table(rows, EXAMPLES), folder / "examples.parquet")
    (folder / "policy").mkdir()
    options = TrainOptions.model_validate({"batch_size": 8, "epochs": 2, "dtype": DTYPE})
    job = TrainJob(
        objective="sft",
        objective_options={},
        example_files=(str(folder / "examples.parquet"),),
        start_path=str(smollm2),
        out_dir=str(folder / "policy"),
        log_file=str(folder / "log.jsonl"),
        seed=0,
        options=options,
    )
    return folder / "policy", LocalTrainer().train(job).canary


def updated(
    pool: SamplerPool, name: str, path: Path, canary: Canary, fault: Callable[[Any], None]
) -> Agreement:
    """What the canary says after an in-place update with a fault in it."""

    def update(actor: Any) -> Agreement:
        from selfkd.sampling import vllm

        llm = actor._engine._llm
        whole = vllm._repack, llm.reset_prefix_cache
        fault(llm)
        try:
            actor.load(name, str(path), canary)
        finally:
            vllm._repack, llm.reset_prefix_cache = whole
        return actor.canary(canary)

    pool._policy = name
    return inside(pool, update)


def no_repack(llm: Any) -> None:
    from selfkd.sampling import vllm

    vllm._repack = lambda model: None


def no_reset(llm: Any) -> None:
    llm.reset_prefix_cache = lambda: True


def test_an_update_in_place_is_right_and_a_missing_part_of_it_shows(
    pool: SamplerPool, smollm2: Path, trained: tuple[Path, Canary]
) -> None:
    path, canary = trained
    pid = process(pool)
    assert inside(pool, lambda actor: actor.canary(canary)).weights > WEIGHTS_LIMIT[DTYPE]
    with pytest.raises(InfrastructureError, match="old weights of lm_head"):
        updated(pool, "stale head", path, canary, no_repack)
    inside(pool, lambda actor: actor.load("base again", str(smollm2), canary))
    stale = updated(pool, "stale prefixes", path, canary, no_reset)
    assert stale.caches > CACHES_LIMIT[DTYPE]
    inside(pool, lambda actor: actor.load("base again", str(smollm2), canary))
    pool.hold("round-1", path, canary)
    right = inside(pool, lambda actor: actor.canary(canary))
    assert process(pool) == pid
    assert right.weights < 0.8 * WEIGHTS_LIMIT[DTYPE]
    assert right.caches < CACHES_LIMIT[DTYPE] / 5


def test_twenty_updates_leave_nothing_behind(
    pool: SamplerPool, smollm2: Path, requests: list[Request], trained: tuple[Path, Canary]
) -> None:
    base = smollm2, canary_of(smollm2, list(requests[0].prompt_tokens))
    sequences = [r.prompt_tokens for r in requests]
    pool.hold("round-0", *trained)
    pid, memory = process(pool), []
    for number in range(1, 21):
        pool.hold(f"round-{number}", *(base if number % 2 else trained))
        memory.append(resident_mib(pid))
    assert process(pool) == pid
    assert max(memory[4:]) < 1.05 * max(memory[:4])
    updated = inside(pool, lambda actor: actor._engine.logprobs(sequences))
    pool.close()
    pool.hold("round-20", *trained)
    assert inside(pool, lambda actor: actor._engine.logprobs(sequences)) == updated


def test_a_damaged_checkpoint_leaves_the_engine_as_it_was(
    pool: SamplerPool, smollm2: Path, requests: list[Request], tmp_path: Path
) -> None:
    pool.hold("base", smollm2, canary_of(smollm2, list(requests[0].prompt_tokens)))
    before = sampled(pool, smollm2, requests[:2], GREEDY)
    pid = process(pool)
    lacking = edited(smollm2, tmp_path, lambda w: w.pop("model.layers.3.mlp.up_proj.weight"))
    with pytest.raises(DataError, match="is missing"):
        pool.hold("round-1", lacking, canary_of(smollm2, list(range(9))))
    os.truncate(lacking / "model.safetensors", 10**8)
    with pytest.raises(DataError, match="cannot be used"):
        pool.hold("round-1", lacking, canary_of(smollm2, list(range(9))))
    assert sampled(pool, smollm2, requests[:2], GREEDY) == before
    assert process(pool) == pid


def test_an_abandoned_generation_leaves_nothing_behind(
    pool: SamplerPool, smollm2: Path, requests: list[Request]
) -> None:
    def abandon(actor: Any) -> int:
        stream = actor._desk.answers("base", Work(tuple(requests), GREEDY))
        next(stream)
        stream.close()
        return actor._desk.alone(lambda engine: engine._engine.get_num_unfinished_requests())

    assert inside(pool, abandon) == 0
    assert len(sampled(pool, smollm2, requests, GREEDY)) == 8


def test_a_killed_engine_is_replaced_and_no_shard_made_twice(
    pool: SamplerPool, smollm2: Path, requests: list[Request]
) -> None:
    # More than run at once, so that some are left when the first one is done.
    shards = [(i, (Request(f"k{i}", requests[i % 8].prompt_tokens, n=8),)) for i in range(10)]
    pid = process(pool)
    arrived = []
    for item in pool.generate("base", smollm2, [], shards, drawn(max_tokens=8)):
        if isinstance(item, Shard):
            if not arrived:
                os.kill(pid, signal.SIGKILL)
            arrived.append(item.index)
            assert len(by_request(item)[f"k{item.index}"]) == 8
    assert sorted(arrived) == list(range(10))
    assert (pool.restarts, inside(pool, lambda actor: actor.policy())) == (1, "base")
