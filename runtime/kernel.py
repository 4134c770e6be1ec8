"""Kernels at run time: compiled code for a CPU or a GPU, and how each M is computed by it.

This module and what it imports need NumPy, tvm_ffi and libtvm_runtime.so, no compiler.
"""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from ..errors import ArrayError
from ..formats.quantize import QTensor
from . import kernel_file, threads
from .code import Code
from .cuda_code import CudaCode
from .cuda_info import CudaInfo, CudaTiling
from .info import KernelInfo, Tiling
from .kernel_file import Saved
from .linear import Linear


class Kernel:
    """A compiled `MatmulSpec`; `bind` a weight and call the result, or call it with both.

    Made by `compile` or `load`, one for a GPU on any machine; only its calls need one. One kernel
    serves every M; see `report` for how. It can be copied and pickled, and so can a `Linear`.

    Attributes
    ----------
    origin : where its code came from: "built", "cache" or "file".
    code : its functions, and what a file has of them.
    source : the CUDA C++ that it was built from; None unless it was built here for a GPU.
    ready : what `linear.EXECUTORS` keep for every M, or rows of experts, that was called.
    """

    # Which info and code there are depends on the device: its executor knows.
    info: Any
    code: Any

    def __init__(
        self,
        info: KernelInfo | CudaInfo,
        code: Code | CudaCode,
        num_threads: int | None = None,
        *,
        source: str | None = None,
    ) -> None:
        self.info = info
        self.code = code
        self.spec = info.spec
        self.source = source
        self._num_threads = None if num_threads is None else threads.check_threads(num_threads)
        self.origin = "built"
        self.ready: dict[int, Any] = {}

    def __copy__(self) -> Kernel:
        """The same code, which nothing changes."""
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Kernel:
        return self.__copy__()

    def __repr__(self) -> str:
        return f"Kernel({self.spec.to_json()}, target={self.info.target!r})"

    @property
    def num_threads(self) -> int:
        """The most threads of a call on a CPU that does not say.

        What `compile` or `load` was given, or as many as the program's own parallel work has now.
        """
        return threads.default_threads() if self._num_threads is None else self._num_threads

    @property
    def cubin(self) -> bytes:
        """Of a kernel for GPUs: machine code for `info.capability` and later of its generation."""
        return bytes(self.code.cubin)

    @property
    def ptx(self) -> bytes:
        """Of a kernel for GPUs: code that the driver compiles, for later generations."""
        return bytes(self.code.ptx)

    @property
    def most_rows(self) -> int:
        """Rows that are computed at a time, as offsets are int32; a call has any M."""
        return int(self.info.most_rows)

    def parts(self, m: int, most: int | None = None) -> list[range]:
        """The ranges of at most `most` rows, or `most_rows`, in which `m` rows are computed.

        Raises
        ------
        ArrayError
            Not an M of this kernel.
        """
        self.check_rows(m)
        count = -(-m // (most or self.most_rows))
        size = -(-m // max(1, count))
        return [range(start, min(start + size, m)) for start in range(0, m, max(1, size))]

    def check_rows(self, m: int) -> None:
        """Refuse an M that is not this kernel's."""
        if self.spec.m is not None and m != self.spec.m:
            raise ArrayError(f"x has {m} rows; this kernel was compiled for m={self.spec.m}")

    def plan(self, m: int) -> Tiling | CudaTiling:
        """Which function computes `m` rows, and in which tiles.

        Raises
        ------
        ArrayError
            Not an M of this kernel, or more rows than are computed at a time.
        """
        self.check_rows(m)
        if m < 1 or m > self.most_rows:
            raise ArrayError(f"x has {m} rows; expected 1 to {self.most_rows}")
        return self.info.tiling(m)

    def report(self, m: Sequence[int] = (1, 4, 16, 64, 512)) -> list[dict[str, Any]]:
        """For each M in `m`: what it uses, as a call of the calling thread would now.

        Its strategy, function, tiles, instruction and tuned record; on a CPU the number of threads,
        and the pool that those belong to; on a GPU the thread blocks of a launch.

        Raises
        ------
        ArrayError
            Something in `m` is no number of rows, or not of this kernel's.
        """
        rows = []
        for count in [self.spec.m] if self.spec.m else numbers_of_rows(m):
            parts = self.parts(count)
            plan = self.info.tiling(len(parts[0])) if len(parts) > 1 else self.plan(count)
            rows.append(
                {
                    "m": count,
                    "strategy": plan.strategy,
                    "function": plan.name,
                    "tiles": plan.tiles * len(parts),
                    "instruction": plan.instruction,
                    "target": self.info.target,
                    **plan.details(self._num_threads),
                    "record": plan.record,
                }
            )
        return rows

    def bind(
        self,
        w: QTensor,
        bias: npt.ArrayLike | None = None,
        *,
        x_scale: npt.ArrayLike | None = None,
        x_zero_point: npt.ArrayLike | None = None,
        out_scale: npt.ArrayLike | None = None,
        out_zero_point: npt.ArrayLike | None = None,
    ) -> Linear:
        """Pack a weight once for many calls.

        Parameters
        ----------
        w : (n, k), quantized as the spec says.
        bias : float32 (n,), when the spec has one.
        x_scale, x_zero_point, out_scale, out_zero_point : scalars for calls that do not bring
            their own; an out_zero_point that nobody gives is 0.

        Raises
        ------
        ArrayError
            The weight or bias does not fit the spec.
        TargetError
            A kernel for GPUs, and no GPU, or none that can execute it.
        """
        scalars = {
            "x_scale": x_scale,
            "x_zero_point": x_zero_point,
            "out_scale": out_scale,
            "out_zero_point": out_zero_point,
        }
        linear = Linear(self, w, bias, scalars)
        if self.info.device == "cpu" and (reason := self.info.why_not_here()):
            message = f"the bound kernel for {self.info.target} cannot be called here: {reason}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        return linear

    def __call__(self, x: Any, w: QTensor, bias: npt.ArrayLike | None = None, **call: Any) -> Any:
        """`bind(w, bias)(x, **call)`: packs the weight anew in every call."""
        return self.bind(w, bias)(x, **call)

    def save(self, path: str | os.PathLike[str], *others: Saved) -> None:
        """Write the kernel to one file that `load` reads; see `kernel_file`.

        Parameters
        ----------
        others : kernels of the same spec for other targets. `load` then takes the best one that
            its machine can execute.
        """
        kernel_file.save(path, [self, *others])


def numbers_of_rows(m: Sequence[int]) -> list[int]:
    """The M that are asked for, as ints."""
    try:
        return [operator.index(count) for count in m]
    except TypeError:
        raise ArrayError(f"m={m!r}; expected several numbers of rows, as in [1, 16]") from None


#: For one version more.
CudaKernel = Kernel
