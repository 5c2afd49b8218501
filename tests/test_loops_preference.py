"""The preference loops in what they refuse, in made-up instructions, and in forks of their runs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from selfkd.errors import DataError, UsageError
from selfkd.judging import JudgeSpec
from selfkd.launch import fork_run, resume_run
from selfkd.metrics import round_rows
from selfkd.objectives import KTO
from selfkd.rules import everything
from tests.fakes import ScriptedRun, play_script, scripted_run
from tests.test_again import opened
from tests.test_loops import decisions, decode, examples, judging, pair_examples
from tests.testbed.addition import write_prompts
from tests.testbed.play import JUDGES


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "sums.jsonl", [(1, 2), (12, 34), (5, 5)])


def names(run: ScriptedRun, round: int) -> list[str]:
    """The steps of a round, without their numbers."""
    return [path.name[3:] for path in sorted(run.ledger.round_dir(round).iterdir())]


def rows(run: ScriptedRun, round: int, step: str) -> list[dict[str, Any]]:
    (path,) = run.ledger.round_dir(round).glob(f"??-{step}")
    return [
        row for file in sorted(path.glob("*.parquet")) for row in pq.read_table(file).to_pylist()
    ]


def starts(run: ScriptedRun) -> list[tuple[str, str]]:
    """Where each training started, and what held it."""
    return [(Path(job.start_path).name, Path(str(job.ref_path)).name) for job in run.jobs]


# -- what is refused ------------------------------------------------------------------------------

RIGHT, LONG = f"{JUDGES}:right", f"{JUDGES}:long"
WITH_ANSWERS = [
    {"use": "ensemble", "judges": [LONG, RIGHT]},
    {"use": "cascade", "judges": [RIGHT, LONG]},
    {"use": "length_penalised", "judge": {"use": "ensemble", "judges": [LONG, RIGHT]}},
    {"use": "ensemble", "judges": ["code", LONG]},  # its tests are a column, not the answer
]


@pytest.mark.parametrize("loop", ["lmsi", "self_rewarding", "meta_rewarding"])
@pytest.mark.parametrize("judge", WITH_ANSWERS, ids=lambda judge: judge["use"])
def test_a_judge_that_has_one_with_labels_inside_is_refused_without_labels(
    tmp_path, sums, loop, judge
) -> None:
    run = scripted_run(tmp_path, sums, lambda *a: "3", loop=loop, judge=judge)
    with pytest.raises(UsageError, match="learns without labels") as caught:
        play_script(run)
    assert f"gold_judge: {judge['use']}" in caught.value.remedy and run.jobs == []


def test_a_judge_without_labels_inside_is_not(tmp_path, sums) -> None:
    judge = {"use": "ensemble", "judges": [LONG, "random"]}
    run = scripted_run(
        tmp_path, sums, lambda policy, text, k: "3" * (k + 1),
        loop="self_rewarding", rounds=1, judge=judge,
    )  # fmt: skip
    play_script(run)
    assert len(run.jobs) == 1


@pytest.mark.parametrize("key", ["seed_stage", "completion", "pass_score"])
def test_meta_rewarding_has_no_seed_stage_to_ask_for(tmp_path, sums, key) -> None:
    with pytest.raises(UsageError, match=f"unknown key {key}"):
        scripted_run(tmp_path, sums, lambda *a: "", loop="meta_rewarding", **{key: "1"})


def test_meta_rewarding_refuses_what_its_judge_cannot_learn_before_it_asks(tmp_path, sums) -> None:
    def answer(policy: str, text: str, k: int) -> str:
        return "3" * (k + 1)

    def settings(**more: Any) -> dict[str, Any]:
        return {
            "loop": "meta_rewarding",
            "rounds": 1,
            "judge": LONG,
            "samples_per_prompt": 2,
        } | more

    run = scripted_run(tmp_path, sums, answer, **settings())
    with pytest.raises(UsageError, match="'long' writes no judgements"):
        play_script(run)
    blind = settings(**judging(draws=2), versus="{question}{response}{first}")
    other = scripted_run(tmp_path, sums, answer, **blind)
    with pytest.raises(UsageError, match="shows nothing of second"):
        play_script(other)
    assert run.asked == other.asked == []
    # Where the judge is not to learn, any judge will do.
    run = scripted_run(tmp_path, sums, answer, **settings(judge_rounds=0))
    play_script(run)
    assert pair_examples(run, 0)[0] == ("1+2=", "33", "3")


def test_judgements_that_are_not_recorded_cannot_be_learnt(tmp_path) -> None:
    from selfkd.judgements import reader

    (tmp_path / "mine.py").write_text(
        "def mine(sample, *, score_pattern: str = '(.)', highest: float = 5):\n    return 1.0\n"
    )
    with pytest.raises(UsageError, match="writes no judgements"):
        reader(JudgeSpec(f"{tmp_path / 'mine.py'}:mine"))


@pytest.mark.parametrize(
    "judge",
    [
        {"use": "self_reward", "frozen": "base"},
        {"use": "length_penalised", "judge": {"use": "self_reward", "frozen": "round-1"}},
        {"use": "perplexity", "policy": "base"},
    ],
    ids=lambda judge: judge["use"],
)
def test_a_teacher_refuses_a_judge_that_asks_a_policy_by_name(judge) -> None:
    with pytest.raises(UsageError, match=r"the server answers.*cannot ask (base|round-1)"):
        JudgeSpec("teacher", {"model": "m", "judge": judge}).validate()
    JudgeSpec("teacher", {"model": "m", "judge": "self_reward"}).validate()


# -- the seed stage -------------------------------------------------------------------------------


@pytest.mark.parametrize("gold", [RIGHT, None])
def test_a_seed_stage_without_truth_says_that_it_learns_no_judgements(tmp_path, sums, gold) -> None:
    run = scripted_run(
        tmp_path, sums, lambda policy, text, k: "5" if text.endswith("[") else f"{3 + k}",
        loop="self_rewarding", rounds=1, samples_per_prompt=2, seed_stage=True,
        **judging(draws=2) | {"gold_judge": gold},
    )  # fmt: skip
    play_script(run)
    reporter: Any = run.reporter
    told = [fields for name, fields in reporter.events if name == "message"]
    warned = [m["text"] for m in told if m.get("level") == "warning"]
    learnt = [prompt for prompt, _ in examples(run, 0)]
    assert [q for q in learnt if not q.endswith("[")] == ["1+2=", "12+34=", "5+5="]
    if gold:
        assert warned == [] and any(q.endswith("[") for q in learnt)
    else:
        assert len(warned) == 1 and "the seed stage learns no judgements" in warned[0]
        assert len(learnt) == 3


# -- made-up instructions -------------------------------------------------------------------------


def creating(
    folder: Path, source: Path, told: Iterator[str], loop: str = "self_rewarding", **settings: Any
) -> ScriptedRun:
    """A run whose policy makes up the instructions `told`; it answers 1, 2, ... and scores an
    answer by its digit, and of two judgements it prefers the lower."""

    def answer(policy: str, text: str, k: int) -> str:
        text, letters = text.replace("<pad>", ""), text.startswith("<pad>")
        if letters:  # which this tokenizer does not have: it is asked for an instruction
            return next(told)
        if text.endswith("]"):
            first, second = text.removesuffix("]")[-3::2]
            return "A" if first < second else "B"
        return f"{min(5, int(text[-2]) + k)}" if text.endswith("[") else f"{k + 1}"

    values: dict[str, Any] = {"rounds": 2, "samples_per_prompt": 2, "created_per_round": 4}
    run = scripted_run(folder, source, answer, loop=loop, **judging(draws=2) | values | settings)
    run.setting = replace(run.setting, context=2000)  # a prompt shows eight tasks
    return run


NEW = ["1. 7 + 8 =", "1 + 2 =", "7 + 8 =", "9 + 60 =", "60 + 9 =", "9 + 60 =", "3 + 3", "5 + 5 ="]


def test_instructions_are_made_up_from_the_prompts_and_from_those_made_before(
    tmp_path, sums
) -> None:
    run = creating(tmp_path, sums, iter(NEW))
    play_script(run)
    # A copy of the config's prompts, of one just made, and of one of the round before are dropped.
    assert list(decisions(run, 0, "??-keep-instructions").values()) == [
        "kept", "like one before", "like one before", "kept",
    ]  # fmt: skip
    made = [[p["messages"] for p in rows(run, round, "prompts")] for round in (0, 1)]
    assert ["7 + 8 =" in m for m in made[0]] == [True, False] and "9 + 60 =" in made[0][1]
    assert list(decisions(run, 1, "??-keep-instructions").values()) == [
        "kept", "like one before", "kept", "like one before",
    ]  # fmt: skip
    assert ["60 + 9 =" in m for m in made[1]] == [True, False] and "3 + 3" in made[1][1]
    shown = [[p["messages"] for p in rows(run, r, "prompts-instructions")] for r in (0, 1)]
    assert all("12+34=" in text and "7 + 8 =" not in text for text in shown[0])
    assert all("12+34=" in text and "7 + 8 =" in text and "9 + 60 =" in text for text in shown[1])
    # The new ones are answered, judged, paired and learnt, from the policy before.
    assert pair_examples(run, 0) == [("7+8=", "2", "1"), ("9+60=", "2", "1")]
    assert [q for q, _, _ in pair_examples(run, 1)] == ["60+9=", "3+3"]
    assert starts(run) == [("model", "model"), ("round-001", "round-001")]
    asked = [(policy, text) for policy, text in run.asked if text.startswith("<pad>")]
    assert [policy for policy, _ in asked] == ["base"] * 4 + ["round-1"] * 4


def test_judge_and_gold_meet_on_held_out_prompts_where_instructions_are_made_up(
    tmp_path, sums
) -> None:
    heldout = write_prompts(tmp_path / "heldout.jsonl", [(0, 1), (2, 7)])
    source = {"source": str(sums), "heldout_source": str(heldout), "fresh": False}
    run = creating(tmp_path, sums, iter(NEW), prompts=source, probes=3, rounds=1)
    play_script(run)
    assert [name for name in names(run, 0) if "probe" in name or "audit" in name] == [
        "prompts-probe", "generate-probe", "judge-probe", "prompts-probe-judgements",
        "generate-probe-judgements", "judge-audit",
    ]  # fmt: skip
    probes = {row["id"]: row for row in rows(run, 0, "generate-probe")}
    assert len(probes) == 2 * 3
    gold = {row["sample_id"]: row["reward"] for row in rows(run, 0, "judge-audit")}
    own = {row["sample_id"]: row["reward"] for row in rows(run, 0, "judge-probe")}
    assert gold.keys() == own.keys() == probes.keys()
    assert sum(gold.values()) == 1  # of 1, 2, 3 the first is right for 0+1, none for 2+7
    row = round_rows(run.ledger.path)[0]
    assert row["agreement"]["samples"] == 6
    # They are measured, and not learnt from.
    assert [q for q, _, _ in pair_examples(run, 0)] == ["7+8=", "9+60="]
    # With prompts of the config gold looks at the round's own samples, and there is no probe.
    plain = creating(tmp_path, sums, iter(()), prompts=source, created_per_round=0, rounds=1)
    play_script(plain)
    assert not [name for name in names(plain, 0) if "probe" in name]
    assert len(rows(plain, 0, "judge-audit")) == 3 * 2


def test_a_round_without_a_new_instruction_learns_nothing_and_the_next_goes_on(
    tmp_path, sums
) -> None:
    copies = ["1 + 2 ="] * 4
    run = creating(tmp_path, sums, iter(copies))
    with pytest.raises(DataError, match=r"no signal: round 0 made no pair \(4 like one before\)"):
        play_script(run)
    run = creating(tmp_path, sums, iter([*copies, *NEW[:4]]), on_no_signal="continue")
    play_script(run)
    assert rows(run, 0, "prompts") == rows(run, 0, "generate") == rows(run, 0, "judge") == []
    first, second = round_rows(run.ledger.path)[:2]
    assert first["train"]["no_signal"] and first["samples"] == 0
    assert second["pairs"]["pairs"] == 2 and len(run.jobs) == 1
    assert starts(run) == [("model", "model")]


def test_meta_rewarding_makes_instructions_up_too_and_goes_on_from_the_policy_before(
    tmp_path, sums
) -> None:
    run = creating(
        tmp_path, sums, iter(NEW), "meta_rewarding", judge_rounds=1, compared=2,
        versus="{question}{response}{first},{second}]", winner_pattern=r"^([AB])",
    )  # fmt: skip
    play_script(run)
    actor = [("7+8=", "2", "1"), ("9+60=", "2", "1")]
    judge = pair_examples(run, 0)[2:]
    assert pair_examples(run, 0)[:2] == actor
    assert [(c, r) for _, c, r in judge] == [("1", "2"), ("1", "2")]  # the lower one won
    assert len(pair_examples(run, 1)) == 2  # judge_rounds are over
    assert starts(run) == [("model", "model"), ("round-001", "round-001")]


# -- schedules ------------------------------------------------------------------------------------


def test_the_last_temperature_holds_for_the_samples_that_end_the_curve(tmp_path, sums) -> None:
    def answer(policy: str, text: str, k: int) -> str:
        return ["3", "4"][k]

    def settings() -> dict[str, Any]:
        numbers = {"rounds": 2, "samples_per_prompt": 2, "pairs_per_prompt": 1}
        return {"loop": "iterative_rpo", "name": "first", "temperatures": [0.8, 1.3]} | numbers

    run = scripted_run(tmp_path, sums, answer, **settings())
    play_script(run)
    assert [s.temperature for s in run.scripted.samplings] == [0.8, 1.3, 1.3]
    # So they are those of the next round, if there is to be one.
    path = run.ledger.path
    resume_run(path, ["rounds=3"])
    more = opened(path, answer)
    play_script(more)
    assert {policy for policy, _ in more.asked} == {"round-3"} and len(more.jobs) == 1


# -- forks ----------------------------------------------------------------------------------------


def forked(run: ScriptedRun, *overrides: str) -> ScriptedRun:
    """A fork of the whole run, which is offered all that it recorded."""
    fork = opened(
        fork_run(run.ledger.path, 0, None, overrides), run.scripted.answer, run.ledger.path
    )
    fork.setting = replace(fork.setting, context=2000)
    play_script(fork)
    return fork


def test_a_fork_that_compares_in_other_words_compares_anew(tmp_path) -> None:
    prompts = write_prompts(tmp_path / "sums.jsonl", [(1, 2)])
    run = creating(
        tmp_path, prompts, iter(()), "meta_rewarding", created_per_round=0, rounds=1, compared=2,
        versus="{question}{response}{first},{second}]", winner_pattern=r"^([AB])", name="first",
    )  # fmt: skip
    play_script(run)

    def compared(run: ScriptedRun) -> list[str]:
        return [text for policy, text in run.asked if policy == "base" and text.endswith("]")]

    assert len(compared(run)) == 2
    same, other = (forked(run, f"versus={{question}}{{response}}{{first}}{mark}{{second}}]")
                   for mark in ",;")  # fmt: skip
    assert compared(same) == []
    assert [text.replace(";", ",") for text in compared(other)] == compared(run)
    # What was sampled and judged before is the same, and not asked for again.
    assert not [policy for policy, text in other.asked if not text.endswith("]")]


def test_a_fork_with_other_prompts_makes_up_instructions_anew(tmp_path, sums) -> None:
    others = write_prompts(tmp_path / "others.jsonl", [(2, 2), (3, 4)])
    run = creating(tmp_path, sums, iter(NEW * 2), rounds=1, name="first")
    play_script(run)
    fork = forked(run, f"prompts.source={others}")
    shown = [p["messages"] for p in rows(fork, 0, "prompts-instructions")]
    assert all("3+4=" in text and "12+34=" not in text for text in shown)
    again = forked(run)
    assert not [text for policy, text in again.asked if policy == "base"]


# -- verdicts without pairs -----------------------------------------------------------------------


def kto_examples(run: ScriptedRun) -> list[tuple[str, str, str | None]]:
    """(prompt, what is desirable, what is not) of each example of round 0."""
    return [
        (
            decode(row["prompt_tokens"]),
            decode(row["completion_tokens"]),
            None if row["rejected_tokens"] is None else decode(row["rejected_tokens"]),
        )
        for row in rows(run, 0, "train")
    ]


def test_kto_learns_from_verdicts_that_are_in_no_pair(tmp_path, sums) -> None:
    answers = {"1+2=": ["3", "4"], "12+34=": ["46", "46"], "5+5=": ["9", ""]}
    run = scripted_run(
        tmp_path, sums, lambda policy, text, k: answers[text][k], rounds=1, samples_per_prompt=2
    )
    for round in run.rounds(1):
        scored = round.judge(round.generate(run.prompts, n=2), run.judge)
        round.train(KTO(round.keep(scored, everything())))
    (job,) = run.jobs
    assert (job.objective, Path(str(job.ref_path)).name) == ("kto", "model")
    assert kto_examples(run) == [
        ("1+2=", "3", None), ("1+2=", "", "4"), ("12+34=", "46", None), ("12+34=", "46", None),
        ("5+5=", "", "9"), ("5+5=", "", ""),
    ]  # fmt: skip
