"""The transformers engine on a tiny model, and the pool that keeps an engine alive."""

import json
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from selfkd.batches import Batch
from selfkd.cluster import ActorLost, Cluster, Place
from selfkd.errors import DataError, InfrastructureError, Stopped
from selfkd.hardware import has_gpu
from selfkd.judgepool import JudgePool
from selfkd.judging import resolve_judge
from selfkd.records import Prompt, Sample
from selfkd.round import Round
from selfkd.run import Run
from selfkd.sampling.actor import EngineOptions, SamplerActor, Shard
from selfkd.sampling.base import Completion, Request, Sampling, Work
from selfkd.sampling.pool import SamplerPool
from selfkd.sampling.transformers import TransformersEngine
from selfkd.stopping import Patient
from tests.engines import (
    Weights,
    by_request,
    canary_of,
    drawn,
    edited,
    inside,
    make_pool,
    process,
    resident_mib,
)
from tests.fakes import scripted_run
from tests.testbed.addition import write_prompts

END = 1
PROMPTS = [tuple(range(10 + i, 10 + i + length)) for i, length in enumerate((3, 12, 7, 25))]
REQUESTS = [Request(f"r{i}", prompt, n=1) for i, prompt in enumerate(PROMPTS)]
CANARY = list(PROMPTS[3])
GREEDY = drawn(temperature=0.0, max_tokens=12)


def engine(path: Path, **options: int) -> TransformersEngine:
    return TransformersEngine("base", str(path), dtype="float32", **options)


def complete(
    sampler: TransformersEngine, requests: list[Request], sampling: Sampling
) -> dict[str, list[Completion]]:
    sampler.add(Work(tuple(requests), sampling))
    answers: list[Any] = []
    while sampler.busy:
        answers += sampler.step()
    assert len(answers) == len(dict(answers))
    return dict(answers)


