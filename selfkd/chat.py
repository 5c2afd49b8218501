"""Chat messages to tokens: the one place where sampler and trainer get their prompts from."""

import itertools
import re
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from selfkd.errors import DataError, UsageError
from selfkd.modelfiles import check_tokenizer_files, names_generic_tokenizer
from selfkd.models import check_model_dir
from selfkd.records import Message, content_hash

PLAIN = (
    "{% for m in messages %}{{ m.content }}"
    "{% if m.role == 'user' %}{{ '\n' }}{% else %}{{ '\n\n' }}{% endif %}{% endfor %}"
)
"""Template without roles: a line break ends a question, a blank line ends an answer."""

AT_ONCE = 1024
"""Texts that a tokenizer is given at a time: beside tokens it keeps several kilobytes of each."""

_tokenizing = threading.Lock()
"""A tokenizer's settings are its own state, and threads that generate and judge share it."""


def load_tokenizer(path: str | Path, chat_template: str | None = None) -> Any:
    """The tokenizer in the model directory `path`.

    `chat_template` replaces its template: `plain`, or the path of a .jinja file. Raises DataError
    where a file is damaged, where there is no template at all or where the template cannot render a
    user message, and UsageError where `path` is no model directory.
    """
    tokenizer = _read_tokenizer(Path(path))
    if chat_template == "plain":
        tokenizer.chat_template = _leading_bos(tokenizer) + PLAIN
    elif chat_template is not None:
        tokenizer.chat_template = _read_template(Path(chat_template).expanduser())
    render(tokenizer, [{"role": "user", "content": "Hello"}])
    return tokenizer


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all of them begin with."""
    alike = (len(set(column)) == 1 for column in zip(*rows, strict=False))
    return len(list(itertools.takewhile(bool, alike)))


def same_tokenizer(tokenizer: Any, path: Path) -> None:
    """Raise UsageError unless the model in `path` has the tokens of `tokenizer`, by the same ids.

    Templates may differ: prompts are always rendered with `tokenizer`.
    """
    other = _read_tokenizer(path)
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    if ours == theirs and tokenizer.eos_token_id == other.eos_token_id:
        return
    differing = sorted(t for t in {*ours, *theirs} if ours.get(t) != theirs.get(t))
    what = (
        f"{len(differing)} tokens differ, such as {differing[0]!r}"
        if differing
        else (f"its end-of-sequence token is {other.eos_token!r}, ours {tokenizer.eos_token!r}")
    )
    raise UsageError(
        f"the teacher has another tokenizer ({what})",
        where=str(path),
        remedy="a teacher must predict the student's tokens: take one of the same family",
    )


def render(tokenizer: Any, messages: Sequence[Message], *, to_complete: bool = True) -> list[int]:
    """Tokens of `messages`, with the generation prompt added where they are to be completed.

    Contents are data: the text of a special token in one is tokenised as ordinary text, so nobody
    opens or closes a turn from inside a message. Raises DataError where the tokenizer has no
    template or its template refuses the messages.
    """
    return render_all(tokenizer, [messages], to_complete=to_complete)[0]


def render_all(
    tokenizer: Any, conversations: Sequence[Sequence[Message]], *, to_complete: bool = True
) -> list[list[int]]:
    """`render` of each conversation; many at once are several times as fast."""
    found: list[list[int]] = [[]] * len(conversations)
    plain: list[int] = []
    filled: list[str] = []
    with _tokenizing:
        special, ids = _special_tokens(tokenizer, len(tokenizer))
        for i, conversation in enumerate(conversations):
            messages = [{key: _encodable(text) for key, text in m.items()} for m in conversation]
            if any(special.search(text) for m in messages for text in m.values()):
                found[i] = _render_guarded(tokenizer, messages, special, ids, to_complete)
            else:
                plain.append(i)
                filled.append(_fill_template(tokenizer, messages, to_complete))
        encoded = _encode(tokenizer, filled)
    for i, tokens in zip(plain, encoded, strict=True):
        found[i] = tokens
    return found


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    found: list[list[int]] = []
    for start in range(0, len(texts), AT_ONCE):
        part = texts[start : start + AT_ONCE]
        found += tokenizer(part, add_special_tokens=False)["input_ids"]
    return found


def tokens_of(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a text that stands alone; the text of a special token is ordinary text."""
    with _tokenizing:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _render_guarded(
    tokenizer: Any,
    messages: Sequence[Message],
    special: re.Pattern[str],
    ids: frozenset[int],
    to_complete: bool,
) -> list[int]:
    # The template sees a stand-in for each special text. Once it is rendered the text comes back,
    # at a known place, and whatever special token the tokenizer finds there is spelt out instead.
    # All other tokens stay as the tokenizer makes them from the whole text.
    nonce = content_hash(messages)
    found: list[str] = []

    def stand_in(match: re.Match[str]) -> str:
        found.append(match[0])
        return f"[{nonce}:{len(found) - 1}]"

    guarded = [{key: special.sub(stand_in, text) for key, text in m.items()} for m in messages]
    pieces = re.split(rf"\[{nonce}:(\d+)\]", _fill_template(tokenizer, guarded, to_complete))
    for i in range(1, len(pieces), 2):
        pieces[i] = found[int(pieces[i])]
    data = b"".join((b"\1" if i % 2 else b"\0") * len(piece) for i, piece in enumerate(pieces))
    return _spell_out(tokenizer, "".join(pieces), data, ids)


