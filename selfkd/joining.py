"""Before joining a Ray cluster: what Ray would find out late, or not say."""

import os
import socket

from selfkd.errors import InfrastructureError, UsageError


def approach(address: str) -> None:
    """See that `auto` or host:port can be joined; a UsageError or InfrastructureError if not."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "")
    if ":" in address:  # else Ray looks for one on this machine, and shows it the token itself
        _refuse_client(address)
        check_reachable(address)
        _offer_token(address)


def _refuse_client(address: str) -> None:
    """Ray's client cannot stream results out of an actor, nor see the files of this machine."""
    if address.startswith("ray://"):
        raise UsageError(
            f"cannot drive a run through Ray's client ({address})",
            where="cluster.address",
            remedy="run selfkd on a node of the cluster with cluster=auto, as by `ray job submit`",
        )


def check_reachable(address: str, seconds: float = 10) -> None:
    """Try the port first: Ray itself waits for minutes on an address that nobody answers."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=seconds).close()
    except OSError as error:
        raise InfrastructureError(
            f"nothing answers at Ray address {address} ({error.strerror or error})",
            where="cluster.address",
            remedy="start the cluster, or pass --local to run on this machine alone",
        ) from error


def _offer_token(address: str) -> None:
    """Show a cluster that wants one the user's token, if it is on this machine.

    Ray starts clusters that want it, and by itself shows it to none that is named by its address,
    because that may be anybody's.
    """
    if "RAY_AUTH_MODE" in os.environ or not _wants_token(address):
        return
    from ray._private.authentication.authentication_token_setup import (
        maybe_enable_token_auth_if_token_available,
    )

    try:
        with socket.socket() as own:
            own.bind((address.rpartition(":")[0], 0))
    except OSError as error:
        raise InfrastructureError(
            f"the Ray cluster at {address} wants a token, and is on another machine",
            where="cluster.address",
            remedy="set RAY_AUTH_MODE=token to show it yours",
        ) from error
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _wants_token(address: str) -> bool:
    """Whether the cluster at host:port turns away who has none."""
    import grpc

    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            ask(b"", timeout=10)
        except grpc.RpcError as error:
            return error.code() == grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
    return False
