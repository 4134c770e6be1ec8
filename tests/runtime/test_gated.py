"""A gate and up in one call, whose product is made in registers."""

from __future__ import annotations

import dataclasses

import numpy as np
import problems
import pytest
import quantmm as qmm
from quantmm.bench.assembly import inner_loop
from quantmm.compiler.cpu import emit_code
from quantmm.formats.problem import Problem, check
from quantmm.formats.reference import bounds
from quantmm.targets import TARGETS

FLOATS = {"input": "float32", "dynamic": True}
#: What the epilogue has beside the product, with everything that the halves have of their own.
SPECS = [
    qmm.MatmulSpec(n=70, k=90, gated=True, activation_fn="silu", bias=True, **FLOATS),
    qmm.MatmulSpec(n=5, k=33, gated=True, activation_fn="relu", residual=True, out="int8"),
    qmm.MatmulSpec(
        n=130, k=96, gated=True, weight="int4", group_size=32, activation_fn="gelu", **FLOATS
    ),
    qmm.MatmulSpec(n=40, k=64, gated=True, weight_zero_point=True, experts=3, **FLOATS),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.n}x{spec.k}")
@pytest.mark.parametrize("m", [1, 6, 40])
def test_the_function_of_a_gate_times_up(spec, m):
    kernel = problems.compiled(spec, rows=(m,))
    assert check(Problem(spec, m), kernel) is None


@pytest.mark.parametrize("target", [row.name for row in TARGETS])
def test_code_for_every_cpu_keeps_the_halves_side_by_side(target):
    layout = problems.compiled(SPECS[0], target, rows=(1,)).info.layout
    assert layout.matrices == 2
    assert layout.n_blocks == 2 * -(-70 // layout.lanes)


def test_one_row_of_small_groups_reads_one_stream_at_a_time():
    """The loop over K is that of one matrix: two streams with scales beside each are slower."""
    spec = qmm.MatmulSpec(n=64, k=4096, weight="int4", group_size=32)
    gated = dataclasses.replace(spec, n=32, gated=True, activation_fn="silu")
    of_one, of_two = (
        inner_loop(emit_code(each, "x86-avx512vnni", 1, "asm"), "vpdpbusd")
        for each in (spec, gated)
    )
    products = [sum("vpdpbusd" in line for line in loop) for loop in (of_one, of_two)]
    assert products[0] == products[1] > 0


def test_one_call_is_what_two_and_a_product_are():
    rng = np.random.default_rng(0)
    w = qmm.quantize(rng.standard_normal((140, 90)), "int8")
    x = rng.standard_normal((9, 90)).astype(np.float32)
    one = qmm.MatmulSpec(n=70, k=90, **FLOATS)
    gate, up = (qmm.compile(one).bind(w.rows(rows))(x) for rows in (slice(70), slice(70, 140)))
    spec = qmm.MatmulSpec(n=70, k=90, gated=True, activation_fn="relu", **FLOATS)
    y = qmm.compile(spec).bind(w)(x)
    assert np.array_equal(y, np.maximum(gate, 0) * up)
    problems.assert_agrees(y, bounds(spec, x, w))
