"""The page without a browser: its routes, its figures, what it refuses, and what it survives."""

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from selfkd.errors import InfrastructureError, UsageError
from selfkd.metrics import curves_document, recorded_rows, round_rows
from selfkd.records import EXAMPLES, Example, rows_table
from selfkd.viewer.browse import Wanted, browse
from selfkd.viewer.comparison import compare_runs, paired_bootstrap
from selfkd.viewer.lineage import policies, policy_story, prompt_story
from selfkd.viewer.shapes import reward_edges, round_shapes
from selfkd.viewer.web.app import make_app
from selfkd.viewer.web.folder import Folder
from selfkd.viewer.web.report import render_report, write_report
from selfkd.viewer.web.serve import listen
from tests.synthetic import (
    generate,
    judge,
    keep,
    make_samples,
    measure,
    new_run,
    prompts,
    write_metrics,
)

EXAMPLE = Path(__file__).resolve().parents[1] / "runs" / "example"
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)></script>\u202e javascript:alert(3)"


def client(folder: Path, **options: Any) -> TestClient:
    app = make_app(Folder.at(folder), **options)
    return TestClient(app, base_url="http://127.0.0.1", follow_redirects=False)


@pytest.fixture
def web(tmp_path) -> TestClient:
    """The example run and one made by hand, which has every kind of row."""
    shutil.copytree(EXAMPLE, tmp_path / "example")
    small_run(tmp_path / "small")
    return client(tmp_path)


def small_run(path: Path, completion: str | None = None) -> None:
    """Two rounds of 3 prompts with 2 samples; in round 0 the sample 0-0 is kept and learnt."""
    ledger = new_run(path, rounds=2)
    fields = {} if completion is None else {"completion": completion}
    for number in (0, 1):
        measure(ledger, number, [1.0, 0.0, float(number)])
        tokens = [(p, [5] * (i + 1) + [0]) for p in prompts(3) for i in (0, 1)]
        samples = make_samples(number, tokens, **fields)
        generate(ledger, number, samples)
        rewards: list[float | str | None] = [1.0, 0.5, 0.0, "unparsed", 0.25, 1.0]
        judge(ledger, number, samples, rewards, rationale="so it is", answer="5")
        keep(ledger, number, samples, [None, "low", "low", "no reward", "low", "duplicate"])
        if number == 0:
            learn(ledger, samples[0])


