"""On which threads kernels run: the program's OpenMP runtime, or workers of our own."""

from __future__ import annotations

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
from fresh import CALL, K, N, run
from quantmm.compiler import linker
from quantmm.errors import ArrayError
from quantmm.runtime import threads

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

#: scikit-learn brings libgomp.
SKLEARN = pytest.mark.skipif(
    not any((Path(place) / "sklearn").is_dir() for place in sys.path),
    reason="scikit-learn, which brings an OpenMP runtime, is not installed",
)
LOAD_OPENMP = "\nimport sklearn.utils._openmp_helpers\n"
OPENMP = CALL + LOAD_OPENMP
#: Programs without OpenMP and with it.
HOSTS = pytest.mark.parametrize(
    "host", ["", pytest.param(LOAD_OPENMP, marks=SKLEARN)], ids=["own", "openmp"]
)
ONE, TWO = {"TVM_NUM_THREADS": "1"}, {"TVM_NUM_THREADS": "2"}


@pytest.fixture(scope="module")
def kernel_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "linear.qmm"
    # A chip with matrix instructions would ask for few threads.
    qmm.compile(qmm.MatmulSpec(n=N, k=K), "generic").save(path)
    return path


def test_one_thread_starts_no_pool(kernel_file):
    code = CALL + "before = tasks(); right(1); right(); print(json.dumps(tasks() - before))"
    assert run(code, kernel_file, **ONE) == 0


def test_workers_start_when_they_are_asked_for_and_are_not_pinned(kernel_file):
    code = (
        CALL
        + """
before, counts = tasks(), []
for threads in (2, 4, 3, 1, 4):
    assert right(threads)
    counts.append(tasks() - before)
cores = [len(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")]
print(json.dumps([counts, min(cores)]))
"""
    )
    counts, cores = run(code, kernel_file, **ONE)
    assert counts == [1, 3, 3, 3, 3]
    assert cores == len(__import__("os").sched_getaffinity(0))


@SKLEARN
def test_openmp_is_used_also_when_it_is_loaded_later(kernel_file):
    code = (
        CALL
        + """
pools = [kernel.report((64,))[0]["pool"]]
same = [right(2)]
import sklearn.utils._openmp_helpers
same += [right(2), right(2)]
pools.append(kernel.report((64,))[0]["pool"])
print(json.dumps([pools, same]))
"""
    )
    (before, after), same = run(code, kernel_file, **TWO)
    assert before == "quantmm's own"
    assert re.match("OpenMP, .*libgomp.*", after)
    assert same == [True] * 3


@SKLEARN
def test_a_region_of_openmp_is_what_runs_the_loops(kernel_file):
    """With OpenMP one worker of its team is started, and none of ours."""
    code = (
        OPENMP
        + """
from quantmm.runtime import launcher
before = tasks()
same = [right(2) for _ in range(3)]
print(json.dumps([same, tasks() - before, launcher.current().pool.workers]))
"""
    )
    assert run(code, kernel_file, **TWO) == [[True] * 3, 1, 0]


@HOSTS
def test_the_default_follows_the_limits_of_the_host(kernel_file, host):
    """OpenMP's where there is such a runtime, else those of NumPy's BLAS."""
    code = (
        CALL
        + host
        + """
from threadpoolctl import ThreadpoolController, threadpool_limits
if not ThreadpoolController().lib_controllers:
    print(json.dumps(None)); sys.exit()
with threadpool_limits(4):
    counts = [kernel.num_threads]
    with threadpool_limits(1):
        counts.append(kernel.report((64,))[0]["threads"])
        same = right()
    counts.append(kernel.report((64,))[0]["threads"])
print(json.dumps([*counts, same]))
"""
    )
    found = run(code, kernel_file, **TWO)
    if found is None:
        pytest.skip("threadpoolctl does not know the BLAS that NumPy has here")
    assert found == [2, 1, 2, True]


@SKLEARN
def test_calls_from_a_parallel_region_start_no_more_threads(kernel_file):
    code = (
        OPENMP
        + """
import ctypes
from quantmm.runtime import launcher, threads
right(2)
gomp = ctypes.CDLL(threads._process.hosts.openmp.path)
same, counts = [], []
@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def region(_):
    for _ in range(20):
        same.append(right(2))
    counts.append(tasks())
before = tasks()
gomp.GOMP_parallel(region, None, 2, 0)
print(json.dumps([len(same), all(same), max(counts) - before, launcher.current().pool.workers]))
"""
    )
    calls, same, more, workers = run(code, kernel_file, **TWO)
    assert same
    assert calls == 40
    # The second thread of the region may have no seat and start a worker of ours, and a thread more
    # is there while it is tried whether OpenMP's can be started.
    assert more <= 2
    assert workers <= 1


