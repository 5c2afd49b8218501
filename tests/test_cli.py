"""The command line: exit codes, refusals that write nothing, and output that scripts can read."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from selfkd import launch
from selfkd.chat import load_tokenizer, render
from selfkd.config import load
from selfkd.errors import UsageError
from selfkd.launch import new_run, read_run, resume_run
from selfkd.locks import RunLock
from tests.commandline import Result, carried_out
from tests.testbed.addition import write_prompts
from tests.testbed.charmodel import char_tokenizer
from tests.testbed.play import JUDGES

CONFIG = """\
loop: rest_em
model: model
prompts: {{source: sums.jsonl, heldout: 4}}
judge: {judge}
sampling: {{max_tokens: 40}}
engine: {{kind: transformers}}
"""


Call = Callable[..., Result]


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Call:
    """Calls the command line in a user's folder that holds a config, prompts and a (fake) model."""
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path / "sums.jsonl", [(i, 1) for i in range(12)])
    model = tmp_path / "model"
    model.mkdir()
    char_tokenizer().save_pretrained(model)
    (model / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 128}')
    (model / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (tmp_path / "run.yaml").write_text(CONFIG.format(judge=f"{JUDGES}:right"))

    return partial(carried_out, monkeypatch, capfd)


def test_a_wrong_config_exits_2_and_writes_nothing(call, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    for override in (
        "judge.modle=x",
        "ronds=1",
        "rounds=-1",
        "sampling.temperature=.nan",
        "gate.mode=on",
    ):
        result = call("run", "run.yaml", override)
        assert result.code == 2, override
        assert f"override '{override}'" in result.err
        assert "Traceback" not in result.err
    assert call("run", "missing.yaml").code == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_dry_run_prints_the_plan_and_writes_nothing(call, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    result = call("run", "run.yaml", "--dry-run", "rounds=3", "samples_per_prompt=5")
    assert result.code == 0 and "nothing was written" in result.out
    plan = json.loads(
        call("run", "run.yaml", "--dry-run", "--json", "rounds=3", "samples_per_prompt=5").out
    )
    assert (plan["prompts_per_round"], plan["heldout"], plan["samples_per_round"]) == (8, 4, 40)
    # Four rounds are sampled (the last policy's too) and held-out is answered by four policies.
    assert plan["completion_tokens_at_most"] == (4 * 40 + 4 * 4) * 40
    assert sorted(tmp_path.rglob("*")) == before


def test_dry_run_renders_prompts_as_the_run_will(call, tmp_path):
    every = ["--dry-run", "--json", "prompts.heldout=0", "prompts.per_round=12"]
    plan = json.loads(call("run", "run.yaml", *every).out)
    tokenizer = load_tokenizer(tmp_path / "model")
    asked = [json.loads(line)["prompt"] for line in (tmp_path / "sums.jsonl").open()]
    tokens = [render(tokenizer, [{"role": "user", "content": text}]) for text in asked]
    assert plan["prompt_tokens_per_round"] == sum(map(len, tokens))
    (tmp_path / "none.jinja").write_text("{{ raise_exception('nobody may speak') }}")
    refused = call("run", "run.yaml", *every, "chat_template=none.jinja")
    assert refused.code == 4 and "nobody may speak" in refused.err


@pytest.mark.parametrize(
    ("override", "code"),
    [("model=nope", 2), ("model=runs", 2), ("engine.kv_cache_gib=1e6", 5)],
)
def test_what_is_refused_leaves_no_run_and_its_name_free(call, tmp_path, override, code):
    (tmp_path / "runs").mkdir()
    for command in (["--dry-run"], ["--name", "one"]):
        assert call("run", "run.yaml", override, *command).code == code, command
    assert call("forecast", "run.yaml", override, "--name", "one").code == code
    assert list((tmp_path / "runs").iterdir()) == []


def test_skipped_rows_stay_skipped_in_what_goes_on_with_the_run(call, tmp_path):
    with (tmp_path / "sums.jsonl").open("a") as file:
        file.write("{broken\n")
    assert call("run", "run.yaml", "--dry-run").code == 4
    planned = call("run", "run.yaml", "--dry-run", "--json", "--skip-bad")
    assert json.loads(planned.out)["prompt_report"]["bad_rows"] == 1
    started = new_run(load(Path("run.yaml"), ["prompts.skip_bad=true"]), Path("runs"), "one")
    assert resume_run(started).config.prompts.skip_bad
    # A run whose file went bad since may be told to go on without those rows.
    other = new_run(load(Path("run.yaml")), Path("runs"), "two")
    assert resume_run(other, ["prompts.skip_bad=true"]).config.prompts.skip_bad


def test_how_a_run_is_carried_out_may_change_on_resume_and_is_recorded(call):
    path = new_run(load(Path("run.yaml")), Path("runs"), "one")
    resumed = resume_run(
        path,
        [
            "rounds=9",
            "engine.max_num_seqs=3",
            "engine.residency=swap",
            "alarms.length_drift=0.9",
            "alarms.stop=reward_hacking",
            "judging.timeout=5",
            "cluster.timeout=7",
            "keep_policies.last=4",
            "report_to=[]",
        ],
    )
    assert resumed.options.rounds == 9 and resumed.config.engine.max_num_seqs == 3
    assert resumed.config.alarms.length_drift == 0.9
    document, _ = read_run(path)
    assert (document["rounds"], document["engine"]["max_num_seqs"]) == (9, 3)
    assert document["alarms"]["length_drift"] == 0.9
    assert document["alarms"]["stop"] == ["reward_hacking"]
    # What was recorded holds from then on.
    assert resume_run(path).document() == resumed.document() == document


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=7", "seed: 0 -> 7"),
        ("prompts.limit=3", "prompts.limit: None -> 3"),
        ("samples_per_prompt=2", "samples_per_prompt: 8 -> 2"),
        ("sampling.temperature=0.25", "sampling.temperature: 1.0 -> 0.25"),
        ("engine.max_model_len=64", "engine.max_model_len: 1024 -> 64"),
        ("train.learning_rate=1e-3", "train.learning_rate: 2e-05 -> 0.001"),
        ("judging.anchors=4", "judging.anchors: 0 -> 4"),
        ("judge=number", "judging.py:right' -> 'number'"),
    ],
)
def test_what_a_run_computes_may_not_change_on_resume(call, override, said):
    path = new_run(load(Path("run.yaml")), Path("runs"), "one")
    recorded = (path / "run.yaml").read_bytes()
    with pytest.raises(UsageError, match="started with another config") as caught:
        resume_run(path, ["rounds=9", override])
    assert said in str(caught.value) and "rounds" not in str(caught.value)
    assert "selfkd fork" in caught.value.remedy
    assert (path / "run.yaml").read_bytes() == recorded
    result = call("resume", "one", "rounds=9", override)
    assert result.code == 2 and said in result.err
    assert (path / "run.yaml").read_bytes() == recorded


def test_two_starts_at_once_make_two_runs(call, monkeypatch):
    resolved = load(Path("run.yaml"))
    first = new_run(resolved, Path("runs"), None)
    recorded = (first / "run.yaml").read_bytes()
    free = first.with_name("rest_em-002")
    names = iter([first, free])  # the second start looked before the first had made its directory
    monkeypatch.setattr(launch, "_next_free", lambda root, stem: next(names))
    assert new_run(resolved, Path("runs"), None) == free
    assert (first / "run.yaml").read_bytes() == recorded and (free / "run.yaml").exists()


@pytest.mark.parametrize("name", ["../../x", "", "a" * 300, "ünïcode", ".hidden", "a/b"])
def test_names_that_cannot_be_a_run_are_refused(call, tmp_path, name):
    before = sorted(tmp_path.parent.rglob("*"))
    result = call("run", "run.yaml", f"--name={name}")
    assert result.code == 2 and "cannot name a run" in result.err
    assert sorted(tmp_path.parent.rglob("*")) == before


@pytest.mark.parametrize("key", ["model=", "judge={use: ensemble, judges: [{use: teacher, key: "])
def test_a_secret_in_a_config_is_refused_and_not_echoed(call, key):
    closing = "}" * key.count("{") if "[" not in key else "}]}"
    result = call("run", "run.yaml", f"{key}sk-abcdefgh12345678{closing}")
    assert result.code == 2 and "api_key_env" in result.err
    assert "abcdefgh12345678" not in result.err


def test_prompt_faults_exit_4_with_the_place(call, tmp_path):
    (tmp_path / "sums.jsonl").write_text("\n\n")
    result = call("run", "run.yaml", "--dry-run")
    assert result.code == 4 and "0 prompts" in result.err
    (tmp_path / "sums.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n{broken\n')
    result = call("run", "run.yaml", "--dry-run")
    assert result.code == 4 and "sums.jsonl:2" in result.err
    (tmp_path / "sums.jsonl").write_text('{"prompt": "1+1="}\n{"prompt": "1+2="}\n')
    result = call("run", "run.yaml", "--dry-run", "prompts.heldout=0")
    assert result.code == 4 and "answer" in result.err
    answered = [f'{{"prompt": "1+{i}=", "answer": "{1 + i}"}}\n' for i in range(9)]
    (tmp_path / "sums.jsonl").write_text("".join([*answered, '{"prompt": "2+2="}\n']))
    later = ["prompts.heldout=0", "prompts.per_round=1"]  # whichever round takes it
    assert "answer" in call("run", "run.yaml", "--dry-run", *later).err


def test_a_missing_run_is_a_usage_error(call):
    for command in (
        ["resume", "nope"],
        ["curves", "nope"],
        ["show", "nope"],
        ["fork", "nope", "--round", "1"],
    ):
        result = call(*command)
        assert result.code == 2, command
        assert "nope" in result.err


def test_an_unreachable_cluster_says_so_and_offers_local(call):
    result = call("run", "run.yaml", "cluster=127.0.0.1:1", "--name", "far")
    assert result.code == 5
    assert "127.0.0.1:1" in result.err and "--local" in result.err
    assert "selfkd resume runs/far" in result.err


def test_a_dead_cluster_in_the_environment_is_named(call, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:2")
    result = call("run", "run.yaml", "cluster=auto", "--name", "far")
    assert result.code == 5
    assert "127.0.0.1:2" in result.err and "--local" in result.err


def test_what_cannot_fit_in_memory_is_refused_before_anything_starts(call, tmp_path):
    result = call("run", "run.yaml", "engine.kv_cache_gib=100000", "--name", "big")
    assert result.code == 5
    assert "the sampler needs about 100001" in result.err and "this machine has" in result.err
    assert "lower engine.kv_cache_gib" in result.err and not (tmp_path / "runs").exists()


def test_a_run_of_another_layout_is_refused_with_both_versions(call, tmp_path):
    assert call("run", "run.yaml", "cluster=127.0.0.1:1", "--name", "later").code == 5
    head = tmp_path / "runs" / "later" / "run.yaml"
    head.write_text(head.read_text().replace("schema: 1", "schema: 2"))
    for command in (["resume", "later"], ["fork", "later", "--round", "0"]):
        result = call(*command)
        assert result.code == 4
        assert "has layout 2, this selfkd reads layout 1" in result.err


def test_a_run_that_another_process_works_on_is_left_alone(call, tmp_path):
    assert call("run", "run.yaml", "cluster=127.0.0.1:1", "--name", "busy").code == 5
    with RunLock(tmp_path / "runs" / "busy"):
        result = call("resume", "busy")
    assert result.code == 6
    assert f"process {os.getpid()} on " in result.err and "Traceback" not in result.err
    assert call("resume", "busy").code == 5


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_model_is_named_and_leaves_no_run(call, tmp_path, name):
    file = tmp_path / "model" / name
    file.write_bytes(file.read_bytes()[:-1])
    result = call("run", "run.yaml", "--name", "one")
    assert result.code == 4 and "Traceback" not in result.err
    assert f"{file}: a file of the model is damaged: it" in result.err
    assert "save_pretrained" in result.err
    assert not (tmp_path / "runs").exists()


def test_a_pickled_checkpoint_is_refused(call, tmp_path):
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    result = call("run", "run.yaml", "--name", "pickled")
    assert result.code in (2, 4) and "safetensors" in result.err


def test_listings_print_only_data_with_json(call):
    for command in (
        ["loops"],
        ["judges"],
        ["ls"],
        ["model", "list"],
        ["loops", "star"],
        ["judges", "number"],
    ):
        result = call(*command, "--json")
        assert result.code == 0, command
        json.loads(result.out)
    assert "rationalise" in call("loops", "star").out
    assert "tolerance" in call("judges", "number").out
    names = {row["name"] for row in json.loads(call("loops", "--json").out)}
    files = (Path(__file__).resolve().parents[1] / "loops").glob("*.py")
    assert names == {file.stem for file in files} - {"__init__"}


def test_a_judge_is_tested_outside_a_run(call, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def short(sample, *, limit=3):\n    return float(len(sample.completion) <= limit)\n"
    )
    rows = [{"prompt": "say hi", "completion": c} for c in ("hi", "hello there")]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    result = call("judge", "test", "mine.py:short", "--samples", "samples.jsonl", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert [v["reward"] for v in found["verdicts"]] == [1.0, 0.0]
    assert found["card"]["controls"]["colon"]["reward_mean"] == 1.0
    assert found["notes"] == ["it fails the controls empty, invisible, colon"]
    result = call("judge", "test", "mine.py:short", "--samples", "samples.jsonl", "limt=9")
    assert result.code == 2 and "limit" in result.err


def test_a_reader_that_leaves_ends_the_command_quietly(tmp_path):
    command = f"{sys.executable} -m selfkd loops star | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert "Traceback" not in done.stderr and "Error" not in done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_help_is_light(tmp_path):
    code = (
        "import sys, selfkd.cli\n"
        "sys.argv = ['selfkd', '--help']\n"
        "try:\n    selfkd.cli.main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'datasets', 'matplotlib', 'pyarrow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    environment = {**os.environ, "COLUMNS": "40", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b[" not in done.stdout
