"""The measuring tools measure something; no test asserts a time."""

from __future__ import annotations

import dataclasses
import itertools

import chips
import numpy as np
import pytest
import quantmm as qmm
from quantmm import cores, targets
from quantmm.bench import limits, rotation, timing
from quantmm.bench.contenders import Job, ours
from quantmm.bench.roofline import Limits
from quantmm.cli.bench import SPEC_OPTIONS, bench_command, jobs_for
from quantmm.formats import named
from quantmm.runtime import memory
from quantmm.runtime.tvm_runtime import tvm_ffi
from quantmm.targets.forms import PAIRED, SIGNS

#: The options of `quantmm bench` that decide what is timed.
DECIDING = SPEC_OPTIONS | {"m", "n", "k", "models", "hot", "format_names"}


def test_peak_kernel_does_the_operations_that_are_counted(target):
    rng = np.random.default_rng(0)
    x, w, y = (memory.aligned_empty(shape, dtype) for shape, dtype in limits.peak_arrays(target, 1))
    x[...] = rng.integers(0, 100, x.shape)
    w[...] = rng.integers(-100, 100, w.shape)
    limits.peak_kernel(target, 1)(*map(tvm_ffi.from_dlpack, (x, w, y)))
    x, w = x.astype(np.int64), w.astype(np.int64)
    if target.instruction.form == PAIRED:  # the dot product, and what else such products hold
        w = w.reshape(*w.shape[:3], target.instruction.lanes, -1)
        once = np.einsum("sahd,sbhld->abl", x, w)
        once += np.einsum("sad,sad->a", x[:, :, 0], x[:, :, 1])[:, None, None]
        once += np.einsum("sbld,sbld->bl", w[:, :, 0], w[:, :, 1])
    elif target.instruction.rows > 1:  # several steps of the layout at a time
        w = np.moveaxis(w, -2, 2).reshape(*w.shape[:2], target.instruction.lanes, -1)
        once = np.einsum("sard,sbld->abrl", x, w)
    else:
        once = np.einsum("sad,sbld->abl", x, w)
    np.testing.assert_array_equal(y[0], (once * limits.PEAK_REPEATS).astype(np.int32))


def test_peak_kernel_of_signs_moves_them_to_the_weights():
    row = targets.find_cpu("x86-avx2")
    (signs,) = (each for each in row.instructions if each.form == SIGNS)
    row = targets.emulated(dataclasses.replace(row, instructions=(signs,)))
    rng = np.random.default_rng(0)
    x, w, y = (memory.aligned_empty(shape, dtype) for shape, dtype in limits.peak_arrays(row, 1))
    given = rng.integers(-128, 128, (*x.shape[:2], x.shape[3]))
    x[:, :, 0], x[:, :, 1] = np.abs(given), np.where(given < 0, 255, 0)
    w[...] = rng.integers(-128, 128, w.shape)
    limits.peak_kernel(row, 1)(*map(tvm_ffi.from_dlpack, (x, w, y)))
    once = np.einsum("sad,sbld->abl", given, w.astype(np.int64))
    once += np.minimum(given, 0).sum(axis=(0, 2))[:, None, None]
    np.testing.assert_array_equal(y[0], (once * limits.PEAK_REPEATS).astype(np.int32))


def test_read_kernel_reads_everything(target):
    lanes = target.vector_bytes // 4
    x = memory.aligned(np.arange(2 * 50 * 8 * lanes, dtype=np.int32).reshape(2, 50, 8, lanes))
    y = memory.aligned_empty((2, 8, lanes), np.int32)
    limits.read_kernel(target, 2, 50)(*map(tvm_ffi.from_dlpack, (x, y)))
    np.testing.assert_array_equal(y, x.sum(axis=1))


def test_limits_are_operations_and_bytes_over_time(target, monkeypatch):
    """Every kernel is called once, and the times are made up."""
    seconds, calls, pages = iter((0.5, 2.0, 0.25)), [], []

    def best(threads, kernel, *arrays):
        kernel(*map(tvm_ffi.from_dlpack, arrays))
        calls.append(arrays)
        return next(seconds)

    def empty(shape, dtype, *, huge_pages=True):
        pages.append(huge_pages)
        return made(shape, dtype, huge_pages=huge_pages)

    made = memory.aligned_empty
    monkeypatch.setattr(limits, "best", best)
    monkeypatch.setattr(memory, "aligned_empty", empty)
    monkeypatch.setattr(limits, "read_bytes", lambda: 8 << 20)
    limit = limits.measure(target, 1)
    (x, w, _), (small, _), (huge, _) = calls
    steps, depth = len(x), target.instruction.depth
    # Every row of X meets every column of W in each step, over and over.
    products = x.size * w.size // (steps * depth) * limits.PEAK_REPEATS
    assert limit.gops == pytest.approx(2 * products / 0.5 / 1e9)
    assert small.nbytes == huge.nbytes
    assert (8 << 20) - small.nbytes < 1 << 20
    assert limit.gbps_small == pytest.approx(small.nbytes / 2.0 / 1e9)
    assert limit.gbps_huge == pytest.approx(huge.nbytes / 0.25 / 1e9)
    assert pages[-4::2] == [False, True]  # of what is read; sums are between


