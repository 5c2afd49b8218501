"""Describes loops and judges for the command line: what they do and what they can be told."""

import json
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from selfkd.judging import JudgeSpec, options_doc
from selfkd.plugins import Kind, find_judge, find_loop, list_plugins


def describe_plugins(kind: Kind, as_json: bool) -> str:
    """Name and purpose of every plug-in of a kind."""
    rows = [{"name": n, "purpose": p, "source": s} for n, p, s in list_plugins(kind)]
    if as_json:
        return json.dumps(rows)
    width = max(len(r["name"]) for r in rows)
    return "\n".join(f"{r['name']:<{width}}  {r['purpose']}" for r in rows)


def describe_loop(name: str, as_json: bool) -> str:
    """One loop: its documentation, paper and options."""
    plugin = find_loop(name)
    options = [
        {
            "name": key,
            "type": type_name(field.annotation),
            "default": None
            if field.is_required()
            else field.get_default(call_default_factory=True),
            "doc": field.description or "",
        }
        for key, field in plugin.options.model_fields.items()  # type: ignore[attr-defined]
    ]
    return _describe(plugin, options, as_json, paper=plugin.paper)


def describe_judge(name: str, as_json: bool) -> str:
    """One judge: its documentation and options."""
    plugin = find_judge(name)
    options = [
        {"name": key, "type": kind, "default": default, "doc": doc}
        for key, kind, default, doc in options_doc(plugin)
    ]
    return _describe(plugin, options, as_json, kind=plugin.kind)


def _describe(plugin: Any, options: list[dict[str, Any]], as_json: bool, **facts: str) -> str:
    if as_json:
        head = {"name": plugin.name, "doc": plugin.doc, "source": plugin.source, **facts}
        return json.dumps(head | {"options": options}, default=str)
    lines = [plugin.doc, "", f"source: {plugin.source}"]
    lines += ["", "options:"] if options else ["", "no options"]
    for o in options:
        lines += [f"  {o['name']}: {o['type']} = {o['default']!r}", f"      {o['doc']}"]
    return "\n".join(lines)


def type_name(annotation: Any) -> str:
    """A type as people write it: `int`, `base or previous`, `list of str`."""
    if annotation is type(None):
        return "none"
    if annotation is JudgeSpec:
        return "judge"
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return type_name(arguments[0])
    if get_origin(annotation) is Literal:
        return " or ".join(map(str, arguments))
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(map(type_name, arguments))
    if get_origin(annotation) in (tuple, list):
        return "list of " + type_name(arguments[0])
    if get_origin(annotation) in (dict, Mapping) or annotation is dict:
        return "mapping"
    return getattr(annotation, "__name__", str(annotation))
