"""`compile`: a kernel from the cache, or built and put there.

A kernel from the cache comes without `import tvm`, which alone takes half a second.
"""

from __future__ import annotations

import os
import threading
import warnings
from typing import Literal

from ..errors import CacheError
from ..formats.spec import MatmulSpec, check_spec, say_short_groups
from ..runtime import devices
from ..runtime.kernel import Kernel
from ..runtime.threads import check_threads, default_threads
from ..runtime.tvm_runtime import without_torch
from ..schedules import cuda_records, records
from ..targets import CudaTarget, Target
from . import cache as kernel_cache

#: TVM registers instructions, and its parser and LLVM keep options, for the whole process.
_building = threading.Lock()


def compile(
    spec: MatmulSpec,
    target: str | Target | CudaTarget = "host",
    *,
    num_threads: int | None = None,
    cache: bool = True,
    log: str | os.PathLike[str] | Literal[False] | None = None,
    any_record: bool = False,
) -> Kernel:
    """A callable for `spec` on `target`, for every M.

    Threads may call this at once; they build one after the other.

    Parameters
    ----------
    spec : what to compute.
    target : a name from `targets`; "host" is the best one for this machine's CPU, "cuda" for its
        GPU. A kernel for another machine can be saved here, and called there.
    num_threads : how many threads a call on a CPU uses unless it says otherwise; None is one per
        physical core.
    cache : take the kernel from the user's cache folder if it is there, and put it there if not;
        `Kernel.origin` says which. Where it cannot be put, for want of a linker or of a folder to
        write to, a RuntimeWarning says why, and the kernel is as good. False neither reads nor
        writes the cache.
    log : the folder of a tuning log to look for a record in; None is the user's own, to which
        `tune` writes. The logs that come with quantmm are next. False uses the default parameters.
    any_record : use records of other machines, numbers of threads and versions too. They decide
        how fast a kernel is, never what it computes. `Kernel.report` names the record.

    Raises
    ------
    TargetError
        No such target, or one that LLVM cannot generate code for; see `llvm.llvm_target`.
    ToolError
        A GPU's target, and no compiler of CUDA C++.
    UnsupportedError
        A spec that is not compiled yet.
    RecordError
        There is no such `log`.
    ArrayError
        A `num_threads` with which no call can run.
    """
    check_spec(spec)
    say_short_groups(spec.group_size, spec.k)
    row = devices.find(target)
    if num_threads is not None:
        num_threads = check_threads(num_threads)  # before the work
    record: records.Record | None = None
    if log is not False and row.device == "cpu":
        threads = num_threads or default_threads()
        record = records.find(spec.of_one, row, threads, log, any_record=any_record)
    elif log is not False and row.device == "cuda":
        record = cuda_records.find(spec.of_one, row, log, any_record=any_record)
    if cache and (found := kernel_cache.find(spec, row, num_threads, record)):
        return found
    with _building:
        if row.device == "cuda":
            with without_torch():
                from . import cuda
            kernel = cuda.build(spec, row, record)
        else:
            with without_torch():
                from .cpu import build
            kernel = build(spec, row, num_threads=num_threads, record=record)
    if cache:
        try:
            kernel_cache.keep(kernel, row, record)
        except CacheError as error:
            message = f"this kernel is not kept for the next process: {error}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
    return kernel
