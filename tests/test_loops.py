"""Each loop builds the data its paper says, on worked examples with a scripted policy."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from selfkd.errors import DataError, UsageError
from selfkd.metrics import alarms, round_rows
from tests.fakes import TOKENIZER, ScriptedRun, play_script, resumed, scripted_run
from tests.testbed.addition import write_prompts
from tests.testbed.play import JUDGES


def decode(tokens: list[int]) -> str:
    return str(TOKENIZER.decode(tokens, skip_special_tokens=True)).replace(" ", "")


def examples(run: ScriptedRun, round: int) -> list[tuple[str, str]]:
    """(prompt, completion) pairs a round trained on."""
    (step,) = run.ledger.round_dir(round).glob("*-train")
    rows = pq.read_table(step / "00000.parquet").to_pylist()
    return sorted((decode(r["prompt_tokens"]), decode(r["completion_tokens"])) for r in rows)


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "sums.jsonl", [(1, 2), (12, 34), (5, 5)])


def test_rest_em_keeps_distinct_correct_answers_up_to_the_cap(tmp_path, sums):
    script = {
        "1+2=": ["3", "3", "1+2=3;3", "4"],
        "12+34=": ["46", "45", "44", "43"],
        "5+5=": ["9"] * 4,
    }
    run = scripted_run(
        tmp_path, sums, lambda policy, text, k: script[text][k],
        rounds=3, samples_per_prompt=4, max_kept_per_prompt=1, start="base",
    )  # fmt: skip
    play_script(run)
    kept = examples(run, 0)
    assert [p for p, _ in kept] == ["1+2=", "12+34="]
    assert kept[0][1] in {"3", "1+2=3;3"} and kept[1][1] == "46"
    decisions = pq.read_table(
        next(run.ledger.round_dir(0).glob("*-keep")) / "00000.parquet"
    ).to_pylist()
    reasons = sorted(d["reason"] for d in decisions if not d["kept"])
    assert reasons == ["duplicate"] + ["incorrect"] * 8 + ["over 1 a prompt"]


def test_rest_em_trains_from_the_base_and_samples_from_the_last_policy(tmp_path, sums):
    run = scripted_run(
        tmp_path, sums, lambda policy, text, k: str(eval(text[:-1])), rounds=3, samples_per_prompt=1
    )
    play_script(run)
    assert {Path(j.start_path).name for j in run.jobs} == {"model"}
    assert [p for p, _ in run.asked][::3] == ["base", "round-1", "round-2", "round-3"]
    again = scripted_run(
        tmp_path, sums, lambda policy, text, k: str(eval(text[:-1])),
        rounds=2, samples_per_prompt=1, start="previous",
    )  # fmt: skip
    play_script(again)
    assert [Path(j.start_path).name for j in again.jobs] == ["model", "round-001"]


def test_rest_em_shots_are_sampled_under_but_not_trained_on(tmp_path, sums):
    run = scripted_run(
        tmp_path, sums, lambda policy, text, k: str(eval(text[4:-1])),
        rounds=1, samples_per_prompt=1, shots=[["2+2=", "4"]],
    )  # fmt: skip
    # The character template joins contents: 2+2= 4 1+2=
    run.scripted.answer = lambda policy, text, k: str(eval(text.removeprefix("2+2=4")[:-1]))
    play_script(run)
    assert all(text.startswith("2+2=4") for _, text in run.asked)
    assert examples(run, 0) == [("1+2=", "3"), ("12+34=", "46"), ("5+5=", "10")]


def test_rest_em_with_the_papers_settings_for_math(tmp_path, sums):
    """32 samples a problem at T 0.7 and top-k 40, at most 10 of them kept, base restart, 3 rounds:
    what is easy gives ten examples and not 32, what is hard all it has."""

    def answer(policy: str, text: str, k: int) -> str:
        right = {"1+2=": 32, "12+34=": 3, "5+5=": 0}[text]
        return f"{k};{eval(text[:-1])}" if k < right else f"{k};0"

    run = scripted_run(
        tmp_path, sums, answer, rounds=3, samples_per_prompt=32, max_kept_per_prompt=10,
        sampling={"temperature": 0.7, "top_k": 40, "max_tokens": 40},
    )  # fmt: skip
    play_script(run)
    for round in range(3):
        learnt = examples(run, round)
        assert Counter(prompt for prompt, _ in learnt) == {"1+2=": 10, "12+34=": 3}
        assert len(set(learnt)) == 13
    assert {(s.temperature, s.top_k) for s in run.scripted.samplings} == {(0.7, 40)}
    assert [Path(j.start_path).name for j in run.jobs] == ["model"] * 3
    assert round_rows(run.ledger.path)[0]["dropped"] == {"over 10 a prompt": 22, "incorrect": 61}


def test_star_rationalises_failures_and_removes_the_hint(tmp_path, sums):
    def answer(policy: str, text: str, k: int) -> str:
        if text.endswith("]"):  # hinted: it manages 12+34 now, and 5+5 still not
            return {"12+34=[46]": "2+4=6,1+3=4;46", "5+5=[10]": "11"}[text]
        return {"1+2=": "1+2=3;3", "12+34=": "45", "5+5=": "11"}[text]

    run = scripted_run(
        tmp_path, sums, answer, loop="star", rounds=3, hint="[{answer}]", first_steps=10, growth=1.5
    )
    play_script(run)
    asked = [text for policy, text in run.asked if policy == "base"]
    assert sorted(asked) == sorted(["1+2=", "12+34=", "5+5=", "12+34=[46]", "5+5=[10]"])
    assert examples(run, 0) == [("1+2=", "1+2=3;3"), ("12+34=", "2+4=6,1+3=4;46")]
    assert [j.max_steps for j in run.jobs] == [10, 15, 22]
    assert {Path(j.start_path).name for j in run.jobs} == {"model"}
    row = round_rows(run.ledger.path)[0]
    assert row["reward_mean"] == pytest.approx(1 / 3)  # hinted answers do not count as skill
    assert row["extra"]["rationalise"]["kept"] == 1


def test_star_second_tries_name_the_first(tmp_path, sums):
    def answer(policy: str, text: str, k: int) -> str:
        return str(eval(text.split("=")[0])) if text.endswith("]") or text == "1+2=" else "0"

    run = scripted_run(tmp_path, sums, answer, loop="star", rounds=1, hint="[{answer}]")
    play_script(run)
    (first,) = run.ledger.round_dir(0).glob("??-generate")
    (second,) = run.ledger.round_dir(0).glob("??-generate-rationalise")
    tries = {r["prompt_id"]: r for r in pq.read_table(first / "00000.parquet").to_pylist()}
    hinted = pq.read_table(second / "00000.parquet").to_pylist()
    assert [r["parents"] for r in hinted] == [[tries[r["prompt_id"]]["id"]] for r in hinted]
    assert len(hinted) == 2 and all(r["parents"] == [] for r in tries.values())
    # They are told by the prompts: runs that were recorded without them go on as they are.
    assert "parents" not in json.loads((second / "step.json").read_text())["args"]
    again = resumed(run, lambda *a: "unasked")
    play_script(again)
    assert again.asked == []


def test_star_without_rationalisation_never_hints(tmp_path, sums):
    run = scripted_run(
        tmp_path, sums, lambda policy, text, k: "3", loop="star", rounds=1, rationalise=False
    )
    play_script(run)
    assert examples(run, 0) == [("1+2=", "3")]
    assert len(run.asked) == 6


def test_star_trains_as_many_steps_as_the_papers_arithmetic_runs():
    """300, and 20 more each round, by the options that the docstring names for it."""
    from selfkd.loops import star

    (said,) = re.findall(r"`({first_steps: .*?})`", star.__doc__ or "")
    arithmetic = star.StarOptions.model_validate(yaml.safe_load(said))
    assert [arithmetic.steps(i) for i in range(16)] == [300 + 20 * i for i in range(16)]


def test_star_with_the_papers_settings_for_questions(tmp_path):
    """Of 100 problems 70 come right at once and 17 more under the hint, the paper's shares without
    and with rationalisation: 87 examples, one a problem, in 40 steps that grow by a fifth."""
    problems = [(i, 7) for i in range(100)]
    prompts = write_prompts(tmp_path / "sums.jsonl", problems)
    texts = {f"{a}+{b}=": (i, a + b) for i, (a, b) in enumerate(problems)}

    def answer(policy: str, text: str, k: int) -> str:
        question, hint, _ = text.partition("[")
        number, total = texts[question]
        return f"{number};{total}" if number < (87 if hint else 70) else "0"

    run = scripted_run(
        tmp_path, prompts, answer, loop="star", rounds=5, hint="[{answer}]",
        sampling={"temperature": 0.0, "max_tokens": 40},
    )  # fmt: skip
    play_script(run)
    assert [j.max_steps for j in run.jobs] == [40, 48, 57, 69, 82]
    assert {Path(j.start_path).name for j in run.jobs} == {"model"}
    assert {s.temperature for s in run.scripted.samplings} == {0.0}
    rows = round_rows(run.ledger.path)
    for round in range(5):
        learnt = [(q, f"{i};{total}") for q, (i, total) in texts.items() if i < 87]
        assert examples(run, round) == sorted(learnt)
        assert rows[round]["reward_mean"] == pytest.approx(0.7)
        hinted = rows[round]["extra"]["rationalise"]
        assert (hinted["samples"], hinted["kept"]) == (30, 17)


def test_rest_improves_several_times_on_one_grow_with_rising_thresholds(tmp_path):
    prompts = write_prompts(tmp_path / "sums.jsonl", [(100, 23)])
    texts = ["123", "124", "134", "999"]  # 3, 2, 1 and 0 of three digits right
    run = scripted_run(
        tmp_path, prompts, lambda policy, text, k: texts[k],
        loop="rest", rounds=4, samples_per_prompt=4, thresholds=[0.1, 0.5, 0.9], over_mean=False,
        judge=f"{JUDGES}:digit_share", train={"learning_rate": 1e-4}, learning_rate_decay=0.5,
    )  # fmt: skip
    play_script(run)
    assert [len(examples(run, r)) for r in range(4)] == [3, 2, 1, 3]
    grown = [p for p, _ in run.asked][::4]
    assert grown == ["base", "round-3", "round-4"]  # two Grows, and the closing measurement
    assert [Path(j.start_path).name for j in run.jobs] == [
        "model",
        "round-001",
        "round-002",
        "round-003",
    ]
    assert [j.options.learning_rate for j in run.jobs] == pytest.approx([1e-4, 5e-5, 2.5e-5, 1e-4])


def rules_of(run: ScriptedRun) -> list[str]:
    """The recorded rule of every keep step, in order."""
    steps = sorted(run.ledger.path.glob("rounds/*/*-keep/step.json"))
    return [json.loads(step.read_text())["args"]["rule"] for step in steps]


def test_rest_thresholds_are_at_least_the_mean_reward_and_never_fall(tmp_path):
    prompts = write_prompts(tmp_path / "sums.jsonl", [(100, 23)])
    texts = ["123", "124", "134", "999"]
    run = scripted_run(
        tmp_path, prompts, lambda policy, text, k: texts[k],
        loop="rest", rounds=3, samples_per_prompt=4, thresholds=[0.0, 0.2, 0.9],
        judge=f"{JUDGES}:digit_share",
    )  # fmt: skip
    play_script(run)
    assert rules_of(run) == [f"finished | above({t})" for t in (0.5, 0.5, 0.9)]  # the mean is 0.5
    assert [[c for _, c in examples(run, r)] for r in range(3)] == [["123", "124"]] * 2 + [["123"]]


def test_rest_with_the_papers_thresholds(tmp_path):
    """0, .7, .8, .9, .95, .99 on rewards of 0 to 1, twice over: six Improves of one Grow, each from
    the policy before and more slowly, on ever fewer of the same samples; the first over the mean.
    """
    (tmp_path / "percent.py").write_text(
        "def percent(sample):\n    return int(sample.completion) / 100\n"
    )
    prompts = write_prompts(tmp_path / "sums.jsonl", [(1, 2)])
    grown = {
        "base": [20, 40, 72, 78, 85, 92, 97, 100],
        "round-6": [72, 85, 92, 92, 97, 98, 99, 100],
    }
    paper = [0.0, 0.7, 0.8, 0.9, 0.95, 0.99]
    run = scripted_run(
        tmp_path, prompts, lambda policy, text, k: str(grown.get(policy, [0] * 8)[k]),
        loop="rest", rounds=12, samples_per_prompt=8, thresholds=paper,
        judge=f"{tmp_path}/percent.py:percent", train={"learning_rate": 1e-4},
    )  # fmt: skip
    play_script(run)
    means = (0.73, 0.91875)
    thresholds = [float(re.findall(r"above\((.*)\)", rule)[0]) for rule in rules_of(run)]
    assert thresholds == pytest.approx([max(t, mean) for mean in means for t in paper])
    learnt = [[int(c) for _, c in examples(run, r)] for r in range(12)]
    for r, threshold in enumerate(thresholds):
        source = grown["base" if r < 6 else "round-6"]
        assert sorted(learnt[r]) == [v for v in source if v / 100 > threshold]
    assert list(map(len, learnt)) == [5, 5, 4, 3, 2, 1, 6, 6, 6, 6, 4, 1]
    starts = [Path(j.start_path).name for j in run.jobs]
    assert starts == ["model", *(f"round-{r:03d}" for r in range(1, 12))]
    rates = [j.options.learning_rate for j in run.jobs]
    assert rates == pytest.approx([1e-4 / 2**step for step in range(6)] * 2)
    assert [policy for policy, _ in run.asked][::8] == ["base", "round-6", "round-12"]


def test_rest_refuses_thresholds_that_do_not_rise(tmp_path, sums):
    with pytest.raises(UsageError, match="thresholds must rise"):
        scripted_run(tmp_path, sums, lambda *a: "", loop="rest", thresholds=[0.9, 0.5])


def test_raw_learns_from_wrong_answers_too(tmp_path, sums):
    run = scripted_run(
        tmp_path, sums, lambda policy, text, k: f"{k}", loop="raw", rounds=1, samples_per_prompt=6
    )
    play_script(run)
    assert len(examples(run, 0)) == 3 * 4


def test_no_signal_stops_or_goes_on_with_the_same_policy(tmp_path, sums):
    def wrong(policy: str, text: str, k: int) -> str:
        return "0"

    run = scripted_run(tmp_path, sums, wrong, rounds=2, samples_per_prompt=2)
    with pytest.raises(
        DataError, match=r"no signal: round 0 kept no sample.*on_no_signal=continue"
    ):
        play_script(run)
    run = scripted_run(
        tmp_path, sums, wrong, rounds=2, samples_per_prompt=2, on_no_signal="continue"
    )
    play_script(run)
    assert run.jobs == []
    assert [p for p, _ in run.asked] == ["base"] * 18
    assert [r["train"]["no_signal"] for r in round_rows(run.ledger.path)[:2]] == [True, True]


def test_a_worse_policy_is_rolled_back_and_the_run_stops_or_goes_on(tmp_path):
    prompts = write_prompts(tmp_path / "train.jsonl", [(i, i) for i in range(20)])
    heldout = write_prompts(tmp_path / "heldout.jsonl", [(i, 50) for i in range(40)])
    source = {"source": str(prompts), "heldout_source": str(heldout), "fresh": False}

    def answer(policy: str, text: str, k: int) -> str:
        return str(eval(text[:-1])) if policy != "round-2" else "0"  # round-2 forgot everything

    run = scripted_run(
        tmp_path, prompts, answer, prompts=source, rounds=4, samples_per_prompt=1, start="previous"
    )
    reason = play_script(run)
    assert "round-2 fell below round-1 on held-out" in reason
    rows = round_rows(run.ledger.path)
    assert [r["heldout_reward"] for r in rows] == [1, 1, 0]
    assert rows[2]["gate"]["decision"] == "rolled_back"
    events = [
        json.loads(line) for line in (run.ledger.path / "events.jsonl").read_text().splitlines()
    ]
    assert [e["decision"] for e in events if e["event"] == "gate"] == ["promoted", "rolled_back"]

    run = scripted_run(
        tmp_path, prompts, answer, prompts=source, rounds=3, samples_per_prompt=1,
        start="previous", gate={"on_fail": "continue"},
    )  # fmt: skip
    assert play_script(run) == ""
    assert [Path(j.start_path).name for j in run.jobs] == ["model", "round-001", "round-001"]


def test_prompts_too_long_are_dropped_with_a_count(tmp_path):
    prompts = write_prompts(tmp_path / "sums.jsonl", [(1, 2), (10**60, 1)])
    run = scripted_run(
        tmp_path, prompts, lambda policy, text, k: "3", rounds=1, samples_per_prompt=1
    )
    play_script(run)
    (step,) = run.ledger.round_dir(0).glob("*-prompts")
    summary = json.loads((step / "manifest.json").read_text())["summary"]
    assert summary == {"prompts": 1, "too_long": 1}


def pair_examples(run: ScriptedRun, round: int) -> list[tuple[str, str, str]]:
    """(prompt, chosen, rejected) triples a round trained on, in order."""
    (step,) = run.ledger.round_dir(round).glob("*-train")
    rows = pq.read_table(step / "00000.parquet").to_pylist()
    names = ("prompt_tokens", "completion_tokens", "rejected_tokens")
    return [tuple(decode(r[n]) for n in names) for r in rows]  # type: ignore[misc]


def decisions(run: ScriptedRun, round: int, step: str = "*-keep") -> dict[str, str]:
    """Sample id -> reason."""
    (path,) = run.ledger.round_dir(round).glob(step)
    rows = pq.read_table(path / "00000.parquet").to_pylist()
    return {d["sample_id"]: d["reason"] for d in rows}


def test_iterative_rpo_zips_right_and_wrong_and_anchors_to_the_last_policy(tmp_path, sums):
    script = {
        "1+2=": ["3", "1+2=3;3", "4", "5", "6"],  # two right, three wrong
        "12+34=": ["46"] * 5,  # all alike
        "5+5=": ["9", "8", "7", "6", "5"],  # none right
    }
    run = scripted_run(
        tmp_path, sums, lambda policy, text, k: script[text][k],
        loop="iterative_rpo", rounds=2, samples_per_prompt=5, pairs_per_prompt=4, alpha=0.5,
        temperatures=[0.8, 1.3],
    )  # fmt: skip
    play_script(run)
    right, wrong = ["3", "1+2=3;3"] * 2, ["4", "5", "6", "4"]
    assert pair_examples(run, 0) == [("1+2=", w, x) for w, x in zip(right, wrong, strict=True)]
    reasons = list(decisions(run, 0).values())
    assert (
        reasons
        == ["chosen"] * 2
        + ["rejected"] * 3
        + (["nothing to compare with"] + ["duplicate"] * 4)
        + ["none right"] * 5
    )
    assert [Path(j.start_path).name for j in run.jobs] == ["model", "round-001"]
    assert [j.ref_path for j in run.jobs] == [j.start_path for j in run.jobs]
    assert run.jobs[0].objective_options["alpha"] == 0.5
    assert [s.temperature for s in run.scripted.samplings[:2]] == [0.8, 1.3]
    row = round_rows(run.ledger.path)[0]
    assert row["pairs"]["pairs"] == 4 and row["pairs"]["prompts"] == 1
    assert row["coverage"] == pytest.approx(1 / 3)


def test_examples_of_pairs_name_their_samples(tmp_path, sums):
    run = scripted_run(
        tmp_path, sums, lambda policy, text, k: ["3", "4"][k],
        loop="iterative_rpo", rounds=1, samples_per_prompt=2, pairs_per_prompt=1,
    )  # fmt: skip
    play_script(run)
    (step,) = run.ledger.round_dir(0).glob("*-train")
    (row,) = pq.read_table(step / "00000.parquet").to_pylist()
    (path,) = run.ledger.round_dir(0).glob("*-generate")
    texts = {s["id"]: s["completion"] for s in pq.read_table(path / "00000.parquet").to_pylist()}
    assert [texts[i] for i in row["sample_ids"]] == ["3", "4"]


def test_no_pair_is_no_signal(tmp_path, sums):
    def settings(**more):
        return {"loop": "iterative_rpo", "rounds": 2, "samples_per_prompt": 2} | more

    run = scripted_run(tmp_path, sums, lambda *a: "3", **settings())
    with pytest.raises(DataError, match=r"no signal: round 0 made no pair"):
        play_script(run)
    run = scripted_run(tmp_path, sums, lambda *a: "3", **settings(on_no_signal="continue"))
    play_script(run)
    assert run.jobs == []
    assert [r["train"]["no_signal"] for r in round_rows(run.ledger.path)[:2]] == [True, True]


def test_pairs_are_read_back_when_a_run_is_resumed(tmp_path, sums):
    def settings():
        return {"loop": "iterative_rpo", "rounds": 1, "samples_per_prompt": 4, "name": "again"}

    run = scripted_run(tmp_path, sums, lambda policy, text, k: f"{k + 1}", **settings())
    play_script(run)
    first = pair_examples(run, 0)
    again = resumed(run, lambda *a: "unasked")
    play_script(again)
    assert again.asked == [] and again.jobs == []
    assert first and pair_examples(again, 0) == first


VOTE = {"judge": {"use": "majority"}, "gold_judge": f"{JUDGES}:right"}


def test_lmsi_keeps_every_path_to_the_majoritys_answer_right_or_wrong(tmp_path, sums):
    script = {
        "1+2=": ["3", "1+2=3;3", "4", ""],
        "12+34=": ["45", "2+4=6;45", "46", "46;45"],  # the majority is wrong
        "5+5=": ["9", "10", "10", "9"],  # a tie: the first
    }

    def answer(policy, text, k):
        return script[text.removeprefix("2+2=1+1+1+1;4")][k]

    run = scripted_run(
        tmp_path, sums, answer, loop="lmsi", samples_per_prompt=4, cue="[]", **VOTE,
        shots=[["2+2=", "1+1+1+1;4"]], direct_shots=[["2+2=", "4"]],
    )  # fmt: skip
    play_script(run)
    paths = [("1+2=", "3"), ("1+2=", "1+2=3;3"), ("12+34=", "45"), ("12+34=", "2+4=6;45"),
             ("12+34=", "46;45"), ("5+5=", "9"), ("5+5=", "9")]  # fmt: skip
    labels = [("1+2=", "3"), ("12+34=", "45"), ("5+5=", "9")]
    assert examples(run, 0) == sorted(
        [("2+2=1+1+1+1;4" + q, path) for q, path in paths]
        + [("2+2=4" + q, label) for q, label in labels]
        + [(q + "[]", path) for q, path in paths]
        + labels
    )
    assert Path(run.jobs[0].start_path).name == "model"
    reasons = decisions(run, 0, "??-keep")
    assert list(reasons.values()).count("incorrect") == 4
    assert list(reasons.values()).count("empty") == 1
    # Gold looked on: of the labels 3 and 10 are right, and one of each two was the vote's.
    row = round_rows(run.ledger.path)[0]
    assert row["reward_mean"] == pytest.approx(7 / 12)
    assert row["agreement"]["pairs"] == 11 and row["agreement"]["pair_accuracy"] < 0.5


@pytest.mark.parametrize("loop", ["lmsi", "self_rewarding", "meta_rewarding"])
def test_loops_that_learn_without_labels_refuse_a_judge_that_has_them(tmp_path, sums, loop):
    run = scripted_run(tmp_path, sums, lambda *a: "3", loop=loop)
    with pytest.raises(UsageError, match="learns without labels") as caught:
        play_script(run)
    assert "gold_judge: right" in caught.value.remedy


def test_spin_prefers_what_was_given_and_keeps_the_pairs_of_one_round_before(tmp_path, sums):
    def answer(policy, text, k):
        own = {"base": "7", "round-1": "8", "round-2": "9"}
        return "46;2" if text == "12+34=" else own.get(policy, "")

    run = scripted_run(
        tmp_path, sums, answer, loop="spin", rounds=3, completion="{answer};{digits}",
        betas=[0.1, 5.0], learning_rates=[1.0, 0.2], train={"learning_rate": 1e-5},
    )  # fmt: skip
    play_script(run)
    given = [("1+2=", "3;1"), ("5+5=", "10;1")]  # what the policy says of itself is no pair
    of = [[(q, y, own) for q, y in given] for own in "789"]
    assert pair_examples(run, 0) == of[0]
    assert pair_examples(run, 1) == of[0] + of[1]
    assert pair_examples(run, 2) == of[1] + of[2]
    assert [j.objective_options["beta"] for j in run.jobs] == [0.1, 5.0, 5.0]
    assert [j.options.learning_rate for j in run.jobs] == pytest.approx([1e-5, 2e-6, 2e-6])
    assert [Path(str(j.ref_path)).name for j in run.jobs] == ["model", "round-001", "round-002"]


def test_spin_needs_a_completion_for_every_prompt(tmp_path, sums):
    run = scripted_run(tmp_path, sums, lambda *a: "3", loop="spin", completion="{solution}")
    with pytest.raises(DataError, match="has no 'solution'"):
        play_script(run)


def judging(draws: int) -> dict[str, Any]:
    """A judge in the few characters that the scripted policy has."""
    judge = {
        "use": "self_reward",
        "draws": draws,
        "template": "{question}{response}[",
        "score_pattern": r"^([0-5])",
        "max_tokens": 40,
        "retries": 0,
        "unfenced": True,
    }
    return {"judge": judge, "gold_judge": f"{JUDGES}:right"}


def test_self_rewarding_pairs_what_it_judges_best_and_worst_itself(tmp_path, sums):
    answers = {"1+2=": ["3", "4", "5"], "12+34=": ["46", "47", "48"], "5+5=": ["9", "8", "7"]}
    scored = {
        "1+2=3[": ["5", "4"], "1+2=4[": ["1", "."], "1+2=5[": ["3", "3"],  # means 4.5, 1, 3
        "12+34=46[": ["2", "2"], "12+34=47[": ["1", "3"], "12+34=48[": ["2", "2"],  # a tie
        "5+5=9[": [".", "."], "5+5=8[": ["0", "0"], "5+5=7[": [".", "4"],  # wrong, as judges are
    }  # fmt: skip

    def answer(policy, text, k):
        return (scored if text.endswith("[") else answers)[text][k]

    run = scripted_run(
        tmp_path, sums, answer, loop="self_rewarding", rounds=1, samples_per_prompt=3,
        **judging(draws=2),
    )  # fmt: skip
    play_script(run)
    assert pair_examples(run, 0) == [("1+2=", "3", "4"), ("5+5=", "7", "8")]
    reasons = list(decisions(run, 0).values())
    assert reasons == ["chosen", "rejected", "neither best nor worst"] + ["tie"] * 3 + [
        "unscored", "rejected", "chosen",
    ]  # fmt: skip
    row = round_rows(run.ledger.path)[0]
    assert row["unscored_by"] == {"unparsed": 1}
    assert row["reward_mean"] == pytest.approx((4.5 + 1 + 3 + 2 + 2 + 2 + 0 + 4) / 8)
    assert row["extra"]["judgements"]["samples"] == 18


def test_a_frozen_judge_is_the_policy_it_names_whoever_answers(tmp_path, sums):
    def answer(policy, text, k):
        return "50"[text[-2] == "1"] if text.endswith("[") else str(k)

    asked: dict[str, set[tuple[str, bool]]] = {}
    for frozen in (None, "base"):
        settings = judging(draws=1)
        settings["judge"] |= {"frozen": frozen}
        run = scripted_run(
            tmp_path, sums, answer, loop="self_rewarding", rounds=1, samples_per_prompt=2,
            **settings,
        )  # fmt: skip
        play_script(run)
        asked[str(frozen)] = {(policy, text.endswith("[")) for policy, text in run.asked}
    # In round 0 both are the base; after it the policy answers, and judges unless it is frozen.
    ends = {("base", True), ("base", False), ("round-1", False)}
    assert asked == {"None": {*ends, ("round-1", True)}, "base": ends}


def test_a_judge_that_likes_everything_teaches_nothing_and_raises_an_alarm(tmp_path, sums):
    run = scripted_run(
        tmp_path, sums, lambda policy, text, k: "5" if text.endswith("[") else str(k),
        loop="self_rewarding", rounds=1, samples_per_prompt=2, on_no_signal="continue",
        **judging(draws=1),
    )  # fmt: skip
    play_script(run)
    rows = round_rows(run.ledger.path)
    assert run.jobs == [] and rows[0]["train"]["no_signal"]
    assert "judge_saturation" in {alarm.name for alarm in alarms(rows)}
    assert set(decisions(run, 0).values()) == {"tie"}


def test_judgements_are_read_back_when_a_run_is_resumed(tmp_path, sums):
    def answer(policy, text, k):
        return "50"[text[-2] == "1"] if text.endswith("[") else str(k)

    def settings() -> dict[str, Any]:
        loop = {"loop": "self_rewarding", "rounds": 2, "samples_per_prompt": 2, "name": "again"}
        return loop | judging(draws=2)

    run = scripted_run(tmp_path, sums, answer, **settings(), seed_stage=True)
    play_script(run)
    again = resumed(run, lambda *a: "unasked")
    play_script(again)
    assert run.asked and again.asked == [] and again.jobs == []
    assert examples(again, 0) == examples(run, 0)


def test_self_rewarding_seed_stage_learns_answers_and_judgements_that_agree(tmp_path, sums):
    def answer(policy, text, k):
        if not text.endswith("["):
            return ["99", {"1+2=": "3", "12+34=": "45", "5+5=": "9"}[text]][k]
        return {"1+2=3[": "50", "12+34=45[": "15", "5+5=9[": "20"}.get(text, "..")[k]

    run = scripted_run(
        tmp_path, sums, answer, loop="self_rewarding", rounds=1, samples_per_prompt=2,
        seed_stage=True, pass_score=3, completion="{worked}", **judging(draws=2),
    )  # fmt: skip
    play_script(run)
    given = [("1+2=", "1+2=3;3"), ("12+34=", "2+4=6,1+3=4;46"), ("5+5=", "5+5=10,;10")]
    kept = examples(run, 0)
    # Agreeing: 5 of the right one; 1, and 2, 0 of the wrong ones: each score once, so all stay.
    judged = [("1+2=3[", "5"), ("12+34=45[", "1"), ("5+5=9[", "0"), ("5+5=9[", "2")]
    assert [e for e in kept if e[0].endswith("[")] == judged
    assert [q for q, _ in kept if not q.endswith("[")] == [q for q, _ in given]
    assert Path(run.jobs[0].start_path).name == "model"


def test_meta_rewarding_prefers_short_answers_and_judgements_that_win(tmp_path):
    prompts = write_prompts(tmp_path / "sums.jsonl", [(1, 2)])
    judgements = {"1+2=3[": "555", "1+2=1+2=3;3[": "545", "1+2=9[": "014", "1+2=99[": "000"}

    def answer(policy, text, k):
        if text.endswith("]"):  # A,B]: the lower judgement of the contested 9 wins, in any place
            first, second = text.removeprefix("1+2=9").removesuffix("]").split(",")
            return "A" if int(first) < int(second) else "B"
        if text.endswith("["):
            return judgements[text][k]
        return ["1+2=3;3", "3", "9", "99"][k]

    run = scripted_run(
        tmp_path, prompts, answer, loop="meta_rewarding", rounds=2, samples_per_prompt=4,
        rho=0.2, judge_rounds=1, compared=3, **judging(draws=3),
        versus="{question}{response}{first},{second}]", winner_pattern=r"^([AB])",
    )  # fmt: skip
    play_script(run)
    # Best tier: 5 and 4.67, the short one; worst tier: 0 alone. Then the judge's pair.
    assert pair_examples(run, 0) == [("1+2=", "3", "99"), ("1+2=9[", "0", "4")]
    assert pair_examples(run, 1) == [("1+2=", "3", "99")]
