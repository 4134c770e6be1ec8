"""quantmm itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from .job import X_SCALE, Job, Ready, Weight


def static(job: Job) -> Ready:
    """int8 x int8 to float32 with scales."""
    import quantmm as qmm

    spec = qmm.MatmulSpec(n=job.n, k=job.k)
    kernel = qmm.compile(spec, job.target, num_threads=job.threads)
    return bound(job, functools.partial(kernel.bind, x_scale=X_SCALE))


def dynamic(job: Job) -> Ready:
    """float32 x int8 or int4 to float32, X quantized row by row inside the call."""
    import quantmm as qmm

    spec = qmm.MatmulSpec(
        n=job.n,
        k=job.k,
        weight=f"int{job.format.bits}",
        group_size=job.format.group,
        activation="int8",
        input="float32",
        dynamic=True,
        out="float32",
    )
    return bound(job, qmm.compile(spec, job.target, num_threads=job.threads).bind)


def bound(job: Job, bind: Callable[[Any], Callable[..., object]]) -> Ready:
    """Every copy bound to the kernel, all writing the same result."""
    x = job.x()
    out = np.empty((job.m, job.n), np.float32)
    linears = [bind(qtensor(weight)) for weight in job.weights()]
    calls = [functools.partial(linear, x, out) for linear in linears]
    return Ready([*calls], lambda: out)


def qtensor(weight: Weight) -> Any:
    """The weight as quantmm stores it."""
    import quantmm as qmm

    data = qmm.pack_int4(weight.values) if weight.bits == 4 else weight.values
    scales = weight.scales if weight.group else weight.scales[:, 0]
    shape = weight.values.shape
    return qmm.QTensor(data, scales, None, f"int{weight.bits}", weight.group, shape)