@HOSTS
def test_many_calling_threads_do_not_multiply_the_workers(kernel_file, host):
    code = (
        CALL
        + host
        + """
before, same, together = tasks(), [], threading.Barrier(64)
def work():
    together.wait()
    same.extend(right(2) for _ in range(20))
    together.wait()
    most.append(tasks())
    together.wait()
most = []
callers = [threading.Thread(target=work) for _ in range(64)]
for caller in callers: caller.start()
for caller in callers: caller.join()
print(json.dumps([all(same), len(same), max(most) - before - 64]))
"""
    )
    same, calls, more = run(code, kernel_file, **TWO)
    assert same
    assert calls == 64 * 20
    assert more <= 2


@HOSTS
def test_threads_that_end_leave_none_behind(kernel_file, host):
    code = (
        CALL
        + host
        + """
right(2)
before, same = tasks(), []
def work():
    same.extend(right(2) for _ in range(12))
for _ in range(200):
    caller = threading.Thread(target=work)
    caller.start()
    caller.join()
for _ in range(100):  # a team of OpenMP ends shortly after its thread
    if tasks() <= before + 1:
        break
    time.sleep(0.05)
time.sleep(0.5)
began = time.process_time()
time.sleep(1)
print(json.dumps([all(same), tasks() - before, time.process_time() - began]))
"""
    )
    same, more, seconds = run(code, kernel_file, **TWO)
    assert same
    assert more <= 1
    assert seconds < 0.1  # of the processor: sleeping threads take none


POLLS_FOR_EVER = "\nfrom quantmm.runtime import launcher\nlauncher.POLLS = 2**31\n"


@pytest.mark.parametrize("built", ["file", "here"])
def test_a_process_ends_while_workers_run(kernel_file, built):
    call = POLLS_FOR_EVER + CALL
    if built == "here":
        assert "qmm.load(sys.argv[1])" in call
        here = f"qmm.compile(qmm.MatmulSpec(n={N}, k={K}), cache=False)"
        call = call.replace("qmm.load(sys.argv[1])", here)
    code = call + "before = tasks(); print(json.dumps([right(2), tasks() - before]))"
    assert run(code, kernel_file, **TWO) == [True, 1]


LIMITED = (
    CALL
    + """
import resource
HOST
kind, room = getattr(resource, sys.argv[2]), int(sys.argv[3])
if kind == resource.RLIMIT_NPROC and os.getuid() == 0:
    os.setgroups([])
    os.setgid(54321)
    os.setuid(54321)  # no limit of processes holds for root
_, most = resource.getrlimit(kind)
resource.setrlimit(kind, (room, most))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    same = [right(64), right(64), right(1)]
resource.setrlimit(kind, (most, most))
print(json.dumps([same, [str(each.message) for each in caught]]))
"""
)


@HOSTS
def test_a_limit_of_processes_means_fewer_threads_and_a_warning(kernel_file, host):
    kernel_file.parent.chmod(0o755)
    code = LIMITED.replace("HOST", host)
    same, messages = run(code, kernel_file, "RLIMIT_NPROC", 3, **ONE)
    assert same == [True] * 3
    assert len(messages) == 1
    assert re.match(r"the system lets \d+ of \d+ helping threads start, by a limit", messages[0])


@HOSTS
def test_a_limit_of_address_space_means_fewer_threads_and_a_warning(kernel_file, host):
    code = LIMITED.replace("HOST", host).replace(
        "resource.setrlimit(kind, (room, most))",
        """
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(kind, (pages * resource.getpagesize() + room, most))
""",
    )
    same, messages = run(code, kernel_file, "RLIMIT_AS", 100 << 20, **ONE)
    assert same == [True] * 3
    assert len(messages) == 1
    assert re.match(r"the system lets \d+ of \d+ helping threads start, by a limit", messages[0])


FORK = """
def status(threads, how):
    child = os.fork()
    if child == 0:
        import signal
        signal.alarm(60)
        same = right(threads) and right(threads)
        if how == "exit" and same:
            sys.exit(0)
        os._exit(0 if same else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

time.sleep(0.05)  # workers sleep
print(json.dumps([status(threads, how) for threads in (2, 1, 3) for how in ("_exit", "exit")]))
"""


@HOSTS
@pytest.mark.parametrize("before", ["right(2)", "pass"])
def test_forked_children_compute_and_end(kernel_file, host, before):
    """By os._exit and by sys.exit, whether the parent's workers were there or not."""
    code = "\n".join([CALL, host, before, FORK])
    assert run(code, kernel_file, **ONE) == [0] * 6


