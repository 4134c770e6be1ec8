"""A process may load, copy and drop kernels for ever: mappings and memory stay where they were."""

from __future__ import annotations

import sys

import pytest
import quantmm as qmm
from fresh import CALL, K, N, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

#: Mappings, and resident kilobytes.
STATE = (
    CALL
    + """
import gc, pickle

def state():
    gc.collect()
    status = open("/proc/self/status").read()
    return open("/proc/self/maps").read().count("\\n"), int(status.split("VmRSS:")[1].split()[0])

def grown(work, times):
    for _ in range(20):
        work()
    before = state()
    for _ in range(times):
        work()
    return [after - earlier for after, earlier in zip(state(), before)]
"""
)
KILOBYTES = 6000  # the allocator's; one library more per turn would be 95 each


@pytest.fixture(scope="module")
def kernel_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "linear.qmm"
    qmm.compile(qmm.MatmulSpec(n=N, k=K)).save(path)
    return path


WORK = {
    "loads": "lambda: qmm.load(sys.argv[1])",
    "loads that are called": "lambda: qmm.load(sys.argv[1])(x[:1], w, x_scale=1.0, num_threads=2)",
    "unpicklings while the kernel is there": "lambda: pickle.loads(content)",
    "unpicklings of a kernel alone": "lambda: pickle.loads(alone)",
    "compiles from the cache": "lambda: qmm.compile(kernel.spec)",
}


@pytest.mark.parametrize("what", WORK)
def test_nothing_is_left_of(what, kernel_file):
    code = f"""
content, alone = pickle.dumps(linear), pickle.dumps(kernel)
if {what!r} == "unpicklings of a kernel alone":
    del kernel, linear
print(json.dumps(grown({WORK[what]}, 300)))
"""
    maps, kilobytes = run(STATE + code, kernel_file)
    assert maps <= 10
    assert kilobytes < KILOBYTES


def test_kernels_of_one_content_share_a_library(kernel_file):
    code = """
from quantmm.runtime import code as files
kernels = [kernel, qmm.load(sys.argv[1]), pickle.loads(pickle.dumps(kernel))]
count = len(files._libraries)
same = len({id(each.code) for each in kernels})
del kernel, linear, kernels
gc.collect()
print(json.dumps([count, same, len(files._libraries)]))
"""
    assert run(STATE + code, kernel_file) == [1, 1, 0]
