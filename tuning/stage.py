"""Building and measuring for a tuning run: child processes, and contenders that take turns.

Candidates are built here. They are measured on boards: this machine, or others, at the same time.
"""

from __future__ import annotations

import math
import os
import queue
import statistics
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..bench.machine import Machine
from ..bench.roofline import Limits
from ..errors import RpcError, TuningError
from ..formats.spec import MatmulSpec
from ..processes import Worker, WorkerError
from .devices import Row, device_of
from .state import Problem

if TYPE_CHECKING:
    from .search import Search

T = TypeVar("T")

#: Seconds that a build may take, and a check or a turn beside what it should.
BUILD_SECONDS = 30.0
RUN_SECONDS = 20.0
#: Seconds to make the arrays of a problem, and to compute its reference, at most.
PREPARE_SECONDS = 300.0
#: Children that build at once.
BUILDERS = min(4, os.cpu_count() or 1)

#: The class that checks and times kernels, see `processes`.
BENCH = "quantmm.tuning.measure:Bench"

#: The contender that all others are compared with.
DEFAULT = "default"
#: A contender this much slower than the best after some rounds takes part in no more.
HOPELESS, TRIAL_ROUNDS = 1.1, 2
#: Differences below this share count for nothing, however sure they are.
NEGLIGIBLE = 0.003


class Caller(Protocol):
    """Whom methods of a `measure.Bench` are called on: a child here, or a process elsewhere.

    `starts` counts its incarnations: a new one has forgotten what the one before was given.
    """

    starts: int

    @property
    def alive(self) -> bool:
        """Whether the latest incarnation is there."""

    def call(self, method: str, *arguments: Any, seconds: float) -> Any:
        """What the method returns.

        WorkerError where it fails or takes too long, RpcError where there will be no other
        incarnation.
        """

    def close(self) -> None:
        """End it."""


@dataclass(frozen=True, eq=False)
class Board:
    """A machine that measures.

    Attributes
    ----------
    name : for messages.
    """

    name: str
    bench: Caller
    machine: Machine


def this_machine(bench: str = BENCH) -> Board:
    """The board that this process runs on, with a child of this class."""
    return Board("this machine", Worker(bench), Machine())


class Session:
    """The children of a tuning run; to be used in a `with` statement.

    Parameters
    ----------
    boards : of one kind; None is this machine. One that is lost leaves the list.
    """

    def __init__(
        self,
        builder: str = "quantmm.tuning.candidate:Builder",
        boards: Sequence[Board] | None = None,
        build_seconds: float = BUILD_SECONDS,
    ) -> None:
        self.builders = [Worker(builder) for _ in range(BUILDERS)]
        self.boards = list(boards) if boards else [this_machine()]
        self.build_seconds = build_seconds
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self.builders:
            self._free.put(worker)
        self._threads = ThreadPoolExecutor(BUILDERS + len(self.boards))
        self._limits: dict[tuple[str, int], Limits] = {}

    def header(self, target: str | Row, threads: int | None) -> dict[str, Any]:
        """What the records that are made on the boards depend on.

        Raises
        ------
        TargetError
            This machine cannot execute the target's code.
        TuningError
            Boards elsewhere cannot, or differ.
        """
        first, *others = [
            (board, board.machine.header(target, threads)) for board in list(self.boards)
        ]
        for board, header in others:
            if different := differences(first[1], header):
                raise TuningError(
                    f"{first[0].name} and {board.name} differ in {different}; "
                    "give each kind of machine a key of its own"
                )
        return first[1]

    def limits(self, row: Row, threads: int) -> Limits:
        """The boards' limits, measured once, before there are children to share a machine with."""
        if (row.name, threads) not in self._limits:
            self._limits[row.name, threads] = self.on_any(
                lambda board: board.machine.limits(row, threads)
            )
        return self._limits[row.name, threads]

    def tools(self, row: Row) -> dict[str, Any]:
        """What building for a row needs is asked for; see `devices.Device`.

        Raises
        ------
        ToolError
            It is missing.
        """
        return device_of(row).tools(row)

    def search(self, problem: Problem, batch: int) -> Search:
        """What proposes choices for a problem, a batch at a time; it imports TVM."""
        from .search import Search

        return Search(problem.spec, problem.row, problem.m, problem.seed, batch)

    def start(self) -> None:
        """Start the children before they are needed, without waiting for them."""
        for worker in self.builders:
            worker.start()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self.builders:
            worker.close()
        for board in self.boards:
            board.bench.close()

    def build(self, method: str, jobs: Sequence[tuple[Any, ...]]) -> list[bytes | WorkerError]:
        """For each job what the method of a `candidate.Builder` returns, or why it failed."""

        def one(job: tuple[Any, ...]) -> bytes | WorkerError:
            worker = self._free.get()
            try:
                content: bytes = worker.call(method, *job, seconds=self.build_seconds)
                return content
            except WorkerError as error:
                return error
            finally:
                self._free.put(worker)

        return list(self._threads.map(one, jobs))

    def on_each(self, work: Callable[[Board], T]) -> dict[Board, T]:
        """What `work` does on every board, at the same time; those that are lost are left out.

        Raises
        ------
        TuningError
            There is none left.
        """
        futures = {board: self._threads.submit(work, board) for board in self.boards}
        found = {}
        for board, future in futures.items():
            try:
                found[board] = future.result()
            except RpcError as error:
                self._lose(board, error)
        return found

    def on_any(self, work: Callable[[Board], T]) -> T:
        """What `work` does on a board; on another one if that is lost.

        Raises
        ------
        TuningError
            There is none left.
        """
        while True:
            board = self.boards[0]
            try:
                return work(board)
            except RpcError as error:
                self._lose(board, error)

    def _lose(self, board: Board, error: RpcError) -> None:
        """Go on without a board."""
        board.bench.close()
        self.boards.remove(board)
        if not self.boards:
            raise TuningError(
                f"{error}; there is no other server to go on with, and what was measured is in "
                "the log"
            ) from None
        left = ", ".join(each.name for each in self.boards)
        warnings.warn(f"{error}; going on with {left}", RuntimeWarning, stacklevel=3)


