"""Packing a weight: some rows at a time, with the same result, and with little memory beside it."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import problems
import pytest
import quantmm as qmm
from fresh import run
from hypothesis import given
from hypothesis import strategies as st
from quantmm.runtime import packing
from quantmm.runtime.packing import packed_weight, row_pieces
from quantmm.schedules.cpu.plan import plan_for
from quantmm.targets import CUDA_TARGETS, TARGETS
from quantmm.targets.cuda_layout import cuda_layout
from quantmm.targets.layout import WeightLayout

NAMES = ("w", "w_sum", "w_extra", "w_zero_point", "w_scale", "w_offset")


@given(st.integers(1, 500), st.sampled_from([1, 4, 8, 16]), st.integers(1, 300))
def test_pieces_are_whole_blocks_that_cover_all_rows(n, lanes, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "PIECE", size * 7)
        pieces = [*row_pieces(n, lanes, 7)]
    assert pieces[0].start == 0
    assert pieces[-1].stop == n
    for one, other in itertools.pairwise(pieces):
        assert one.stop == other.start
        assert one.stop % lanes == 0
    assert len(pieces) == 1 or all(each.stop - each.start >= lanes for each in pieces)


def layouts(spec):
    """Of every CPU row that has the format, and of GPUs."""
    for target in TARGETS:
        try:
            plan = plan_for(spec, target)
        except qmm.QuantmmError:
            continue
        yield plan.layout, plan.x_shift
    size = spec.group_size if isinstance(spec.group_size, int) else None
    bits = 4 if spec.four_bit_weight else 8
    assert CUDA_TARGETS
    yield cuda_layout(spec.n, spec.k, group_size=size, bits=bits), 0


@given(st.data())
def test_pieces_make_the_weight_that_all_rows_make(data):
    n, k = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 80))
    beside = data.draw(st.sampled_from([None, "weight_zero_point", "weight_offset"]))
    spec = qmm.MatmulSpec(
        n=n,
        k=k,
        weight=data.draw(st.sampled_from(["int8", "uint8", "int4", "uint4"])),
        group_size=data.draw(st.sampled_from([None, "tensor", 8, 16, 32])),
        **({beside: True} if beside else {}),
    )
    w = problems.weight(np.random.default_rng(data.draw(st.integers(0, 99))), spec)
    for layout, x_offset in layouts(spec):
        names = [name for name in NAMES if name != "w_extra" or getattr(layout, "bits", 4) == 8]
        whole = packed_weight(spec, layout, x_offset, w, names)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packing, "PIECE", data.draw(st.integers(1, n * k)))
            pieces = packed_weight(spec, layout, x_offset, w, names)
        assert whole.keys() == pieces.keys()
        for name, array in whole.items():
            np.testing.assert_array_equal(pieces[name], array, err_msg=name)


def where_from(layout, position):
    """The k that stands at a position of a padded row, or None for what is zero."""
    block, within = divmod(position, layout.k_block)
    if layout.pairs:  # the even positions come first
        half = layout.k_block // 2
        within = 2 * within if within < half else 2 * (within - half) + 1
    k = block * layout.k_block + within
    whole = layout.k // layout.k_block * layout.k_block
    if block * layout.k_block < whole or layout.last_start < 0:
        return k if k < layout.k else None
    if block * layout.k_block > whole:
        return None
    k = layout.last_start + within  # the last block ends at K; what it repeats is zero
    return k if whole <= k < layout.k else None


def plainly(layout, w):
    """`WeightLayout.pack` of one number after the other."""
    packed = np.zeros(layout.shape, np.uint8)
    for block, step, lane, d in np.ndindex(*layout.shape):
        n = block * layout.lanes + lane
        if layout.n > layout.lanes and block == layout.n_blocks - 1:
            n = layout.n - layout.lanes + lane
        for half in range(layout.steps_per_byte):
            position = (step * layout.steps_per_byte + half) * layout.depth + d
            k = where_from(layout, position)
            if k is not None and n < layout.n:
                packed[block, step, lane, d] |= (int(w[n, k]) + layout.offset) % 256 << 4 * half
    return packed.view(layout.stored_dtype)


@given(st.data())
def test_a_weight_lies_where_the_layout_says(data):
    weight = data.draw(st.sampled_from(["int8", "int4", "uint4"]))
    n, k = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 70))
    size = data.draw(st.sampled_from([None, 32]))
    spec = qmm.MatmulSpec(n=n, k=k, weight=weight, group_size=size)
    w = problems.weight(np.random.default_rng(data.draw(st.integers(0, 99))), spec)
    seen = set()
    for layout, _ in layouts(spec):
        if not isinstance(layout, WeightLayout) or layout in seen or layout.matrices > 1:
            continue
        seen.add(layout)
        expected = plainly(layout, w.unpacked())
        np.testing.assert_array_equal(layout.pack(w.unpacked()), expected)
        if layout.keeps_pairs:
            np.testing.assert_array_equal(layout.pack_pairs(w.data), expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("k", [32, 34, 46, 16])
@pytest.mark.parametrize("offset", [0, 8])
def test_pairs_of_any_depth_are_set_apart(depth, k, offset):
    layout = WeightLayout(19, k, 8, depth, 16, bits=4, stored_dtype="uint8", offset=offset)
    rng = np.random.default_rng(0)
    w = rng.integers(-offset, 16 - offset, (19, k)).astype(np.int8 if offset else np.uint8)
    expected = plainly(layout, w)
    given_ = qmm.pack_int4(w)
    before = given_.copy()
    np.testing.assert_array_equal(layout.pack_pairs(given_), expected)
    np.testing.assert_array_equal(given_, before)
    np.testing.assert_array_equal(layout.pack(w), expected)


@pytest.mark.parametrize("size", [None, 16, 32, 48, 128])
@pytest.mark.parametrize("k", [96, 130, 16])
def test_pairs_on_gpus_are_what_integers_are(size, k):
    layout = cuda_layout(19, k, group_size=size, bits=4)
    w = np.random.default_rng(0).integers(-8, 8, (19, k)).astype(np.int8)
    np.testing.assert_array_equal(layout.pack_pairs(qmm.pack_int4(w)), layout.pack(w))


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8"])
@pytest.mark.parametrize("k", [64, 71, 90])
def test_sums_of_groups(dtype, k):
    w = qmm.quantize(np.random.default_rng(0).standard_normal((5, k)), dtype, group_size=32)
    sums = packing.sums_of_groups(w, np.arange(0, k, 32))
    integers = w.unpacked().astype(np.int64)
    expected = [integers[:, start : start + 32].sum(axis=1) for start in range(0, k, 32)]
    np.testing.assert_array_equal(sums, np.stack(expected, axis=1))


PEAK = """
import json, sys
import numpy as np
import quantmm as qmm

