"""What engine a run samples with, and whether sampler and trainer stay in memory together."""

from pathlib import Path
from typing import Any

import pytest

from selfkd import assembly, memory
from selfkd.assembly import Note, engine_kind, plan_memory, prepare, residency
from selfkd.config import Resolved, resolve
from selfkd.errors import UsageError
from tests.testbed.addition import write_prompts


def settings(folder: Path, model: Path, **sections: Any) -> Resolved:
    """A config that resolves, on the tiny model."""
    sums = write_prompts(folder / "sums.jsonl", [(i, 1) for i in range(4)])
    prompts = {"source": str(sums), "fresh": False, "heldout": 0}
    config = {"loop": "rest_em", "model": str(model), "prompts": prompts, "judge": "number"}
    return resolve({**config, **sections})


def test_without_vllm_transformers_samples_and_the_run_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path
) -> None:
    monkeypatch.setattr(assembly, "installed", lambda package: False)
    kind, said = engine_kind("auto")
    assert kind == "transformers"
    assert "vLLM is not installed" in said and "slower" in said
    prepared = prepare(settings(tmp_path, tiny_model))
    assert prepared.setting.engine == "transformers"
    assert prepared.notes[0] == Note(said, "warning")
    with pytest.raises(UsageError, match=r"engine\.kind: vLLM is not installed") as caught:
        prepare(settings(tmp_path, tiny_model, engine={"kind": "vllm"}))
    assert "engine.kind=transformers" in caught.value.remedy


def test_with_vllm_there_is_nothing_to_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path
) -> None:
    monkeypatch.setattr(assembly, "installed", lambda package: package == "vllm")
    assert [engine_kind(k) for k in ("auto", "vllm", "transformers")] == [
        ("vllm", ""),
        ("vllm", ""),
        ("transformers", ""),
    ]
    prepared = prepare(settings(tmp_path, tiny_model))
    assert prepared.setting.engine == "vllm"
    assert not [note for note in prepared.notes if "vLLM" in note.text]


@pytest.mark.parametrize(("room", "said"), [(1.01, "both"), (0.99, "swap")])
def test_memory_decides_who_stays_unless_the_config_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path, room: float, said: str
) -> None:
    resolved = settings(tmp_path, tiny_model)
    plan = plan_memory(resolved.config, tiny_model)
    enough = (plan.sampler + plan.trainer) / memory.USABLE
    monkeypatch.setattr(memory, "memory_gib", lambda: room * enough)
    assert residency(resolved.config, plan_memory(resolved.config, tiny_model)) == said
    prepared = prepare(resolved)
    assert prepared.setting.swap == (said == "swap")
    told = {"both": "both stay in", "swap": "take turns in"}[said]
    assert [note for note in prepared.notes if told in note.text]
    for forced in ("both", "swap"):
        asked = settings(tmp_path, tiny_model, engine={"residency": forced})
        assert prepare(asked).setting.swap == (forced == "swap")
