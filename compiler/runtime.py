"""The part of TVM that a kernel needs when it runs: tvm_ffi, libtvm_runtime.so and its threads.

Nothing here imports `tvm`. TVM keeps one thread pool per calling thread, made at that thread's
first parallel call with as many workers as `SetMaxConcurrency` said before; later it can only use
fewer.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import math
import mmap
import operator
import os
import resource
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArrayError, ToolError
from ..targets import physical_cores

#: tvm::runtime::threading::SetMaxConcurrency(int): thread-local, and the only way to size a pool
#: that neither goes through the environment nor starts the pool.
SET_MAX_CONCURRENCY = "_ZN3tvm7runtime9threading17SetMaxConcurrencyEi"
#: AffinityMode::kSpecifyThreadShareAllCore of TVM's threading_backend.h.
SHARE_ALL_CORES = -3

#: What TVM reads from the environment when a pool starts, unless the user set it.
POOL_SETTINGS = {
    # Workers pinned to cores would make two processes share the same ones while others idle (tvm
    # issues 4145, 7454).
    "TVM_BIND_THREADS": "0",
    # A worker polls this often before it sleeps: some 5 ms, enough from one layer to the next.
    # TVM's own 300000 keep a core from others for a tenth of a second after every call.
    "TVM_THREAD_POOL_SPIN_COUNT": "20000",
}

#: A pool of more threads than the system can start would end the process.
MAX_THREADS = max(64, os.cpu_count() or 1)

ALIGNMENT = 64
HUGE_PAGE = 2 << 20


class _NoTorch:
    """A finder by which the thread that made it finds no torch, whatever other threads import."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Refuse torch, and leave everything else to the finders that follow.

        Its parts too: another thread may be importing torch, and where that is half done Python
        would import a part of it here as well.
        """
        if name.partition(".")[0] == "torch" and threading.get_ident() == self._thread:
            raise ModuleNotFoundError("torch is not imported here", name=name)


@contextlib.contextmanager
def without_torch() -> Iterator[None]:
    """Imports within do not load torch, as tvm and tvm_ffi would, which takes a second.

    Where torch is imported already it stays visible. And tvm can be imported by a user without a
    home folder.
    """
    finder = _NoTorch()
    with a_place_for_caches():
        sys.meta_path.insert(0, finder)
        try:
            yield
        finally:
            sys.meta_path.remove(finder)


@contextlib.contextmanager
def a_place_for_caches() -> Iterator[None]:
    """TVM asks at its import where the user's caches are; nothing that is used here writes there.

    It would raise an error for a user without a home folder, such as a container's.
    """
    if "tvm" in sys.modules or "XDG_CACHE_HOME" in os.environ or has_home():
        yield
        return
    os.environ["XDG_CACHE_HOME"] = os.devnull
    try:
        yield
    finally:
        os.environ.pop("XDG_CACHE_HOME", None)


def has_home() -> bool:
    """Whether this process knows the home folder of its user."""
    try:
        Path.home()
    except RuntimeError:
        return False
    return True


with without_torch():
    import tvm_ffi as tvm_ffi


@functools.cache
def library() -> ctypes.CDLL:
    """libtvm_runtime.so of the installed apache-tvm, loaded for the kernels' symbols.

    Raises
    ------
    ToolError
        apache-tvm is not installed.
    """
    for name, value in POOL_SETTINGS.items():
        os.environ.setdefault(name, value)
    if path := tvm_library("libtvm_runtime.so"):
        return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    raise ToolError("libtvm_runtime.so not found; install apache-tvm, whose wheel brings it")


def tvm_library(name: str) -> Path | None:
    """Where a library of the installed apache-tvm is."""
    spec = importlib.util.find_spec("tvm")
    places = list(spec.submodule_search_locations or []) if spec else []
    paths = (Path(place) / "lib" / name for place in places)
    return next((path for path in paths if path.exists()), None)


def default_threads() -> int:
    """Threads of a call that does not say: TVM_NUM_THREADS, OMP_NUM_THREADS, or physical cores."""
    for name in ("TVM_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(name, "")
        # Of what `isdigit` and `int` take, some is no number to the other.
        if value.isdecimal() and len(value) < 10 and int(value) > 0:
            return int(value)
    return physical_cores()


class _Pool(threading.local):
    """What this thread's TVM pool was told."""

    workers = 0  # 0 until the pool exists
    used = 0
    process = os.getpid()  # where the workers live


