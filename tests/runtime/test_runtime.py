"""Fresh processes: what is imported; and where arrays lie."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import numpy as np
import pytest
import quantmm as qmm
from fresh import CALL, K, M, N, run
from quantmm.runtime.memory import aligned_empty


@pytest.fixture(scope="module")
def kernel_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "linear.qmm"
    qmm.compile(qmm.MatmulSpec(n=N, k=K)).save(path)
    return path


def test_running_a_saved_kernel_imports_no_compiler(kernel_file):
    code = (
        CALL
        + """
modules = [name for name in ("tvm", "torch") if name in sys.modules]
maps = open("/proc/self/maps").read() if os.path.exists("/proc/self/maps") else ""
print(json.dumps([modules, "libtvm_compiler" in maps, float(y.sum())]))
"""
    )
    modules, compiler, total = run(code, kernel_file)
    assert modules == []
    assert not compiler
    rng = np.random.default_rng(0)
    w = qmm.quantize(rng.standard_normal((N, K)))
    x = rng.integers(-128, 128, (M, K), dtype=np.int8)
    assert total == float(qmm.reference(qmm.MatmulSpec(n=N, k=K), x, w, x_scale=1.0).sum())


def test_importing_quantmm_imports_no_tvm():
    code = "import json, sys, quantmm; print(json.dumps('tvm' in sys.modules))"
    assert run(code) is False


def test_large_arrays_lie_on_huge_pages_where_the_system_gives_them():
    array = aligned_empty((8 << 20,), np.uint8)
    array[...] = 1
    mode = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not mode.exists() or "[never]" in mode.read_text():
        pytest.skip("this system gives no transparent huge pages")
    if huge_kilobytes(array.ctypes.data) == 0 and not any_huge_page_to_be_had():
        pytest.skip("no huge page is free")
    assert huge_kilobytes(array.ctypes.data) > 0


def huge_kilobytes(address):
    """What /proc/self/smaps says of the mapping that holds an address."""
    within = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            within = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif within and line.startswith("AnonHugePages:"):
            return int(line.split()[1])
    raise AssertionError(f"no mapping holds {address:#x}")


def any_huge_page_to_be_had():
    """Whether an anonymous mapping made by hand gets one."""
    memory = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    raw = np.frombuffer(memory, np.uint8)
    raw[...] = 1
    return huge_kilobytes(raw.ctypes.data) > 0