def learn(ledger, sample) -> None:
    step = ledger.step(0, "train", "", {"start_name": "base"})
    row = Example("sft-0", sample.prompt.id, (sample.id,), (1,), sample.tokens)
    step.write(0, rows_table([row], EXAMPLES))
    log = [
        {"step": i + 1, "total_steps": 3, "loss": 2.0 - i, "grad_norm": float("inf")}
        for i in (0, 1)
    ]
    (step.path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    facts = {"policy": "round-1", "start": "base", "examples": 1, "steps": 3, "tokens": 12}
    step.finish(facts | {"loss_first": 2.0, "loss_last": 1.0}, seconds=4.0)


# -- figures --------------------------------------------------------------------------------------


def test_the_figures_of_a_run_are_those_of_curves_json(web):
    answer = web.get("/api/runs/example").json()
    document = json.loads(json.dumps(curves_document(EXAMPLE)))
    assert answer["rounds"] == document["rounds"]
    for key in ("loop", "model", "judge", "planned_rounds", "state"):
        assert answer[key] == document[key]


def test_recorded_figures_are_the_computed_ones_and_incomplete_rounds_are_computed(tmp_path):
    assert recorded_rows(EXAMPLE) == round_rows(EXAMPLE)
    small_run(tmp_path)  # has no metrics.jsonl, and its rounds no end
    assert recorded_rows(tmp_path) == round_rows(tmp_path)
    lines = [json.dumps({**row, "reward_mean": 9.0}) for row in round_rows(tmp_path)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert recorded_rows(tmp_path) == round_rows(tmp_path)  # an open round may still change


def test_shapes_count_every_scored_sample_once(tmp_path):
    small_run(tmp_path)
    first = round_shapes(tmp_path)[0]
    counts = {(b["low"] + b["high"]) / 2: b["count"] for b in first["histogram"]}
    assert sum(counts.values()) == 5 and len(counts) == 4  # 0, 0.25, 0.5 and 1, the last twice
    assert first["reward"]["p50"] == 0.5
    assert sum(b["count"] for b in first["by_length"]) == 5
    by_length = {b["low"]: b for b in first["by_length"]}
    assert by_length[2]["reward_mean"] == pytest.approx((1 + 0 + 0.25) / 3)
    assert by_length[3]["reward_mean"] == pytest.approx(0.75)
    assert [line["loss"] for line in first["log"]] == [2.0, 1.0]
    assert "grad_norm" not in first["log"][0]  # infinity is no point of a curve
    train = next(s for s in first["steps"] if s["verb"] == "train")
    assert train["tokens_per_second"] == 3.0


def test_many_values_share_bars_and_few_have_one_each():
    import numpy as np

    assert list(reward_edges([np.array([0.0, 1.0]), np.array([1.0])])) == [-0.5, 0.5, 1.5]
    assert list(reward_edges([np.array([3.0])])) == [2.5, 3.5]
    edges = reward_edges([np.linspace(0, 1, 100)])
    assert len(edges) == 21 and edges[0] == 0 and edges[-1] == 1
    assert len(reward_edges([])) == 0


def test_the_list_shows_each_run_with_its_state_and_alarms(web, tmp_path):
    write_metrics(new_run(tmp_path / "told"), round_rows(tmp_path / "small"))
    rows = {row["run"]: row for row in web.get("/api/runs").json()}
    example = rows["example"]
    assert example["state"] == "finished" and example["round"] == 4
    assert example["rewards"] == [r["reward_mean"] for r in round_rows(EXAMPLE)]
    assert example["heldout"][0] == 0.16 and example["alarms"] == []
    assert rows["told"]["alarms"] == ["judge_failures", "overlap"] and rows["told"]["critical"]
    assert rows["small"]["state"] == "stopped" and rows["small"]["rewards"] == []


# -- samples --------------------------------------------------------------------------------------


def found(run: Path, **wanted: Any) -> list[str]:
    return [row["sample_id"] for row in browse(run, 0, Wanted(**wanted))["rows"]]


def test_samples_are_found_by_each_filter(tmp_path):
    small_run(tmp_path)
    every = [f"0--{i}" for i in range(6)]
    assert found(tmp_path) == every
    assert found(tmp_path, kept=True) == ["0--0"]
    assert found(tmp_path, kept=False) == every[1:]
    assert found(tmp_path, reason="low") == ["0--1", "0--2", "0--4"]
    assert found(tmp_path, status="unparsed") == ["0--3"]
    assert found(tmp_path, low=0.25, high=0.5) == ["0--1", "0--4"]
    assert found(tmp_path, prompt=prompts(3)[1].id) == ["0--2", "0--3"]
    assert found(tmp_path, policy="round-1") == []
    assert found(tmp_path, text="5 5 0") == ["0--1", "0--3", "0--5"]
    assert found(tmp_path, order="reward_high")[:3] == ["0--0", "0--5", "0--1"]
    assert found(tmp_path, order="reward_low")[0] == "0--2"
    assert found(tmp_path, order="shortest")[:3] == ["0--0", "0--2", "0--4"]
    assert found(tmp_path, order="longest")[:3] == ["0--1", "0--3", "0--5"]
    assert len(found(tmp_path, label="heldout")) == 3


def test_a_page_of_samples_goes_on_where_the_last_ended(web):
    url = "/api/runs/small/samples?round=0&limit=4"
    first, second = web.get(url).json(), web.get(url + "&offset=4").json()
    assert first["total"] == second["total"] == 6
    ids = [row["sample_id"] for row in first["rows"] + second["rows"]]
    assert ids == [f"0--{i}" for i in range(6)]
    row = first["rows"][0]
    assert (row["reward"], row["rationale"], row["kept"], row["tokens"]) == (
        1.0,
        "so it is",
        True,
        2,
    )
    assert row["prompt"] == "0 + 1 =" and row["answer"] == "1" and row["policy"] == "base"
    assert first["reasons"] == {"low": 3, "duplicate": 1, "kept": 1, "no reward": 1}
    assert first["statuses"] == {"ok": 5, "unparsed": 1}


def test_samples_of_a_live_run_grow(tmp_path):
    ledger = new_run(tmp_path)
    samples = make_samples(0, [(p, [1, 0]) for p in prompts(6)])
    generate(ledger, 0, samples[:4], finish=False)
    assert browse(tmp_path, 0, Wanted())["total"] == 4
    step = ledger.step(0, "generate", "", {"policy_name": "base"})
    from selfkd.records import samples_table

    step.write(1, samples_table(samples[4:]))
    assert browse(tmp_path, 0, Wanted())["total"] == 6


# -- lineage --------------------------------------------------------------------------------------


def test_lineage_goes_from_a_sample_to_the_policy_that_learnt_it_and_back(web, tmp_path):
    run = tmp_path / "small"
    story = prompt_story(run, prompts(3)[0].id)
    assert [(g["round"], g["label"], g["total"]) for g in story["groups"]] == [
        (0, "", 2),
        (0, "heldout", 1),
        (1, "", 2),
        (1, "heldout", 1),
    ]
    kept, dropped = story["groups"][0]["samples"]
    example = {"id": "sft-0", "round": 0, "weight": 1.0, "role": "learnt", "policy": "round-1"}
    assert kept["examples"] == [example] and dropped["examples"] == []
    assert dropped["decisions"] == [{"round": 0, "kept": False, "reason": "low"}]
    assert [p["policy"] for p in policies(run)] == ["base", "round-1"]
    policy = policy_story(run, "round-1")
    assert policy["made_in"] == 0 and policy["sampled_in"] == [1] and policy["heldout_in"] == [1]
    assert [s["id"] for e in policy["examples_page"] for s in e["samples"]] == [kept["sample_id"]]
    assert web.get("/api/runs/small/policies/round-1").json()["total"] == 1
    assert web.get("/api/runs/small/policies/round-9").status_code == 404
    assert web.get("/api/runs/small/prompts/nothing").status_code == 404


def test_every_example_of_the_example_run_leads_to_its_samples():
    for policy in policies(EXAMPLE)[1:]:
        story = policy_story(EXAMPLE, policy["policy"], limit=1000)
        assert story["total"] == len(story["examples_page"]) == policy["examples"] > 0
        assert all(len(e["samples"]) == len(e["sample_ids"]) for e in story["examples_page"])


# -- comparison -----------------------------------------------------------------------------------


def test_a_comparison_pairs_held_out_prompts_and_names_what_differs(tmp_path):
    for name, rewards, rate in (("a", [0.0] * 30, 1e-5), ("b", [1.0] * 20 + [0.0] * 10, 2e-5)):
        measure(new_run(tmp_path / name, train={"learning_rate": rate}), 0, rewards)
    found = compare_runs([tmp_path / "a", tmp_path / "b"])
    held = found["heldout"][0]
    assert held["prompts"] == 30 and held["delta"] == pytest.approx(2 / 3)
    assert 0.4 < held["low"] < 2 / 3 < held["high"] < 0.9
    assert found["config"] == {"train.learning_rate": [1e-5, 2e-5]}
    assert found["prompts"][0]["rewards"] == [0.0, 1.0]
    with pytest.raises(UsageError, match="two to 6 runs"):
        compare_runs([tmp_path / "a"])


def test_the_bootstrap_interval_covers_as_often_as_it_says():
    import numpy as np

    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(200):
        low, high = paired_bootstrap(rng.normal(0.3, 1, 80), draws=400, seed=seed)
        hits += low <= 0.3 <= high
    assert 0.89 <= hits / 200 <= 0.99


def test_runs_without_shared_prompts_are_not_paired(tmp_path):
    measure(new_run(tmp_path / "a"), 0, [1.0])
    new_run(tmp_path / "b")
    held = compare_runs([tmp_path / "a", tmp_path / "b"])["heldout"][0]
    assert held["prompts"] == 0 and held["delta"] is None and held["of"] is None


# -- what it refuses ------------------------------------------------------------------------------


def test_only_names_of_this_machine_are_answered(web):
    for host in ("127.0.0.1", "localhost:8642", "[::1]:8642"):
        assert web.get("/", headers={"Host": host}).status_code == 200
    for host in ("evil.com", "127.0.0.1.evil.com", "localhost.evil.com:8642", "10.0.0.1", ""):
        assert web.get("/", headers={"Host": host}).status_code == 400, host


@pytest.mark.parametrize("method", ["post", "put", "delete", "patch", "options"])
def test_nothing_can_be_changed(web, method):
    assert getattr(web, method)("/api/runs").status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        "/runs/..%2f..%2fetc",
        "/api/runs/..%2fsecret",
        "/api/runs/%2e%2e",
        "/api/runs/.hidden",
        "/api/runs/outside",
        "/api/runs/nothing",
        "/api/runs/example%00",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/api/compare?run=example&run=..%2fsecret",
    ],
)
def test_no_path_leads_out_of_the_folder(tmp_path, path):
    folder = tmp_path / "runs"
    for run in (tmp_path / "secret", folder / ".hidden", folder / "example"):
        shutil.copytree(EXAMPLE, run)
    (folder / "outside").symlink_to(tmp_path / "secret")
    answer = client(folder).get(path)
    assert answer.status_code in (400, 404), answer.text[:200]
    assert "rest_em" not in answer.text and "def make_app" not in answer.text


