"""A headless Chromium, driven by its own protocol (no package brings one), and pages for it."""

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from selfkd.viewer.web.app import make_app
from selfkd.viewer.web.folder import Folder
from selfkd.viewer.web.serve import listen

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # it only opens pages of these tests, and refuses to run as root with one
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no name is ever looked up
    "--remote-debugging-port=0",
)


def find_browser() -> str | None:
    """The path of a Chromium on this machine."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


NAVIGATED = "Inspected target navigated or closed"


class Navigated(Exception):
    """The tab went to another page before it could answer."""


class Page:
    """One tab: opens addresses, evaluates JavaScript, and collects what went wrong."""

    def __init__(self, socket: ClientConnection, session: str) -> None:
        self.socket, self.session = socket, session
        self.ids = itertools.count(1)
        self.problems: list[str] = []
        """Console errors, uncaught exceptions, dialogs and violations of the content policy."""
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer, noting events meanwhile."""
        number = next(self.ids)
        message = {"id": number, "method": method, "params": parameters}
        self.socket.send(json.dumps(message | {"sessionId": self.session}))
        while True:
            answer = json.loads(self.socket.recv(timeout=60))
            if answer.get("sessionId") != self.session:
                continue  # of a tab that another test has left
            if answer.get("id") == number:
                if answer.get("error", {}).get("message") == NAVIGATED:
                    raise Navigated
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _note(self, event: str, facts: dict[str, Any]) -> None:
        if event == "Log.entryAdded" and facts["entry"]["level"] == "error":
            entry = facts["entry"]
            self.problems.append(f"{entry['text']} {entry.get('url', '')}")
        elif event == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning"):
            self.problems.append(json.dumps(facts["args"]))
        elif event == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(facts["exceptionDetails"]))
        elif event == "Page.javascriptDialogOpening":
            self.problems.append(f"dialog: {facts['message']}")
        elif event == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = 20) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(Navigated):  # to where it may be true
                if self.evaluate(f"Boolean({expression})"):
                    return
            time.sleep(0.05)
        text = self.evaluate("document.body.innerText.slice(0, 2000)")
        raise AssertionError(f"never true: {expression}\n{text}\n{self.problems}")

    def open(self, url: str, ready: str = "true") -> None:
        """Go to an address and wait until `ready` is true there."""
        self.call("Page.navigate", url=url)
        self.wait(
            f"location.href !== 'about:blank' && document.readyState === 'complete' && ({ready})"
        )

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """The size of the window in CSS pixels, and the colour scheme it prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def fill(self, selector: str, value: str) -> None:
        """Give a field of a form a value, as a person would."""
        field = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{field}.value = {json.dumps(value)}")
        for event in ("input", "change"):
            self.evaluate(f"{field}.dispatchEvent(new Event('{event}'))")

    def press(self, key: str) -> None:
        """One key, as from a keyboard."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if kind == "keyDown" and len(key) == 1 else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, **text)

    def screenshot(self, path: Path) -> None:
        """What is seen, as a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a page that serves `folder` from a thread of its own."""
    import uvicorn

    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(make_app(Folder.at(folder)), log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(timeout=10)


@contextlib.contextmanager
def chromium(path: str) -> Iterator[Callable[[], Page]]:
    """A running browser, as a function that opens a tab."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [path, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with connect(_address(Path(profile), process), max_size=None) as socket:
                yield lambda: _new_page(socket)
        finally:
            process.terminate()
            process.wait(timeout=20)


def _address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    file = profile / "DevToolsActivePort"
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert process.poll() is None, f"the browser ended with code {process.returncode}"
        if file.exists() and len(lines := file.read_text().splitlines()) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.05)
    raise AssertionError("the browser did not start within a minute")


def _new_page(socket: ClientConnection) -> Page:
    def ask(number: int, method: str, **parameters: Any) -> dict[str, Any]:
        socket.send(json.dumps({"id": -number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(socket.recv(timeout=60))
            if answer.get("id") == -number:
                return answer["result"]

    target = ask(1, "Target.createTarget", url="about:blank")["targetId"]
    found = ask(2, "Target.attachToTarget", targetId=target, flatten=True)
    return Page(socket, found["sessionId"])
