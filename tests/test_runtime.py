"""Fresh processes: what is imported, how many threads run, how fast a kernel file is there."""

from __future__ import annotations

import json
import mmap
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import chips
import numpy as np
import problems
import pytest
import quantmm as qmm
from quantmm.compiler.runtime import aligned_empty, default_threads
from quantmm.errors import ArrayError

M, N, K = 64, 256, 512

CALL = f"""
import json, os, sys, threading
import numpy as np
import quantmm as qmm
kernel = qmm.load(sys.argv[1])
rng = np.random.default_rng(0)
w = qmm.quantize(rng.standard_normal(({N}, {K})))
x = rng.integers(-128, 128, ({M}, {K}), dtype=np.int8)
linear = kernel.bind(w, x_scale=1.0)
y = linear(x)
"""


def run(code, *arguments, **environment):
    import os

    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


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


THREADS = (
    CALL
    + """
def threads():
    return len(os.listdir("/proc/self/task"))
before = threads()
for word in sys.argv[2].split(","):
    linear(x, num_threads=int(word))
cores = [len(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")]
print(json.dumps([before, threads(), min(cores), kernel.num_threads]))
"""
)

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@needs_proc
def test_one_thread_starts_no_pool(kernel_file):
    before, after, _, default = run(THREADS, kernel_file, "1,1", TVM_NUM_THREADS="1")
    assert before == after
    assert default == 1


@needs_proc
def test_a_pool_starts_when_it_is_asked_for_and_is_not_pinned(kernel_file):
    before, after, cores, default = run(THREADS, kernel_file, "1,3,2,1,3", TVM_NUM_THREADS="1")
    assert after == before + 2
    assert default == 1
    assert cores == len(__import__("os").sched_getaffinity(0))


@needs_proc
def test_too_many_threads_are_refused_before_the_pool_starts(kernel_file):
    code = (
        CALL
        + """
try:
    linear(x, num_threads=10**6)
except qmm.QuantmmError as error:
    print(json.dumps(str(error)))
"""
    )
    assert "num_threads=1000000; expected at most" in run(code, kernel_file, TVM_NUM_THREADS="1")


@needs_proc
def test_a_pool_that_address_space_is_too_small_for_is_refused(kernel_file):
    code = (
        CALL
        + """
import resource
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (100 << 20)
_, most = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (limit, most))
try:
    linear(x, num_threads=64)
except qmm.QuantmmError as error:
    message = str(error)
same = [bool(np.array_equal(linear(x, num_threads=1), y))]
resource.setrlimit(resource.RLIMIT_AS, (most, most))
same.append(bool(np.array_equal(linear(x, num_threads=64), y)))
print(json.dumps([message, same]))
"""
    )
    message, same = run(code, kernel_file, TVM_NUM_THREADS="1")
    assert re.match(r"num_threads=64; the limit of address space .* of the 63 threads", message)
    assert same == [True, True]


@needs_proc
@pytest.mark.parametrize("siblings", [False, True])
def test_default_is_one_thread_per_physical_core(kernel_file, tmp_path, siblings):
    """On a machine where this process's CPUs are a core each, and on one where they share one."""
    import os

    allowed = os.sched_getaffinity(0)
    chips.describe(tmp_path, {cpu: "all" if siblings else str(cpu) for cpu in allowed})
    made_up = f"""
import pathlib
from quantmm.targets import cores
cores.CPUS = cores.OWN_GROUPS = pathlib.Path({str(tmp_path)!r})
"""
    clean = {"TVM_NUM_THREADS": "", "OMP_NUM_THREADS": ""}
    *_, default = run(made_up + THREADS, kernel_file, "1", **clean)
    assert default == (1 if siblings else len(allowed))


@pytest.mark.parametrize("value", ["²", "9" * 5000, "0", "two", "-1"])
def test_settings_that_are_no_number_of_threads_are_ignored(value, monkeypatch):
    monkeypatch.setenv("TVM_NUM_THREADS", value)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert default_threads() == 3


def test_results_do_not_depend_on_threads():
    rng = np.random.default_rng(0)
    spec = qmm.MatmulSpec(n=100, k=77, out="int32")
    w = problems.weight(rng, spec)
    x = problems.integers(rng, "int8", (41, 77))
    linear = qmm.compile(spec, num_threads=2).bind(w)
    expected = qmm.reference(spec, x, w)
    for threads in (None, 1, 2, 1):
        np.testing.assert_array_equal(linear(x, num_threads=threads), expected)