def test_a_manifest_cannot_name_a_file_elsewhere(tmp_path):
    shutil.copytree(EXAMPLE, tmp_path / "a")
    manifest = tmp_path / "a" / "rounds" / "000" / "05-generate" / "manifest.json"
    facts = json.loads(manifest.read_text())
    facts["shards"][0]["file"] = "../../../../b/secret.parquet"
    manifest.write_text(json.dumps(facts))
    answer = client(tmp_path).get("/api/runs/a/samples?round=0")
    assert answer.status_code == 409 and "names" in answer.json()["error"]


def test_beyond_this_machine_a_token_is_asked_for(tmp_path):
    small_run(tmp_path / "small")
    web = client(tmp_path, token="right", hosts=("box",))
    for path in ("/", "/api/runs", "/static/dom.js", "/?token=wrong", "/?token="):
        assert web.get(path, headers={"Host": "box"}).status_code == 401, path
    assert web.get("/?token=right", headers={"Host": "evil.com"}).status_code == 400
    assert web.get("/?token=right", headers={"Host": "10.0.0.7:80"}).status_code == 303
    answer = web.get("/compare?token=right&run=small", headers={"Host": "box"})
    assert answer.status_code == 303 and answer.headers["location"] == "/compare?run=small"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    headers = {"Host": "box", "Cookie": "selfkd_token=right"}
    web.cookies.clear()
    assert web.get("/api/runs", headers=headers).status_code == 200
    headers["Cookie"] = "selfkd_token=wrong"
    assert web.get("/api/runs", headers=headers).status_code == 401


