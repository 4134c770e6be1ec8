"""On which threads a kernel's loops run, and on how many.

They run on the program's OpenMP threads where there are any (`hosts`), else on workers of our own
that the whole process shares; `launch.ll` has both. A call says how many threads it may use, takes
as many of them as its work is worth, and tells the launcher by a value of its own thread.
"""

from __future__ import annotations

import functools
import math
import operator
import os
import sys
import threading
import warnings
import weakref
from dataclasses import dataclass, field
from typing import Any

from ..errors import ArrayError
from ..targets import physical_cores
from . import hosts, launcher
from .forks import ForkLock, in_forked_children

#: The most threads that a call may ask for; `launch.ll` has no more slots than 256.
MAX_THREADS = min(256, max(64, os.cpu_count() or 1))

#: The largest team of OpenMP's that a request has room for.
MOST_OF_A_TEAM = 0xFFFF

#: What a parallel loop costs beside its work, in nanoseconds: for the first helper, and for each.
LAUNCH, LAUNCH_EACH = 2500, 500
#: Calls after which a thread that is not the main one may have OpenMP threads of its own: libgomp
#: makes a team for every thread that asks, which one that soon ends is not worth.
SETTLED = 8


class Seat:
    """Held by the one thread beside the main one that OpenMP runs for, as long as that lives."""


class _Caller(threading.local):
    """What a thread has told the launcher, and on what that depended."""

    told: tuple[int, int, int] | None = None
    calls = 0
    seat: Seat | None = None
    team = 0  # the largest of OpenMP that this thread is known to be able to start


@dataclass
class _Process:
    """What the process's calls share.

    Attributes
    ----------
    modules : how many were imported when hosts were looked for.
    change : counts what makes threads tell the launcher anew: other hosts, a fork.
    seat : of the thread beside the main one that may run on OpenMP.
    warned : what was said once.
    """

    hosts: hosts.Hosts | None = None
    modules: int = 0
    change: int = 0
    forked: bool = False
    seat: weakref.ref[Seat] | None = None
    warned: set[str] = field(default_factory=set)


_caller = _Caller()
_process = _Process()
#: Held while workers start and hosts are looked for.
_lock = ForkLock()


def check_threads(num_threads: Any) -> int:
    """A number of threads that a caller asks for, as an int.

    Raises
    ------
    ArrayError
        No whole number, less than 1, or more than `MAX_THREADS`.
    """
    try:
        count = 0 if isinstance(num_threads, bool) else operator.index(num_threads)
    except TypeError:
        count = 0
    if count < 1:
        raise ArrayError(f"num_threads={num_threads!r}; expected a whole number of at least 1")
    if count > MAX_THREADS:
        raise ArrayError(f"num_threads={count}; expected at most {MAX_THREADS}")
    return count