@pytest.mark.parametrize("threads", [0, False, True, -1, 1.0, 1.5, "2", np.True_, 10**6])
def test_refused_threads(threads, kernel_file):
    spec = qmm.MatmulSpec(n=4, k=4, out="int32", m=1)
    kernel = qmm.compile(spec)
    linear = kernel.bind(problems.weight(np.random.default_rng(0), spec))
    x = np.ones((1, 4), np.int8)
    message = re.escape(f"num_threads={threads!r}; expected ") + "(a whole number of|at most)"

    def refused():
        with pytest.raises(ArrayError, match=message):
            linear(x, num_threads=threads)

    with ThreadPoolExecutor(1) as pool:  # in a thread that made no call yet
        pool.submit(refused).result()
    for earlier in (1, 2):
        linear(x, num_threads=earlier)
        refused()
    with pytest.raises(ArrayError, match=message):
        qmm.load(kernel_file, num_threads=threads)
    with pytest.raises(ArrayError, match=message):
        type(kernel)(kernel.info, None, threads)


def test_whole_numbers_of_other_libraries_are_threads(kernel_file):
    spec = qmm.MatmulSpec(n=4, k=4, out="int32", m=1)
    linear = qmm.compile(spec).bind(problems.weight(np.random.default_rng(0), spec))
    x = np.ones((1, 4), np.int8)
    for threads in (1, np.int64(2), np.uint8(1), 2):
        linear(x, num_threads=threads)
    assert type(qmm.load(kernel_file, num_threads=np.int32(2)).num_threads) is int


@pytest.mark.parametrize("threads", [0, -1, "2", 1.5, True, 10**6])
def test_refused_threads_are_refused_before_the_work(kernel_file, threads, monkeypatch):
    message = f"num_threads={threads!r}; expected"
    with pytest.raises(ArrayError, match=message):
        qmm.load(kernel_file, num_threads=threads)
    monkeypatch.setattr("quantmm.compiler.build.build", None)
    with pytest.raises(ArrayError, match=message):
        qmm.compile(qmm.MatmulSpec(n=4, k=4), num_threads=threads)


def test_several_python_threads_call_at_once():
    rng = np.random.default_rng(0)
    spec = qmm.MatmulSpec(n=65, k=130, out="int32")
    w = problems.weight(rng, spec)
    linear = qmm.compile(spec).bind(w)
    xs = [problems.integers(rng, "int8", (m, 130)) for m in (1, 3, 17, 40) * 5]
    with ThreadPoolExecutor(4) as pool:
        for x, y in zip(xs, pool.map(linear, xs), strict=True):
            np.testing.assert_array_equal(y, qmm.reference(spec, x, w))


FORK = (
    CALL
    + """
import warnings
linear(x, num_threads=2)
read, write = os.pipe()
child = os.fork()
if child == 0:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        same = np.array_equal(linear(x, num_threads=2), y)
    os.write(write, json.dumps([bool(same), [str(w.message) for w in caught]]).encode())
    os._exit(0)
os.waitpid(child, 0)
print(os.read(read, 10000).decode())
"""
)


@needs_proc
def test_a_forked_child_computes_on_one_thread_and_says_so(kernel_file):
    same, (message,) = run(FORK, kernel_file)
    assert same
    assert "forked" in message
    assert "os._exit" in message


#: Children that are forked when the pool's workers sleep; the alarm ends those that hang.
FORKS = (
    CALL
    + """
import multiprocessing, signal, time, warnings
warnings.simplefilter("ignore")
way = sys.argv[2]
def work():
    signal.alarm(20)
    linear(x, num_threads=2)
def status_of_a_child():
    time.sleep(0.05)
    if way == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join()
        return process.exitcode
    child = os.fork()
    if child == 0:
        work()
        (os._exit if way == "os._exit" else sys.exit)(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
if way == "called in another thread":
    thread = threading.Thread(target=linear, args=(x,), kwargs={"num_threads": 2})
    thread.start()
    thread.join()
elif way != "called with one thread":
    linear(x, num_threads=2)
print(json.dumps([status_of_a_child() for _ in range(5)]))
"""
)


@needs_proc
@pytest.mark.parametrize(
    "way",
    ["os._exit", "multiprocessing", "called with one thread", "called in another thread"],
)
def test_forked_children_end_in_the_ways_that_the_docs_name(kernel_file, way):
    assert run(FORKS, kernel_file, way, TVM_NUM_THREADS="1") == [0] * 5


FORK_BEFORE_THE_POOL = (
    CALL
    + """
import warnings
read, write = os.pipe()
child = os.fork()
if child == 0:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = len(os.listdir("/proc/self/task"))
        same = [bool(np.array_equal(linear(x, num_threads=n), y)) for n in (2, 1, 2)]
        started = len(os.listdir("/proc/self/task")) - before
    os.write(write, json.dumps([same, started, [str(w.message) for w in caught]]).encode())
    os._exit(0)
os.waitpid(child, 0)
print(os.read(read, 10000).decode())
"""
)


@needs_proc
def test_a_child_that_was_forked_before_there_was_a_pool_has_its_own(kernel_file):
    same, started, messages = run(FORK_BEFORE_THE_POOL, kernel_file, TVM_NUM_THREADS="1")
    assert same == [True] * 3
    assert started == 1
    assert messages == []


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
