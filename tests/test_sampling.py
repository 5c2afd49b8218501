"""The transformers engine against hand-written decoding, and the pool when its engine dies."""

import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfkd.cluster import Cluster
from selfkd.errors import DataError, InfrastructureError
from selfkd.sampling import pool as pool_module
from selfkd.sampling.actor import EngineOptions, Progress, SamplerActor, Shard, ShardRequests
from selfkd.sampling.base import Completion, Request, Sampling
from selfkd.sampling.pool import SamplerPool
from selfkd.sampling.transformers import TransformersEngine

END = 1
GREEDY = Sampling(temperature=0, max_tokens=24)


def prompt(text: str) -> tuple[int, ...]:
    """One token a byte; tokens 0 and 1 are the marks of a turn."""
    return tuple(2 + ord(c) % 200 for c in text)


PROMPTS = [prompt(t) for t in ("a", "the cat", "two and two", "something rather longer", "xyz")]


def engine_at(path: Path, **options: Any) -> TransformersEngine:
    return TransformersEngine("base", str(path), dtype="float32", **options)


def answers(
    engine: TransformersEngine, prompts: Sequence[Sequence[int]], sampling: Sampling, n: int = 1
) -> list[list[Completion]]:
    requests = [Request(str(i), tuple(p), n) for i, p in enumerate(prompts)]
    found = dict(engine.generate(requests, sampling))
    assert set(found) == {r.id for r in requests}
    return [found[r.id] for r in requests]


@cache
def reference(path: Path) -> Any:
    """The model as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def argmax_loop(path: Path, tokens: Sequence[int], limit: int) -> tuple[int, ...]:
    """Greedy decoding without cache, padding or batches."""
    model = reference(path)
    ids = list(tokens)
    with torch.no_grad():
        for _ in range(limit):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == END:
                break
    return tuple(ids[len(tokens) :])


def changed_copy(source: Path, target: Path, **tensors: Any) -> Path:
    """A model directory with other weights: `name=None` leaves a tensor out, a function maps it."""
    shutil.copytree(source, target)
    weights = load_file(source / "model.safetensors")
    for name, change in tensors.items():
        old = weights.pop(name)
        if change is not None:
            weights[name] = change(old).contiguous()
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.fixture(scope="module")
def talkative(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, so that some of its samples end by themselves and others do not."""
    folder = tmp_path_factory.mktemp("talkative") / "model"
    return changed_copy(tiny_model, folder, **{EMBEDDING: _favour_end})


EMBEDDING = "model.embed_tokens.weight"


def _favour_end(weight: torch.Tensor) -> torch.Tensor:
    weight = weight.clone()
    weight[END] *= 2.5
    return weight


# -- the engine -----------------------------------------------------------------------------------


def test_greedy_equals_an_argmax_loop_however_batched(tiny_model: Path) -> None:
    expected = [argmax_loop(tiny_model, p, 24) for p in PROMPTS]
    assert len(set(expected)) == len(PROMPTS)
    together = answers(engine_at(tiny_model), PROMPTS, GREEDY)
    alone = answers(engine_at(tiny_model, max_num_seqs=1), PROMPTS, GREEDY)
    assert [c.tokens for (c,) in together] == expected
    assert [c.tokens for (c,) in alone] == expected


def test_ends_are_told_apart_and_the_end_token_is_kept(talkative: Path) -> None:
    completions = [
        c
        for row in answers(engine_at(talkative), PROMPTS, Sampling(max_tokens=24), n=8)
        for c in row
    ]
    assert len(completions) == 8 * len(PROMPTS)
    assert {c.finish for c in completions} == {"stop", "length"}
    for c in completions:
        assert (END in c.tokens) == (c.finish == "stop")
        assert END not in c.tokens[:-1]
        assert c.finish == "stop" or len(c.tokens) == 24
        assert "<|im_end|>" not in c.text


