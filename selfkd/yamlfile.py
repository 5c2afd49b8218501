"""Reads the YAML that people write, remembering the line of every key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from selfkd.errors import UsageError

Lines = dict[tuple[str, ...], int]
"""Path of keys -> line in the file, counted from 1."""


def read_yaml(path: Path) -> tuple[dict[str, Any], Lines]:
    """The mapping in `path` and where each of its keys stands.

    Raises UsageError with `file:line:column` for malformed YAML, duplicate keys and tabs.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read the config: {reason}", where=str(path)) from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: Lines = {}
        _walk(node, (), lines, path)
        value = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise UsageError(f"malformed YAML: {error.problem}", where=place) from error
    if not isinstance(value, dict):
        raise UsageError("a config is a mapping of keys to values", where=f"{path}:1")
    return value, lines


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as `{"a.b": value}`."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            flat |= flatten(inner, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = inner
    return flat


def _walk(node: Any, prefix: tuple[str, ...], lines: Lines, path: Path) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        where = (*prefix, str(key.value))
        mark = key.start_mark
        if where in lines:
            raise UsageError(
                f"duplicate key {'.'.join(where)} (first on line {lines[where]})",
                where=f"{path}:{mark.line + 1}:{mark.column + 1}",
                remedy="delete one of the two",
            )
        lines[where] = mark.line + 1
        _walk(value, where, lines, path)