def test_every_answer_says_what_may_run(web):
    for path in ("/", "/runs/example", "/api/runs", "/static/dom.js", "/nowhere", "/runs/none"):
        headers = web.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_pages_hold_no_inline_script_and_nothing_from_elsewhere(web):
    for path in ("/", "/runs/example", "/runs/example/samples", "/compare", "/runs/none"):
        text = web.get(path).text
        assert not re.search(r"<script(?![^>]*\bsrc=)", text) and "<style" not in text
        assert " style=" not in text and not re.search(r"\son\w+=", text)
        assert not re.search(r"(src|href)=\"(https?:)?//", text)
    for script in Path(make_app.__code__.co_filename).parent.glob("static/*.js"):
        source = script.read_text()
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", source
        )


def test_a_run_name_is_text(tmp_path):
    name = '"><img src=x onerror=alert(1)>'
    small_run(tmp_path / name)
    text = client(tmp_path).get(f"/runs/{name}").text
    assert "<img" not in text and "&lt;img" in text


def test_wrong_numbers_and_unknown_rounds_are_named(web):
    for query in ("round=x", "round=0&low=nan", "round=0&offset=1e999"):
        answer = web.get(f"/api/runs/small/samples?{query}")
        assert answer.status_code == 404 and "not a number" in answer.json()["error"]
    answer = web.get("/api/runs/small/samples?round=77")
    assert answer.status_code == 404 and "no round 77" in answer.json()["error"]


