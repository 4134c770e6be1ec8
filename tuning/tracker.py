"""A tracker of TVM's RPC, which knows servers by a key."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import RpcError
from ..runtime.tvm_runtime import without_torch

#: Seconds for a tracker to answer, and for it to have a free server.
TRACKER_SECONDS, FREE_SECONDS = 5.0, 5.0


@dataclass(frozen=True)
class Address:
    """Where a tracker or a server is."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @classmethod
    def of(cls, text: str) -> Address:
        """The address in a text.

        Raises
        ------
        RpcError
            There is none.
        """
        host, _, port = text.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
            raise RpcError(f"{text!r} is no address; expected HOST:PORT such as board.local:9190")
        return cls(host.strip("[]"), int(port))


def check_key(key: str) -> None:
    """Refuse a key that TVM's RPC would not find again.

    Raises
    ------
    RpcError
        It is empty, or has spaces, at which TVM cuts it.
    """
    if key.split() != [key]:
        raise RpcError(f"key {key!r} cannot be; expected a word such as pi5")


@contextlib.contextmanager
def connected(tracker: Address) -> Iterator[socket.socket]:
    """A connection with a tracker.

    Raises
    ------
    RpcError
        There is no tracker, or it does not answer in time.
    """
    with without_torch():
        from tvm.rpc import base
    magic = struct.pack("<i", base.RPC_TRACKER_MAGIC)
    try:
        with socket.create_connection((tracker.host, tracker.port), TRACKER_SECONDS) as connection:
            connection.sendall(magic)
            if base.recvall(connection, len(magic)) != magic:
                raise RpcError(f"what answers at {tracker} is no tracker of TVM's RPC")
            yield connection
    except OSError as error:
        reason = error.strerror or str(error)
        raise RpcError(
            f"no tracker answers at {tracker}: {reason}; `quantmm tracker` starts one"
        ) from None


def ask_tracker(tracker: Address, *message: Any) -> Any:
    """What a tracker answers.

    Raises
    ------
    RpcError
        See `connected`; or it refuses.
    """
    with without_torch():
        from tvm.rpc import base
    with connected(tracker) as connection:
        base.sendjson(connection, message)
        code, answer = base.recvjson(connection)
    if code != base.TrackerCode.SUCCESS:
        raise RpcError(f"the tracker at {tracker} refuses: {answer}")
    return answer


def free_servers(tracker: Address, key: str) -> int:
    """How many servers are free under a key, at least one.

    A server that was just started, or just released, takes a moment to say so.

    Raises
    ------
    RpcError
        There is none.
    """
    with without_torch():
        from tvm.rpc.base import TrackerCode
    deadline = time.monotonic() + FREE_SECONDS
    while True:
        summary = ask_tracker(tracker, TrackerCode.SUMMARY)
        if free := summary["queue_info"].get(key, {}).get("free", 0):
            return int(free)
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    keys = [server["key"].removeprefix("server:") for server in summary["server_info"]]
    if key in keys:
        raise RpcError(f"all {keys.count(key)} servers with key {key!r} at {tracker} are busy")
    there = ", ".join(sorted(set(keys))) or "none"
    raise RpcError(
        f"the tracker at {tracker} has no server with key {key!r}, its keys: {there}; "
        f"`quantmm serve --tracker {tracker} --key {key}` starts one"
    )