def test_a_fork_waits_for_what_another_thread_has_half_done(kernel_file):
    code = (
        CALL
        + """
from quantmm.runtime.forks import ForkLock
lock, begun, half = ForkLock(), threading.Event(), []
def work():
    with lock:
        half.append(1)
        begun.set()
        time.sleep(0.2)
        half.append(2)
caller = threading.Thread(target=work)
caller.start()
begun.wait()
child = os.fork()
if child == 0:
    with lock:
        os._exit(len(half))
caller.join()
with lock:
    print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""
    )
    assert run(code, kernel_file, **TWO) == 2


@HOSTS
def test_a_child_that_is_forked_in_the_middle_of_a_call_computes(kernel_file, host):
    """Of a thread that is not in the child, and whose loop was open."""
    code = (
        CALL
        + host
        + """
done = threading.Event()
def work():
    while not done.is_set():
        right(2)
caller = threading.Thread(target=work)
caller.start()
ends = []
for i in range(30):
    # The first ones while the thread looks for pools and starts workers.
    time.sleep(0.0001 * i)
    child = os.fork()
    if child == 0:
        import signal
        signal.alarm(60)
        os._exit(0 if all(right(2) for _ in range(3)) else 1)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
done.set()
caller.join()
print(json.dumps(ends))
"""
    )
    assert run(code, kernel_file, **TWO) == [0] * 30


@SKLEARN
def test_a_forked_child_says_that_it_does_not_use_openmp(kernel_file):
    code = (
        OPENMP
        + """
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, kernel.report((64,))[0]["pool"].encode())
    os._exit(0)
print(json.dumps(os.read(read, 1000).decode()))
"""
    )
    assert run(code, kernel_file) == "quantmm's own, as this process was forked"


def test_a_child_of_multiprocessing_computes(kernel_file):
    code = (
        CALL
        + """
import multiprocessing
right(2)
def work():
    sys.exit(0 if right(2) else 1)
process = multiprocessing.get_context("fork").Process(target=work)
process.start()
process.join(60)
print(json.dumps(process.exitcode))
"""
    )
    assert run(code, kernel_file, **ONE) == 0


@SKLEARN
def test_two_openmp_runtimes_are_named(kernel_file, tmp_path):
    code = (
        OPENMP
        + """
import ctypes, shutil
from quantmm.runtime import hosts
first = hosts.find().openmp.path
ctypes.CDLL(shutil.copy(first, sys.argv[2] + "/libgomp-other.so"))
sys.modules["more"] = sys
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    same = [right(2), right(2)]
print(json.dumps([same, first, [str(each.message) for each in caught]]))
"""
    )
    same, first, (message,) = run(code, kernel_file, tmp_path, **TWO)
    assert same == [True, True]
    assert message.startswith("this process has 2 OpenMP runtimes: kernels run on the threads of ")
    assert first in message
    assert "libgomp-other.so" in message


def test_an_openmp_runtime_that_cannot_be_used_is_named(kernel_file, tmp_path):
    source, library = tmp_path / "fake.c", tmp_path / "libomp-fake.so"
    source.write_text("int omp_get_max_threads(void) { return 2; }")
    done = subprocess.run(
        [*linker.command(), "-shared", "-fPIC", "-o", str(library), str(source)], check=False
    )
    if done.returncode:
        pytest.skip("no C compiler for a runtime to try")
    code = (
        CALL
        + """
import ctypes
ctypes.CDLL(sys.argv[2])
sys.modules["more"] = sys
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    same = [right(2), right(2)]
print(json.dumps([same, kernel.report()[0]["pool"], [str(each.message) for each in caught]]))
"""
    )
    same, pool, (message,) = run(code, kernel_file, library, **TWO)
    assert same == [True, True]
    assert pool == "quantmm's own"
    assert f"the OpenMP runtime {library} lacks GOMP_parallel" in message
    assert "expected libgomp, libomp or libiomp5" in message


def test_too_many_threads_are_refused(kernel_file):
    code = (
        CALL
        + """
try:
    linear(x, num_threads=10**6)
except qmm.QuantmmError as error:
    print(json.dumps(str(error)))