def differences(header: dict[str, Any], other: dict[str, Any]) -> str:
    """In which fields two headers differ, in words."""
    return "; ".join(
        f"{name} ({value!r} and {other.get(name)!r})"
        for name, value in header.items()
        if other.get(name) != value
    )


class Stage:
    """The bench with one problem on it, which is put back when a child was lost."""

    def __init__(self, bench: Caller, spec: MatmulSpec, m: int, seed: int, threads: int) -> None:
        self._bench = bench
        self._problem = spec, m, seed, threads
        self._contents: dict[str, bytes] = {}
        self._incarnation = 0
        self._calls = 0

    def load(self, name: str, content: bytes, check: bool = True) -> str | None:
        """Take a kernel file as a contender, if its results are right; else why not."""
        try:
            self._ready()
            seconds = RUN_SECONDS + (PREPARE_SECONDS if check else 0)
            wrong = self._bench.call("load", name, content, check, seconds=seconds)
        except WorkerError as error:
            return str(error)
        if wrong is None:
            self._contents[name] = content
        return None if wrong is None else str(wrong)

    def holds(self, name: str) -> bool:
        """Whether a contender is loaded."""
        return name in self._contents

    def drop(self, name: str) -> None:
        """Forget a contender."""
        if self._contents.pop(name, None) is not None and self._bench.alive:
            self._bench.call("drop", name, seconds=RUN_SECONDS)

    def race(
        self, names: Sequence[str], rounds: int
    ) -> tuple[dict[str, list[float]], dict[str, str]]:
        """Let contenders take turns. Returns seconds per call of each round, and who failed why.

        The default comes first; who is hopeless, or fails, drops out.
        """
        times: dict[str, list[float]] = {name: [] for name in names}
        failed: dict[str, str] = {}
        racing = list(names)
        for number in range(rounds):
            for name in list(racing):
                try:
                    times[name].append(self._turn(name))
                except WorkerError as error:
                    failed[name] = str(error)
                    del times[name]
                    racing.remove(name)
                    self.drop(name)
            if not racing:
                break
            if number + 1 >= TRIAL_ROUNDS:
                least = min(statistics.median(times[name]) for name in racing)
                racing = [
                    name
                    for name in racing
                    if name == DEFAULT or statistics.median(times[name]) < HOPELESS * least
                ]
        return times, failed

    def _turn(self, name: str) -> float:
        self._ready()
        if not self._calls:
            self._calls = self._bench.call("calls_per_turn", name, seconds=RUN_SECONDS)
        return float(self._bench.call("turn", name, self._calls, seconds=RUN_SECONDS))

    def _ready(self) -> None:
        """Have a child with the problem and all contenders."""
        if self._bench.alive and self._bench.starts == self._incarnation:
            return
        self._bench.call("prepare", *self._problem, seconds=PREPARE_SECONDS)
        self._incarnation = self._bench.starts
        for name, content in self._contents.items():
            self._bench.call("load", name, content, False, seconds=RUN_SECONDS)


@dataclass(frozen=True)
class Difference:
    """How one contender's time stands to another's in the same rounds.

    Attributes
    ----------
    log : the median of the logarithm of their ratio; negative is faster.
    noise : the standard error of that median, from the median deviation.
    """

    log: float
    noise: float

    @property
    def ratio(self) -> float:
        """The ratio of the times."""
        return math.exp(self.log)

    @property
    def faster(self) -> bool:
        """Whether it is faster beyond noise."""
        return self.log < -max(NEGLIGIBLE, 2 * self.noise)

    @property
    def slower(self) -> bool:
        """Whether it is slower beyond noise."""
        return self.log > max(NEGLIGIBLE, 2 * self.noise)


def difference(times: Sequence[float], others: Sequence[float]) -> Difference:
    """Compare round by round: what slows the machine down slows both."""
    logs = [math.log(a / b) for a, b in zip(times, others, strict=False)]
    middle = statistics.median(logs)
    deviation = 1.4826 * statistics.median(abs(each - middle) for each in logs)
    return Difference(middle, 1.2533 * deviation / math.sqrt(len(logs)))
