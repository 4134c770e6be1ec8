"""quantmm itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ...compiler.compile import compile
from ...formats.named import is_named
from ...formats.nibbles import pack_int4
from ...formats.problem import Problem, difference
from ...formats.quantize import QTensor
from ...formats.reference import bounds
from ...formats.values import numpy_dtype
from ...runtime.kernel import Kernel
from ..gpu import Captured, gpu_side
from .job import X_SCALE, Job, Ready, Timed, Weight

#: Rows of X that are compared with the reference where no peer has the format.
COMPARED_ROWS = 3


def product(job: Job) -> Ready | Timed:
    """The kernel for the job's spec; where the format has no name, on numbers of `Problem`."""
    kernel = compile(job.spec, job.row, num_threads=job.threads)
    about = kernel.plan(job.m).name
    if job.row.device == "cuda":
        return on_gpu(job, kernel, about)
    if not is_named(job.spec):
        problem = Problem(job.spec, job.m)
        compare(kernel, problem)
        return Ready(kernel_calls(kernel, job.m, job.copies, job.threads), None, about=about)
    x = job.x()
    out = np.empty((job.m, job.n), np.float32)
    given = {} if job.dynamic else {"x_scale": X_SCALE}
    linears = [kernel.bind(qtensor(job, weight), **given) for weight in job.weights()]
    calls = [functools.partial(linear, x, out) for linear in linears]
    return Ready([*calls], lambda: out, about=about)


def on_gpu(job: Job, kernel: Kernel, about: str) -> Timed:
    """The kernel on the first GPU, with X and the results there."""
    gpu = gpu_side()
    if is_named(job.spec):
        x, out = gpu.placed(job.x()), gpu.placed(np.empty((job.m, job.n), np.float32))
        given: dict[str, Any] = {} if job.dynamic else {"x_scale": X_SCALE}
        linears = [kernel.bind(qtensor(job, weight), **given) for weight in job.weights()]
        calls = [functools.partial(linear, x, out) for linear in linears]
        return Timed(gpu, Captured(calls), [*calls], lambda: gpu.read(out), about=about)
    problem = Problem(job.spec, job.m)
    compare(kernel, problem)
    static, per_call = arguments(problem)
    placed: dict[str, Any] = {name: gpu.placed(value) for name, value in per_call.items()}
    x = gpu.placed(problem.activation())
    out = gpu.placed(np.empty((job.m, kernel.spec.n), numpy_dtype(kernel.spec.out)))
    bound, w = {**problem.bind_arguments(), **static}, problem.weight()
    many = [kernel.bind(w, **bound) for _ in range(job.copies)]
    calls = [functools.partial(linear, x, out, **placed) for linear in many]
    return Timed(gpu, Captured(calls), [*calls], None, about=about)


def qtensor(job: Job, weight: Weight) -> QTensor:
    """The weight as quantmm stores it."""
    data = pack_int4(weight.values) if weight.bits == 4 else weight.values
    scales = weight.scales if weight.group else weight.scales[:, 0]
    offset = None
    if weight.zeros is not None:
        offset = np.reshape(-weight.scales * weight.zeros, scales.shape)
    shape = weight.values.shape
    return QTensor(data, scales, None, job.spec.weight, weight.group, shape, offset)


def kernel_calls(kernel: Kernel, m: int, copies: int, threads: int) -> list[Callable[[], object]]:
    """Calls of `kernel` on `copies` packed weights, everything else prepared."""
    problem = Problem(kernel.spec, m)
    x, w = problem.activation(), problem.weight()
    static, per_call = arguments(problem)
    out = np.empty((m, kernel.spec.n), numpy_dtype(kernel.spec.out))
    calls: list[Callable[[], object]] = []
    for _ in range(copies):
        linear = kernel.bind(w, **problem.bind_arguments(), **static)
        calls.append(functools.partial(linear, x, out, num_threads=threads, **per_call))
    return calls


def arguments(problem: Problem) -> tuple[dict[str, Any], dict[str, Any]]:
    """What goes with X: scalars, which can be bound, and arrays with a row for each of X."""
    given = problem.call_arguments()
    return (
        {name: value for name, value in given.items() if np.ndim(value) == 0},
        {name: value for name, value in given.items() if np.ndim(value)},
    )


def compare(kernel: Kernel, problem: Problem) -> None:
    """Refuse a kernel whose first rows are not the reference's."""
    x, w = problem.activation(), problem.weight()
    bind = problem.bind_arguments()
    static, per_call = arguments(problem)
    y = kernel.bind(w, **bind, **static)(x, **per_call)
    first = {name: value[:COMPARED_ROWS] for name, value in per_call.items() if name != "offs"}
    if "offs" in per_call:
        first["offs"] = np.minimum(per_call["offs"], COMPARED_ROWS)
    expected = bounds(problem.spec, x[:COMPARED_ROWS], w, **bind, **static, **first)
    if wrong := difference(np.asarray(y)[:COMPARED_ROWS], expected):
        raise ArithmeticError(wrong)
