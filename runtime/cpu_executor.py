"""A call on the CPU: the caller's arrays and numbers as tensors, and the launch on its threads."""

from __future__ import annotations

import functools
import math
import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ArrayError
from ..formats.checks import (
    SCALARS,
    by_row,
    check_offs,
    check_taken,
    missing,
    numbers,
    shape_of,
    takes_residual,
)
from ..formats.integers import INTEGERS
from ..formats.spec import MatmulSpec
from ..formats.values import FLOAT32_MAX, numpy_dtype
from ..schedules.arguments import UNIT, rows_of_x
from ..targets import machine
from . import threads
from .arrays import (
    apart,
    copy_of,
    export_array,
    import_array,
    new_array,
    new_tensor,
    refuse_overlap,
    rows_of,
    span_of,
)
from .info import KernelInfo
from .memory import aligned, aligned_empty
from .tvm_runtime import tvm_ffi
from .units import ROWS, UnitSize, unit_size, units_of

if TYPE_CHECKING:
    from .kernel import Kernel

#: Numbers without dimensions, as most callers have a scale, and between which of them float32's
#: nearest is positive and finite.
PLAIN = (float, np.float32)
PLAIN_SCALES = float(np.finfo(np.float32).smallest_subnormal), FLOAT32_MAX
#: Times up to which a number that stands for many is kept, repeated, for later calls.
KEPT_NUMBERS = 4096

#: A function, its tile counts, its work, and on how many threads that is done best.
Ready = tuple[Any, int, int, float, int]


