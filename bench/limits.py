"""The machine's limits, measured: dot products per second and bytes read per second.

Both kernels are TensorExpressions compiled for the target's row, so that what is measured is what
its kernels can use: the same instruction, the same vector width, the same thread pool.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import te, tirx
from tvm.ir import Expr
from tvm.s_tir import Schedule

from ..compiler.built import Built
from ..compiler.expr.products import product
from ..compiler.llvm import llvm_target
from ..runtime import memory
from ..runtime.threads import use as use_threads
from ..runtime.tvm_runtime import tvm_ffi
from ..schedules.cpu.loops import loops_over
from ..schedules.cpu.registers import budget
from ..schedules.cpu.steps import write_as_instruction
from ..schedules.fragments import axes_over, axes_within
from ..targets import Target, machine
from ..targets.instructions import with_setup
from .roofline import Limits
from .rotation import last_level_cache


@dataclass(frozen=True)
class Peak:
    """A tile of `rows` x `blocks` fragments, enough to hide the latency of the dot product.

    The operands of its `steps` along K stay in L1, and are too many for the compiler to unroll: it
    would multiply once and add the products again and again.
    """

    rows: int
    blocks: int
    steps: int


#: By the number of registers that hold sums: matrix tiles, 16 and 32 vectors; 16 where two vectors
#: of weights and two temporaries take more of them.
PEAKS = {8: Peak(2, 2, 8), 16: Peak(6, 2, 64), 32: Peak(4, 4, 64)}
PAIRED = {16: Peak(4, 2, 64), 32: Peak(4, 4, 64)}
PEAK_REPEATS = 1024

#: Vectors that the read kernel sums independently, and the bytes that it reads at least. Of a
#: stream this many times as long as the caches, these cannot keep more than a fourth for the next
#: round. Indices are int32, which bounds it.
READ_STREAMS = 8
READ_BYTES, BEYOND_CACHES, MOST_READ_BYTES = 256 << 20, 4, 4 << 30

ROUNDS = 15


def measure(target: Target, threads: int) -> Limits:
    """Measure `target`'s limits on this machine; takes about a second."""
    machine.require(target.name, target.architecture, target.features)
    return Limits(
        threads, dot_gops(target, threads), *(read_gbps(target, threads, p) for p in (False, True))
    )


def dot_gops(target: Target, threads: int) -> float:
    """Billions of operations per second of nothing but the dot-product instruction."""
    instruction = target.instruction
    kernel = peak_kernel(target, threads)
    x, w, y = (memory.aligned_empty(shape, dtype) for shape, dtype in peak_arrays(target, threads))
    x[...], w[...] = 1, 1
    products = y.size * PEAK_REPEATS * peak_of(target).steps * instruction.depth
    return 2 * products / best(threads, kernel, x, w, y) / 1e9


def peak_of(target: Target) -> Peak:
    """The peak kernel's tile."""
    peaks = PAIRED if target.instruction.form.w_components > 1 else PEAKS
    return peaks[budget(target, target.instruction)]


def peak_arrays(target: Target, threads: int) -> list[tuple[tuple[int, ...], str]]:
    """Shapes and dtypes of X, W and sums: fragments as the instruction reads and writes them."""
    ins, peak = target.instruction, peak_of(target)
    rows = (ins.rows,) if ins.rows > 1 else ()
    components = (ins.form.x_components,) if ins.form.x_components > 1 else ()
    x_inner: tuple[int, ...] = (*rows, *components, ins.products)
    w_inner: tuple[int, ...] = (ins.lanes, ins.block_depth)
    if ins.form.w_components > 1:
        w_inner = ins.form.w_components, ins.lanes * ins.products
    elif ins.depth > ins.block_depth:
        w_inner = ins.depth // ins.block_depth, *w_inner
    x_dtype, w_dtype = ins.read_dtypes
    return [
        ((peak.steps, peak.rows, *x_inner), x_dtype),
        ((peak.steps, peak.blocks, *w_inner), w_dtype),
        ((threads, peak.rows, peak.blocks, *rows, ins.lanes), "int32"),
    ]


