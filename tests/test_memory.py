"""What sampler and trainer are planned to need."""

import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from selfkd.errors import DataError, InfrastructureError
from selfkd.memory import GIB, SHORT_ROW, Footprint, context_length, footprint, parameters


def plan(model: Path, trained_in: str, *, lora_rank: int = 0, tokens: int = 0) -> float:
    found = footprint(
        model, kv_cache_gib=1.0, sampled_in="bfloat16", trained_in=trained_in,
        lora_rank=lora_rank, batch_tokens=tokens,
    )  # fmt: skip
    return found.trainer * GIB


def test_parameters_are_counted_without_loading_the_model(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert parameters(tiny_model) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("onednn", "kept"), [("", (0, 0)), ("bfloat16", (0, 6)), ("both", (4, 6))])
def test_a_trainer_holds_what_its_dtype_and_its_adapter_ask_for(
    tiny_model, monkeypatch, onednn, kept
):
    monkeypatch.setattr("selfkd.memory.trains_by_onednn", lambda dtype: onednn in (dtype, "both"))
    count = parameters(tiny_model)
    adapter = plan(tiny_model, "float32", lora_rank=8)
    assert plan(tiny_model, "float32") - adapter == pytest.approx(12 * count)
    # In bfloat16 there is a second copy of the weights, and activations are half as wide. Where
    # oneDNN multiplies, the attention scores of short rows are kept, in bfloat16 twice.
    assert plan(tiny_model, "bfloat16") - adapter == pytest.approx(16 * count)
    wide = plan(tiny_model, "float32", tokens=10_000) - plan(tiny_model, "float32")
    narrow = plan(tiny_model, "bfloat16", tokens=10_000) - plan(tiny_model, "bfloat16")
    layers, hidden, heads = 2, 32, 2
    scores = heads * SHORT_ROW * (kept[0] - kept[1])
    assert wide - narrow == pytest.approx(10_000 * layers * (34 * hidden + scores))


def test_what_cannot_fit_is_refused_with_its_remedy():
    Footprint(6.0, 6.0, 8.0).check()  # one after the other
    assert not Footprint(6.0, 6.0, 8.0).both_fit
    with pytest.raises(InfrastructureError, match=r"trainer needs about 20.0 GiB.*has 8.0") as told:
        Footprint(6.0, 20.0, 8.0).check()
    assert "lora_rank" in str(told.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"hidden_size": 3', "it is not JSON"),
        (b"", "it is not JSON"),
        (b"\xff\x00\xfe", "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b"[32]", "it holds a list"),
    ],
)
def test_a_damaged_config_is_named_with_the_remedy(
    tiny_model: Path, tmp_path: Path, content: bytes, said: str
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "config.json").write_bytes(content)
    for read in (context_length, lambda path: plan(path, "float32")):
        with pytest.raises(DataError, match=f"is damaged: {said}") as told:
            read(model)
        assert (told.value.where, told.value.exit_code) == (str(model / "config.json"), 4)
        assert "save_pretrained" in told.value.remedy


@pytest.mark.parametrize("damage", ["empty", "length", "header", "no data", "cut short"])
def test_damaged_weights_are_named_with_the_remedy(
    tiny_model: Path, tmp_path: Path, damage: str
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    file = model / "model.safetensors"
    whole = file.read_bytes()
    data = 8 + int.from_bytes(whole[:8], "little")
    broken = {
        "empty": b"",
        "length": b"\xff" * 8 + whole[8:],
        "header": whole[:8] + b"?" + whole[9:],
        "no data": whole[:data],
        "cut short": whole[:-1],
    }
    file.write_bytes(broken[damage])
    for read in (parameters, lambda path: plan(path, "float32")):
        with pytest.raises(DataError, match="is damaged: its weights cannot be read") as told:
            read(model)
        assert (told.value.where, told.value.exit_code) == (str(file), 4)
        assert "save_pretrained" in told.value.remedy
