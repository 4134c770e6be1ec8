"""Which pools of threads the program has beside ours: OpenMP runtimes, and NumPy's BLAS.

Kernels run on the program's OpenMP threads, because two pools on the same cores wait for each
other: each polls for its next loop while the other's workers want to run. libgomp's interface is
what LLVM's and Intel's runtimes have too.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from threadpoolctl import ThreadpoolController

#: What a runtime must have: to start a parallel region, to know within it that one is running and
#: which thread this is, and how many it would have.
OPENMP_SYMBOLS = ("GOMP_parallel", "omp_in_parallel", "omp_get_thread_num", "omp_get_max_threads")


@dataclass(frozen=True)
class OpenMP:
    """An OpenMP runtime of this process.

    Attributes
    ----------
    path : of its library.
    parallel, in_parallel, thread_num : addresses of its functions GOMP_parallel, omp_in_parallel
        and omp_get_thread_num.
    max_threads : how many threads a region of the calling thread would have.
    """

    path: str
    parallel: int
    in_parallel: int
    thread_num: int
    max_threads: Callable[[], int] = field(compare=False)


@dataclass(frozen=True)
class Hosts:
    """The pools of a process.

    Attributes
    ----------
    openmp : the runtime that kernels run on, None where there is none that can be used.
    others : paths of other OpenMP runtimes that could be used.
    unusable : for the path of each that cannot, which function it lacks.
    max_threads : the number of threads that the program wants its own parallel work to have: what
        torch says, else OpenMP, else BLAS; None where none of them is there.
    """

    openmp: OpenMP | None
    others: tuple[str, ...]
    unusable: dict[str, str]
    max_threads: Callable[[], int] | None


def find() -> Hosts:
    """The pools of this process, as they are now."""
    controllers = ThreadpoolController().lib_controllers
    paths = [each.filepath for each in controllers if each.user_api == "openmp"]
    # torch's own operations stand between our calls; another runtime's do not.
    paths.sort(key=lambda path: not belongs_to_torch(path))
    lacking = {path: lacks(path) for path in paths}
    usable = [path for path in paths if lacking[path] is None]
    openmp = opened(usable[0]) if usable else None
    return Hosts(
        openmp,
        tuple(usable[1:]),
        {path: symbol for path, symbol in lacking.items() if symbol is not None},
        torch_threads() or (openmp.max_threads if openmp else blas_threads(controllers)),
    )


def belongs_to_torch(path: str) -> bool:
    """Whether a library came with the torch that is imported, or was loaded for it."""
    torch = sys.modules.get("torch")
    home = getattr(torch, "__file__", None)
    return home is not None and Path(path).is_relative_to(Path(home).parent)


def lacks(path: str) -> str | None:
    """The first of `OPENMP_SYMBOLS` that a library does not have."""
    library = ctypes.CDLL(path)
    return next((name for name in OPENMP_SYMBOLS if not hasattr(library, name)), None)


def opened(path: str) -> OpenMP:
    """The runtime in a library of this process that has all of `OPENMP_SYMBOLS`."""
    # Its number of threads is read at every call, which does not pay for giving up the GIL.
    library = ctypes.PyDLL(path)
    parallel, in_parallel, thread_num = (
        ctypes.cast(library[name], ctypes.c_void_p).value or 0 for name in OPENMP_SYMBOLS[:3]
    )
    return OpenMP(path, parallel, in_parallel, thread_num, library.omp_get_max_threads)


def torch_threads() -> Callable[[], int] | None:
    """`torch.get_num_threads` where torch is imported.

    It knows of a number that was set in another thread, which OpenMP does not.
    """
    return getattr(sys.modules.get("torch"), "get_num_threads", None)


def blas_threads(controllers: list[Any]) -> Callable[[], int] | None:
    """How many threads the first BLAS has, which is NumPy's as a rule."""
    blas = next((each for each in controllers if each.user_api == "blas"), None)
    if blas is None or not blas.get_num_threads():  # some do not say
        return None
    library = ctypes.PyDLL(blas.filepath)
    names = type(blas).check_symbols if blas.internal_api == "openblas" else ()
    # Its own function takes a tenth of the controller's time.
    return next((library[name] for name in names if hasattr(library, name)), blas.get_num_threads)