_pool = _Pool()


def check_threads(num_threads: Any) -> int:
    """A number of threads that a caller asks for, as an int.

    Raises
    ------
    ArrayError
        No whole number, less than 1, or more than the system may be able to start.
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


def use_threads(num_threads: int) -> None:
    """Let the calling thread's next kernel call run on so many threads.

    A thread that only ever asks for one never starts the pool.

    Raises
    ------
    ArrayError
        See `check_threads`; more than this thread's pool was started with; or a pool that the
        limit of address space does not let start.
    """
    if type(num_threads) is int and num_threads == _pool.used > 0:
        return
    count = check_threads(num_threads)
    if count == _pool.used:
        return
    set_max_concurrency = library()[SET_MAX_CONCURRENCY]
    if _pool.process != os.getpid() and _pool.workers and count > 1:
        warnings.warn(
            "this process was forked from a thread with a pool, whose workers stayed behind: "
            "computing with one thread, and sys.exit may wait for them for ever (call from a new "
            "thread and end with os._exit, or start processes with 'spawn')",
            RuntimeWarning,
            stacklevel=3,
        )
        set_max_concurrency(1)
    elif count == 1:
        set_max_concurrency(1)
    elif _pool.workers == 0:
        workers = max(count, default_threads())
        check_startable(count, workers - 1)
        _pool.workers = workers
        _pool.process = os.getpid()
        set_max_concurrency(_pool.workers)
        limit_pool(count)
    elif count > _pool.workers:
        raise ArrayError(
            f"num_threads={count}; this thread's pool was started with {_pool.workers} (the number "
            "of physical cores, or what its first call asked for)"
        )
    else:
        limit_pool(count)
    _pool.used = count


def check_startable(num_threads: int, workers: int) -> None:
    """Try whether so many workers can be started where address space is limited (`ulimit -v`).

    TVM ends the process where one cannot. Each takes a stack, and the allocator as much again or
    more for some of them, which no sum tells beforehand.

    Raises
    ------
    ArrayError
        They cannot.
    """
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        return
    threads: list[threading.Thread] = []
    release = threading.Event()
    try:
        while len(threads) < workers:
            thread = threading.Thread(target=release.wait)
            thread.start()
            threads.append(thread)
    except (RuntimeError, MemoryError):
        raise ArrayError(
            f"num_threads={num_threads}; the limit of address space (ulimit -v) lets "
            f"{len(threads)} of the {workers} threads of a pool start; expected 1, or a pool that "
            "TVM_NUM_THREADS makes smaller"
        ) from None
    finally:
        release.set()
        for thread in threads:
            thread.join()


def _forget_threads() -> None:
    """In a forked child, look at the pool anew before the next call."""
    _pool.used = 0


os.register_at_fork(after_in_child=_forget_threads)


def limit_pool(count: int) -> None:
    """Use `count` workers of the pool, starting it if need be."""
    configure = tvm_ffi.get_global_func("runtime.config_threadpool")
    # The list's length is the concurrency; its entries would be cores if threads were pinned.
    configure(SHARE_ALL_CORES, count, [str(i) for i in range(_pool.workers)])


def aligned_empty(shape: tuple[int, ...], dtype: Any, *, huge_pages: bool = True) -> np.ndarray:
    """An array at a multiple of 64 bytes.

    From 2 MB on it is a mapping of its own at a multiple of 2 MB, on huge pages where
    `huge_pages` asks for them and the system gives them, and on 4 KB pages otherwise.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory: Any
    if size >= HUGE_PAGE:
        alignment = HUGE_PAGE
        # Private: Linux gives shared mappings, which are Python's default, no huge pages.
        memory = mmap.mmap(-1, size + alignment, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without transparent huge pages
                memory.madvise(mmap.MADV_HUGEPAGE if huge_pages else mmap.MADV_NOHUGEPAGE)
    else:
        alignment = ALIGNMENT
        memory = bytearray(size + alignment)
    # A fifth of the time of `ndarray.ctypes.data`, which counts where a call brings its scale.
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return np.ndarray(shape, dtype, memory, -address % alignment)


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy of `array` that a kernel may read with aligned loads."""
    copy = aligned_empty(array.shape, array.dtype)
    copy[...] = array
    return copy
