"""The routes of the page: a few HTML shells, and the data behind them as JSON."""

import json
import math
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from selfkd.errors import DataError, SelfkdError, UsageError
from selfkd.viewer.browse import Wanted, browse
from selfkd.viewer.comparison import compare_runs
from selfkd.viewer.lineage import policy_story, prompt_story
from selfkd.viewer.live import folder_stamp, stamp
from selfkd.viewer.shapes import round_shapes
from selfkd.viewer.web.folder import Folder, run_document
from selfkd.viewer.web.guard import Guard

HERE = Path(__file__).parent
PAGE_LIMIT = 200
FIGURES = ("figures", "curves", "rewards", "verbs", "training", "trust", "plots")
DRAWING = ("vendor/d3.min", "vendor/plot.min", *FIGURES)
SCRIPTS = {
    "runs": ("vendor/d3.min", "runs"),
    "run": (*DRAWING, "sample", "run"),
    "samples": ("sample", "samples"),
    "prompt": ("sample", "prompt"),
    "policy": ("sample", "policy"),
    "compare": (*DRAWING, "sample", "compare"),
}
"""Page -> its scripts, after the one that all need."""
TEMPLATES = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=select_autoescape(default=True),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def make_app(folder: Folder, *, hosts: tuple[str, ...] = (), token: str = "") -> Starlette:
    """The page as an ASGI application; see `Guard` for `hosts` and `token`."""
    routes = [
        Route("/", _list_page),
        Route("/compare", _page("compare", "Compare runs")),
        Route("/runs/{run}", _run_page("run")),
        Route("/runs/{run}/samples", _run_page("samples")),
        Route("/runs/{run}/prompts/{prompt:path}", _run_page("prompt")),
        Route("/runs/{run}/policies/{policy}", _run_page("policy")),
        Route("/api/runs", _list_data),
        Route("/api/compare", _compare_data),
        Route("/api/runs/{run}", _run_data(lambda path, _: run_document(path))),
        Route("/api/runs/{run}/shapes", _run_data(lambda path, _: round_shapes(path))),
        Route("/api/runs/{run}/samples", _run_data(_samples)),
        Route("/api/runs/{run}/prompts/{prompt:path}", _run_data(_prompt)),
        Route("/api/runs/{run}/policies/{policy}", _run_data(_policy)),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ]
    guard = Middleware(Guard, hosts=hosts, token=token)  # type: ignore[arg-type]
    handlers: dict[Any, Any] = {SelfkdError: _explain, OSError: _explain_gone}
    app = Starlette(routes=routes, middleware=[guard], exception_handlers=handlers)
    app.state.folder = folder
    app.state.born = secrets.token_hex(4)
    return app


# -- pages ----------------------------------------------------------------------------------------


def _render(request: Request, script: str, title: str, run: str = "") -> Response:
    folder: Folder = request.app.state.folder
    scripts = ("dom", *SCRIPTS[script])
    facts = {"script": script, "scripts": scripts, "title": title, "run": run}
    facts |= {"folder": str(folder.path)}
    return HTMLResponse(TEMPLATES.get_template("page.html").render(facts))


def _list_page(request: Request) -> Response:
    folder: Folder = request.app.state.folder
    if folder.only:
        return RedirectResponse(f"/runs/{folder.only}", 303)
    return _render(request, "runs", "Runs")


def _page(script: str, title: str) -> Callable[[Request], Response]:
    return lambda request: _render(request, script, title)


def _run_page(script: str) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        name = request.path_params["run"]
        request.app.state.folder.run(name)
        return _render(request, script, name, name)

    return answer


# -- data -----------------------------------------------------------------------------------------


def _list_data(request: Request) -> Response:
    folder: Folder = request.app.state.folder
    return _fresh(request, folder_stamp(folder.path), folder.listing)


def _run_data(read: Callable[[Path, Request], Any]) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        path = request.app.state.folder.run(request.path_params["run"])
        return _fresh(request, stamp(path), lambda: read(path, request))

    return answer


def _compare_data(request: Request) -> Response:
    names = request.query_params.getlist("run")
    paths = [request.app.state.folder.run(name) for name in dict.fromkeys(names)]
    return _fresh(request, "-".join(map(stamp, paths)), lambda: compare_runs(paths))


def _samples(path: Path, request: Request) -> Any:
    asked = request.query_params
    wanted = Wanted(
        label=asked.get("label", ""),
        prompt=asked.get("prompt", ""),
        policy=asked.get("policy", ""),
        kept={"kept": True, "dropped": False}.get(asked.get("decision", "")),
        reason=asked.get("reason", ""),
        status=asked.get("status", ""),
        low=_number(request, "low"),
        high=_number(request, "high"),
        text=asked.get("text", "")[:1000],
        order=asked.get("order", "recorded"),  # type: ignore[arg-type]
    )
    offset, limit = (_number(request, key) for key in ("offset", "limit"))
    limit = min(PAGE_LIMIT, max(1, int(50 if limit is None else limit)))
    number = int(_number(request, "round") or 0)
    return browse(path, number, wanted, offset=max(0, int(offset or 0)), limit=limit)


def _prompt(path: Path, request: Request) -> Any:
    return prompt_story(path, request.path_params["prompt"])


def _policy(path: Path, request: Request) -> Any:
    offset = max(0, int(_number(request, "offset") or 0))
    return policy_story(path, request.path_params["policy"], offset=offset)


def _number(request: Request, key: str) -> float | None:
    text = request.query_params.get(key, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{key} is {text[:40]!r}, which is not a number")
    return value


def _fresh(request: Request, mark: str, read: Callable[[], Any]) -> Response:
    """What `read` gives as JSON, or 304 where the browser has it already."""
    tag = f'"{mark}-{request.app.state.born}"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"ETag": tag})
    body = json.dumps(finite(read()), allow_nan=False)
    return Response(body, media_type="application/json", headers={"ETag": tag})


def finite(value: Any) -> Any:
    """`value` as JSON can say it: NaN and infinity are null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value if isinstance(value, str | int | bool | None) else str(value)


# -- errors ---------------------------------------------------------------------------------------


def _explain(request: Request, error: Exception) -> Response:
    """An expected error in words: 404 for what is not there, 409 for a damaged record."""
    status = 409 if isinstance(error, DataError) else 404
    return _error(request, status, str(error))


def _explain_gone(request: Request, error: Exception) -> Response:
    """A file that went away while it was read: the run was moved or deleted."""
    return _error(request, 404, "the run changed while it was read; it may have been deleted")


def _error(request: Request, status: int, message: str) -> Response:
    if request.url.path.startswith("/api/"):
        body = json.dumps({"error": message})
        return Response(body, status, media_type="application/json")
    page = TEMPLATES.get_template("error.html").render(message=message)
    return HTMLResponse(page, status)