# -- what it survives -----------------------------------------------------------------------------


def test_an_unchanged_run_is_not_sent_again_and_a_changed_one_is(web, tmp_path):
    for path in ("/api/runs", "/api/runs/small", "/api/runs/small/shapes"):
        tag = web.get(path).headers["etag"]
        assert web.get(path, headers={"If-None-Match": tag}).status_code == 304
        with (tmp_path / "small" / "events.jsonl").open("a") as file:
            file.write('{"event": "run_finished", "reason": "done"}\n')
        assert web.get(path, headers={"If-None-Match": tag}).status_code == 200
    assert web.get("/api/runs/small").json()["ending"] == "done"


def test_an_empty_run_one_sample_and_rewards_that_are_not_finite(tmp_path):
    new_run(tmp_path / "empty")
    ledger = new_run(tmp_path / "one")
    samples = make_samples(0, [(prompts(1)[0], [1, 0])])
    generate(ledger, 0, samples)
    judge(ledger, 0, samples, [float("nan")])
    web = client(tmp_path)
    empty = web.get("/api/runs/empty").json()
    assert empty["rounds"] == [] and empty["alarms"] == [] and empty["state"] == "stopped"
    assert web.get("/api/runs/empty/shapes").json() == []
    assert web.get("/api/runs/one").json()["rounds"][0]["reward_mean"] is None
    shapes = web.get("/api/runs/one/shapes").json()
    assert shapes[0]["reward"] is None and shapes[0]["histogram"] == []
    assert web.get("/api/runs/one/samples?round=0").json()["rows"][0]["reward"] is None
    assert len(web.get("/api/runs").json()) == 2


def test_a_run_in_progress_says_what_it_does(tmp_path):
    from selfkd.viewer.live import current_step

    ledger = new_run(tmp_path)
    started = {"round": 0, "step": "02-generate", "verb": "generate", "label": "", "total": 8}
    ledger.event("step_started", **started)
    generate(ledger, 0, make_samples(0, [(p, [1, 0]) for p in prompts(4)]), finish=False)
    step = current_step(tmp_path)
    assert step and (step["verb"], step["done"], step["total"]) == ("generate", 4, 8)


def test_a_run_that_goes_away_is_a_message(web, tmp_path):
    assert web.get("/api/runs/small").status_code == 200
    shutil.rmtree(tmp_path / "small" / "rounds" / "001" / "05-generate")
    assert web.get("/api/runs/small/samples?round=1").status_code in (200, 404, 409)
    shutil.rmtree(tmp_path / "small")
    for path in ("", "/shapes", "/samples?round=0", "/prompts/x"):
        answer = web.get(f"/api/runs/small{path}")
        assert answer.status_code == 404 and "deleted" in answer.json()["error"]
    assert "deleted" in web.get("/runs/small").text
    assert [r["run"] for r in web.get("/api/runs").json()] == ["example"]