"""
    )
    assert "num_threads=1000000; expected at most" in run(code, kernel_file, **ONE)


@pytest.mark.parametrize("siblings", [False, True])
def test_default_is_one_thread_per_physical_core(kernel_file, tmp_path, siblings):
    """On a machine where this process's CPUs are a core each, and on one where they share one."""
    import os

    allowed = os.sched_getaffinity(0)
    chips.describe(tmp_path, {cpu: "all" if siblings else str(cpu) for cpu in allowed})
    code = f"""
import pathlib
from quantmm import cores
cores.CPUS = cores.OWN_GROUPS = pathlib.Path({str(tmp_path)!r})
{CALL}
print(json.dumps(kernel.num_threads))
"""
    clean = dict.fromkeys(("TVM_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "")
    assert run(code, kernel_file, **clean) == (1 if siblings else len(allowed))


@pytest.mark.parametrize("value", ["²", "9" * 5000, "0", "two", "-1"])
def test_settings_that_are_no_number_of_threads_are_ignored(value, monkeypatch):
    monkeypatch.setenv("TVM_NUM_THREADS", value)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads.own_limit.__wrapped__() == 3


def test_results_do_not_depend_on_threads():
    rng = np.random.default_rng(0)
    spec = qmm.MatmulSpec(n=100, k=77, out="int32")
    w = problems.weight(rng, spec)
    x = problems.integers(rng, "int8", (41, 77))
    linear = qmm.compile(spec, num_threads=2).bind(w)
    expected = qmm.reference(spec, x, w)
    for count in (None, 1, 2, 1, 5):
        np.testing.assert_array_equal(linear(x, num_threads=count), expected)


@pytest.mark.parametrize(
    ("work", "tasks", "team", "expected"),
    [
        (1000, 100, 0, 1),  # less than a launch
        (20_000, 100, 0, 6),
        (20_000, 100, 64, 1),  # which OpenMP would wake all for
        (20_000, 2, 0, 2),
        (20_000, 1, 0, 1),
        (1e9, 10**6, 0, 8),
    ],
)
def test_a_call_takes_as_many_threads_as_it_is_worth(work, tasks, team, expected, monkeypatch):
    monkeypatch.setattr(threads, "default_threads", lambda: 8)
    monkeypatch.setattr(threads, "openmp_threads", lambda: team)
    best = threads.best_of(work, tasks)
    assert threads.count(None, work, best)[0] == expected
    assert threads.count(1, work, best) == (1, 0)
    assert threads.count(2, work, best)[0] == min(expected, 2)


def test_the_report_says_how_many_threads(monkeypatch):
    kernel = qmm.compile(qmm.MatmulSpec(n=512, k=512, out="int32"))
    monkeypatch.setattr(threads, "default_threads", lambda: 2)
    assert [row["threads"] for row in kernel.report((1, 512))] == [
        threads.count(None, plan.work, plan.best)[0] for plan in map(kernel.plan, (1, 512))
    ]
    assert kernel.report((512,))[0]["threads"] == 2
    small = qmm.compile(qmm.MatmulSpec(n=32, k=32, out="int32"), num_threads=2)
    assert small.report((1,))[0]["threads"] == 1


@pytest.mark.parametrize("count", [0, False, True, -1, 1.0, 1.5, "2", np.True_, 10**6])
def test_refused_threads(count, kernel_file):
    spec = qmm.MatmulSpec(n=4, k=4, out="int32", m=1)
    kernel = qmm.compile(spec)
    linear = kernel.bind(problems.weight(np.random.default_rng(0), spec))
    x = np.ones((1, 4), np.int8)
    message = re.escape(f"num_threads={count!r}; expected ") + "(a whole number of|at most)"

    def refused():
        with pytest.raises(ArrayError, match=message):
            linear(x, num_threads=count)

    with ThreadPoolExecutor(1) as pool:  # in a thread that made no call yet
        pool.submit(refused).result()
    for earlier in (1, 2):
        linear(x, num_threads=earlier)
        refused()
    with pytest.raises(ArrayError, match=message):
        qmm.load(kernel_file, num_threads=count)
    with pytest.raises(ArrayError, match=message):
        type(kernel)(kernel.info, None, count)


def test_whole_numbers_of_other_libraries_are_threads(kernel_file):
    spec = qmm.MatmulSpec(n=4, k=4, out="int32", m=1)
    linear = qmm.compile(spec).bind(problems.weight(np.random.default_rng(0), spec))
    x = np.ones((1, 4), np.int8)
    for count in (1, np.int64(2), np.uint8(1), 2):
        linear(x, num_threads=count)
    assert type(qmm.load(kernel_file, num_threads=np.int32(2)).num_threads) is int


@pytest.mark.parametrize("count", [0, -1, "2", 1.5, True, 10**6])
def test_refused_threads_are_refused_before_the_work(kernel_file, count, monkeypatch):
    message = f"num_threads={count!r}; expected"
    with pytest.raises(ArrayError, match=message):
        qmm.load(kernel_file, num_threads=count)
    monkeypatch.setattr("quantmm.compiler.cpu.build", None)
    with pytest.raises(ArrayError, match=message):
        qmm.compile(qmm.MatmulSpec(n=4, k=4), num_threads=count)


def test_several_python_threads_call_at_once():
    rng = np.random.default_rng(0)
    spec = qmm.MatmulSpec(n=65, k=130, out="int32")
    w = problems.weight(rng, spec)
    linear = qmm.compile(spec, num_threads=3).bind(w)
    xs = [problems.integers(rng, "int8", (m, 130)) for m in (1, 3, 17, 40) * 25]
    with ThreadPoolExecutor(4) as pool:
        for x, y in zip(xs, pool.map(linear, xs), strict=True):
            np.testing.assert_array_equal(y, qmm.reference(spec, x, w))
