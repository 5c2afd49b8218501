"""The figures of a round, against numbers worked out by hand or by brute force."""

import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from selfkd.errors import DataError, UsageError
from selfkd.ledger import Ledger
from selfkd.locks import RunLock
from selfkd.metrics import curves_document, round_rows
from selfkd.records import EXAMPLES, VERDICTS, Example, prompts_table, rows_table, samples_table
from tests.callers import ScriptedCaller, judged
from tests.synthetic import generate, judge, keep, make_samples, measure, new_run, prompts

KEYS = {
    "round", "policy", "samples", "tokens", "length_mean", "length_p95", "truncated",
    "distinct_2", "unique", "scored", "unscored", "unscored_by", "reward_mean", "reward_p10",
    "reward_p50", "reward_p90", "pass_at_k", "kept", "dropped", "accept_rate", "coverage",
    "heldout_reward", "heldout_scored", "heldout_stderr", "seconds", "train", "pairs", "gate",
    "extra", "prompts", "reward_stderr", "reward_best", "reward_best_stderr", "reward_top",
    "reward_length", "similarity", "overlap", "anchors", "agreement", "controls",
    "scored_share", "kl_base", "kl_previous", "swap",
}  # fmt: skip


def one_round(tmp_path):
    """Two prompts, three samples each; tokens, rewards and decisions chosen for hand arithmetic."""
    ledger = new_run(tmp_path / "run")
    a, b = prompts(2)
    tokens = [(a, [5, 6, 0]), (a, [5, 6, 0]), (a, [5, 7, 0]), (b, [5, 6, 5, 6]), (b, [8]), (b, [0])]
    samples = make_samples(0, tokens)
    generate(ledger, 0, samples)
    judge(ledger, 0, samples, [1.0, 0.0, "timeout", 0.5, 1.0, "unparsed"])
    return ledger, samples


def test_sample_figures(tmp_path):
    one_round(tmp_path)
    (row,) = round_rows(tmp_path / "run")
    assert row["round"] == 0 and row["policy"] == "base"
    assert (row["samples"], row["tokens"]) == (6, 15)
    assert row["length_mean"] == pytest.approx(15 / 6)
    assert row["length_p95"] == pytest.approx(np.quantile([3, 3, 3, 4, 1, 1], 0.95))
    assert row["truncated"] == pytest.approx(2 / 6)  # [5, 6, 5, 6] and [8] do not end in 0
    # Pairs: 56 60 | 56 60 | 57 70 | 56 65 56 | none | none: 9, of which 56 60 57 70 65 differ. They
    # never cross from one completion, or one shard of four samples, into the next.
    assert row["distinct_2"] == pytest.approx(5 / 9)
    assert row["unique"] == pytest.approx((2 / 3 + 3 / 3) / 2)


def test_how_often_the_order_decided_is_a_figure_of_a_judge_of_pairs(tmp_path):
    ledger = new_run(tmp_path / "run")
    samples = [
        replace(s, completion=s.id) for s in make_samples(0, [(p, [5]) for p in prompts(4) * 2])
    ]
    samples.sort(key=lambda s: s.prompt.id)
    generate(ledger, 0, samples)
    first = samples[0].completion

    def write(text: str, k: int) -> str:
        """Says A, but for the first prompt, of which one is better."""
        return f"Winner: {'B' if f'Response B: {first}' in text else 'A'}"

    verdicts = judged("pairwise", samples, ScriptedCaller(write))
    step = ledger.step(0, "judge", "", {})
    for index in range(4):
        step.write(index, rows_table(verdicts[2 * index : 2 * index + 2], VERDICTS))
    assert round_rows(tmp_path / "run")[0]["swap"] == {"pairs": 4, "inconsistent": 0.75}
    one_round(tmp_path / "other")
    assert round_rows(tmp_path / "other" / "run")[0]["swap"] is None


def test_reward_figures(tmp_path):
    one_round(tmp_path)
    (row,) = round_rows(tmp_path / "run")
    assert (row["scored"], row["unscored"]) == (4, 2)
    assert row["unscored_by"] == {"timeout": 1, "unparsed": 1}
    assert row["scored_share"] == pytest.approx(4 / 6)
    assert row["reward_mean"] == pytest.approx(2.5 / 4)
    # 0, .5, 1, 1 interpolated: position .3, 1.5 and 2.7 of 0..3
    assert row["reward_p10"] == pytest.approx(0.15)
    assert row["reward_p50"] == pytest.approx(0.75)
    assert row["reward_p90"] == pytest.approx(1.0)
    # Each prompt has two scored samples, one of them solved: 1/2 with one try, certain with two.
    assert row["pass_at_k"] == {"1": pytest.approx(0.5), "2": pytest.approx(1.0)}


