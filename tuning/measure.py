"""Kernel files checked and timed on this machine, one problem at a time. Imports no `tvm`.

A `Bench` lives in a child process (see `processes`), because a kernel may crash or hang; one on
another machine has the same methods. Who takes turns with whom is decided by its caller, see
`stage.Stage`.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import threadpoolctl

from ..formats.problem import Problem, difference
from ..formats.quantize import QTensor
from ..formats.reference import Bounds, bounds
from ..formats.spec import MatmulSpec
from ..formats.values import numpy_dtype
from ..runtime.kernel import Kernel
from ..runtime.kernel_file import parsed
from ..runtime.linear import Linear
from ..runtime.load import loaded
from .sides import HOST, Calls, Host, OnGpu, on_gpu

#: Columns of the weight that the reference multiplies at once: as float64 they fit in memory.
REFERENCE_COLUMNS = 4096
#: What an output holds before a call; a row behind its end must still hold it.
UNTOUCHED = 0xA5
#: What a turn lasts at least, and the turns before the first one that counts.
TURN_SECONDS, WARM_SECONDS = 0.02, 0.15


class Bench:
    """Kernels of one problem at a time, on numbers that `Problem` draws from a seed."""

    def __init__(self) -> None:
        self._weight: tuple[Any, QTensor] | None = None
        self._problem: Problem | None = None
        self._expected: Bounds | None = None
        self._linears: dict[Any, list[Linear]] = {}
        self._calls: dict[str, Any] = {}
        self._threads = 1
        self._side: Host | OnGpu = HOST

    def prepare(self, spec: MatmulSpec, m: int, seed: int, threads: int) -> None:
        """Make the arrays of a problem; what was loaded before is forgotten."""
        self._problem = Problem(spec, m, seed)
        self._threads = threads
        if self._weight is None or self._weight[0] != (spec, seed):
            self._weight = (spec, seed), self._problem.weight()
            self._linears.clear()
        self._calls.clear()
        self._expected = None
        self._x = self._problem.activation()
        given = self._problem.call_arguments()
        self._bound_arguments = self._problem.bind_arguments()
        self._bound_arguments |= {
            name: value for name, value in given.items() if not np.ndim(value)
        }
        self._per_row = {name: value for name, value in given.items() if np.ndim(value)}
        self._out = np.empty((m + 1, spec.n), numpy_dtype(spec.out))
        self._placed: dict[str, Any] = {}

    def load(self, name: str, content: bytes, check: bool = True) -> str | None:
        """Take a kernel file as a contender. Returns what is wrong with its results, or None."""
        assert self._problem is not None
        (stored,) = parsed(name, content)
        kernel = loaded(stored, self._threads)
        assert isinstance(kernel, Kernel)
        if not self._placed:
            self._side = HOST if kernel.info.device == "cpu" else on_gpu()
            arrays = {"x": self._x, "out": self._out, **self._per_row}
            self._placed = {each: self._side.placed(value) for each, value in arrays.items()}
        linears = [linear.for_kernel(kernel) for linear in self._bound(kernel)]
        if check and (wrong := self._wrong(kernel, linears[0])):
            return wrong
        m = self._problem.m
        calls = [Calls(self._call(linear, m), self._call(linear, 1)) for linear in linears]
        self._calls[name] = self._side.contender(calls)
        return None

    def drop(self, name: str) -> None:
        """Forget a contender."""
        self._calls.pop(name, None)

    def calls_per_turn(self, name: str) -> int:
        """How many calls of a contender a turn is, so that it lasts `TURN_SECONDS`.

        The machine is warm then: the clock of its cores, and the tables of its pages.
        """
        calls, start = 1, time.perf_counter()
        while time.perf_counter() - start < WARM_SECONDS:
            calls = max(1, round(TURN_SECONDS / self.turn(name, calls)))
        return calls

    def turn(self, name: str, calls: int) -> float:
        """Seconds per call of a contender."""
        return self._side.seconds(self._calls[name], calls)

    def _call(self, linear: Linear, m: int) -> Callable[[], object]:
        """A call on the first `m` rows, with everything prepared."""
        placed = {name: value[:m] for name, value in self._placed.items()}
        return functools.partial(linear, **placed, num_threads=self._threads)

    def _bound(self, kernel: Kernel) -> list[Linear]:
        """The packed weight of a kernel's layout, as often as it must be to come from memory."""
        assert self._problem is not None
        assert self._weight is not None
        layout = kernel.info.layout
        linears = self._linears.setdefault(layout, [])
        if not linears:
            linears.append(kernel.bind(self._weight[1], **self._bound_arguments))
        needed = self._side.copies(linears[0].nbytes, self._problem.m)
        while len(linears) < needed:
            linears.append(linears[0].duplicate())
        return linears[:needed]

    def _wrong(self, kernel: Kernel, linear: Linear) -> str | None:
        """What differs from the reference: for all rows, and for counts at the edges of tiles."""
        assert self._problem is not None
        most = self._problem.m
        info = kernel.info
        functions = info.functions if info.device == "cpu" else info.variants
        rows = max(each.rows for each in functions)
        for m in sorted({most, most - 1, 1, rows - 1, rows + 1} & {*range(1, most + 1)}):
            self._out.view(np.uint8)[...] = UNTOUCHED
            self._side.write(self._placed["out"], self._out)
            self._call(linear, m)()
            found = self._side.read(self._placed["out"])
            if reason := difference(found[:m], self._reference()[:m]):
                return f"wrong for {m} rows: {reason}"
            if (found[m:].view(np.uint8) != UNTOUCHED).any():
                return f"wrong for {m} rows: it writes behind them"
        return None

    def _reference(self) -> Bounds:
        """What the spec means, computed once for all contenders."""
        assert self._problem is not None
        assert self._weight is not None
        if self._expected is None:
            # BLAS threads of its own would go on polling, on the cores where kernels are timed.
            with threadpoolctl.threadpool_limits(1, "blas"):
                parts = [
                    ends_of(self._problem, self._x, self._weight[1], columns)
                    for columns in slices(self._problem.spec.n)
                ]
            self._expected = Bounds(
                *(np.concatenate(end, axis=1) for end in zip(*parts, strict=True))
            )
        return self._expected


def slices(n: int) -> list[slice]:
    """Columns of the result, some at a time."""
    return [
        slice(start, min(n, start + REFERENCE_COLUMNS)) for start in range(0, n, REFERENCE_COLUMNS)
    ]


def ends_of(
    problem: Problem, x: np.ndarray, w: QTensor, columns: slice
) -> tuple[np.ndarray, np.ndarray]:
    """Some columns of the reference's bounds."""
    count = columns.stop - columns.start
    spec = dataclasses.replace(problem.spec, n=count, m=None)
    starts = columns.start + problem.spec.n * np.arange(spec.matrices)
    rows = (starts[:, None] + np.arange(count)).reshape(-1)

    def part(values: np.ndarray | None) -> np.ndarray | None:
        """The rows of the weight that make these columns; one number is for all."""
        return values[rows] if values is not None and values.ndim else values

    scale = part(w.scale)
    assert scale is not None
    shape = spec.w_rows, spec.k
    others = w.dtype, w.group_size, shape, part(w.offset), w.order
    weight = QTensor(w.data[rows], scale, part(w.zero_point), *others)
    given = {**problem.bind_arguments(), **problem.call_arguments()}
    if "bias" in given:
        given["bias"] = given["bias"][rows]
    if "residual" in given:
        given["residual"] = given["residual"][:, columns]
    found = bounds(spec, x, weight, **given)
    return found.low, found.high
