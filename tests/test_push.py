"""The card of each policy, and its way to a hub: a local one that records what it gets."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from selfkd.errors import DataError, InfrastructureError, UsageError
from selfkd.metrics import round_rows
from selfkd.modelcard import model_card
from selfkd.push import prepare, push
from tests.fakes import ScriptedRun, play_script, scripted_run
from tests.testbed.addition import write_prompts


@pytest.fixture
def run(tmp_path: Path) -> ScriptedRun:
    """Two rounds of ReST-EM on a scripted model, with held-out prompts."""
    sums = write_prompts(tmp_path / "sums.jsonl", [(i, 1) for i in range(6)])
    prompts = {"source": str(sums), "fresh": False, "heldout": 2}
    run = scripted_run(
        tmp_path, sums, lambda policy, text, k: f"{k};{int(text.split('+')[0]) + 1}",
        rounds=2, samples_per_prompt=2, prompts=prompts, on_no_signal="continue",
    )  # fmt: skip
    play_script(run)
    return run


def test_every_policy_has_a_card_with_the_figures_of_its_rounds(run):
    rows = round_rows(run.ledger.path)
    for number in (1, 2):
        card = (run.ledger.path / "policies" / f"round-{number:03d}" / "README.md").read_text()
        front = yaml.safe_load(card.split("---\n")[1])
        assert front["library_name"] == "transformers" and "base_model" not in front
        assert "trained on its own outputs" in card
        assert "arxiv.org/abs/2312.06585" in card and "finished \\| correct \\| unique" in card
        shown = re.findall(r"^\| (\d) \| ([\d.]+) \| ([\d.]+)", card, re.MULTILINE)
        assert [int(r) for r, _, _ in shown] == list(range(number + 1))
        assert float(shown[1][1]) == pytest.approx(rows[1]["reward_mean"], abs=5e-4)
        assert float(shown[1][2]) == pytest.approx(rows[1]["heldout_reward"], abs=5e-4)
        assert str(run.ledger.path.parent) not in card  # no path of this machine


def test_a_card_takes_text_of_a_run_as_text(run):
    file = run.ledger.path / "run.yaml"
    config = yaml.safe_load(file.read_text())
    config |= {"model": "org/model", "judge": "a | b\n# c <img src=x>"}
    file.write_text(yaml.safe_dump(config))
    card = model_card(run.ledger.path, 1)
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == "org/model"
    assert "\n# c" not in card and "`a \\| b # c <img src=x>`" in card


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as a push of small files needs."""

    repos: ClassVar[dict[str, Any]]
    files: ClassVar[dict[str, bytes]]
    refuse = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.refuse:
            return self._answer({"error": "Invalid username or password."}, 401)
        if self.path.endswith("/repos/create"):
            asked = json.loads(body)
            self.repos[asked["name"]] = asked
            return self._answer({"url": f"http://{self.headers['Host']}/me/{asked['name']}"})
        if self.path.endswith("/validate-yaml"):
            return self._answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            names = [f["path"] for f in json.loads(body)["files"]]
            known = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return self._answer({"files": [{"path": name, **known} for name in names]})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.files[value["path"]] = base64.b64decode(value["content"])
            done = {
                "commitUrl": f"http://{self.headers['Host']}/me/tiny/commit/0",
                "commitOid": "0" * 40,
                "pullRequestUrl": None,
            }
            return self._answer(done)
        return self._answer({}, 404)

    do_GET = do_POST

    def _answer(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on this machine, which `HfApi` talks to."""
    import huggingface_hub.constants

    class Own(Hub):
        repos: ClassVar[dict[str, Any]] = {}
        files: ClassVar[dict[str, bytes]] = {}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", "not-a-real-token")
    yield Own
    server.shutdown()
    server.server_close()


def test_a_push_sends_the_files_and_a_fresh_card(run, hub):
    upload = prepare(run.ledger.path, "me/tiny", 1)
    push(upload)
    folder = run.ledger.path / "policies" / "round-001"
    assert hub.repos["tiny"]["organization"] == "me"
    assert hub.repos["tiny"]["visibility"] == "private"
    assert hub.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert hub.files["README.md"].decode() == model_card(run.ledger.path, 1)
    assert "MANIFEST.json" not in hub.files  # it holds training text


def test_a_hub_that_refuses_is_told_with_what_to_do(run, hub):
    hub.refuse = True
    with pytest.raises(InfrastructureError, match=r"did not take it.*HF_TOKEN"):
        push(prepare(run.ledger.path, "me/tiny", 1))


def test_what_cannot_be_pushed_is_refused_before_anything_is_sent(run):
    path = run.ledger.path
    assert prepare(path, "me/tiny").policy == "round-2"  # no end on record: the newest
    run.ledger.event("run_finished", seconds=1.0, reason="", best="round-1")
    assert prepare(path, "me/tiny").policy == "round-1"
    with pytest.raises(UsageError, match="OWNER/NAME"):
        prepare(path, "tiny")
    with pytest.raises(UsageError, match=r"no policy round-7 was trained.*1, 2"):
        prepare(path, "me/tiny", 7)
    (path / "policies" / "round-001" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(DataError, match="does not match the manifest"):
        prepare(path, "me/tiny", 1)
    run.ledger.event("run_finished", seconds=1.0, reason="", best="base")
    with pytest.raises(UsageError, match="nothing better than its base"):
        prepare(path, "me/tiny")
