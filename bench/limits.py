"""The machine's limits, measured: dot products per second and bytes read per second.

Both kernels are TensorExpressions compiled for the target's row, so that what is measured is what
its kernels can use: the same instruction, the same vector width, the same thread pool.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import te
from tvm.s_tir import Schedule

from ..compiler import runtime
from ..compiler.runtime import tvm_ffi
from ..schedules.steps import write_as_instruction
from ..targets import Target

#: Accumulators of the peak kernel: PEAK_ROWS x PEAK_BLOCKS, enough to hide the latency.
PEAK_ROWS, PEAK_BLOCKS = 4, 4
#: Steps of K whose operands stay in L1.
PEAK_STEPS = 8
PEAK_REPEATS = 8192

#: Vectors that the read kernel sums independently, and the bytes that it reads.
READ_STREAMS = 8
READ_BYTES = 256 << 20

ROUNDS = 15


@dataclass(frozen=True)
class Limits:
    """What one machine can do with a number of threads; best of several rounds.

    Attributes
    ----------
    gops : 1e9 multiplications plus additions of the target's dot product per second.
    gbps : 1e9 bytes read from memory per second, with the better of 4 KB and 2 MB pages.
    gbps_small, gbps_huge : the same for each page size.
    """

    threads: int
    gops: float
    gbps_small: float
    gbps_huge: float

    @property
    def gbps(self) -> float:
        """The better of the two page sizes."""
        return max(self.gbps_small, self.gbps_huge)

    def floor(self, m: int, n: int, k: int, weight_bytes: float, cold: bool) -> float:
        """Seconds below which M x N x K cannot go: operations, or bytes when read from memory."""
        compute = 2 * m * n * k / (self.gops * 1e9)
        return max(compute, weight_bytes / (self.gbps * 1e9)) if cold else compute


def measure(target: Target, threads: int) -> Limits:
    """Measure `target`'s limits on this machine; takes about a second."""
    runtime.use_threads(threads)
    return Limits(
        threads, dot_gops(target, threads), *(read_gbps(target, threads, p) for p in (False, True))
    )


def dot_gops(target: Target, threads: int) -> float:
    """Billions of operations per second of nothing but the dot-product instruction."""
    instruction = target.instruction
    shape = PEAK_STEPS, PEAK_ROWS, instruction.depth
    x = runtime.aligned(np.ones(shape, instruction.x_dtype))
    w_shape = PEAK_STEPS, PEAK_BLOCKS, instruction.lanes, instruction.depth
    w = runtime.aligned(np.ones(w_shape, instruction.w_dtype))
    y = runtime.aligned_empty((threads, PEAK_ROWS, PEAK_BLOCKS, instruction.lanes), np.int32)
    seconds = best(peak_kernel(target, threads), x, w, y)
    products = y.size * PEAK_REPEATS * PEAK_STEPS * instruction.depth
    return 2 * products / seconds / 1e9


def read_gbps(target: Target, threads: int, huge_pages: bool) -> float:
    """Billions of bytes per second of a streaming read that no cache holds."""
    lanes = target.vector_bytes // 4
    rows = READ_BYTES // (threads * READ_STREAMS * lanes * 4)
    x = runtime.aligned_empty((threads, rows, READ_STREAMS, lanes), np.int32, huge_pages=huge_pages)
    x[...] = 1
    y = runtime.aligned_empty((threads, READ_STREAMS, lanes), np.int32)
    return x.nbytes / best(read_kernel(target, threads, rows), x, y) / 1e9


@functools.cache
def peak_kernel(target: Target, threads: int) -> tvm_ffi.Function:
    """acc[t, a, b] += x[s, a] * w[s, b], again and again, everything in registers and L1."""
    ins = target.instruction
    x = te.placeholder((PEAK_STEPS, PEAK_ROWS, ins.depth), ins.x_dtype, "x")
    w = te.placeholder((PEAK_STEPS, PEAK_BLOCKS, ins.lanes, ins.depth), ins.w_dtype, "w")
    repeat = te.reduce_axis((0, PEAK_REPEATS), "repeat")
    step = te.reduce_axis((0, PEAK_STEPS), "step")
    d = te.reduce_axis((0, ins.depth), "d")
    acc = te.compute(
        (threads, PEAK_ROWS, PEAK_BLOCKS, ins.lanes),
        lambda t, a, b, lane: te.sum(
            x[step, a, d].astype("int32") * w[step, b, lane, d].astype("int32"),
            axis=[repeat, step, d],
        ),
        "acc",
    )
    sch = Schedule(te.create_prim_func([x, w, acc]))
    local = sch.cache_write("acc", 0, "global")
    t, a, b, lane, repeat, step, d = sch.get_loops("acc")
    sch.reorder(t, repeat, step, a, b, lane, d)
    sch.parallel(t)
    sch.unroll(a)
    sch.unroll(b)
    sch.reverse_compute_at(local, t)
    sch.vectorize(sch.get_loops(local)[-1])
    write_as_instruction(sch, ins, repeat, lane, d)
    return function(sch, target)


@functools.cache
def read_kernel(target: Target, threads: int, rows: int) -> tvm_ffi.Function:
    """y[t, s] = sum over i of x[t, i, s], one vector per load."""
    lanes = target.vector_bytes // 4
    x = te.placeholder((threads, rows, READ_STREAMS, lanes), "int32", "x")
    i = te.reduce_axis((0, rows), "i")
    acc = te.compute(
        (threads, READ_STREAMS, lanes),
        lambda t, s, lane: te.sum(x[t, i, s, lane], axis=i),
        "acc",
    )
    sch = Schedule(te.create_prim_func([x, acc]))
    local = sch.cache_write("acc", 0, "global")
    t, s, lane, i = sch.get_loops("acc")
    sch.reorder(t, i, s, lane)
    sch.parallel(t)
    sch.unroll(s)
    sch.vectorize(lane)
    sch.reverse_compute_at(local, t)
    sch.vectorize(sch.get_loops(local)[-1])
    zero = sch.decompose_reduction("acc", i)
    sch.unroll(sch.get_loops(zero)[-2])
    sch.vectorize(sch.get_loops(zero)[-1])
    return function(sch, target)


def function(sch: Schedule, target: Target) -> tvm_ffi.Function:
    """The compiled function of a schedule."""
    module = tvm.compile(sch.mod, target=tvm.target.Target({"kind": "llvm", **target.llvm}))
    return module["main"]


def best(kernel: tvm_ffi.Function, *arrays: np.ndarray) -> float:
    """The least time in seconds of several calls."""
    tensors = [tvm_ffi.from_dlpack(array) for array in arrays]
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        kernel(*tensors)
        times.append(time.perf_counter() - start)
    return min(times)
