"""Starts the page: finds a port, says where it is, and serves until it is interrupted."""

import contextlib
import errno
import secrets
import socket
import webbrowser
from pathlib import Path

from selfkd.errors import InfrastructureError
from selfkd.viewer.web.folder import Folder
from selfkd.viewer.web.guard import is_loopback, own_names

PORT = 8642
TRIES = 20


def serve(path: Path, *, host: str = "127.0.0.1", port: int = PORT, browser: bool = False) -> None:
    """Serve the runs of a folder, or one run, at `host`; port 0 is any free one.

    A port in use is passed over for the next free one. Beyond this machine a token is needed,
    which is part of the address that is printed. Returns on Ctrl-C.
    """
    import uvicorn

    from selfkd.viewer.web.app import make_app

    folder = Folder.at(path)
    listener = listen(host, port)
    token = "" if is_loopback(host) else secrets.token_urlsafe(24)
    app = make_app(folder, hosts=tuple(own_names(host)), token=token)
    address = _address(host, listener.getsockname()[1], token)
    print(f"{_shown(folder)}\n  {address}\nCtrl-C ends it.", flush=True)
    if browser:
        webbrowser.open(address)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket at `port`, or at the next free one.

    Raises InfrastructureError where none of the next ports is free, or `host` is not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in range(port, port + (TRIES if port else 1)):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, number))
            listener.listen(128)
            return listener
        except (OSError, OverflowError) as error:
            listener.close()
            if getattr(error, "errno", None) != errno.EADDRINUSE:
                raise _cannot(host, number, error) from error
    raise _cannot(host, port, f"ports {port} to {port + TRIES - 1} are in use")


def _cannot(host: str, port: int, reason: object) -> InfrastructureError:
    where, remedy = f"--host {host} --port {port}", "name another, or --port 0 for any free one"
    return InfrastructureError(f"cannot listen there: {reason}", where=where, remedy=remedy)


def _address(host: str, port: int, token: str) -> str:
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")


def _shown(folder: Folder) -> str:
    return f"the run {folder.path / folder.only}" if folder.only else f"the runs in {folder.path}"
