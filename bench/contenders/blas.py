"""NumPy's float32: what the user leaves behind, on any machine."""

from __future__ import annotations

import functools

import numpy as np
import threadpoolctl

from .job import Job, Ready


def floats(job: Job) -> Ready:
    """X @ W.T in float32, by the BLAS that NumPy has."""
    threadpoolctl.threadpool_limits(job.threads, "blas")
    x, out = job.x_floats(), np.empty((job.m, job.n), np.float32)
    calls = [functools.partial(np.matmul, x, w.floats().T, out=out) for w in job.weights()]
    return Ready([*calls], lambda: out)