def test_pass_at_k_is_the_mean_over_all_subsets(tmp_path):
    ledger = new_run(tmp_path / "run")
    rng = np.random.default_rng(0)
    sizes = [8, 8, 5, 3, 1]
    asked = prompts(len(sizes))
    rewards = {p.id: rng.integers(0, 2, n).tolist() for p, n in zip(asked, sizes, strict=True)}
    samples = make_samples(0, [(p, [1, 0]) for p in asked for _ in rewards[p.id]])
    generate(ledger, 0, samples)
    judge(ledger, 0, samples, [r for p in asked for r in rewards[p.id]])
    found = round_rows(tmp_path / "run")[0]["pass_at_k"]
    assert list(found) == ["1", "2", "4", "8"]
    for k in (1, 2, 4, 8):
        each = [
            np.mean([max(c) for c in itertools.combinations(r, k)])
            for r in rewards.values()
            if len(r) >= k
        ]
        assert found[str(k)] == pytest.approx(np.mean(each))


def test_decisions_of_every_keep_step_count(tmp_path):
    ledger, samples = one_round(tmp_path)
    keep(ledger, 0, samples, [None, "incorrect", "unscored", "incorrect", None, "unscored"])
    third = make_samples(0, [(prompts(3)[2], [1, 2, 0])] * 2, "rationalise")
    generate(ledger, 0, third, "rationalise", seconds=4.0)
    judge(ledger, 0, third, [0.0, 0.5], "rationalise", seconds=0.5)
    keep(ledger, 0, third, ["incorrect", "incorrect"], "rationalise")
    (row,) = round_rows(tmp_path / "run")
    assert row["kept"] == 2
    assert row["dropped"] == {"incorrect": 4, "unscored": 2}
    assert row["accept_rate"] == pytest.approx(2 / 8)
    assert row["coverage"] == pytest.approx(2 / 3)
    assert row["samples"] == 6 and row["reward_mean"] == pytest.approx(2.5 / 4)  # without a label
    assert row["extra"] == {
        "rationalise": {"samples": 2, "scored": 2, "kept": 0, "reward_mean": 0.25}
    }
    assert row["seconds"]["generate"] == 6.0 and row["seconds"]["judge"] == 1.5


def test_heldout_is_apart(tmp_path):
    ledger = new_run(tmp_path / "run")
    measure(ledger, 0, [1.0, 0.0, 1.0, 1.0, "timeout"])
    gate = {"policy": "base", "decision": "promoted", "best": "base", "p_value": 1.0, "delta": 0.0}
    ledger.step(0, "gate", "heldout", {}).finish(gate, seconds=0.25)
    (row,) = round_rows(tmp_path / "run")
    assert (row["heldout_reward"], row["heldout_scored"]) == (0.75, 4)
    assert row["heldout_stderr"] == pytest.approx(0.5 / 2)  # s of 1 0 1 1 is 0.5
    assert row["policy"] == "base" and row["gate"] == gate
    assert row["samples"] is None and row["reward_mean"] is None and row["extra"] == {}
    assert row["seconds"]["evaluate"] == pytest.approx(0.1 + 3.0 + 0.5 + 0.25)
    assert row["seconds"]["generate"] is None


def test_every_round_has_every_key_and_is_json(tmp_path):
    ledger, _ = one_round(tmp_path)
    ledger.step(1, "keep", "", {})  # open, nothing written: ReST's Improve
    rows = round_rows(tmp_path / "run")
    assert [r.keys() for r in rows] == [KEYS] * 2
    assert rows[1]["kept"] is None
    json.dumps(rows, allow_nan=False)


def test_one_sample_a_prompt_has_no_share_of_unique_ones(tmp_path):
    ledger = new_run(tmp_path / "run")
    generate(ledger, 0, make_samples(0, [(p, [1, 0]) for p in prompts(3)]))
    assert round_rows(tmp_path / "run")[0]["unique"] is None


def test_samples_without_token_ids_have_no_length(tmp_path):
    ledger = new_run(tmp_path / "run")
    generate(ledger, 0, make_samples(0, [(p, []) for p in prompts(3)], completion="text"))
    (row,) = round_rows(tmp_path / "run")
    assert row["samples"] == 3 and row["tokens"] == 0
    assert row["length_mean"] is row["distinct_2"] is row["unique"] is None


def test_a_step_that_had_nothing_to_do(tmp_path):
    ledger = new_run(tmp_path / "run")
    generate(ledger, 0, [], "rationalise")
    judge(ledger, 0, [], [], "rationalise")
    keep(ledger, 0, [], [], "rationalise")
    (row,) = round_rows(tmp_path / "run")
    nothing = {"samples": 0, "scored": 0, "kept": 0, "reward_mean": None}
    assert row["extra"] == {"rationalise": nothing}
    assert row["kept"] == 0 and row["accept_rate"] is None and row["coverage"] is None


