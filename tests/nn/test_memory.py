"""A model's temporaries: malloc keeps their memory once there is a quantized layer."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="torch is not installed")

#: Page faults of ten rounds of temporaries, in all 9 MB each.
ROUNDS = """
import resource, sys, torch
from quantmm import nn as qnn
if sys.argv[1] == "layer":
    qnn.Linear(8, 8)
def round():
    held = [torch.ones(3 << 20, dtype=torch.uint8) for _ in range(3)]
for _ in range(3):
    round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    round()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(what):
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS, what], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc than glibc's")
def test_memory_of_temporaries_is_kept():
    pages = 9 * (3 << 20) // 4096
    if faults("none") < pages:
        pytest.skip("malloc keeps the memory anyway, as its settings or its version have it")
    assert faults("layer") < 100