@functools.cache
def own_limit() -> int:
    """Threads that this process should use: TVM_NUM_THREADS, OMP_NUM_THREADS, or its cores."""
    for name in ("TVM_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(name, "")
        # Of what `isdigit` and `int` take, some is no number to the other.
        if value.isdecimal() and len(value) < 10 and int(value) > 0:
            return min(int(value), MAX_THREADS)
    return physical_cores()


def default_threads() -> int:
    """The most threads of a call that does not say.

    `own_limit`, or fewer where the program's own parallel work has fewer (torch.set_num_threads,
    omp_set_num_threads, threadpoolctl's limits).
    """
    if len(sys.modules) != _process.modules:
        look_for_hosts()
    limit = own_limit()
    assert _process.hosts is not None
    host = _process.hosts.max_threads
    return limit if host is None else max(1, min(limit, host()))


def best_of(work: float, tasks: int) -> int:
    """The number of threads with the least predicted time; known once, it costs calls nothing.

    Parameters
    ----------
    work : the time of the call on one thread, in nanoseconds.
    tasks : into how many parts it can be cut.
    """
    best = max(1, min(tasks, MAX_THREADS, round(math.sqrt(work / LAUNCH_EACH))))
    return best if pays(work, best, best) else 1


def use(limit: int | None, work: float = sys.float_info.max, best: int = MAX_THREADS) -> None:
    """Let the calling thread's next call run on up to `limit` threads, None for the default.

    Parameters
    ----------
    work, best : of the call, see `best_of`. Where a launch takes longer than what it saves, the
        call runs on one thread.
    """
    threads, team = 1, 0
    if best > 1 and limit != 1:
        threads, team = count(limit, work, best)
    told = threads, team, _process.change
    if told != _caller.told:
        tell(*told)


def count(limit: int | None, work: float, best: int) -> tuple[int, int]:
    """On how many threads a call runs, see `use`, and how many OpenMP launches for it."""
    default = default_threads()
    most = default if limit is None else limit
    threads = best if best <= most else most
    # OpenMP wakes all threads that it has, whatever part of them is wanted.
    team = max(threads, openmp_threads())
    return (threads, team) if pays(work, threads, team) else (1, 0)


def pays(work: float, threads: int, team: int) -> bool:
    """Whether sharing out work saves more than launching a team takes."""
    return work - work / threads > LAUNCH + LAUNCH_EACH * team


def openmp_threads() -> int:
    """The size of a team of the calling thread, 0 where kernels do not run on OpenMP."""
    found = _process.hosts
    if found is None or found.openmp is None or _process.forked:
        return 0
    return min(found.openmp.max_threads(), MOST_OF_A_TEAM)


def tell(threads: int, team: int, change: int) -> None:
    """Tell the launcher what the calling thread's loops may use."""
    wanted = threads, team, change
    process_launcher = launcher.current()
    if process_launcher is None:
        # Nothing is loaded yet: the call has no rows, or its first part loads the kernel.
        return
    settled = True
    if threads > 1 and openmp_threads():
        settled = may_use_openmp()
        if not settled or not can_start(team):
            team = 0
    else:
        team = 0
    if _process.hosts is not None and (runtime := _process.hosts.openmp) is not None:
        process_launcher.use_openmp(runtime.parallel, runtime.in_parallel, runtime.thread_num)
    if threads > 1 and not team:
        start_workers(process_launcher, threads - 1)
    process_launcher.request(threads | team << 16)
    _caller.told = wanted if settled else None


def may_use_openmp() -> bool:
    """Whether the calling thread is the main one, or the one beside it that has a seat.

    libgomp starts a team of workers for each thread that asks for one. 64 threads that call kernels
    would have 64 teams; beside these two they share our own workers.
    """
    if _caller.seat is not None or threading.current_thread() is threading.main_thread():
        return True
    _caller.calls += 1
    if _caller.calls <= SETTLED:
        return False
    with _lock:
        if _process.seat is not None and _process.seat() is not None:
            return False
        _caller.seat = Seat()
        _process.seat = weakref.ref(_caller.seat)
    return True


def can_start(team: int) -> bool:
    """Whether a team of OpenMP can be started: its runtime ends the process where it cannot.

    Tried once for each thread and size, by threads that end at once.
    """
    if team <= _caller.team:
        return True
    threads: list[threading.Thread] = []
    release = threading.Event()
    try:
        while len(threads) < team - 1:
            thread = threading.Thread(target=release.wait, daemon=True)
            thread.start()
            threads.append(thread)
    except (RuntimeError, MemoryError):
        warn_of_few(len(threads), team - 1)
        return False
    finally:
        release.set()
        for thread in threads:
            thread.join()
    _caller.team = team
    return True


def start_workers(process_launcher: launcher.Launcher, wanted: int) -> None:
    """Have so many workers of our own, or as many as the system lets start."""
    if process_launcher.pool.workers >= wanted:
        return
    with _lock:
        there = process_launcher.start(wanted)
    if there < wanted:
        warn_of_few(there, wanted)


def warn_of_few(there: int, wanted: int) -> None:
    """Say, once, that calls run on fewer threads than they were meant to."""
    warn_once(
        "few",
        f"the system lets {there} of {wanted} helping threads start, by a limit of processes or of "
        "address space (ulimit -u, ulimit -v, a container's pids.max): calls run on fewer threads; "
        "num_threads=1 asks for none",
    )


def look_for_hosts() -> None:
    """Find the program's pools again, as modules were imported that may have brought some."""
    with _lock:
        found = hosts.find()
    _process.modules = len(sys.modules)
    before, _process.hosts = _process.hosts, found
    for path, symbol in found.unusable.items():
        warn_once(
            path,
            f"the OpenMP runtime {path} lacks {symbol}: kernels run on threads of their own beside "
            "it; expected libgomp, libomp or libiomp5",
        )
    if found.openmp and found.others:
        warn_once(
            "several",
            f"this process has {1 + len(found.others)} OpenMP runtimes: kernels run on the threads "
            f"of {found.openmp.path}, beside those of {', '.join(found.others)}; expected one",
        )
    if before is None or before.openmp != found.openmp:
        _process.change += 1


def warn_once(what: str, message: str) -> None:
    """A RuntimeWarning that is not repeated."""
    if what not in _process.warned:
        _process.warned.add(what)
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def pool_name() -> str:
    """Whose threads calls of the calling thread run on, for people."""
    if len(sys.modules) != _process.modules:
        look_for_hosts()
    found = _process.hosts
    if found is None or found.openmp is None:
        return "quantmm's own"
    if _process.forked:
        return "quantmm's own, as this process was forked"
    return f"OpenMP, {found.openmp.path}"


def _after_fork() -> None:
    """A forked child has none of its parent's threads, for which libgomp would wait."""
    _process.forked = True
    _process.change += 1


in_forked_children(_after_fork)
