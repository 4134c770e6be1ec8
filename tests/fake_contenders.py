"""Contenders for tests: what takes part in `quantmm bench`, behaves badly, or is wrong."""

from __future__ import annotations

import os
import sys
import time

import numpy as np
from quantmm.bench.contenders.job import X_SCALE, Job, Ready


def right(job: Job) -> Ready:
    """The product in float64, rounded."""
    x = job.x().astype(np.float64)
    (weight, *_) = job.weights()
    scales = np.repeat(weight.scales, job.k // weight.scales.shape[1], axis=1)
    w = weight.values.astype(np.float64) * scales
    y = (x @ w.T * (1 if job.dynamic else X_SCALE)).astype(np.float32)
    return Ready([lambda: time.sleep(0.0001)], lambda: y, about="made up")


def wrong(job: Job) -> Ready:
    """Twice the product."""
    ready = right(job)
    return Ready(ready.calls, lambda: 2 * ready.result())


def dies(job: Job) -> Ready:
    """Ends its process."""
    print("no more memory", flush=True)
    os._exit(9)


def dies_later(job: Job) -> Ready:
    """Ends its process at the first call after the check."""
    ready = right(job)
    return Ready([lambda: os._exit(7)], ready.result)


def lingers(job: Job) -> Ready:
    """Is stuck after it has closed its side."""
    print("cleaning up", flush=True)
    os.close(int(sys.argv[1]))
    time.sleep(1000)
    raise AssertionError


def hangs(job: Job) -> Ready:
    """Never answers."""
    time.sleep(1000)
    raise AssertionError