def test_a_stop_string_ends_tokens_and_text(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    plain = [c for (c,) in answers(engine_at(tiny_model), PROMPTS, GREEDY)]
    stops = tuple(tokenizer.decode([c.tokens[k]]) for c, k in zip(plain[:2], (5, 2), strict=True))
    sampling = GREEDY.model_copy(update={"stop": stops})
    stopped = [c for (c,) in answers(engine_at(tiny_model), PROMPTS, sampling)]
    assert any(c.finish == "stop" and c.tokens[-1] != END for c in stopped)
    for before, after in zip(plain, stopped, strict=True):
        assert before.tokens[: len(after.tokens)] == after.tokens
        cuts = [before.text.find(s) for s in stops if s in before.text]
        assert after.text == (before.text[: min(cuts)] if cuts else before.text)
        if cuts:
            assert after.finish == "stop"
            assert any(tokenizer.decode(after.tokens).endswith(s) for s in stops)


def test_samples_depend_on_seed_and_call_alone(tiny_model: Path) -> None:
    def two_calls(seed: int) -> list[Any]:
        engine = engine_at(tiny_model, seed=seed)
        return [answers(engine, PROMPTS, Sampling(max_tokens=8), n=2) for _ in range(2)]

    first, again, other = two_calls(1), two_calls(1), two_calls(2)
    assert first == again
    assert first[0] != first[1]
    assert first[0] != other[0]
    one, two = first[0][0]
    assert one != two


def test_draws_follow_the_models_distribution_whatever_its_defaults(
    tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "picky")
    defaults = {
        "eos_token_id": END,
        "do_sample": True,
        "top_k": 2,
        "top_p": 0.5,
        "temperature": 0.2,
        "repetition_penalty": 3.0,
        "max_new_tokens": 3,
    }
    (tmp_path / "picky" / "generation_config.json").write_text(json.dumps(defaults))
    engine = engine_at(tmp_path / "picky", max_num_seqs=4096)
    greedy = [c for (c,) in answers(engine, PROMPTS, GREEDY)]
    assert [c.tokens for c in greedy] == [argmax_loop(tiny_model, p, 24) for p in PROMPTS]
    (drawn,) = answers(engine, [PROMPTS[1]], Sampling(max_tokens=1), n=4000)
    with torch.no_grad():
        expected = reference(tiny_model)(torch.tensor([PROMPTS[1]])).logits[0, -1].softmax(-1)
    seen = torch.zeros_like(expected)
    for completion in drawn:
        seen[completion.tokens[0]] += 1 / 4000
    assert (seen > 0).sum() > 50
    assert (seen - expected).abs().sum() / 2 < 0.12  # total variation; about 0.07 by chance


def test_top_k_and_top_p_restrict_the_draws(tiny_model: Path) -> None:
    engine = engine_at(tiny_model)
    (few,) = answers(engine, [PROMPTS[1]], Sampling(max_tokens=1, top_k=3), n=200)
    (nucleus,) = answers(engine, [PROMPTS[1]], Sampling(max_tokens=1, top_p=1e-6), n=50)
    assert len({c.tokens for c in few}) == 3
    assert {c.tokens for c in nucleus} == {argmax_loop(tiny_model, PROMPTS[1], 1)}


def test_logprobs_are_those_of_the_definition(tiny_model: Path) -> None:
    model, engine = reference(tiny_model), engine_at(tiny_model)
    for tokens, got in zip(PROMPTS, engine.logprobs(PROMPTS), strict=True):
        assert got[0] == 0.0
        for k in range(1, len(tokens)):
            with torch.no_grad():
                logits = model(torch.tensor([tokens[:k]])).logits[0, -1]
            assert got[k] == pytest.approx(logits.log_softmax(-1)[tokens[k]].item(), abs=1e-4)
    assert engine.last_logprobs(PROMPTS[3], 4) == engine.logprobs(PROMPTS[3:4])[0][-4:]


def test_a_prompt_without_room_is_refused_and_the_others_go_on(tiny_model: Path) -> None:
    long = prompt("x" * 256)
    rows = answers(engine_at(tiny_model), [PROMPTS[0], long], GREEDY, n=2)
    assert [c.finish for c in rows[1]] == ["error", "error"]
    assert all(c.tokens for c in rows[0])


@pytest.mark.parametrize("tied", [True, False])
def test_loading_swaps_every_weight(tiny_model: Path, tmp_path: Path, tied: bool) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for seed, path in enumerate((old, new)):
        config = AutoModelForCausalLM.from_pretrained(tiny_model).config
        config.tie_word_embeddings = tied
        torch.manual_seed(10 + seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(path)
    engine = engine_at(old)
    before = engine.logprobs(PROMPTS)
    engine.load("round-1", str(new))
    assert engine.policy == "round-1"
    assert engine.logprobs(PROMPTS) == engine_at(new).logprobs(PROMPTS)
    assert engine.logprobs(PROMPTS) != before


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"model.norm.weight": None}, "model.norm.weight is missing"),
        ({EMBEDDING: lambda w: w[:-1]}, "shape"),
        ({"model.layers.1.mlp.up_proj.weight": lambda w: w.T}, "shape"),
    ],
)
def test_weights_that_do_not_fit_leave_the_old_ones_answering(
    tiny_model: Path, tmp_path: Path, damage: dict[str, Any], said: str
) -> None:
    engine = engine_at(tiny_model)
    before = engine.logprobs(PROMPTS)
    bad = changed_copy(tiny_model, tmp_path / "bad", **damage)
    with pytest.raises(DataError, match=said):
        engine.load("round-1", str(bad))
    assert engine.policy == "base"
    assert engine.logprobs(PROMPTS) == before


