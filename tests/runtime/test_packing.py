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