def test_a_live_round_shows_what_is_there_and_then_the_rest(tmp_path):
    ledger = new_run(tmp_path / "run")
    samples = make_samples(0, [(p, [1, 2, 0]) for p in prompts(6)])
    generate(ledger, 0, samples[:4], finish=False)
    judge(ledger, 0, samples[:2], [1.0, 0.0])
    (row,) = round_rows(tmp_path / "run")
    assert (row["samples"], row["scored"], row["seconds"]["generate"]) == (4, 2, None)
    again = Ledger(tmp_path / "run")
    again.step(0, "prompts", "", {})
    step = again.step(0, "generate", "", {"policy_name": "base"})
    step.write(1, samples_table(samples[4:]))
    step.finish({}, seconds=7.0)
    (row,) = round_rows(tmp_path / "run")
    assert (row["samples"], row["seconds"]["generate"]) == (6, 7.0)


def test_training_figures_live_and_finished(tmp_path):
    ledger = new_run(tmp_path / "run")
    step = ledger.step(0, "train", "", {"start_name": "base"})
    step.write(0, rows_table([Example(str(i), "p", (), (1,), (2,)) for i in range(3)], EXAMPLES))
    log = '{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 1.5}\n{"step": 3, "lo'
    (step.path / "log.jsonl").write_text(log)
    live = {"steps": 2, "examples": 3, "loss_first": 2.5, "loss_last": 1.5, "start": "base"}
    live |= {"diverged": None, "policy": None, "kl_base": None, "kl_previous": None}
    assert round_rows(tmp_path / "run")[0]["train"] == live
    step.finish({"policy": "base", "no_signal": True, "steps": 0, "examples": 0})
    train = round_rows(tmp_path / "run")[0]["train"]
    assert train["no_signal"] is True and train["steps"] == 0 and train["loss_last"] is None


def test_finished_rounds_are_not_read_again_and_rows_are_not_shared(tmp_path):
    one_round(tmp_path)
    first = round_rows(tmp_path / "run")
    first[0]["seconds"]["generate"] = "spoilt"
    for shard in (tmp_path / "run").glob("rounds/000/*-generate/*.parquet"):
        shard.unlink()
    assert round_rows(tmp_path / "run")[0]["seconds"]["generate"] == 2.0


def test_a_damaged_shard_is_named(tmp_path):
    ledger, _ = one_round(tmp_path)
    path = next(ledger.path.glob("rounds/000/*-judge")) / "00000.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"judge/00000\.parquet.*selfkd doctor .*run --repair"):
        round_rows(ledger.path)
    path.unlink()
    with pytest.raises(DataError, match=r"00000\.parquet: recorded in the manifest but missing"):
        round_rows(ledger.path)


def test_a_shard_of_another_schema_is_named(tmp_path):
    ledger, _ = one_round(tmp_path)
    step = ledger.step(1, "judge", "", {})
    step.write(0, prompts_table(prompts(1)))
    with pytest.raises(DataError, match=r"judge/00000\.parquet: it has no column"):
        round_rows(ledger.path)


def test_the_curves_document_says_what_run_it_is(tmp_path):
    ledger, _ = one_round(tmp_path)
    document = curves_document(ledger.path)
    assert {k: document[k] for k in ("run", "loop", "model", "judge", "state")} == {
        "run": "run", "loop": "rest_em", "model": "tiny", "judge": "number", "state": "stopped",
    }  # fmt: skip
    assert document["rounds"] == round_rows(ledger.path)
    with pytest.raises(UsageError, match="not a run directory"):
        curves_document(tmp_path)


def test_a_plugin_file_is_called_by_its_name(tmp_path):
    new_run(tmp_path / "run", judge={"use": "/home/me/my_judge.py:polite", "strict": True})
    assert curves_document(tmp_path / "run")["judge"] == "polite"


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([], "stopped"),
        (["run_started"], "stopped"),
        (["run_started", "run_finished"], "finished"),
        (["run_started", "stopped"], "stopped"),
        (["run_started", "run_failed"], "failed"),
        (["run_started", "run_failed", "run_started", "step_started"], "stopped"),
    ],
)
def test_the_state_is_how_the_last_start_ended(tmp_path, events, state):
    ledger = new_run(tmp_path / "run")
    for event in events:
        ledger.event(event)
    with (ledger.path / "events.jsonl").open("a") as file:
        file.write('{"seq": 9, "ev')  # a line still being written
    assert curves_document(ledger.path)["state"] == state


def test_running_means_that_the_lock_is_held_by_a_living_process(tmp_path):
    ledger = new_run(tmp_path / "run")
    code = (
        "import sys, time; from pathlib import Path; from selfkd.locks import RunLock\n"
        "with RunLock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(ledger.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert curves_document(ledger.path)["state"] == "running"
        assert holder.poll() is None
        holder.kill()
    deadline = time.monotonic() + 5
    while curves_document(ledger.path)["state"] == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert json.loads((ledger.path / "lock").read_text())["pid"] == holder.pid  # a stale record
    assert curves_document(ledger.path)["state"] == "stopped"
    record = {"pid": os.getpid(), "host": "another-machine", "time": ""}
    (ledger.path / "lock").write_text(json.dumps(record))
    assert curves_document(ledger.path)["state"] == "stopped"
    with RunLock(ledger.path) as lock:  # looking has left the lock free
        assert lock.stale == record
