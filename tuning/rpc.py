"""Machines elsewhere, through TVM's RPC: a tracker knows servers by a key, this process holds some.

A connection lives in a child process, because a call of TVM's RPC waits for its answer however long
that takes, and what is at the other end may be gone. Over it goes text, JSON with a few types more
(`packed`); nothing that is received is executed. What the other side does is in `server`.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

from .. import targets
from ..bench.contenders import CONTENDERS, Job
from ..bench.machine import Machine
from ..bench.process import READY_SECONDS, TURN_SECONDS
from ..bench.roofline import Limits
from ..bench.row import Row
from ..errors import RpcError
from ..formats.spec import MatmulSpec
from ..processes import Worker, WorkerError
from ..runtime.tvm_runtime import without_torch
from ..targets import Target
from ..versions import VERSION, versions
from .stage import BENCH, Board, Session

#: Functions that a server has registered.
HELLO, ASK = "quantmm.hello", "quantmm.ask"
MACHINE = "quantmm.bench.machine:Machine"

#: Seconds for a tracker to answer, for it to have a free server, and for that to accept.
TRACKER_SECONDS, FREE_SECONDS, ACCEPT_SECONDS = 5.0, 5.0, 20.0
#: A server that works says so every now and then, see `server.POLL_SECONDS`; one that does not for
#: this long is lost.
SILENCE_SECONDS = 30.0
#: Seconds for what a machine is asked, and to measure its limits, at most.
QUESTION_SECONDS, LIMITS_SECONDS = 60.0, 300.0

#: Types that JSON has not: their names, and how they are written and read.
SENT: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "bytes": (bytes, lambda value: base64.b64encode(value).decode(), base64.b64decode),
    "spec": (MatmulSpec, MatmulSpec.to_json, MatmulSpec.from_json),
    "target": (Target, lambda row: row.name, targets.find_cpu),
    "job": (Job, Job.to_dict, Job.from_dict),
    "row": (Row, Row.to_dict, Row.from_dict),
    "limits": (Limits, dataclasses.asdict, lambda fields: Limits(**fields)),
}
PREFIX = "quantmm."


def packed(value: Any) -> str:
    """A value as text."""

    def written(each: Any) -> dict[str, Any]:
        for name, (kind, write, _) in SENT.items():
            if isinstance(each, kind):
                return {PREFIX + name: write(each)}
        raise TypeError(f"a {type(each).__name__} cannot be sent")

    return json.dumps(value, default=written)


def unpacked(text: str) -> Any:
    """The inverse of `packed`."""

    def read(fields: dict[str, Any]) -> Any:
        name = next(iter(fields), "").removeprefix(PREFIX)
        if len(fields) == 1 and PREFIX + name in fields and name in SENT:
            return SENT[name][2](fields[PREFIX + name])
        return fields

    return json.loads(text, object_hook=read)


def identity() -> dict[str, str]:
    """What must be the same at both ends."""
    return {"quantmm": VERSION, **versions()}


@dataclasses.dataclass(frozen=True)
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

    def header(self, target: str | Target, threads: int | None) -> dict[str, Any]:
        """What a record that is made on it now depends on."""
        return dict(self._call("header", target, threads))

    def limits(self, row: Target, threads: int) -> Limits:
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
