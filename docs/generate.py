"""Writes config.md and judge-options.md from what reads them: `python docs/generate.py`."""

import re
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from selfkd.config import Config
from selfkd.describe import type_name
from selfkd.judging import options_model
from selfkd.options import Options
from selfkd.plugins import find_judge, list_plugins

FOLDER = Path(__file__).parent

HEAD = """\
# Every key of a config

<!-- Written by docs/generate.py from the models in selfkd/; edit their docstrings instead. -->

A config is a YAML file: the keys below, and beside them the options of its loop
(`selfkd loops NAME` lists those; all loops have `rounds`). On the command line any key is
`key.path=value`: `selfkd run loops/rest_em.yaml rounds=6 train.learning_rate=1e-5`.

Unknown keys are refused. Paths are relative to the file that names them; those of a command-line
override, to the working directory. `prompts`, `judge`, `gold_judge` and `cluster` may be one
string: `prompts: my.jsonl`, `judge: my_judge.py:score`, `cluster: auto`.

On resume only keys may change that say how a run is carried out and not what it computes:
`rounds`, `report_to`, `storage`, `alarms.*`, `controls.action`, `cluster.*`, `keep_policies.*`,
`judging.*` but for `anchors`, of `engine` `max_num_seqs`, `kv_cache_gib`, `gpu_memory`, `replicas`,
`tensor_parallel_size`, `sync`, `residency`, `max_restarts` and `start_timeout`, and of a judge what
is no part of its identity, such as the budget of `teacher`. For anything else there is
`selfkd fork`.
"""

JUDGES_HEAD = """\
# Every option of the judges that ship

<!-- Written by docs/generate.py from the judges; edit their docstrings instead. -->

What they do, and how to write one's own, is in [judges.md](judges.md).
"""


def pages() -> dict[str, str]:
    """File name -> content."""
    return {"config.md": render(), "judge-options.md": render_judges()}


def render_judges() -> str:
    """A section for each judge, with its options."""
    lines = [JUDGES_HEAD]
    for name, purpose, source in list_plugins("judge"):
        if Path(source).suffix == ".py":
            lines += [f"## `{name}`", "", purpose, "", *_judge_table(name), ""]
    return "\n".join(lines)


def _judge_table(name: str) -> list[str]:
    options = options_model(find_judge(name)).model_fields
    rows = [_option(key, field) for key, field in options.items()]
    return (
        ["| option | type | default | meaning |", "|---|---|---|---|", *rows]
        if rows
        else ["No options."]
    )


def _option(name: str, field: FieldInfo) -> str:
    if isinstance(field.annotation, type) and issubclass(field.annotation, Options):
        keys = ", ".join(field.annotation.model_fields)
        return f"| `{name}` | mapping | none | {_meaning(field)} Keys: {keys}. |"
    return _row(name, field)


def render() -> str:
    """The page of a config's keys."""
    lines = [HEAD, "## Top level", "", *_table(Config)]
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            lines += [
                "",
                f"## `{name}`",
                "",
                field.description or "",
                "",
                *_table(field.annotation),
            ]
    return "\n".join(lines) + "\n"


def _table(model: type[BaseModel]) -> list[str]:
    rows = [_row(name, field) for name, field in model.model_fields.items()]
    return ["| key | type | default | meaning |", "|---|---|---|---|", *rows]


def _row(name: str, field: FieldInfo) -> str:
    nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    default = "below" if nested else "required" if field.is_required() else f"`{_default(field)}`"
    kind = "section" if nested else f"`{type_name(field.annotation)}`"
    return f"| `{name}` | {kind} | {default} | {_meaning(field)} |"


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, re.Pattern):
        value = value.pattern.replace("|", "\\|")
    if isinstance(value, str) and ("\n" in value or len(value) > 60):
        return "its own"
    if value == "":
        return "none"
    if value is None or value in ((), [], {}):
        return {type(None): "none", dict: "{}"}.get(type(value), "[]")
    return str(value)


if __name__ == "__main__":
    for page, text in pages().items():
        (FOLDER / page).write_text(text, encoding="utf-8")