def status(name):
    return int(open("/proc/self/status").read().split(name + ":")[1].split()[0]) << 10

fields = json.loads(sys.argv[1])
spec = qmm.MatmulSpec(**fields)
rng = np.random.default_rng(0)
four = spec.four_bit_weight
data = rng.integers(0, 256, (spec.n, spec.k // 2 if four else spec.k), np.uint8)
groups = spec.k // spec.group_size if spec.group_size else 1
scale = np.ones((spec.n, groups) if spec.group_size else (spec.n,), np.float32)
zero = np.full(scale.shape, 3, np.int32) if spec.weight_zero_point else None
w = qmm.QTensor(data if four else data.view(spec.weight), scale, zero, spec.weight, spec.group_size,
                (spec.n, spec.k))
kernel = qmm.compile(spec, cache=False)
kernel.bind(w)  # what is imported and compiled along the way
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
linear = kernel.bind(w)
print(json.dumps([status("VmHWM") - before, linear.nbytes]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "fields",
    [
        {"weight": "int8"},
        {"weight": "int4", "group_size": 128},
        {"weight": "uint4", "group_size": 32, "weight_zero_point": True},
    ],
    ids=lambda fields: fields["weight"],
)
def test_packing_takes_little_more_memory_than_what_it_makes(fields):
    import json

    fields = {"n": 16384, "k": 4096, "input": "float32", "dynamic": True, "m": 1, **fields}
    extra, packed = run(PEAK, json.dumps(fields))
    assert extra <= 1.2 * packed + (64 << 20)
