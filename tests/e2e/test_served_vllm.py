"""Judges and a teacher on vLLM's own server with the real model: it says what the model says.

Starting the server takes a minute or two, so this runs only where SELFKD_LONG is set.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selfkd.chat import load_tokenizer, render, tokens_of
from selfkd.judgecalls import Call, Choices
from selfkd.judging import JudgeSpec
from selfkd.records import Prompt, Sample
from selfkd.served.calls import server_calls
from selfkd.served.options import ServerOptions
from selfkd.served.scoring import VllmTeacher
from selfkd.teaching import Lesson, ServedTeacher
from tests.engines import drawn

pytestmark = [
    pytest.mark.lengthy,
    pytest.mark.skipif(
        not os.environ.get("SELFKD_LONG"), reason="starts vLLM's server: set SELFKD_LONG=1"
    ),
]
NAME = "smollm2"
KEY = "key-of-the-test-server"


@pytest.fixture(scope="module")
def url(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's server, which wants a key."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(smollm2), "--served-model-name", NAME, "--api-key", KEY]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024"]
    command += ["--enforce-eager", "--dtype", "bfloat16", "--max-num-seqs", "16"]
    log = tmp_path_factory.mktemp("vllm") / "log"
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    try:
        _wait(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(timeout=60)


def _wait(health: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(health, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    pytest.fail("vLLM's server did not start:\n" + log.read_text(errors="replace")[-3000:])


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_VLLM_KEY", KEY)


def options(url: str, **given: Any) -> dict[str, Any]:
    return {"model": NAME, "base_url": url, "api_key_env": "TEST_VLLM_KEY", "api": "vllm", **given}


def test_text_is_written_as_asked(url: str) -> None:
    caller = server_calls(ServerOptions.model_validate(options(url, structured=True)))
    message = {"role": "user", "content": "What is 2 + 2?"}
    sampling = drawn(temperature=0.8, top_k=20, max_tokens=12)
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "integer"}},
        "required": ["sum"],
        "additionalProperties": False,
    }
    plain = Call("s", (message,), sampling, n=3)
    held = Call("t", (message,), drawn(temperature=0.0, max_tokens=40), schema=schema)
    first, second = caller.complete([plain, held])
    assert (len(first.texts), first.error) == (3, "") and all(first.texts)
    assert first.tokens <= 36 and first.prompt_tokens > 5
    assert '"sum"' in second.texts[0] and second.texts[0].startswith("{")


def test_choices_are_weighed_as_the_model_weighs_them(url: str, smollm2: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    caller = server_calls(ServerOptions.model_validate(options(url)))
    message = {"role": "user", "content": "Is 7 a prime number? Answer Yes or No."}
    asked = Choices("s", (message,), ("Yes, it is", "No"), "I say: ")
    (found,) = caller.weigh([asked])
    tokenizer = load_tokenizer(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16).eval()
    start = render(tokenizer, [message])
    opening = tokens_of(tokenizer, asked.opening)
    for choice, logprob, length in zip(asked.choices, found.logprobs, found.lengths, strict=True):
        tokens = tokens_of(tokenizer, asked.opening + choice)
        with torch.no_grad():
            logits = model(torch.tensor([start + tokens])).logits[0].float().log_softmax(-1)
        places = range(len(start) + len(tokens) - length - 1, len(start) + len(tokens) - 1)
        expected = sum(logits[i, (start + tokens)[i + 1]].item() for i in places)
        assert logprob == pytest.approx(expected, abs=0.3)
        assert len(tokens) - length <= len(opening)


def test_judges_run_on_it(url: str) -> None:
    samples = [
        Sample(f"s{i}", Prompt.of("What is 2 + 2?", "4"), i, text)
        for i, text in enumerate(["The answer is 4.", "Bananas.", ""])
    ]
    spec = JudgeSpec("teacher", options(url, judge={"use": "expected_score", "form": "yes_no"}))
    spec.check_ready()
    verdicts = spec.build().judge(samples)
    assert all(v.status == "ok" and 0 <= (v.reward or 0) <= 1 for v in verdicts), verdicts
    drawn = {"use": "self_reward", "draws": 2, "max_tokens": 40}
    said = JudgeSpec("teacher", options(url, judge=drawn)).build().judge(samples)
    assert {v.status for v in said} <= {"ok", "unparsed"}  # the model is small
    likely = JudgeSpec("teacher", options(url, judge={"use": "perplexity"})).build().judge(samples)
    assert likely[0].reward is not None and likely[0].reward < 0
    assert likely[1].reward is not None and likely[1].reward < likely[0].reward


def test_a_served_teacher_tells_the_likeliest_tokens(url: str, smollm2: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    lesson = Lesson((1, 520, 9531, 198), (504, 2988, 314, 216, 36))
    teacher: ServedTeacher = VllmTeacher(ServerOptions.model_validate(options(url)), top_k=8)
    (places,) = teacher.likeliest([lesson])
    assert [len(place) for place in places] == [8] * 5
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16).eval()
    tokens = torch.tensor([[*lesson.prompt_tokens, *lesson.completion_tokens]])
    with torch.no_grad():
        logits = model(tokens).logits[0].float().log_softmax(-1)
    for place, row in zip(places, logits[3:8], strict=True):
        best = row.topk(8)
        assert len(set(best.indices.tolist()) & place.keys()) >= 7
        for token, logprob in place.items():
            assert logprob == pytest.approx(row[token].item(), abs=0.3)
