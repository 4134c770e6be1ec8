"""Kernels out of kernel files and pickles, ready to be called on this machine."""

from __future__ import annotations

import copyreg
import os
from collections.abc import Sequence
from typing import Any

from ..errors import KernelFileError, TargetError
from ..versions import installed
from . import kernel_file, threads
from .code import library_of
from .cuda_code import CudaCode
from .cuda_info import CudaInfo
from .info import KernelInfo
from .kernel import Kernel
from .kernel_file import Stored


def load(
    path: str | os.PathLike[str], *, num_threads: int | None = None, device: str | None = None
) -> Kernel:
    """A kernel that `Kernel.save` wrote, the best for this machine; needs no compiler.

    Parameters
    ----------
    num_threads : as for `compile`.
    device : "cpu" or "cuda" for a kernel of that kind; the best one of any when None.

    Raises
    ------
    KernelFileError
        The file cannot be read, is not a kernel file, is damaged, or comes from another version.
    TargetError
        This machine can execute none of its kernels.
    ArrayError
        `num_threads` is no whole number, less than 1 or too large.
    """
    if num_threads is not None:
        threads.check_threads(num_threads)
    if device not in (None, "cpu", "cuda"):
        raise TargetError(f"device={device!r}; expected 'cpu', 'cuda' or None")
    chosen = best(path, kernel_file.contents(path), device)
    check_runtime(str(path), chosen.info)
    return loaded(chosen, num_threads)


def unpickled(content: bytes, num_threads: int | None = None) -> Kernel:
    """The kernel whose file has this content, as pickles hold it.

    One for GPUs is there without any, as it was where it was compiled: only its calls need one.

    Raises
    ------
    KernelFileError, TargetError
        See `load`.
    """
    name = "what was pickled"
    kernels = kernel_file.parsed(name, content)
    chosen = kernels[0] if kernels[0].info.device == "cuda" else best(name, kernels)
    check_runtime(name, chosen.info)
    return loaded(chosen, num_threads)


def loaded(stored: Stored, num_threads: int | None = None) -> Kernel:
    """A kernel of a file, ready to be called if this machine can execute it."""
    info = stored.info
    if isinstance(info, CudaInfo):
        kernel = Kernel(info, CudaCode(stored.content, info), num_threads)
    else:
        library = library_of(stored.content)
        if info.why_not_here() is None:
            library.load()
        kernel = Kernel(info, library, num_threads)
    kernel.origin = "file"
    return kernel


def best(
    path: str | os.PathLike[str], kernels: Sequence[Stored], device: str | None = None
) -> Stored:
    """The first of `kernels` that this machine, or its CPU or GPU alone, can execute."""
    reasons = []
    for stored in kernels:
        info = stored.info
        if device is not None and device != info.device:
            continue
        if (reason := info.why_not_here()) is None:
            return stored
        reasons.append(f"{info.target} cannot run here: {reason}")
    if not reasons:
        raise TargetError(f"{path} has no kernel for device={device!r}")
    raise TargetError(f"{path} has no kernel for this machine: {'; '.join(reasons)}")


def check_runtime(path: str, info: KernelInfo | CudaInfo) -> None:
    """Refuse code that was compiled against another version of TVM's runtime."""
    if info.device == "cuda":
        return  # which has no part in it
    here = installed("apache-tvm")
    if info.versions.get("tvm") != here:
        raise KernelFileError(
            f"{path} was built with apache-tvm {info.versions.get('tvm')}; here it is {here}"
        )


def reduced(kernel: Kernel) -> tuple[Any, ...]:
    """A kernel pickled as its file's content, which is as trustworthy as where it comes from."""
    return unpickled, (kernel_file.packed([kernel]), kernel._num_threads)


copyreg.pickle(Kernel, reduced)
