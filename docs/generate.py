"""Writes docs/config.md from the models that read a config: `python docs/generate.py`."""

from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from selfkd.config import Config
from selfkd.describe import type_name

TARGET = Path(__file__).with_name("config.md")

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
`judging.*` but for `anchors`, and of `engine` `max_num_seqs`, `kv_cache_gib`, `gpu_memory`,
`replicas`, `tensor_parallel_size`, `sync`, `residency`, `max_restarts` and `start_timeout`. For
anything else there is `selfkd fork`.
"""


def render() -> str:
    """The page."""
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
    meaning = " ".join((field.description or "").split())
    return f"| `{name}` | {kind} | {default} | {meaning} |"


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return "none" if value is None else "[]" if value == () else str(value)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
