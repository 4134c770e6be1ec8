"""A server of TVM's RPC that measures for others, and the tracker that knows servers.

TVM's server forks a process for every session. That one has children (see `processes`) and calls
methods of theirs: a kernel that crashes or hangs costs a child, not the session or the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import multiprocessing
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator

from ..errors import RpcError, ToolError
from ..extras import install
from ..processes import Worker, WorkerError, end_with_parent
from ..runtime.tvm_runtime import tvm_ffi, without_torch
from .messages import identity, packed, unpacked
from .rpc import ASK, HELLO
from .tracker import Address, check_key, connected

#: A session says after this many seconds that it is still at work.
POLL_SECONDS = 1.0
#: Seconds before a server that failed is started again.
AGAIN_SECONDS = 1.0
#: After how many seconds of silence the other end's machine is asked if it is there, how often,
#: and how many times it may be silent then. Connections inherit this from the socket that listens.
KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


class Children:
    """The children of a session, by the class of the object that they hold."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}
        self._requests: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        # Nobody waits for it when the session ends, which may be in the middle of a call.
        threading.Thread(target=self._work, daemon=True).start()

    def ask(self, request: str) -> str:
        """Begin what is asked for, if anything; the answer, or nothing where it takes longer.

        So both sides hear of each other while a call lasts, and notice when the other is gone.
        """
        if request:
            self._requests.put(request)
        try:
            return self._answers.get(timeout=POLL_SECONDS)
        except queue.Empty:
            return ""

    def _work(self) -> None:
        while True:
            self._answers.put(self._answer(self._requests.get()))

    def _answer(self, request: str) -> str:
        starts, alive = 0, False
        try:
            asked = unpacked(request)
            worker = self._workers.setdefault(asked["place"], Worker(asked["place"]))
            method, arguments = asked["call"]
            try:
                fine, answer = True, worker.call(method, *arguments, seconds=asked["seconds"])
            except WorkerError as error:
                fine, answer = False, str(error)
            starts, alive = worker.starts, worker.alive
            return packed({"starts": starts, "alive": alive, "fine": fine, "answer": answer})
        # Without an answer the other side would ask for ever: a target that only it knows, say.
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            return packed({"starts": starts, "alive": alive, "fine": False, "answer": said})


@functools.cache
def children() -> Children:
    """The children of this process, which serves one session."""
    end_with_parent()
    return Children()


def serve(
    tracker: Address,
    key: str,
    host: str | None = None,
    port: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Measure for whoever asks a tracker for a server with this key, one session after the other.

    Parameters
    ----------
    host, port : where to listen; by default at the address from which the tracker is reached, and
        at any port that is free.
    say : is told what happens.

    Raises
    ------
    RpcError
        The tracker does not answer, the address cannot be listened at, or `key` is none.
    """
    check_key(key)
    with without_torch():
        from tvm.rpc import server
    with connected(tracker) as connection:
        reached_from = connection.getsockname()[0]
    tvm_ffi.register_global_func(HELLO, lambda: packed(identity()))
    tvm_ffi.register_global_func(ASK, lambda request: children().ask(str(request)))
    home = os.getcwd()
    with listening(host or reached_from, port) as (sock, address):
        say(f"serving {key!r} at {address} for the tracker at {tracker}")
        try:
            while True:
                try:
                    # Not `tvm.rpc.Server`: its process outlives this one when this one is killed,
                    # and stays deaf once a session's process has failed.
                    server._listen_loop(
                        sock, address.port, key, (tracker.host, tracker.port), None, None
                    )
                except RuntimeError as error:
                    say(f"{error}; serving again")
                    # It left the process in the folder of the session, which is gone.
                    os.chdir(home)
                    time.sleep(AGAIN_SECONDS)
        finally:
            for session in multiprocessing.active_children():
                session.kill()


def track(host: str, port: int, say: Callable[[str], None] = lambda _: None) -> None:
    """Know the servers that say so, and give them to who asks.

    Parameters
    ----------
    host, port : where to listen; port 0 is any that is free.
    say : is told where that is.

    Raises
    ------
    RpcError
        The address cannot be listened at.
    ToolError
        tornado is not installed.
    """
    try:
        with without_torch():
            from tvm.rpc import base, tracker
    except ImportError:
        raise ToolError(f"a tracker needs tornado: {install('rpc')}") from None
    with listening(host, port) as (sock, address):
        say(f"tracker at {address}")
        asyncio.set_event_loop(asyncio.new_event_loop())
        # Not `tvm.rpc.tracker.Tracker`, whose process outlives this one when this one is killed.
        tracker.TrackerServerHandler(sock, base.random_key("tracker")).run()


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[tuple[socket.socket, Address]]:
    """A socket that listens, and where.

    Raises
    ------
    RpcError
        That cannot be.
    """
    try:
        family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.create_server(where[:2], family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RpcError(f"cannot listen at {host}:{port}: {reason}") from None
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEP_ALIVE.items():
            if hasattr(socket, name):  # macOS has not all of them
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        yield sock, Address(*sock.getsockname()[:2])