def test_a_truncated_file_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    engine = engine_at(tiny_model)
    with pytest.raises(DataError, match="cannot be used"):
        engine.load("round-1", str(tmp_path / "cut"))
    assert answers(engine, PROMPTS, GREEDY) == answers(engine_at(tiny_model), PROMPTS, GREEDY)


def test_weights_that_are_not_numbers_say_so(tiny_model: Path, tmp_path: Path) -> None:
    bad = changed_copy(
        tiny_model, tmp_path / "nan", **{"model.norm.weight": lambda w: w * float("nan")}
    )
    with pytest.raises(DataError, match="not a number"):
        answers(engine_at(bad), PROMPTS, Sampling(max_tokens=4))


# -- the pool, on real processes ------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster("local", timeout=60) as started:
        yield started


def make_pool(cluster: Cluster, **settings: Any) -> SamplerPool:
    options = {"dtype": "float32", "max_num_seqs": settings.pop("max_num_seqs", 256)}
    defaults: dict[str, Any] = {
        "seed": 0,
        "gpus": 0,
        "sync": "reload",
        "max_restarts": 2,
        "start_timeout": 120,
        "silence_timeout": 60,
        "check": lambda: None,
    }
    return SamplerPool(cluster, EngineOptions("transformers", options), **(defaults | settings))


def make_shards(count: int, size: int = 2) -> list[ShardRequests]:
    return [
        (i, tuple(Request(f"{i}-{k}", prompt(f"{i} and {k}"), 2) for k in range(size)))
        for i in range(count)
    ]


def process_of(pool: SamplerPool) -> int:
    import ray

    return ray.get(pool._actor.__ray_call__.remote(lambda _: os.getpid()))


def canary_of(path: Path) -> list[tuple[list[int], list[float]]]:
    tokens = list(prompt("the quick brown fox " * 8))
    return [(tokens, engine_at(path).logprobs([tokens])[0])]


def other_weights(tiny_model: Path, target: Path) -> Path:
    return changed_copy(tiny_model, target, **{EMBEDDING: lambda w: w.flip(0)})


@pytest.mark.slow
def test_an_engine_killed_amid_its_work_is_replaced_and_nothing_is_made_twice(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    new = other_weights(tiny_model, tmp_path / "new")
    shards = make_shards(30)
    sampling = Sampling(temperature=0, max_tokens=80)
    pool = make_pool(cluster, max_num_seqs=2)
    list(pool.generate("base", tiny_model, [], make_shards(1), GREEDY))
    found: list[Shard] = []
    killed: list[Any] = []
    for item in pool.generate("round-1", new, canary_of(new), shards, sampling):
        if isinstance(item, Shard):
            found.append(item)
            if len(killed) < 2 and pool._actor not in killed:
                os.kill(process_of(pool), signal.SIGKILL)
                killed.append(pool._actor)
    assert pool.restarts == 2
    assert sorted(s.index for s in found) == [i for i, _ in shards]
    expected = dict(engine_at(new).generate([r for _, rs in shards for r in rs], sampling))
    assert {k: v for shard in found for k, v in shard.completions.items()} == expected
    pool.close()


class DyingActor(SamplerActor):
    """Ends its process whenever it is asked for samples."""

    def generate(self, *args: Any) -> Iterator[Shard | Progress]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield Progress(0, 0)


@pytest.mark.slow
def test_an_engine_that_keeps_dying_ends_the_run(
    cluster: Cluster, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "SamplerActor", DyingActor)
    pool = make_pool(cluster, max_restarts=1)
    with pytest.raises(InfrastructureError, match="died 2 times in a row") as caught:
        list(pool.generate("base", tiny_model, [], make_shards(2), GREEDY))
    assert "max_num_seqs" in caught.value.remedy


@pytest.mark.slow
def test_weights_are_replaced_in_place_and_checked(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    import ray

    new = other_weights(tiny_model, tmp_path / "new")
    pool = make_pool(cluster)
    pool.hold("base", tiny_model, [])
    before = process_of(pool)
    pool.hold("round-1", new, canary_of(new))
    assert process_of(pool) == before
    with pytest.raises(InfrastructureError, match="holds round-1, asked for samples of base"):
        list(pool._cluster.stream(pool._actor.generate.options(num_returns="streaming").remote(
            "base", make_shards(1), GREEDY), "samples", timeout=60))  # fmt: skip
    with pytest.raises(DataError, match="does not reproduce"):
        pool.hold("round-2", tiny_model, canary_of(new))
    assert ray.is_initialized()
    pool.close()


@pytest.mark.slow
def test_a_start_that_takes_too_long_says_what_was_waited_for(
    cluster: Cluster, tiny_model: Path
) -> None:
    pool = make_pool(cluster, start_timeout=0.01)
    with pytest.raises(InfrastructureError, match="the transformers engine to start") as caught:
        pool.hold("base", tiny_model, [])
    assert "CPU free" in caught.value.remedy
    pool.close()
