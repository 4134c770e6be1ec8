"""Kernels at run time: a compiled module, and how each M is computed by it.

This module and what it imports need NumPy, tvm_ffi and libtvm_runtime.so, no compiler.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from ..errors import ArrayError
from ..formats.quantize import QTensor
from ..schedules.plan import MAX_ELEMENTS
from ..targets import machine
from . import kernel_file, threads
from .code import Code
from .info import KernelInfo, Tiling
from .kernel_file import Saved
from .linear import Linear

#: Bytes of weights that one thread reads in a nanosecond where a cache holds them.
STREAM = 60.0


class Kernel:
    """A compiled `MatmulSpec`; `bind` a weight and call the result, or call it with both.

    Made by `compile` or `load`. One kernel serves every M; see `report` for how. It can be
    copied and pickled, and so can a `Linear`.

    Attributes
    ----------
    origin : where its code came from: "built", "cache" or "file".
    code : its functions, and the shared library that a file has of them.
    """

    def __init__(self, info: KernelInfo, code: Code, num_threads: int | None = None) -> None:
        self.info = info
        self.code = code
        self.spec = info.spec
        self._num_threads = None if num_threads is None else threads.check_threads(num_threads)
        self.origin = "built"
        # For every M that was called: the function, its tile counts, its work, and on how many
        # threads that is done best.
        self._ready: dict[int, tuple[Any, int, int, float, int]] = {}

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
        """The most threads of a call that does not say.

        What `compile` or `load` was given, or as many as the program's own parallel work has now.
        """
        return threads.default_threads() if self._num_threads is None else self._num_threads

    @property
    def most_rows(self) -> int:
        """Rows that a function computes at a time, as its offsets are int32; a call has any M.

        The last block of tiles may be whole blocks longer than M: half of the range is for that.
        """
        return MAX_ELEMENTS // 2 // max(self.info.layout.k_padded, self.spec.n)

    def parts(self, m: int) -> tuple[int, int]:
        """How many parts `m` rows are computed in, and how many rows the first of them has.

        Raises
        ------
        ArrayError
            Not an M of this kernel.
        """
        spec, most = self.spec, self.most_rows
        if spec.m is not None and m != spec.m:
            raise ArrayError(f"x has {m} rows; this kernel was compiled for m={spec.m}")
        count = -(-m // most)
        return count, -(-m // max(1, count))

    def plan(self, m: int) -> Tiling:
        """Which function computes `m` rows, and on which grid of tiles.

        Raises
        ------
        ArrayError
            Not an M of this kernel, or more rows than are computed at a time.
        """
        self.parts(m)
        if m < 1 or m > self.most_rows:
            raise ArrayError(f"x has {m} rows; expected 1 to {self.most_rows}")
        return self._planned(m)

    def _planned(self, m: int) -> Tiling:
        """The plan of a part of `m` rows."""
        functions = self.info.functions
        # The one function of a kernel for a fixed M also computes the last part of that.
        fit = [each for each in functions if each.serves(m)] or functions
        best = min(fit, key=lambda each: each.cost_of(m))
        tiles = -(-m // best.rows)
        mo = -(-tiles // max(1, best.block_rows // best.rows))
        work = max(best.cost_of(m) * self.info.cost_ns, self.info.layout.nbytes / STREAM)
        return Tiling(
            best.name,
            best.strategy,
            best.rows,
            best.instruction,
            mo,
            -(-tiles // mo),
            work,
            threads.best_of(work, mo * best.panels),
            best.record,
        )

    def _prepare(self, m: int) -> tuple[Any, int, int, float, int] | None:
        """Resolve the function for `m` rows; None where they are computed in none or several parts.

        Raises
        ------
        ArrayError
            Not an M of this kernel.
        """
        count, _ = self.parts(m)
        if count != 1:
            return None
        ready = self._ready[m] = self._function(m)
        return ready

    def _function(self, m: int) -> tuple[Any, int, int, float, int]:
        """The function for a part of `m` rows, once this machine is known to execute it."""
        plan = self._planned(m)
        info = self.info
        machine.require(f"this kernel ({info.target})", info.architecture, info.features)
        function = self.code.function(plan.name)
        return function, plan.mo, plan.mi, plan.work, plan.best

    def report(self, m: Sequence[int] = (1, 4, 16, 64, 512)) -> list[dict[str, Any]]:
        """For each M in `m`: what it uses, as a call of the calling thread would now.

        Its strategy, function, tiles, instruction and tuned record, the number of threads, and the
        pool that those belong to.
        """
        rows = []
        for count in [self.spec.m] if self.spec.m else m:
            parts, part = self.parts(count)
            plan = self.plan(count) if parts < 2 else self._planned(part)
            rows.append(
                {
                    "m": count,
                    "strategy": plan.strategy,
                    "function": plan.name,
                    "tiles": plan.mo * plan.mi * max(1, parts),
                    "instruction": plan.instruction,
                    "target": self.info.target,
                    "threads": threads.count(self._num_threads, plan.work, plan.best)[0],
                    "pool": threads.pool_name(),
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
        """
        scalars = {
            "x_scale": x_scale,
            "x_zero_point": x_zero_point,
            "out_scale": out_scale,
            "out_zero_point": out_zero_point,
        }
        return Linear(self, w, bias, scalars)

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
