"""The launcher of this process: code of `launch.ll` that all kernels' parallel loops go through.

Every kernel library has a copy. The first one that is met stays loaded, and its launcher is handed
to every kernel that is loaded or compiled afterwards, so that a process has one pool of workers.
Other users of TVM in the process keep TVM's own.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import ToolError
from ..targets import machine
from .forks import ForkLock, in_forked_children
from .tvm_runtime import library, tvm_ffi

#: Under this name tvm_ffi writes a launcher into the modules that it loads.
SYMBOL = b"__TVMBackendParallelLaunch"
#: The number of Linux's system call futex.
FUTEX = {"x86_64": 202, "aarch64": 98}

#: How often a worker of ours gives way before it sleeps: a fifth of a millisecond or so, enough
#: from one layer of a model to the next.
POLLS = 400
#: Tasks per thread. On our own workers several, since one that begins late then takes fewer.
OWN_TASKS, OPENMP_TASKS = 4, 1


class Pool(ctypes.Structure):
    """`%pool` of `launch.ll`, as far as it is read or written here."""

    _fields_ = (
        ("launch", ctypes.c_void_p),
        ("start", ctypes.c_void_p),
        ("getspecific", ctypes.c_void_p),
        ("setspecific", ctypes.c_void_p),
        ("create", ctypes.c_void_p),
        ("syscall", ctypes.c_void_p),
        ("sched_yield", ctypes.c_void_p),
        ("openmp_parallel", ctypes.c_void_p),
        ("openmp_in_parallel", ctypes.c_void_p),
        ("openmp_thread_num", ctypes.c_void_p),
        ("futex", ctypes.c_int64),
        ("key", ctypes.c_uint32),
        ("polls", ctypes.c_uint32),
        ("own_tasks", ctypes.c_uint32),
        ("openmp_tasks", ctypes.c_uint32),
        ("workers", ctypes.c_uint32),
        ("busy", ctypes.c_uint32),
        ("padding", ctypes.c_int64 * 2),
        ("epoch", ctypes.c_uint32),
        ("done", ctypes.c_uint32),
        ("sleeping", ctypes.c_uint32),
    )


class Launcher:
    """The process's launcher.

    Attributes
    ----------
    request : tell what the calling thread's loops may use, see `launch.ll`.
    start : start workers of our own until there are so many; how many there are then.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self.request: Callable[[int], None] = module["quantmm_request"]
        self.pool = pool = Pool.from_address(module["quantmm_pool"]())
        libc = ctypes.CDLL(None)
        key = ctypes.c_uint32()
        if libc.pthread_key_create(ctypes.byref(key), None):
            raise ToolError(
                "no key for values of threads is left; expected one (pthread_key_create)"
            )
        pool.key, pool.futex = key.value, FUTEX[machine.architecture()]
        pool.polls, pool.own_tasks, pool.openmp_tasks = POLLS, OWN_TASKS, OPENMP_TASKS
        pool.getspecific = address_of(libc.pthread_getspecific)
        pool.setspecific = address_of(libc.pthread_setspecific)
        pool.create = address_of(libc.pthread_create)
        pool.syscall = address_of(libc.syscall)
        pool.sched_yield = address_of(libc.sched_yield)
        self.start: Callable[[int], int] = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(pool.start)

    def use_openmp(self, parallel: int, in_parallel: int, thread_num: int) -> None:
        """Launch on the runtime that has these functions."""
        self.pool.openmp_thread_num = thread_num
        self.pool.openmp_in_parallel = in_parallel
        self.pool.openmp_parallel = parallel

    def forget_workers(self) -> None:
        """Know that a forked child has none, whatever its parent had under way."""
        self.pool.workers = self.pool.busy = self.pool.sleeping = 0


_lock = ForkLock()
_launcher: Launcher | None = None


def address_of(function: Any) -> int:
    """Where a function of a C library is."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def current() -> Launcher | None:
    """The process's launcher; None until a kernel was loaded or built."""
    return _launcher


def load(path: str) -> Any:
    """A kernel's library as a module with the launcher in it; it goes with its last user."""
    library()
    with _lock:
        if _launcher is None:
            adopt(tvm_ffi.load_module(path, keep_module_alive=False))
        with handed_out():
            return tvm_ffi.load_module(path, keep_module_alive=False)


def function(module: Any, name: str, own: Callable[[], Any]) -> Any:
    """A function of a module that was built here, which TVM's JIT compiles at the first one.

    Parameters
    ----------
    own : makes a module with the launcher, for a process that has none.
    """
    library()
    with _lock:
        if _launcher is None:
            adopt(own())
        with handed_out():
            return module[name]


def adopt(module: Any) -> None:
    """Make a module's launcher that of the process."""
    global _launcher
    # One reference for ever: workers run its code, also while the interpreter and the libraries of
    # the process are taken down. tvm_ffi's own list of modules to keep ends before they do.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(module))
    _launcher = Launcher(module)


@contextlib.contextmanager
def handed_out() -> Iterator[None]:
    """Modules that are loaded or compiled within launch through the process's launcher."""
    assert _launcher is not None
    register(_launcher.pool.launch)
    try:
        yield
    finally:
        register(address_of(library().TVMBackendParallelLaunch))


def register(address: int | None) -> None:
    """Have tvm_ffi give this launcher to modules."""
    failed = ctypes.CDLL(None).TVMFFIEnvModRegisterContextSymbol(SYMBOL, ctypes.c_void_p(address))
    assert not failed


def _after_fork() -> None:
    if _launcher is not None:
        _launcher.forget_workers()


in_forked_children(_after_fork)