def _spell_out(tokenizer: Any, text: str, data: bytes, special_ids: frozenset[int]) -> list[int]:
    """Tokens of `text`, special tokens spelt out where `data` (one byte a character) is 1."""
    if not tokenizer.is_fast:
        raise DataError(
            "a message holds the text of a special token, and this tokenizer cannot tell where",
            remedy="use a model with a tokenizer.json, or remove the text from the prompts",
        )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens: list[int] = []
    for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if token in special_ids and data.find(b"\1", start, end) >= 0:
            spelt = tokenizer(text[start:end], add_special_tokens=False, split_special_tokens=True)
            tokens += spelt["input_ids"]
        else:
            tokens.append(token)
    return tokens


def _fill_template(tokenizer: Any, messages: Sequence[Message], to_complete: bool) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise DataError(
            "the tokenizer has no chat template",
            where=str(tokenizer.name_or_path),
            remedy="set chat_template in the config: the path of a .jinja file, or `plain`",
        )
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=to_complete
        )
    except TemplateError as error:
        roles = ", ".join(m["role"] for m in messages)
        raise DataError(
            f"the chat template cannot render messages with the roles {roles}: {error}",
            where=str(tokenizer.name_or_path),
            remedy="change the prompts, or set chat_template in the config",
        ) from error


@lru_cache(maxsize=8)
def _special_tokens(tokenizer: Any, size: int) -> tuple[re.Pattern[str], frozenset[int]]:
    """What matches the text of any special token, and the ids of them all."""
    # `size` is part of the key because tokens may be added to a tokenizer that was seen before.
    named = set(tokenizer.all_special_tokens)  # a few of these are not flagged as special
    added = tokenizer.added_tokens_decoder.items()
    texts = {t.content: i for i, t in added if t.special or t.content in named}
    pattern = "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))
    return re.compile(pattern or "(?!)"), frozenset(texts.values())


def _encodable(text: str) -> str:
    # A lone surrogate has no UTF-8 form and no tokenizer takes it: keep it, visibly escaped.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _read_tokenizer(path: Path) -> Any:
    try:
        return _tokenizer_class(path).from_pretrained(str(path))
    except Exception as error:  # of any kind, depending on the file and on what reads it
        check_tokenizer_files(path)
        check_model_dir(path)
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(
            f"transformers cannot load the tokenizer: {reason}",
            where=str(path),
            remedy="install what it asks for, or take a model whose tokenizer AutoTokenizer loads",
        ) from error


def _tokenizer_class(path: Path) -> Any:
    """What AutoTokenizer would take, without its imports where the model's files are enough to
    tell: they come to five seconds and to all of torch, in every driver."""
    if names_generic_tokenizer(path):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def _leading_bos(tokenizer: Any) -> str:
    """What a template must begin with where the tokenizer begins every text by itself."""
    first = tokenizer("a")["input_ids"][0]
    begins = tokenizer.bos_token_id is not None and first == tokenizer.bos_token_id
    return "{{ bos_token }}" if begins else ""


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(
            f"cannot read the chat template: {reason}",
            where=str(path),
            remedy="set chat_template to the path of a .jinja file, or to `plain`",
        ) from error