def read_gbps(target: Target, threads: int, huge_pages: bool) -> float:
    """Billions of bytes per second of a streaming read that no cache holds."""
    lanes = target.vector_bytes // 4
    rows = read_bytes() // (threads * READ_STREAMS * lanes * 4)
    x = memory.aligned_empty((threads, rows, READ_STREAMS, lanes), np.int32, huge_pages=huge_pages)
    x[...] = 1
    y = memory.aligned_empty((threads, READ_STREAMS, lanes), np.int32)
    return x.nbytes / best(threads, read_kernel(target, threads, rows), x, y) / 1e9


def read_bytes() -> int:
    """How long the read kernel's stream is."""
    return min(max(READ_BYTES, BEYOND_CACHES * last_level_cache()), MOST_READ_BYTES)


@functools.cache
def peak_kernel(target: Target, threads: int) -> Callable[..., Any]:
    """acc[t, a, b] += x[s, a] * w[s, b], again and again, everything in registers and L1."""
    return function(peak_schedule(target, threads), target)


def peak_schedule(target: Target, threads: int) -> tirx.PrimFunc:
    """The peak kernel before code generation."""
    ins, peak = target.instruction, peak_of(target)
    (x_shape, x_dtype), (w_shape, w_dtype), (y_shape, _) = peak_arrays(target, threads)
    x = te.placeholder(x_shape, x_dtype, "x")
    w = te.placeholder(w_shape, w_dtype, "w")
    repeat = te.reduce_axis((0, PEAK_REPEATS), "repeat")
    step = te.reduce_axis((0, peak.steps), "step")
    kk = te.reduce_axis((0, ins.products), "kk")
    tile_axes = axes_over(ins, ins.lanes)
    axes = ["task", *tile_axes, *axes_within(ins)]

    def dot(_: Expr, a: Expr, b: Expr, *at: Expr) -> Expr:
        *row, lane = at
        inner = ins.block_depth

        def weight(component: int, k: Expr) -> Expr:
            if ins.form.w_components > 1:
                return w[step, b, component, lane * ins.products + k]
            if inner == ins.depth:
                return w[step, b, lane, k]
            return w[step, b, k // inner, lane, k % inner]

        def activation(component: int, k: Expr) -> Expr:
            index = step, a, *((component,) if ins.form.x_components > 1 else ()), *row, k
            return x[index]

        return te.sum(product(ins.form, activation, weight, kk), axis=[repeat, step, kk])

    acc = te.compute(y_shape, lambda *at: dot(*at), "acc", varargs_names=axes)
    sums = te.compute(y_shape, lambda *at: acc[at], "sums", varargs_names=axes)
    sch = Schedule(te.create_prim_func([x, w, sums]))
    (task,) = loops_over(sch, sch.get_sblock("sums"), "task")
    sch.parallel(task)
    sch.compute_at("acc", task, preserve_unit_loops=True)
    _, *around, repeat, step, d = loops_over(
        sch, sch.get_sblock("acc"), *axes, "repeat", "step", "kk"
    )
    sch.reorder(repeat, step, *around, d)
    for loop in around[: len(tile_axes)]:
        sch.unroll(loop)
    if ins.registers is None:
        sch.vectorize(*loops_over(sch, sch.get_sblock("sums"), "lane"))
    write_as_instruction(sch, ins, peak.rows, peak.blocks, repeat, tile_axes)
    return with_setup(sch.mod["main"], sch.get(task), ins, peak.rows, peak.blocks)


@functools.cache
def read_kernel(target: Target, threads: int, rows: int) -> Callable[..., Any]:
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
    return function(sch.mod["main"], target)


def function(func: tirx.PrimFunc, target: Target) -> Callable[..., Any]:
    """A scheduled function, compiled."""
    module = tvm.compile(tvm.IRModule({"main": func}), target=llvm_target(target))
    return Built({"main": module}, machine.architecture()).function("main")


def best(threads: int, kernel: Callable[..., Any], *arrays: np.ndarray) -> float:
    """The least time in seconds of several calls on so many threads."""
    use_threads(threads)
    tensors = [tvm_ffi.from_dlpack(array) for array in arrays]
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        kernel(*tensors)
        times.append(time.perf_counter() - start)
    return min(times)
