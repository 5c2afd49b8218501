"""Where a sample came from and what became of it: prompt, policy, decision, example, policy."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from selfkd.errors import UsageError
from selfkd.ledger import policy_dir
from selfkd.retention import is_pruned
from selfkd.rundir import StepRecord, find_rows, read_columns, round_numbers, round_steps
from selfkd.viewer.browse import read_rows, sample_list, sample_rounds
from selfkd.viewer.show import PROMPT, prompt_text

Row = dict[str, Any]


def prompt_story(run_dir: Path, prompt_id: str, *, limit: int = 64) -> Row:
    """A prompt and all samples of it, round by round.

    `prompt`, `text`, `answer`, and `groups`: one for each round and label that has samples of it,
    with `total` and at most `limit` `samples`: rows as in `show_samples`, with `decisions` (of any
    round) and `examples` (with the policy trained on them). Raises UsageError where no round has
    the prompt.
    """
    groups = []
    for number, labels in sample_rounds(run_dir).items():
        for label in labels:
            if not _asked(run_dir, number, label, prompt_id):
                continue
            files, table = sample_list(run_dir, number, label)
            mine = table.filter(pc.field("prompt_id") == prompt_id)
            if mine.num_rows and _sampled_in(files, number):
                rows = read_rows(run_dir, number, files, mine.slice(0, limit))
                groups.append(
                    {"round": number, "label": label, "total": len(mine), "samples": rows}
                )
    facts = _prompt(run_dir, prompt_id)
    if facts is None:
        raise UsageError(f"no round has a prompt {prompt_id[:80]!r}", where=run_dir.name)
    samples = [s for g in groups for s in g["samples"]]
    _add_fates(run_dir, prompt_id, samples)
    return {"prompt": prompt_id, **facts, "groups": groups}


def _asked(run_dir: Path, round: int, label: str, prompt_id: str) -> bool:
    """Whether a round may have samples of a prompt; its prompts are fewer than its samples."""
    steps = [s for s in round_steps(run_dir, round) if s.verb == "prompts" and s.label == label]
    return not steps or bool(find_rows(steps, ("id",), {prompt_id}))


def _sampled_in(files: list[Path], round: int) -> bool:
    """Whether the samples were made in this round, not only decided about in it."""
    return any(int(p.parent.parent.name) == round for p in files[:1])


def _steps(run_dir: Path, verb: str) -> Iterable[StepRecord]:
    for number in round_numbers(run_dir):
        yield from (s for s in round_steps(run_dir, number) if s.verb == verb)


def _prompt(run_dir: Path, prompt_id: str) -> Row | None:
    found = find_rows(_steps(run_dir, "prompts"), PROMPT, {prompt_id})
    if prompt_id not in found:
        return None
    return {"text": prompt_text(found[prompt_id]), "answer": found[prompt_id]["answer"]}


def _add_fates(run_dir: Path, prompt_id: str, samples: list[Row]) -> None:
    decisions: dict[str, list[Row]] = {}
    for step in _steps(run_dir, "keep"):
        for row in _rows_of(step, prompt_id, ["sample_id", "prompt_id", "kept", "reason"]):
            fate = {"round": step.round, "kept": row["kept"], "reason": row["reason"]}
            decisions.setdefault(row["sample_id"], []).append(fate)
    examples: dict[str, list[Row]] = {}
    for step in _steps(run_dir, "train"):
        for row in _rows_of(step, prompt_id, ["id", "prompt_id", "sample_ids", "weight"]):
            for number, sample in enumerate(row["sample_ids"]):
                fate = {"id": row["id"], "round": step.round, "weight": row["weight"]}
                role = "rejected" if number and len(row["sample_ids"]) == 2 else "learnt"
                fate |= {"role": role, "policy": step.summary.get("policy")}
                examples.setdefault(sample, []).append(fate)
    for sample in samples:
        sample["decisions"] = decisions.get(sample["sample_id"], [])
        sample["examples"] = examples.get(sample["sample_id"], [])


def _rows_of(step: StepRecord, prompt_id: str, columns: list[str]) -> Iterable[Row]:
    for path in step.shards():
        yield from (
            read_columns(path, columns).filter(pc.field("prompt_id") == prompt_id).to_pylist()
        )


def policies(run_dir: Path) -> list[Row]:
    """The policies of a run, the base first: how each was made, measured and used.

    Keys: policy, made_in (round, null for the base), start, examples, steps, loss_last, no_signal,
    gate (its decision, or null), heldout_in and sampled_in (rounds), pruned (whether its weights
    were let go).
    """
    found: dict[str, Row] = {"base": _policy("base", None)}
    for number in round_numbers(run_dir):
        for step in round_steps(run_dir, number):
            _add_step(found, step)
    for name, row in found.items():
        row["pruned"] = name != "base" and is_pruned(policy_dir(run_dir, name))
    return list(found.values())


def _policy(name: str, made_in: int | None, **facts: Any) -> Row:
    keys = ("start", "examples", "steps", "loss_last", "no_signal")
    known = {key: facts.get(key) for key in keys}
    uses: Row = {"gate": None, "heldout_in": [], "sampled_in": []}
    return {"policy": name, "made_in": made_in, **known, **uses}


def _add_step(found: dict[str, Row], step: StepRecord) -> None:
    if step.verb == "train" and step.finished and (name := step.summary.get("policy")):
        found.setdefault(name, _policy(name, step.round, **step.summary))
    elif step.verb == "gate" and step.summary.get("policy") in found:
        found[step.summary["policy"]]["gate"] = step.summary
    elif step.verb == "generate" and step.shards():
        policy = found.get(step.args().get("policy_name", ""))
        if policy is not None:
            policy["heldout_in" if step.label == "heldout" else "sampled_in"].append(step.round)


def policy_story(run_dir: Path, name: str, *, offset: int = 0, limit: int = 100) -> Row:
    """One of `policies`, with a page of the examples it learnt from (`examples_page`), and `total`.

    An example has id, prompt_id, sample_ids, weight, tokens (learnt) and `samples`: their texts.
    Raises UsageError for a policy that the run does not have.
    """
    facts = next((p for p in policies(run_dir) if p["policy"] == name), None)
    if facts is None:
        raise UsageError(f"no policy {name[:80]!r}", where=run_dir.name)
    steps = [s for s in _steps(run_dir, "train") if s.summary.get("policy") == name]
    columns = ["id", "prompt_id", "sample_ids", "weight", "completion_tokens"]
    rows: list[Row] = []
    total = 0
    for path in (p for s in steps for p in s.shards()):
        table = read_columns(path, columns)
        start = max(0, offset - total)
        rows += table.slice(start, max(0, limit - len(rows))).to_pylist()
        total += table.num_rows
    wanted = {i for row in rows for i in row["sample_ids"]}
    texts = find_rows(_made_until(run_dir, facts["made_in"]), _TEXT, wanted)
    for row in rows:
        row["tokens"] = len(row.pop("completion_tokens"))
        row["samples"] = [texts[i] for i in row["sample_ids"] if i in texts]
    return facts | {"total": total, "offset": offset, "examples_page": rows}


_TEXT = ("id", "completion", "policy", "round")


def _made_until(run_dir: Path, round: int | None) -> Iterable[StepRecord]:
    steps = [s for s in _steps(run_dir, "generate") if round is None or s.round <= round]
    return reversed(steps)  # examples are mostly of the round that trained on them
