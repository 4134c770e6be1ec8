"""Fresh processes that load a kernel file and call it: what they print comes back as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys

M, N, K = 128, 2048, 256

#: `linear` of a kernel file, `x`, and the `y` of a first call.
CALL = f"""
import json, os, sys, threading, time, warnings
import numpy as np
import quantmm as qmm
kernel = qmm.load(sys.argv[1])
rng = np.random.default_rng(0)
w = qmm.quantize(rng.standard_normal(({N}, {K})))
x = rng.integers(-128, 128, ({M}, {K}), dtype=np.int8)
linear = kernel.bind(w, x_scale=1.0)
y = linear(x, num_threads=1)

def tasks():
    # A thread that was joined may have an instant left to the system.
    counts = []
    for _ in range(10):
        time.sleep(0.005)
        counts.append(len(os.listdir("/proc/self/task")))
    return min(counts)

def right(threads=None):
    return bool(np.array_equal(linear(x, num_threads=threads), y))
"""


def run(code, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
