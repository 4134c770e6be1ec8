"""Machines elsewhere, through TVM's RPC: a tracker knows servers by a key, this process holds some.

A connection lives in a child process, because a call of TVM's RPC waits for its answer however long
that takes, and what is at the other end may be gone. Over it go `messages`; what the other side
does is in `server`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

from ..bench.contenders import CONTENDERS, Job
from ..bench.machine import Machine
from ..bench.process import READY_SECONDS, TURN_SECONDS
from ..bench.roofline import Limits
from ..bench.row import Row
from ..errors import RpcError
from ..processes import Worker, WorkerError
from ..runtime.tvm_runtime import without_torch
from ..targets import CudaTarget, Target
from .messages import identity, packed, unpacked
from .stage import BENCH, Board, Session
from .tracker import Address, ask_tracker, check_key, free_servers

#: Functions that a server has registered.
HELLO, ASK = "quantmm.hello", "quantmm.ask"
MACHINE = "quantmm.bench.machine:Machine"

#: Seconds for a server to accept.
ACCEPT_SECONDS = 20.0
#: A server that works says so every now and then, see `server.POLL_SECONDS`; one that does not for
#: this long is lost.
SILENCE_SECONDS = 30.0
#: Seconds for what a machine is asked, and to measure its limits, at most.
QUESTION_SECONDS, LIMITS_SECONDS = 60.0, 300.0


class Link:
    """A session with a server, in the child process that this object lives in."""

    def __init__(self) -> None:
        with without_torch():
            from tvm import rpc
        self._rpc = rpc
        self._ask: Callable[[str], Any] | None = None

    def open(self, host: str, port: int, match: str) -> str:
        """Take the server that the tracker named. Returns its `identity`, packed."""
        session = self._rpc.connect(host, port, match)
        try:
            hello = session.get_function(HELLO)
            self._ask = session.get_function(ASK)
        except AttributeError:
            raise ValueError("it is a server without quantmm") from None
        return str(hello())

    def ask(self, request: str) -> str:
        """What `server.Children.ask` answers."""
        assert self._ask is not None
        try:
            return str(self._ask(request))
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[-1]
            raise ConnectionError(f"the connection ended ({reason})") from None


class Remote:
    """Whom methods are called on: an object of the class `place` in a child of a server.

    It has a time limit as a child here has; one that dies is replaced.
    """

    def __init__(self, name: str, link: Worker, place: str) -> None:
        self.name, self.place = name, place
        self.starts = 0
        self.alive = False
        self._link = link

    def call(self, method: str, *arguments: Any, seconds: float) -> Any:
        """What the method returns, within a time.

        Raises
        ------
        WorkerError
            The method raised an error, the server's child ended, or the time was over.
        RpcError
            The server is gone.
        """
        request = packed({"place": self.place, "call": [method, arguments], "seconds": seconds})
        try:
            text = self._link.call("ask", request, seconds=SILENCE_SECONDS)
            while not text:
                text = self._link.call("ask", "", seconds=SILENCE_SECONDS)
        except WorkerError as error:
            self.close()
            raise RpcError(f"server {self.name} was lost: {error}") from None
        answer = unpacked(text)
        self.starts, self.alive = answer["starts"], answer["alive"]
        if not answer["fine"]:
            raise WorkerError(answer["answer"])
        return answer["answer"]

    def close(self) -> None:
        """End the session with the server, whose children end with it."""
        self.alive = False
        self._link.close()


class RemoteMachine(Machine):
    """A machine elsewhere."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    def _call(self, method: str, *arguments: Any, seconds: float = QUESTION_SECONDS) -> Any:
        try:
            return self._remote.call(method, *arguments, seconds=seconds)
        except WorkerError as error:
            raise WorkerError(f"server {self._remote.name}: {error}") from None

    def default_threads(self) -> int:
        """Threads of a call that does not say."""
        return int(self._call("default_threads"))

    def describe(self) -> dict[str, Any]:
        """What machine it is, the software on it, and how busy it is, as JSON types."""
        return dict(self._call("describe"))

    def why_not(self, target: str) -> str | None:
        """Why it cannot execute a target's code; None when it can."""
        reason: str | None = self._call("why_not", target)
        return reason

    def header(self, target: str | Target | CudaTarget, threads: int | None) -> dict[str, Any]:
        """What a record that is made on it now depends on."""
        return dict(self._call("header", target, threads))

    def limits(self, row: Target | CudaTarget, threads: int) -> Limits:
        """Its limits, measured."""
        found: Limits = self._call("limits", row, threads, seconds=LIMITS_SECONDS)
        return found

    def compare(self, job: Job, against: Collection[str], rounds: int) -> Row:
        """Measure one shape of one format on it."""
        seconds = (len(CONTENDERS) + 2) * (READY_SECONDS + rounds * TURN_SECONDS)
        found: Row = self._call("compare", job, list(against), rounds, seconds=seconds)
        return found