def test_the_better_pages_count():
    assert Limits(1, gops=1, gbps_small=8, gbps_huge=10).gbps == 10
    assert Limits(1, gops=1, gbps_small=8, gbps_huge=7).gbps == 8


def test_floor_is_the_slower_of_operations_and_bytes():
    limit = Limits(1, gops=100, gbps_small=8, gbps_huge=10)
    assert limit.floor(1, 1000, 1000, 1e6, cold=True) == pytest.approx(1e6 / 10e9)
    assert limit.floor(1, 1000, 1000, 1e6, cold=False) == pytest.approx(2e6 / 100e9)
    assert limit.floor(64, 1000, 1000, 1e6, cold=True) == pytest.approx(128e6 / 100e9)


def test_contenders_take_turns(monkeypatch):
    seen, clock = [], [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def call(name, seconds):
        seen.append(name)
        clock[0] += seconds

    calls = {
        "a": [lambda: call("a0", 0.001), lambda: call("a1", 0.002)],
        "b": [lambda: call("b", 0.002)],
    }
    times = timing.interleaved(calls, rounds=3)
    assert seen.count("a0") == seen.count("a1")
    assert times["a"].least == pytest.approx(0.0015)
    assert times["b"].least == pytest.approx(0.002)
    order = [name[0] for name in seen]
    changes = sum(x != y for x, y in itertools.pairwise(order))
    assert changes >= 5


def test_what_the_names_of_formats_stand_for():
    for name, fields in named.FORMATS.items():
        spec = qmm.MatmulSpec(n=8, k=8, **fields)
        assert named.name_of(spec) == name
        usual = "group" if name.endswith("-xg") else "row"
        assert spec.activation_scale == ("tensor" if name in ("int8", "int7") else usual)
    assert named.name_of(qmm.MatmulSpec(n=8, k=8)) == "activation_scale=row"


def test_what_the_command_times_by_default():
    for words, expected in [
        ("", named.FORMATS["int8"]),
        ("--format int8", named.FORMATS["int8"]),
        ("--dynamic --input float32", named.FORMATS["w8a8-dynamic"]),
        ("--activation-scale row", {}),
    ]:
        context = bench_command.make_context("bench", f"--m 1 --n 8 --k 8 {words}".split())
        given = {name: context.params[name] for name in DECIDING}
        (job,) = jobs_for((), "host", [1], **given)
        assert job.spec == qmm.MatmulSpec(n=8, k=8, **expected)


MB = 1024  # in the kilobytes that Linux writes


@pytest.fixture
def chip(tmp_path, monkeypatch):
    """Eight CPUs, 0 to 3 and 4 to 7 with an L3 of 96 MB; the function says which may be used."""
    halves = {cpu: "0-3" if cpu < 4 else "4-7" for cpu in range(8)}
    caches = {cpu: {str(cpu): f"{MB}K", half: f"{96 * MB}K"} for cpu, half in halves.items()}
    chips.describe(tmp_path, {}, caches)
    monkeypatch.setattr(cores, "CPUS", tmp_path)

    def allow(*cpus):
        monkeypatch.setattr(cores, "allowed_cpus", lambda: set(cpus))
        rotation.last_level_cache.cache_clear()

    yield allow
    rotation.last_level_cache.cache_clear()


@pytest.mark.parametrize(
    ("cpus", "cached", "streamed"),
    [
        ((0, 1, 4, 7), 192, 768),
        ((5, 6), 96, 384),
        ((9,), 0, 256),  # of which nothing is known
    ],
)
def test_what_comes_from_memory_exceeds_all_caches(chip, cpus, cached, streamed):
    chip(*cpus)
    assert rotation.last_level_cache() == cached << 20
    assert limits.read_bytes() == streamed << 20
    assert rotation.copies_for(64) == rotation.MOST_COPIES
    for size in (100_000, 16 << 20, 1 << 30):
        others = (rotation.copies_for(size) - 1) * size  # that are read before it is one's turn
        assert others >= max(2 * cached, 128) << 20


def test_the_stream_has_indices_of_32_bits(chip, monkeypatch):
    monkeypatch.setattr(limits, "last_level_cache", lambda: 3 << 30)
    assert limits.read_bytes() // 4 < 2**31


def test_arrays_are_aligned_and_large_ones_lie_on_large_pages():
    for shape, alignment in (((3,), 64), ((5 << 20,), 2 << 20)):
        array = memory.aligned_empty(shape, np.int8)
        array[...] = 7
        assert array.ctypes.data % alignment == 0
        assert int(array[-1]) == 7


@pytest.mark.parametrize("name", ["w4a8-g128-offset", "w4a8-g32-offset"])
def test_weights_with_offsets_are_what_peers_get(name):
    job = Job(qmm.MatmulSpec(n=8, k=256, **named.FORMATS[name]), 1, 1, False, "host")
    weight = job.weight()
    q = ours.qtensor(job, weight)
    np.testing.assert_array_equal(qmm.dequantize(q), weight.floats())
    # What quantizers find in every group.
    again = qmm.quantize(weight.floats(), "uint4", group_size=job.group, offset=True)
    np.testing.assert_array_equal(again.unpacked(), q.unpacked())
    np.testing.assert_array_equal(again.offset, q.offset)
    assert named.weight_bytes(job.spec) == q.data.nbytes + q.scale.nbytes + q.offset.nbytes