class CpuExecutor:
    """As `linear.Executor`: a kernel for CPUs, and tensors for what every call hands over."""

    def __init__(
        self, kernel: Kernel, arrays: dict[str, np.ndarray], defaults: dict[str, np.ndarray]
    ) -> None:
        self.kernel = kernel
        self._spec = spec = kernel.spec
        self._names = kernel.info.arguments[1:-1]
        self._defaults = defaults
        self._n, self._x_columns = spec.n, spec.x_columns
        self._x_dtype, self._out_dtype = numpy_dtype(spec.x_dtype), numpy_dtype(spec.out)
        #: The arguments of the last call that brought none but x, and its rows.
        self._last: tuple[int, list[Any]] = 0, []
        # How many rows X has only a call knows.
        bound = {**arrays, **{n: v for n, v in defaults.items() if not by_row(n, spec)}}
        if spec.experts is not None:
            bound["units"] = aligned_empty((0, len(UNIT)), np.int32)
        #: What every call hands over between x and y.
        self._bound = [
            tvm_ffi.from_dlpack(bound[name]) if name in bound else None for name in self._names
        ]
        self._complete = None not in self._bound

    def call(
        self, x: Any, out: Any, residual: Any, given: dict[str, Any], num_threads: int | None
    ) -> Any:
        """As `linear.Executor`."""
        source = import_array("x", x, self._x_dtype, self._x_columns)
        m = x.shape[0] if isinstance(x, np.ndarray) else source.shape[0]
        shape = m, self._n
        if out is None:
            result = new_array(x, shape, self._out_dtype)
            y = new_tensor(result, self._out_dtype)
        else:
            result, y = out, export_array("out", out, self._out_dtype, shape)
            if not apart(x, out):
                written = span_of(y, self._out_dtype.itemsize)
                refuse_overlap("out", written, "x", span_of(source, self._x_dtype.itemsize))
        if self._spec.experts is not None or "offs" in given:
            ends = check_offs(self._spec, given.pop("offs", None), m)
            self._of_experts(ends, source, self._with_call(m, given, residual, y), y, num_threads)
            return result
        if given or residual is not None:
            bound = self._with_call(m, given, residual, y)
        else:
            bound = self._bound if self._complete else self._completed(m)
        if num_threads is None:
            num_threads = self.kernel._num_threads
        else:
            num_threads = threads.check_threads(num_threads)
        function, mo, mi, work, best = self.kernel.ready.get(m) or self._prepare(m, num_threads)
        threads.use(num_threads, work, best)
        function(source, *bound, y, mo, mi)
        return result

    def _of_experts(
        self, ends: list[int], source: Any, bound: list[Any], y: Any, num_threads: int | None
    ) -> None:
        """Compute the rows of every expert, which end at `ends`."""
        count = self.kernel._num_threads
        if num_threads is not None:
            count = threads.check_threads(num_threads)
        parts = self.kernel.parts(ends[-1])
        if len(parts) == 1:
            self._compute_units(ends, source, bound, y, count)
            return
        names, of_rows = ["x", *self._names, "y"], rows_of_x(self._spec)
        whole = [tvm_ffi.from_dlpack(argument) for argument in (source, *bound, y)]
        for rows in parts:
            own = [min(max(end, rows.start), rows.stop) - rows.start for end in ends]
            part = [
                rows_of(argument, rows.start, len(rows)) if name in of_rows else argument
                for name, argument in zip(names, whole, strict=True)
            ]
            self._compute_units(own, part[0], part[1:-1], part[-1], count)

    def _compute_units(
        self, ends: list[int], source: Any, bound: list[Any], y: Any, count: int | None
    ) -> None:
        """Compute the rows of every expert, not more than a function does at a time."""
        live = sum(map(operator.lt, (0, *ends), ends))
        each = -(-ends[-1] // live)
        function, work_of_one, size = self.kernel.ready.get(each) or self._prepare_units(each)
        work = live * work_of_one
        best = threads.best_of(work, threads.MAX_THREADS)
        table = units_of(ends, size, threads.count(count, work, best)[0])
        bound[self._names.index("units")] = tvm_ffi.from_dlpack(np.array(table, np.int32))
        threads.use(count, work, best)
        function(source, *bound, y, 1, size.tiles(max(unit[ROWS] for unit in table)))

    def _prepare_units(self, each: int) -> tuple[Any, float, UnitSize]:
        """What computes so many rows of every expert, and the work of one; the kernel keeps it."""
        info: KernelInfo = self.kernel.info
        machine.require(f"this kernel ({info.target})", info.architecture, info.features)
        tiling = info.of_experts(each, 1)
        function = self.kernel.code.function(tiling.name)
        ready = self.kernel.ready[each] = function, tiling.work, unit_size(info, tiling.name)
        return ready

    def compute(self, m: int, x: Any, y: Any) -> None:
        """As `linear.Executor`."""
        if self._spec.experts is not None:
            check_offs(self._spec, None, m)
        bound = self._bound if self._complete else self._completed(m)
        count = self.kernel._num_threads
        function, mo, mi, work, best = self.kernel.ready.get(m) or self._prepare(m, count)
        threads.use(count, work, best)
        function(x, *bound, y, mo, mi)

    def _prepare(self, m: int, num_threads: int | None) -> Ready:
        """What computes `m` rows, which the kernel keeps where those are one part.

        Raises
        ------
        ArrayError
            Not an M of this kernel.
        """
        if len(self.kernel.parts(m)) != 1:
            return functools.partial(self._in_parts, m, num_threads), 0, 0, 0.0, 1
        ready = self.kernel.ready[m] = self._function(m)
        return ready

    def _function(self, m: int) -> Ready:
        """The function for a part of `m` rows, once this machine is known to execute it."""
        info: KernelInfo = self.kernel.info
        tiling = info.tiling(m)
        machine.require(f"this kernel ({info.target})", info.architecture, info.features)
        function = self.kernel.code.function(tiling.name)
        return function, tiling.mo, tiling.mi, tiling.work, tiling.best

    def _in_parts(self, m: int, num_threads: int | None, *given: Any) -> None:
        """Compute more rows than a function does at a time, or none.

        `given` is what a function takes; the tile counts at its end are each part's own.
        """
        names = ["x", *self._names, "y"]
        of_rows = rows_of_x(self._spec)
        arguments = [tvm_ffi.from_dlpack(argument) for argument in given[:-2]]
        for rows in self.kernel.parts(m):
            function, mo, mi, work, best = self._function(len(rows))
            part = [
                rows_of(argument, rows.start, len(rows)) if name in of_rows else argument
                for name, argument in zip(names, arguments, strict=True)
            ]
            threads.use(num_threads, work, best)
            function(*part, mo, mi)

    @property
    def _columns_overlap(self) -> bool:
        """Whether some columns are computed twice, the second time from a residual that is gone."""
        lanes = self.kernel.info.layout.lanes
        return self._n > lanes and self._n % lanes != 0

    def _completed(self, m: int) -> list[Any]:
        """The bound arguments with bound numbers repeated for every row."""
        rows, arguments = self._last
        if rows != m:
            arguments = self._with_call(m, {}, None, None)
            self._last = m, arguments
        return arguments

    def _with_call(self, m: int, given: dict[str, Any], residual: Any, y: Any) -> list[Any]:
        """The bound arguments with this call's own in place."""
        arguments = list(self._bound)
        for name, value in given.items():
            if name not in self._names:
                check_taken(name, self._spec)
            arguments[self._names.index(name)] = self._tensor(name, value, m)
        if takes_residual(self._spec, residual, m):
            arguments[self._names.index("residual")] = self._residual(residual, m, y)
        if self._complete:
            return arguments
        for i, name in enumerate(self._names):
            if arguments[i] is None:
                if name not in self._defaults:
                    raise missing(name, self._spec)
                arguments[i] = self._tensor(name, self._defaults[name][0], m)
        return arguments

    def _tensor(self, name: str, value: Any, m: int) -> Any:
        """A number as a tensor, in a fraction of the time for what is one plain number."""
        number = plain_number(name, value, self._spec)
        if number is None:
            return tvm_ffi.from_dlpack(aligned(numbers(name, value, self._spec, m)))
        return repeated(number, SCALARS[name], shape_of(name, self._spec, m))

    def _residual(self, residual: Any, m: int, y: Any) -> Any:
        """The residual as a kernel reads it."""
        dtype = numpy_dtype(self._spec.residual_dtype)
        added = import_array("residual", residual, dtype, self._n)
        if added.shape[0] != m:
            raise ArrayError(f"residual has {added.shape[0]} rows; expected {m}")
        written, read = span_of(y, self._out_dtype.itemsize), span_of(added, dtype.itemsize)
        if written != read:
            refuse_overlap("out", written, "residual", read)
        elif self._columns_overlap:
            return copy_of(added)
        return added


def plain_number(name: str, value: Any, spec: MatmulSpec) -> Any:
    """`value` if it is one number that `checks.numbers` would take as it is, else None."""
    if type(value) is np.ndarray and value.ndim == 0:
        value = value[()]
    if SCALARS[name] is np.float32:
        least, greatest = PLAIN_SCALES
        return value if isinstance(value, PLAIN) and least <= value <= greatest else None
    first, last = INTEGERS[spec.activation if name == "x_zero_point" else spec.out].range
    return value if type(value) in (int, np.int32) and first <= value <= last else None


def repeated(number: float, dtype: Any, shape: tuple[int, ...]) -> Any:
    """A tensor of a shape that holds `number` everywhere, which nothing changes."""
    make = kept if math.prod(shape) <= KEPT_NUMBERS else filled
    return make(number, dtype, shape)


def filled(number: float, dtype: Any, shape: tuple[int, ...]) -> Any:
    """A new tensor of `number`."""
    array = aligned_empty(shape, dtype)
    array[...] = number
    return tvm_ffi.from_dlpack(array)


kept = functools.lru_cache(maxsize=64)(filled)