def connect(rpc: str, key: str, most: int | None = None, bench: str = BENCH) -> list[Board]:
    """Take all servers that are free under a key, or at most so many.

    Parameters
    ----------
    rpc : "HOST:PORT" of their tracker.
    bench : the class that checks and times kernels there.

    Raises
    ------
    RpcError
        There are none, or one does not fit.
    """
    tracker = Address.of(rpc)
    check_key(key)
    free = free_servers(tracker, key)
    links = [Worker("quantmm.tuning.rpc:Link") for _ in range(min(free, most or free))]
    for link in links:
        link.start()
    boards: list[Board] = []
    try:
        for link in links:
            name = take(tracker, key, link)
            machine = RemoteMachine(Remote(name, link, MACHINE))
            boards.append(Board(name, Remote(name, link, bench), machine))
    except BaseException:
        for link in links:
            link.close()
        raise
    return boards


def take(tracker: Address, key: str, link: Worker) -> str:
    """Take a server that is free. Returns its address.

    Raises
    ------
    RpcError
        It does not answer, or has another version of quantmm, TVM or schedules.
    """
    with without_torch():
        from tvm.rpc.base import TrackerCode
    host, port, match = ask_tracker(tracker, TrackerCode.REQUEST, key, "", 1)
    name = str(Address(host, port))
    try:
        there = unpacked(link.call("open", host, port, match, seconds=ACCEPT_SECONDS))
    except WorkerError as error:
        raise RpcError(f"server {name} cannot be used: {error}") from None
    here = identity()
    different = [
        f"{what} {there.get(what)}, here {value}"
        for what, value in here.items()
        if there.get(what) != value
    ]
    if different:
        raise RpcError(f"server {name} has {'; '.join(different)}; install the same on both")
    return name


def wanted(rpc: str | None, key: str | None) -> bool:
    """Whether servers are asked for.

    Raises
    ------
    RpcError
        By half: a tracker without a key, or a key without a tracker.
    """
    if rpc is not None and key is None:
        raise RpcError(f"rpc is {rpc!r} and there is no key; give the one that the servers have")
    if rpc is None and key is not None:
        raise RpcError(f"key is {key!r} and there is no rpc; give the tracker's HOST:PORT")
    return rpc is not None


def session_for(rpc: str | None, key: str | None) -> Session:
    """Children for a run that measures on servers, or with neither argument on this machine.

    Raises
    ------
    RpcError
        See `connect`.
    """
    if not wanted(rpc, key):
        return Session()
    assert rpc is not None
    assert key is not None
    return Session(boards=connect(rpc, key))


@contextlib.contextmanager
def machine_for(rpc: str | None, key: str | None) -> Iterator[Machine]:
    """A server's machine, or with neither argument this one.

    Raises
    ------
    RpcError
        See `connect`.
    """
    if not wanted(rpc, key):
        yield Machine()
        return
    assert rpc is not None
    assert key is not None
    (board,) = connect(rpc, key, most=1)
    try:
        yield board.machine
    finally:
        board.bench.close()