def greedy_by_hand(path: Path, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count and tokens[-1] != END:
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tuple(tokens[len(prompt) :])


def test_greedy_completions_of_a_padded_batch_are_those_of_each_prompt(tiny_model: Path) -> None:
    answers = complete(engine(tiny_model), REQUESTS, GREEDY)
    for request in REQUESTS:
        (completion,) = answers[request.id]
        assert completion.tokens == greedy_by_hand(tiny_model, request.prompt_tokens, 12)


def test_finish_and_end_token_agree(tiny_model: Path) -> None:
    requests = [Request(f"r{i}", prompt, n=16) for i, prompt in enumerate(PROMPTS)]
    answers = complete(engine(tiny_model), requests, drawn(temperature=3.0, max_tokens=40))
    completions = [c for r in requests for c in answers[r.id]]
    assert [len(answers[r.id]) for r in requests] == [16] * 4
    assert {c.finish for c in completions} == {"stop", "length"}
    for c in completions:
        assert END not in c.tokens[:-1]
        assert (c.finish == "stop") == (c.tokens[-1] == END)
        assert c.finish == "stop" or len(c.tokens) == 40
        assert "<|im_end|>" not in c.text


def test_a_stop_string_ends_a_row_and_only_that_row(tiny_model: Path) -> None:
    sampler = engine(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    free = complete(sampler, REQUESTS, GREEDY)
    whole = free["r1"][0]
    stop = tokenizer.decode(list(whole.tokens[3:5]))
    assert stop.isprintable() and all(stop not in free[r][0].text for r in ("r0", "r2", "r3"))
    stopped = complete(sampler, REQUESTS, GREEDY.model_copy(update={"stop": (stop,)}))
    cut = stopped.pop("r1")[0]
    assert cut == Completion(whole.text[: whole.text.index(stop)], whole.tokens[:5], "stop")
    assert all(stopped[r] == free[r] for r in stopped)


def test_results_follow_from_seed_and_call_number(tiny_model: Path) -> None:
    warm = drawn(temperature=1.0, max_tokens=12)
    one, same, other = (engine(tiny_model, seed=seed) for seed in (1, 1, 2))
    first, second = complete(one, REQUESTS, warm), complete(one, REQUESTS, warm)
    assert first == complete(same, REQUESTS, warm)
    assert second == complete(same, REQUESTS, warm)
    assert first != second
    assert first != complete(other, REQUESTS, warm)


def test_the_likeliest_token_alone_is_greedy(tiny_model: Path) -> None:
    sampler = engine(tiny_model)
    narrow = drawn(temperature=5.0, top_k=1, max_tokens=12)
    assert complete(sampler, REQUESTS, narrow) == complete(sampler, REQUESTS, GREEDY)


def test_defaults_of_the_model_do_not_change_what_is_drawn(
    tiny_model: Path, tmp_path: Path
) -> None:
    biased = edited(tiny_model, tmp_path, lambda weights: None)
    defaults = {"eos_token_id": END, "repetition_penalty": 5.0, "min_new_tokens": 9}
    (biased / "generation_config.json").write_text(json.dumps(defaults))
    answers = complete(engine(biased), REQUESTS, GREEDY)
    assert answers == complete(engine(tiny_model), REQUESTS, GREEDY)


def test_draws_follow_the_models_distribution(tiny_model: Path, tmp_path: Path) -> None:
    biased = edited(tiny_model, tmp_path, lambda weights: None)
    defaults = {"do_sample": True, "temperature": 0.3, "top_k": 5, "top_p": 0.5}
    (biased / "generation_config.json").write_text(json.dumps(defaults))
    once = [Request("r", PROMPTS[1], n=2000)]
    drawn_tokens = complete(engine(biased), once, drawn(temperature=1.0, max_tokens=1))["r"]
    seen = np.bincount([c.tokens[0] for c in drawn_tokens], minlength=258) / 2000
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    expected = model(torch.tensor([PROMPTS[1]])).logits[0, -1].softmax(-1).detach().numpy()
    # About 0.13 by chance, and above 0.45 where any of the defaults is heeded.
    assert np.abs(seen - expected).sum() / 2 < 0.25


def test_more_requests_than_fit_are_answered_in_turns(tiny_model: Path) -> None:
    answers = complete(engine(tiny_model, max_num_seqs=2), REQUESTS, GREEDY)
    assert answers == complete(engine(tiny_model), REQUESTS, GREEDY)


def test_a_prompt_that_is_too_long_is_refused_alone(tiny_model: Path) -> None:
    requests = [Request("long", (9,) * 256, n=2), *REQUESTS]
    answers = complete(engine(tiny_model), requests, GREEDY)
    assert answers.pop("long") == [Completion("", (), "error")] * 2
    assert answers == complete(engine(tiny_model), REQUESTS, GREEDY)


def test_logprobs_are_those_of_the_model(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    (got,) = engine(tiny_model).logprobs([PROMPTS[3]])
    logits = model(torch.tensor([PROMPTS[3]])).logits[0]
    expected = [logits[i].log_softmax(-1)[t].item() for i, t in enumerate(PROMPTS[3][1:])]
    assert got == pytest.approx([0.0, *expected], abs=1e-5)


def test_loaded_weights_answer_as_a_new_engine_does(tiny_model: Path, tmp_path: Path) -> None:
    changed = edited(tiny_model, tmp_path, lambda w: w["model.embed_tokens.weight"].mul_(-1))
    sampler = engine(tiny_model)
    before = complete(sampler, REQUESTS, GREEDY)
    sampler.load("round-1", str(changed))
    after = complete(sampler, REQUESTS, GREEDY)
    assert sampler.policy == "round-1"
    assert after == complete(engine(changed), REQUESTS, GREEDY) != before


def test_an_output_head_of_its_own_is_loaded_too(tiny_model: Path, tmp_path: Path) -> None:
    def untie(weights: Weights) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * factor

    paths = []
    for factor in (0.5, -0.5):
        paths.append(edited(tiny_model, tmp_path / str(factor), untie))
        config = json.loads((tiny_model / "config.json").read_text())
        config["tie_word_embeddings"] = False
        (paths[-1] / "config.json").write_text(json.dumps(config))
    sampler = engine(paths[0])
    before = sampler.logprobs(PROMPTS)
    sampler.load("round-1", str(paths[1]))
    assert sampler.logprobs(PROMPTS) == engine(paths[1]).logprobs(PROMPTS) != before


def _lacking(weights: Weights) -> None:
    del weights["model.layers.1.mlp.up_proj.weight"]


def _misshapen(weights: Weights) -> None:
    weights["model.norm.weight"] = weights["model.norm.weight"][:-1].clone()


def _crowded(weights: Weights) -> None:
    weights["model.layers.2.mlp.up_proj.weight"] = torch.zeros(2, 2)


def _integral(weights: Weights) -> None:
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.int8)


BAD = {
    "is missing": _lacking,
    "has shape": _misshapen,
    "has dtype I8 instead of float": _integral,
    "not part of": _crowded,
}


@pytest.mark.parametrize("said", BAD)
def test_weights_that_do_not_fit_are_refused_and_the_old_ones_kept(
    tiny_model: Path, tmp_path: Path, said: str
) -> None:
    sampler = engine(tiny_model)
    with pytest.raises(DataError, match=said):
        sampler.load("round-1", str(edited(tiny_model, tmp_path, BAD[said])))
    assert sampler.policy == "base"
    assert complete(sampler, REQUESTS, GREEDY) == complete(engine(tiny_model), REQUESTS, GREEDY)


def test_a_truncated_checkpoint_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    sampler = engine(tiny_model)
    copy = edited(tiny_model, tmp_path, lambda weights: None)
    os.truncate(copy / "model.safetensors", 20_000)
    with pytest.raises(DataError, match="cannot be used"):
        sampler.load("round-1", str(copy))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_end_the_generation(
    tiny_model: Path, tmp_path: Path, temperature: float
) -> None:
    broken = edited(tiny_model, tmp_path, lambda w: w["model.norm.weight"].fill_(float("nan")))
    with pytest.raises(DataError, match="not a number"):
        complete(engine(broken), REQUESTS, drawn(temperature=temperature, max_tokens=3))


# -- the actor ----------------------------------------------------------------------------------


def actor(path: Path) -> SamplerActor:
    return SamplerActor(EngineOptions("transformers", {"dtype": "float32"}), "base", str(path), 0)


def test_shards_hold_their_own_requests(tiny_model: Path) -> None:
    shards = [(4, tuple(REQUESTS[:2])), (7, tuple(REQUESTS[2:]))]
    items = list(actor(tiny_model).generate("base", shards, GREEDY))
    answers = complete(engine(tiny_model), REQUESTS, GREEDY)
    found = {i.index: by_request(i) for i in items if isinstance(i, Shard)}
    assert found == {i: {r.id: answers[r.id] for r in requests} for i, requests in shards}


def test_samples_of_another_policy_are_refused(tiny_model: Path) -> None:
    with pytest.raises(InfrastructureError, match="holds base, asked for samples of round-1"):
        list(actor(tiny_model).generate("round-1", [(0, tuple(REQUESTS))], GREEDY))


def test_the_canary_tells_right_from_wrong_weights(tiny_model: Path, tmp_path: Path) -> None:
    changed = edited(tiny_model, tmp_path, lambda w: w["model.norm.weight"].mul_(1.1))
    sampler = actor(tiny_model)
    assert sampler.canary(canary_of(tiny_model, CANARY)).weights < 1e-4
    assert sampler.canary(canary_of(changed, CANARY)).weights > 0.02
    sampler.load("round-1", str(changed), canary_of(changed, CANARY))
    assert sampler.canary(canary_of(changed, CANARY)).weights < 1e-4


def test_the_canary_is_infinite_where_weights_are_no_numbers(
    tiny_model: Path, tmp_path: Path
) -> None:
    broken = edited(tiny_model, tmp_path, lambda w: w["model.norm.weight"].fill_(float("nan")))
    agreement = actor(broken).canary(canary_of(tiny_model, CANARY))
    assert (agreement.weights, agreement.caches) == (np.inf, np.inf)


# -- the pool, on real processes ----------------------------------------------------------------


@pytest.fixture
def pool(cluster: Cluster) -> Iterator[SamplerPool]:
    made = make_pool(cluster, "transformers", dtype="float32", max_num_seqs=1)
    yield made
    made.close()


def killed_midway(pool: SamplerPool, path: Path, sampling: Sampling) -> list[int]:
    """Shard indices as they came, where the engine's process is killed after the first."""
    shards = [(i, (Request(f"k{i}", PROMPTS[i % 4], n=4),)) for i in range(12)]
    pool.hold("base", path, [])
    pid = process(pool)
    arrived = []
    for item in pool.generate("base", path, [], shards, sampling):
        if isinstance(item, Shard):
            if not arrived:
                os.kill(pid, signal.SIGKILL)
            arrived.append(item.index)
            assert len(by_request(item)[f"k{item.index}"]) == 4
    assert process(pool) != pid
    return arrived


def test_a_killed_engine_is_replaced_and_no_shard_made_twice(
    pool: SamplerPool, tiny_model: Path
) -> None:
    arrived = killed_midway(pool, tiny_model, drawn(temperature=1.0, max_tokens=60))
    assert sorted(arrived) == list(range(12))
    assert pool.restarts == 1


def test_weights_are_swapped_in_place_and_checked(
    pool: SamplerPool, tiny_model: Path, tmp_path: Path
) -> None:
    changed = edited(tiny_model, tmp_path, lambda w: w["model.norm.weight"].mul_(1.1))
    pool.hold("base", tiny_model, [])
    pid = process(pool)
    pool.hold("round-1", changed, canary_of(changed, CANARY))
    assert process(pool) == pid
    assert inside(pool, lambda actor: actor.policy()) == "round-1"
    with pytest.raises(DataError, match="does not reproduce"):
        pool.hold("round-2", tiny_model, canary_of(changed, CANARY))


def test_a_stop_waits_for_the_shard_in_the_making(pool: SamplerPool, tiny_model: Path) -> None:
    pool.hold("base", tiny_model, [])
    pool._check = stop_asked
    shards = [(i, (Request(f"k{i}", PROMPTS[i % 4], n=4),)) for i in range(8)]
    arrived = 0
    with pytest.raises(Stopped):
        for item in pool.generate("base", tiny_model, [], shards, GREEDY):
            arrived += isinstance(item, Shard)
    assert arrived == 1


def stop_asked() -> None:
    raise Stopped("stopped by SIGINT")


def test_a_stop_does_not_wait_for_ever() -> None:
    patient = Patient(stop_asked, seconds=0.05)
    patient()
    time.sleep(0.06)
    with pytest.raises(Stopped):
        patient()


WAITS = """
from pathlib import Path
import time

def waits(sample):
    while not Path(__file__).with_name("go").exists():
        time.sleep(0.05)
    return 1.0
"""


def test_a_slow_judge_stops_the_engine_until_it_has_caught_up(
    pool: SamplerPool, cluster: Cluster, tiny_model: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("selfkd.sampling.pool.AHEAD", 2)
    (tmp_path / "waits.py").write_text(WAITS)
    pool.hold("base", tiny_model, [])

    def count(actor: Any) -> None:
        def counted() -> Any:
            found = step()
            actor.answered += len(found)
            return found

        step, actor._engine.step = actor._engine.step, counted
        actor._in_hand, actor.answered = 4, 0

    inside(pool, count)
    seen: list[int] = []

    def check() -> None:
        seen.append(inside(pool, lambda actor: actor.answered))
        if len(seen) > 8 and seen[-8] == seen[-1]:
            (tmp_path / "go").touch()

    def batches() -> Iterator[Batch]:
        shards = [(i, (Request(f"k{i}", PROMPTS[i % 4]),)) for i in range(40)]
        for item in pool.generate("base", tiny_model, [], shards, GREEDY):
            if isinstance(item, Shard):
                yield Batch.of([Sample(f"k{item.index}", Prompt.of("a question"), 0, "an answer")])

    spec = resolve_judge("waits.py:waits", tmp_path)
    judges = JudgePool(spec, cluster, workers=1, timeout=60, check=check)
    verdicts = judges.judge_batches(batches())
    next(verdicts)
    # Two with the judge, two on their way and one about to be, and not twice what is in hand.
    assert 0 < seen[-1] < 2 + 2 + 1 + 2 * 4
    assert len(list(verdicts)) == 39
    judges.close()


def test_verdicts_are_recorded_while_samples_are_still_made(
    cluster: Cluster, tmp_path: Path
) -> None:
    sums = write_prompts(tmp_path / "sums.jsonl", [(i + 10, 12) for i in range(10)])
    run = scripted_run(tmp_path, sums, lambda policy, text, k: "1", judging={"cache": False})
    run._cluster = cluster
    run.judge_batches = partial(Run.judge_batches, run)  # type: ignore[method-assign]
    generate = run.scripted.generate
    verdicts: list[int] = []

    def watched(*arguments: Any) -> Iterator[Any]:
        for item in generate(*arguments):
            verdicts.append(len(list(run.ledger.round_dir(0).glob("*-judge/[0-9]*.parquet"))))
            yield item

    run.scripted.generate = watched  # type: ignore[method-assign]
    round = Round(run, 0, "base")
    scored = round.judge(round.generate(run.prompts, n=20), run.judge)
    assert len(scored.verdicts) == 200
    assert len(verdicts) == 4
    # As each shard comes: the judge is one behind by then, or two.
    assert all(there >= number - 1 for number, there in enumerate(verdicts))
    run.close()


def test_an_engine_that_is_killed_while_it_updates_is_replaced_by_one_that_is_right(
    pool: SamplerPool, tiny_model: Path, tmp_path: Path
) -> None:
    changed = edited(tiny_model, tmp_path, lambda w: w["model.embed_tokens.weight"].mul_(-1))
    pool.hold("base", tiny_model, [])

    def die_halfway(actor: SamplerActor) -> None:
        def load(policy: str, path: str) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        actor._engine.load = load  # type: ignore[method-assign]

    inside(pool, die_halfway)
    shards = [(i, (request,)) for i, request in enumerate(REQUESTS)]
    answers: dict[str, list[Completion]] = {}
    for item in pool.generate("round-1", changed, canary_of(changed, CANARY), shards, GREEDY):
        if isinstance(item, Shard):
            answers |= by_request(item)
    assert pool.restarts == 1
    assert answers == complete(engine(changed), REQUESTS, GREEDY)


def test_an_actor_that_crashes_is_quoted_and_one_that_cannot_be_placed_is_refused(
    cluster: Cluster,
) -> None:
    class Crashes:
        def now(self) -> None:
            os.write(2, b"the last thing\nit said\n")
            os.abort()

    ref = cluster.start(Crashes).now.remote()
    with pytest.raises(ActorLost, match=r"Its log ends: .*the last thing \| it said"):
        cluster.get(ref, "nothing", timeout=60)
    if not has_gpu():
        with pytest.raises(InfrastructureError, match="Crashes wants 1 GPU, and this machine has"):
            # One that is started here has what it has; one that is joined may still grow.
            Cluster("local", timeout=60).start(Crashes, place=Place(gpus=1))


def test_twenty_updates_leave_nothing_behind(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    # Large enough for a copy of it to show: 47 MB.
    config = AutoConfig.from_pretrained(
        tiny_model, hidden_size=512, intermediate_size=1024, num_hidden_layers=4, head_dim=256,
        vocab_size=4096, initializer_range=0.02,
    )  # fmt: skip
    policies = []
    for seed in range(2):
        torch.manual_seed(seed)
        path = tmp_path / f"policy{seed}"
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(path)
        policies.append((path, canary_of(path, CANARY)))
    pool = make_pool(cluster, "transformers", dtype="float32")
    pool.hold("base", *policies[0])
    pid, memory = process(pool), []
    for number in range(1, 21):
        pool.hold(f"round-{number}", *policies[number % 2])
        memory.append(resident_mib(pid))
    assert process(pool) == pid
    assert max(memory[4:]) < 1.05 * max(memory[:4])
    got = inside(pool, lambda actor: actor._engine.logprobs(PROMPTS))
    assert got == engine(policies[0][0]).logprobs(PROMPTS)
    pool.close()


def test_an_engine_that_keeps_dying_ends_the_run(pool: SamplerPool, tiny_model: Path) -> None:
    shards = [(0, (Request("k", PROMPTS[0], n=4),))]
    pool.hold("base", tiny_model, [])
    made = pool._start

    def start_and_kill(*arguments: Any) -> None:
        made(*arguments)
        os.kill(process(pool), signal.SIGKILL)

    os.kill(process(pool), signal.SIGKILL)
    pool._start = start_and_kill  # type: ignore[method-assign]
    with pytest.raises(InfrastructureError, match="died 3 times"):
        list(pool.generate("base", tiny_model, [], shards, GREEDY))


def test_a_start_that_takes_too_long_says_what_was_waited_for(
    pool: SamplerPool, tiny_model: Path
) -> None:
    pool._start_timeout = 0.01
    with pytest.raises(InfrastructureError, match="the transformers engine to start") as caught:
        pool.hold("base", tiny_model, [])
    assert "CPU free" in caught.value.remedy and "GiB of memory free" in caught.value.remedy
