"""Python threads that compile and import at once, in processes where nothing was compiled yet."""

from __future__ import annotations

import subprocess
import sys

COMPILE = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import quantmm as qmm

def right(i):
    rng = np.random.default_rng(i)
    spec = qmm.MatmulSpec(n=20 + i, k=33 + i, out="int32", m=3)
    w = qmm.quantize(rng.standard_normal((spec.n, spec.k)))
    x = rng.integers(-128, 128, (3, spec.k), dtype=np.int8)
    return np.array_equal(qmm.compile(spec, cache=False)(x, w), qmm.reference(spec, x, w))
"""


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", COMPILE + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_threads_compile_at_once():
    run("""
with ThreadPoolExecutor(4) as pool:
    assert all(pool.map(right, range(4)))
""")


def test_another_thread_imports_torch_meanwhile(torch):
    run("""
def import_torch():
    import torch
    return torch.ones(1).item() == 1

with ThreadPoolExecutor(2) as pool:
    compiled, imported = pool.submit(right, 0), pool.submit(import_torch)
    assert compiled.result() and imported.result()
""")


def test_compiling_alone_does_not_import_torch():
    run("""
assert right(0)
assert "tvm" in sys.modules and "torch" not in sys.modules
""")
