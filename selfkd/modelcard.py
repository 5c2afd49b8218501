"""The README of a policy: what it is, how it was made, its figures, and what not to expect of it.

Written from the run's record alone, into each policy's directory at the end of a round, and by
`selfkd push`. No path of this machine gets into it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfkd.board import gate_words
from selfkd.errors import UsageError
from selfkd.files import write_atomically
from selfkd.ledger import policy_dir
from selfkd.metrics import recorded_rows, run_alarms
from selfkd.models import KNOWN
from selfkd.policies import CARD
from selfkd.rundir import StepRecord, of_verb, read_config, round_numbers, round_steps, run_facts
from selfkd.terminal import one_line

Row = dict[str, Any]

CAVEAT = """\
**It was trained on its own outputs.** The model learnt from completions that it, or an earlier
version of it, had written, as far as a judge liked them. What the judge cannot see is not corrected
and may be reinforced: wrong reasoning that ends in the right answer, the judge's own taste, a way
of writing. Such training also makes completions more alike, so that sampling more of them finds
less. Figures by the judge say how well the model pleases the judge; only those on held-out prompts
were measured on prompts that it never learnt from, and these come from the same source as the
training prompts. Nothing else was measured: neither other tasks nor safety. The licence and the
limits of the base model and of the prompts apply."""


def write_cards(run_dir: Path, rounds: Sequence[int]) -> None:
    """Write the README of each policy `round-N` that is there, N in `rounds`."""
    for number in rounds:
        folder = policy_dir(run_dir, f"round-{number}")
        if (folder / "MANIFEST.json").exists():
            text = model_card(run_dir, number).encode()
            card = folder / CARD
            if not card.exists() or card.read_bytes() != text:
                write_atomically(card, text)


def model_card(run_dir: Path, number: int) -> str:
    """The README of policy `round-N`: metadata as the Hugging Face hub reads it, and Markdown.

    Raises UsageError where no round of the run trained that policy.
    """
    made = training_of(run_dir, number)
    facts, config = run_facts(run_dir), read_config(run_dir)
    rows = [row for row in recorded_rows(run_dir) if row["round"] <= number]
    base = base_name(config.get("model"))
    trainings = f"{number} round{'' if number == 1 else 's'}"
    lines = [
        f"# {_plain(facts['run'])}: round-{number}",
        "",
        f"{_plain(base)} after {trainings} of self-improvement by the loop "
        f"{_loop(facts, config)}, made with selfkd.",
        "",
        CAVEAT,
        "",
        "## How it was made",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in _recipe(run_dir, config, facts, made)),
        "",
        "## Figures",
        "",
        *_figures(run_dir, rows, number),
        "",
        "## Use",
        "",
        *_usage(made, base),
    ]
    return _metadata(config, made) + "\n".join(lines) + "\n"


def training_of(run_dir: Path, number: int) -> StepRecord:
    """The finished training that made policy `round-N`."""
    for step in of_verb(round_steps(run_dir, number - 1), "train") if number else ():
        if step.summary.get("policy") == f"round-{number}":
            return step
    trained = [n + 1 for n in round_numbers(run_dir) if of_verb(round_steps(run_dir, n), "train")]
    raise UsageError(
        f"no policy round-{number} was trained",
        where=str(run_dir),
        remedy=f"there are: {', '.join(map(str, trained)) or 'none'}",
    )


def _metadata(config: Row, made: StepRecord) -> str:
    from huggingface_hub import ModelCardData

    base = base_name(config.get("model"))
    data = ModelCardData(
        base_model=base if re.fullmatch(r"[\w.-]+/[\w.-]+", base) else None,
        library_name="peft" if is_adapter(made) else "transformers",
        pipeline_tag="text-generation",
        tags=["selfkd", "self-improvement", "trained-on-its-own-outputs"],
    )
    return f"---\n{data.to_yaml()}\n---\n\n"


def base_name(model: Any) -> str:
    """The base as others can find it: its name on the hub, or the last part of a path."""
    text = str(model or "unknown")
    if text in KNOWN:
        return KNOWN[text].hub_id
    local = text.startswith(("/", ".", "~")) or text.count("/") > 1
    return text.rstrip("/").rpartition("/")[2] if local else text


def _loop(facts: Row, config: Row) -> str:
    head = config.get("run")
    paper = str(head.get("paper") or "") if isinstance(head, dict) else ""
    number = paper.removeprefix("arXiv:")
    link = f" ([{_plain(paper)}](https://arxiv.org/abs/{number}))"
    return _code(facts["loop"]) + (link if re.fullmatch(r"\d{4}\.\d{4,5}", number) else "")


def _recipe(run_dir: Path, config: Row, facts: Row, made: StepRecord) -> Iterator[tuple[str, str]]:
    """Name and value of what went into the policy."""
    sampling, train = _section(config, "sampling"), _section(made.args(), "options")
    kept = of_verb(round_steps(run_dir, made.round), "keep")
    rules = dict.fromkeys(str(s.args().get("rule")) for s in kept)
    summary = made.summary
    yield "base", _code(base_name(config.get("model")))
    yield "rounds", f"{made.round + 1} of {facts['planned_rounds'] or 'an open number'}"
    yield "started from", _code(summary.get("start"))
    yield "prompts", _prompts(config)
    yield "sampled at", f"temperature {sampling.get('temperature')}, top-p {sampling.get('top_p')}"
    yield "judge", _code(facts["judge"])
    yield "held-out judge", _gold(run_dir)
    yield "kept by", ", ".join(map(_code, rules)) or "no rule"
    yield (
        "trained on",
        f"{summary.get('examples')} examples, {summary.get('steps')} steps, objective "
        f"{_code(made.args().get('objective'))}, learning rate {train.get('learning_rate')}",
    )
    yield "seed", _code(config.get("seed"))
    versions = _section(_section(config, "run"), "versions")
    yield (
        "versions",
        ", ".join(f"{_plain(k)} {_plain(v)}" for k, v in versions.items()) or "unknown",
    )


def _prompts(config: Row) -> str:
    prompts = _section(config, "prompts")
    source = str(prompts.get("source", "unknown"))
    name = source.rpartition("/")[2] if source.startswith(("/", ".", "~")) else source
    count = prompts.get("per_round")
    return _code(name) + (f", {count} a round" if count else "")


def _gold(run_dir: Path) -> str:
    """Who judged the held-out answers."""
    for number in round_numbers(run_dir):
        for step in of_verb(round_steps(run_dir, number), "judge"):
            if step.label == "heldout" and step.summary.get("judge"):
                return _code(str(step.summary["judge"]).rpartition(":")[2])
    return "none: held-out was not measured"


def _figures(run_dir: Path, rows: Sequence[Row], number: int) -> Iterator[str]:
    yield "Round N is what the policy `round-N` did; round 0 is the base. Reward is the judge's"
    yield "mean over samples; held-out is the mean over held-out answers, with its standard error."
    yield ""
    yield "| round | reward of samples | held-out | kept | tokens a completion | distinct |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        error = row["heldout_stderr"]
        heldout = _number(row["heldout_reward"]) + (f" ± {error:.3f}" if error else "")
        cells = (
            _number(row["reward_mean"]),
            heldout,
            _number(row["kept"], "d"),
            _number(row["length_mean"], ".1f"),
            _number(row["unique"], ".0%"),
        )
        yield f"| {row['round']} | {' | '.join(cells)} |"
    gate = rows[-1]["gate"] if rows else None
    if gate and gate.get("policy") == f"round-{number}":
        yield from ("", f"Gate: {_plain(gate_words(gate))}.")
    told = run_alarms(run_dir, rows)
    if told:
        yield from ("", "Alarms of these rounds:", "")
        yield from (
            f"- round {a.round}, {a.name.replace('_', ' ')}: {_plain(a.message)}" for a in told
        )


def _usage(made: StepRecord, base: str) -> Iterator[str]:
    yield "```python"
    if is_adapter(made):
        yield "from peft import PeftModel"
        yield "from transformers import AutoModelForCausalLM"
        yield ""
        yield "# or the policy that it started from"
        yield f'model = AutoModelForCausalLM.from_pretrained("{base}")'
        yield 'model = PeftModel.from_pretrained(model, "path/to/this/folder")'
    else:
        yield "from transformers import pipeline"
        yield ""
        yield 'chat = pipeline("text-generation", "path/to/this/folder")'
        yield 'print(chat([{"role": "user", "content": "..."}], max_new_tokens=64))'
    yield "```"


def is_adapter(made: StepRecord) -> bool:
    """Whether a training stored the adapter alone."""
    return _section(made.args(), "options").get("lora_save") == "adapter" and bool(
        _section(made.args(), "options").get("lora_rank")
    )


def _section(value: Mapping[str, Any], key: str) -> Row:
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def _plain(value: Any) -> str:
    """Text from a run that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", one_line(str(value)))


def _code(value: Any) -> str:
    text = one_line(str(value)).replace("`", "'").replace("|", "\\|")
    return f"`{text or '-'}`"
