"""Prompts from files and data sets, good and bad."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfkd.errors import DataError, InfrastructureError, UsageError
from selfkd.records import Prompt, prompts_table, read_prompts
from tests.prompting import numbered, opened, texts, write_jsonl

# -- files --------------------------------------------------------------------------------------


def test_jsonl_columns_travel_and_paths_are_relative_to_the_base(tmp_path: Path) -> None:
    row = {"prompt": "1 + 2?", "answer": 3, "topic": {"a": [1, None]}, "level": 2.5}
    write_jsonl(tmp_path / "p.jsonl", [row])
    (prompt,) = opened("p.jsonl", tmp_path).train(0)
    assert prompt == Prompt.of("1 + 2?", "3", topic={"a": [1, None]}, level=2.5)


@pytest.mark.parametrize("column", ["prompt", "messages", "question"])
def test_the_prompt_column_is_found(tmp_path: Path, column: str) -> None:
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    write_jsonl(tmp_path / "p.jsonl", [{"x": 1, column: chat}])
    (prompt,) = opened("p.jsonl", tmp_path).train(0)
    assert prompt.messages == tuple(chat)
    assert (prompt.answer, dict(prompt.columns)) == (None, {"x": 1})


def test_named_columns_and_reserved_names(tmp_path: Path) -> None:
    row = {"task": "t", "gold": "g", "answer": "a", "messages": "m", "cls": 1, "id": 7}
    write_jsonl(tmp_path / "p.jsonl", [row])
    source = opened("p.jsonl", tmp_path, prompt_column="task", answer_column="gold")
    (prompt,) = source.train(0)
    assert (prompt.text, prompt.answer) == ("t", "g")
    assert dict(prompt.columns) == {"answer": "a", "messages": "m", "cls": 1, "id": 7}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"no column named prompt, messages, question; columns found: text, label"),
        ({"prompt_column": "txt"}, r"no column 'txt'; columns found: text, label"),
        ({"prompt_column": "text", "answer_column": "gold"}, r"no column 'gold'; columns found"),
        ({"template": "{text} {lable}"}, r"no column 'lable'; columns found: text, label"),
    ],
)
def test_a_missing_column_lists_those_found(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    write_jsonl(tmp_path / "p.jsonl", [{"text": "t", "label": "l"}])
    with pytest.raises(UsageError, match=message):
        opened("p.jsonl", tmp_path, **options)


def test_template_and_system_make_the_messages(tmp_path: Path) -> None:
    rows = [{"a": "{b}", "b": [1, "ä"], "answer": "x"}]
    write_jsonl(tmp_path / "p.jsonl", rows)
    source = opened("p.jsonl", tmp_path, template="{a}/{b}/{{a}}", system="be brief")
    (prompt,) = source.train(0)
    assert [m["content"] for m in prompt.messages] == ["be brief", '{b}/[1, "ä"]/{a}']
    assert dict(prompt.columns) == {"a": "{b}", "b": [1, "ä"]}


def test_a_system_message_of_ones_own_stays(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "own"}, {"role": "user", "content": "u"}]
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": chat}])
    (prompt,) = opened("p.jsonl", tmp_path, system="other").train(0)
    assert prompt.messages == tuple(chat)


@pytest.mark.parametrize("content", [b"", b"\n\r\n  \n", b"\xef\xbb\xbf\n"])
def test_an_empty_file_has_0_prompts(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="0 prompts") as caught:
        opened("p.jsonl", tmp_path)
    assert caught.value.exit_code == 4


GOOD = b'{"prompt": "a"}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "b"', r"not JSON"),
        (b'{"prompt": "caf\xe9"}', r"not UTF-8 text \(byte 16 of the line\)"),
        (b'"b"', r"a str, not a JSON object"),
        (b'{"prompt": "  "}', r"prompt is neither text nor chat messages"),
        (b'{"other": 1}', r"prompt is neither text nor chat messages"),
        (b'{"prompt": []}', r"prompt is neither text nor chat messages"),
        (b'{"prompt": ["a"]}', r"a chat message is not"),
        (b'{"prompt": [{"role": "user", "content": [1]}]}', r"a chat message is not"),
        (b'{"prompt": [{"role": "bot", "content": "b"}]}', r"unknown role 'bot'"),
        (
            b'{"prompt": [{"role": "assistant", "content": "b"}]}',
            r"the chat does not end with a user",
        ),
        (b"[" * 100_000, r"not JSON"),
    ],
)
def test_a_bad_line_is_named_or_skipped(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\n".join([GOOD, b"", GOOD, GOOD, b"", GOOD, line, b'{"prompt": "z"}']))
    with pytest.raises(DataError, match=rf"p\.jsonl:7: {message}"):
        opened("p.jsonl", tmp_path)
    source = opened("p.jsonl", tmp_path, skip_bad=True)
    assert texts(source.train(0)) == ["a", "z"]
    assert source.report == {"duplicates": 3, "bad_rows": 1, "overlap": 0}


def test_only_bad_lines_leave_0_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b"{\n" * 3)
    with pytest.raises(DataError, match="0 prompts, 3 bad rows"):
        opened("p.jsonl", tmp_path, skip_bad=True)


def test_bom_and_crlf_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n')
    assert texts(opened("p.jsonl", tmp_path).train(0)) == ["a", "b"]
    (tmp_path / "p.csv").write_bytes(b'\xef\xbb\xbfprompt,answer\r\n"a\r\nb",1\r\nc,\r\n')
    assert [(p.text, p.answer) for p in opened("p.csv", tmp_path).train(0)] == [
        ("a\r\nb", "1"),
        ("c", None),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [(b"b", "as many fields"), (b"b,2,3", "as many fields"), (b"\xe9,1", "UTF-8")],
)
def test_a_bad_csv_row_is_named_or_skipped(tmp_path: Path, row: bytes, message: str) -> None:
    (tmp_path / "p.csv").write_bytes(b"prompt,answer\na,1\n" + row + b"\nc,3\n")
    with pytest.raises(DataError, match=rf"p\.csv:3: .*{message}"):
        opened("p.csv", tmp_path)
    source = opened("p.csv", tmp_path, skip_bad=True)
    assert texts(source.train(0)) == ["a", "c"]
    assert source.report["bad_rows"] == 1


def test_csv_that_cannot_be_continued_is_never_cut_short(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(b'prompt,answer\na,1\n"b" x,2\nc,3\n')
    with pytest.raises(DataError, match=r"p\.csv:3: not CSV"):
        opened("p.csv", tmp_path, skip_bad=True)


def test_parquet(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "u"}]
    table = pa.table({"messages": [chat, None], "answer": [1.5, 2.0], "n": [1, 2]})
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(DataError, match=r"p\.parquet:2: messages is neither"):
        opened("p.parquet", tmp_path)
    (prompt,) = opened("p.parquet", tmp_path, skip_bad=True).train(0)
    assert prompt == Prompt.of("u", "1.5", n=1)
    (tmp_path / "q.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"q\.parquet: not a Parquet file"):
        opened("q.parquet", tmp_path)


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    numbered(tmp_path / "prompts.jsonl", 1)
    with pytest.raises(UsageError, match=r"promts\.jsonl: no such file .*'prompts\.jsonl'"):
        opened("promts.jsonl", tmp_path)
    with pytest.raises(UsageError, match=r"gym:x: no such file"):
        opened("gym:x", tmp_path)
    (tmp_path / "p.xlsx").touch()
    with pytest.raises(UsageError, match=r"cannot be read from a \.xlsx file"):
        opened("p.xlsx", tmp_path)
    with pytest.raises(UsageError, match=r"a file takes no options, but there are: split"):
        opened("prompts.jsonl", tmp_path, options={"split": "train"})


AWKWARD = ["a\0b", "x\ud800y", "\u202eevil\u200f", "a\u2028b\x85c", "l" * 1_000_000, "e\u0301"]


def test_awkward_text_survives_down_to_parquet_and_back(tmp_path: Path) -> None:
    rows = [{"prompt": text, "answer": "x", "note": text} for text in AWKWARD]
    write_jsonl(tmp_path / "p.jsonl", rows)
    prompts = opened("p.jsonl", tmp_path).train(0)
    pq.write_table(prompts_table(prompts), tmp_path / "p.parquet")
    back = read_prompts(pq.read_table(tmp_path / "p.parquet"))
    assert back == prompts
    assert texts(back) == [p.columns["note"] for p in back] == AWKWARD


def test_awkward_text_survives_csv(tmp_path: Path) -> None:
    text = "a\0b\u202e" + "l" * 1_000_000
    (tmp_path / "p.csv").write_text(f'prompt\n"{text}"\n', encoding="utf-8")
    assert texts(opened("p.csv", tmp_path).train(0)) == [text]


def test_not_a_number_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "score": NaN}\n')
    (prompt,) = opened("p.jsonl", tmp_path).train(0)
    assert math.isnan(prompt.columns["score"])


# -- data sets ----------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    from datasets import Dataset, DatasetDict

    train = Dataset.from_dict({"question": ["a", "b"], "answer": [1, 2]})
    test = Dataset.from_dict({"question": ["c", "b"], "answer": [3, 2]})
    DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / "saved"))
    train.save_to_disk(str(tmp_path / "one"))
    return tmp_path


def test_a_saved_data_set(saved: Path) -> None:
    assert texts(opened("saved", saved).train(0)) == ["a", "b"]
    assert texts(opened("one", saved).train(0)) == ["a", "b"]
    source = opened("saved", saved, options={"split": "test"}, limit=1)
    assert source.train(0) == [Prompt.of("c", "3")]


def test_a_split_of_its_own_for_heldout(saved: Path) -> None:
    source = opened("saved", saved, options={"heldout_split": "test"})
    assert texts(source.heldout()) == ["c", "b"]
    assert texts(source.train(0)) == ["a"]
    assert source.report["overlap"] == 1


def test_data_set_options_are_checked(saved: Path) -> None:
    with pytest.raises(UsageError, match=r"no split 'dev'.*one of train, test"):
        opened("saved", saved, options={"split": "dev"})
    with pytest.raises(UsageError, match=r"no option 'splt'.*known options: name, split"):
        opened("saved", saved, options={"splt": "dev"})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A hub with one data set, `org/sums`; what was asked of it."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    asked: list[dict[str, Any]] = []

    def load(path: str, name: str | None = None, **options: Any) -> Any:
        asked.append({"path": path, "name": name, **options})
        if path != "org/sums":
            raise DatasetNotFoundError(f"Dataset '{path}' doesn't exist")
        splits: Any = {
            "train": datasets.Dataset.from_dict({"question": ["a", "b"], "answer": [1, 2]}),
            "test": datasets.Dataset.from_dict({"question": ["c"], "answer": [3]}),
        }
        split = options["split"]
        return splits[split] if split else datasets.DatasetDict(splits)

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_a_data_set_on_the_hub(hub: list[dict[str, Any]], tmp_path: Path) -> None:
    options = {"name": "easy", "revision": "v1", "heldout_split": "test"}
    source = opened("org/sums", tmp_path, options=options)
    assert source.train(0) == [Prompt.of("a", "1"), Prompt.of("b", "2")]
    assert source.heldout() == [Prompt.of("c", "3")]
    part = {"path": "org/sums", "name": "easy", "revision": "v1"}
    assert hub == [part | {"split": "test"}, part | {"split": None}]


def test_a_data_set_that_is_not_on_the_hub(hub: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"org/smus: Dataset 'org/smus' doesn't exist"):
        opened("org/smus", tmp_path)
    with pytest.raises(UsageError, match="no such file or directory"):
        opened("a/b/c", tmp_path)
    assert len(hub) == 1


@pytest.mark.parametrize("error", ["ConnectionError", "ReadTimeout"])
def test_a_hub_that_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: str
) -> None:
    import datasets
    from huggingface_hub.utils import httpx

    kind = {"ConnectionError": ConnectionError, "ReadTimeout": httpx.ReadTimeout}[error]

    def load(*asked: Any, **options: Any) -> None:
        raise kind("no answer from the hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(InfrastructureError, match="no answer from the hub") as caught:
        opened("org/sums", tmp_path)
    assert (caught.value.where, caught.value.exit_code) == ("org/sums", 5)
    assert "the network" in caught.value.remedy and "local file" in caught.value.remedy


def test_a_folder_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "folder").mkdir()
    numbered(tmp_path / "folder" / "train.jsonl", 3)
    numbered(tmp_path / "folder" / "test.jsonl", 1, first=9)
    source = opened("folder", tmp_path, options={"heldout_split": "test"})
    assert (texts(source.train(0)), texts(source.heldout())) == (["q0", "q1", "q2"], ["q9"])
    with pytest.raises(UsageError, match="folder: Unknown split"):
        opened("folder", tmp_path, options={"split": "dev"})
    (tmp_path / "bare").mkdir()
    with pytest.raises(UsageError, match=r"bare: .*doesn't contain any data files"):
        opened("bare", tmp_path)