def test_a_damaged_shard_is_named_and_the_list_goes_on(web, tmp_path):
    shard = tmp_path / "small" / "rounds" / "000" / "05-generate" / "00000.parquet"
    shard.write_bytes(b"PAR1 no longer")
    answer = web.get("/api/runs/small/samples?round=0")
    assert answer.status_code == 409 and "00000.parquet" in answer.json()["error"]
    assert len(web.get("/api/runs").json()) == 2


def test_one_run_can_be_served_alone(tmp_path):
    small_run(tmp_path / "a")
    small_run(tmp_path / "b")
    web = client(tmp_path / "a")
    assert web.get("/").headers["location"] == "/runs/a"
    assert web.get("/api/runs/a").status_code == 200
    assert web.get("/api/runs/b").status_code == 404
    assert [r["run"] for r in web.get("/api/runs").json()] == ["a"]


def test_text_comes_back_byte_for_byte(tmp_path):
    text = 'NUL \x00, "quotes", \r\n, \u2028, \u202e, 👍, </script>' + "x" * 100_000
    small_run(tmp_path / "odd", completion=text)
    rows = client(tmp_path).get("/api/runs/odd/samples?round=0").json()["rows"]
    assert {row["completion"] for row in rows} == {text}


# -- report, ports, imports -----------------------------------------------------------------------


def test_a_report_is_one_file_whose_text_cannot_act(tmp_path):
    small_run(tmp_path / "hostile", completion=HOSTILE)
    size = write_report(tmp_path / "hostile", tmp_path / "out" / "r.html")
    text = (tmp_path / "out" / "r.html").read_text()
    assert size == len(text.encode()) < 2_000_000
    assert HOSTILE not in text and "<img src=x" not in text
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert data and "<" not in data[1]
    embedded = json.loads(data[1])
    assert embedded["samples"][0]["samples"][0]["completion"] == HOSTILE
    assert embedded["run"]["rounds"] == json.loads(json.dumps(round_rows(tmp_path / "hostile")))
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text.split("<script>")[0])
    assert str(tmp_path) not in text
    with pytest.raises(UsageError, match=r"\.html"):
        write_report(tmp_path / "hostile", tmp_path / "r.pdf")


def test_a_report_names_the_hash_of_each_of_its_scripts():
    import base64
    import hashlib

    text = render_report(EXAMPLE, samples=2)
    policy = text.split('content="default-src')[1].split('"')[0]
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(scripts) > 5
    for source in [*scripts, *re.findall(r"<style>(.*?)</style>", text, re.S)]:
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_a_port_in_use_is_passed_over_and_0_is_any():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with listen("127.0.0.1", port) as other:
            assert other.getsockname()[1] > port
        with listen("127.0.0.1", 0) as free:
            assert free.getsockname()[1] > 0
    with pytest.raises(InfrastructureError, match="cannot listen"):
        listen("192.0.2.1", 0)


def test_the_command_prints_where_it_serves_and_ends_on_ctrl_c(tmp_path):
    import signal
    import urllib.request

    small_run(tmp_path / "small")
    command = [sys.executable, "-m", "selfkd", "ui", str(tmp_path), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    timer = threading.Timer(60, process.kill)
    timer.start()
    try:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(2)]
        address = lines[1].strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address), lines
        with urllib.request.urlopen(f"{address}api/runs", timeout=30) as answer:
            assert json.loads(answer.read())[0]["run"] == "small"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert process.stderr and "Traceback" not in process.stderr.read()
    finally:
        timer.cancel()
        process.kill()


def test_the_viewer_is_importable_without_a_web_server():
    code = (
        "import sys, selfkd.cli, selfkd.viewer.commands, selfkd.viewer.browse; "
        "print({'starlette', 'uvicorn', 'jinja2'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_folder_that_is_not_there_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        Folder.at(tmp_path / "none")
