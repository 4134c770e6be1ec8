"""Activations with a scale for each row and group of k: given, or found in the call."""

from __future__ import annotations

import dataclasses

import numpy as np
import problems
import pytest
import quantmm as qmm
from quantmm.compiler.cpu import function_of, kernel_of
from quantmm.errors import ArrayError
from quantmm.formats.problem import Problem, check
from quantmm.runtime import info
from quantmm.schedules.cpu.plan import plan_for
from quantmm.schedules.cpu.variants import variant_with, variants

GROUPS = {"activation_scale": "group"}
FLOATS = {"input": "float32", "dynamic": True}
N, K = 40, 200
#: Integers of both kinds of form, scales found and given, whole groups and a short last one.
FORMATS = [
    {"weight": "int4", "group_size": 32, "bias": True, **FLOATS},
    {"weight": "uint8", "group_size": 64, "weight_zero_point": True, "residual": True, **FLOATS},
    {"group_size": 40, "activation": "uint8", "activation_zero_point": True, "input": "float16"},
    {"weight": "int4", "group_size": 16, "activation": "int4", "out": "int8"},
    {"weight": "uint4", "group_size": 64, "activation_zero_point": True, "k": 256, **FLOATS},
]


def spec_of(fields):
    return qmm.MatmulSpec(**{"n": N, "k": K, **GROUPS, **fields})


def test_every_row(row):
    """One format each; `test_kernel` draws any of them."""
    spec = spec_of(FORMATS[qmm.targets.TARGETS.index(row) % len(FORMATS)])
    there = row if qmm.targets.why_not_here(row) is None else qmm.targets.emulated(row)
    kernel = problems.compiled(spec, there, rows=(1, 21))
    for m in (1, 21):
        assert check(Problem(spec, m), kernel) is None


@pytest.mark.parametrize("fields", FORMATS[:3], ids=["dynamic", "residual", "static"])
def test_many_rows_in_passes_over_k(fields):
    spec = dataclasses.replace(spec_of(fields), k=640)  # an even number of groups
    plan = plan_for(spec, qmm.targets.host())
    tallest = variants(plan)[-1]
    parameters = dataclasses.replace(tallest.parameters, k_passes=2, block_rows=20)
    variant = variant_with(plan, tallest.instruction, tallest.strategy, parameters)
    kernel = kernel_of(plan, [(variant, function_of(variant, plan.layout))])
    assert check(Problem(spec, 50), kernel) is None


@pytest.mark.parametrize("fields", FORMATS[2:4], ids=["floats", "integers"])
def test_more_rows_than_offsets_reach(fields, monkeypatch):
    spec = spec_of(fields)
    kernel = problems.compiled(spec, rows=(3, 10))
    whole = Problem(spec, 10)
    assert check(whole, kernel) is None
    monkeypatch.setattr(info, "MAX_ELEMENTS", 2 * 3 * kernel.info.layout.k_padded + 1)
    assert kernel.most_rows == 3
    kernel.ready.clear()
    assert check(whole, kernel) is None


@pytest.fixture(scope="module")
def static():
    spec = spec_of({"group_size": 64, "activation_zero_point": True})
    return problems.compiled(spec, rows=(1, 6)), Problem(spec, 6)


def test_one_number_for_all_groups(static):
    kernel, problem = static
    x, w = problem.activation(), problem.weight()
    for m in (1, 6, 6, 1):
        for given in ({}, {"x_scale": [2.0]}, {"x_zero_point": np.int64(-3)}):
            bound = {"x_scale": 0.25, "x_zero_point": 3}
            y = kernel.bind(w, **bound)(x[:m], **given)
            problems.assert_agrees(y, qmm.reference(problem.spec, x[:m], w, **bound | given))


@pytest.mark.parametrize("lead", [(), (6,), (2, 3), (2, 0)])
def test_any_dimensions(static, lead):
    kernel, _ = static
    m = int(np.prod(lead))
    problem = Problem(kernel.spec, m)
    w, call = problem.weight(), problem.call_arguments()
    x = problem.activation().reshape(*lead, K)
    call = {name: value.reshape(*lead, 4) for name, value in call.items()}
    y, expected = kernel.bind(w)(x, **call), qmm.reference(kernel.spec, x, w, **call)
    assert y.shape == expected.shape == (*lead, N)
    problems.assert_agrees(y.reshape(-1, N), expected.reshape(-1, N))


@pytest.mark.parametrize("zero_points", [False, True])
def test_takes_what_quantize_gives(static, zero_points):
    kernel, problem = static
    w = problem.weight()
    floats = np.random.default_rng(0).standard_normal((6, K)) * 10.0 ** np.arange(-3, 3)[:, None]
    x = qmm.quantize(floats, group_size=64, symmetric=not zero_points)
    y = kernel.bind(w)(x)
    problems.assert_agrees(y, qmm.reference(kernel.spec, x, w))
    exact = qmm.dequantize(x).astype(np.float64) @ qmm.dequantize(w).astype(np.float64).T
    assert np.abs(y - exact).max() <= 1e-5 * np.abs(exact).max()


def test_groups_keep_what_rows_lose():
    """A row whose first group is far larger than the others: their scale is lost to it."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 256)).astype(np.float32)
    x[:, :64] *= 1000
    w = qmm.quantize(
        rng.standard_normal((N, 256)) * np.repeat([0.001, 1], [64, 192]), group_size=64
    )
    exact = x.astype(np.float64) @ qmm.dequantize(w).astype(np.float64).T
    errors = {}
    for scale in ("row", "group"):
        fields = {"n": N, "k": 256, "group_size": 64, "activation_scale": scale, **FLOATS}
        y = problems.compiled(qmm.MatmulSpec(**fields), rows=(4,)).bind(w)(x)
        errors[scale] = np.linalg.norm(y - exact) / np.linalg.norm(exact)
    assert errors["group"] < 0.02 < 0.2 < errors["row"]


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_with_a_group_that_is_not_finite(value, zero_points):
    fields = {"group_size": 64, "activation_fn": "relu", "activation_zero_point": zero_points}
    problem = Problem(spec_of({**fields, **FLOATS}), 6)
    x, w = problem.activation(), problem.weight()
    linear = problems.compiled(problem.spec, rows=(6,)).bind(w)
    before = linear(x)
    x[2, 70] = value
    y = linear(x)
    assert np.isnan(y[2]).all()
    np.testing.assert_array_equal(np.delete(y, 2, 0), np.delete(before, 2, 0))


def test_a_group_of_zeros():
    problem = Problem(spec_of(FORMATS[0]), 6)
    x = problem.activation()
    x[:, 32:96] = 0
    x[3] = 0
    w, bind = problem.weight(), problem.bind_arguments()
    y = problems.compiled(problem.spec, rows=(6,)).bind(w, **bind)(x)
    problems.assert_agrees(y, qmm.reference(problem.spec, x, w, **bind))
    np.testing.assert_array_equal(y[3], bind["bias"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x_scale": np.ones(6)}, r"x_scale has shape \(6,\); expected a scalar or \(6, 4\)"),
        ({"x_scale": np.ones((6, 1))}, r"x_scale has shape \(6, 1\); expected a scalar or \(6, 4"),
        ({"x_scale": np.ones((4, 6))}, r"x_scale has shape \(4, 6\); expected a scalar or \(6, 4"),
        ({"x_scale": np.zeros((6, 4))}, r"x_scale 0.0, first at \[0, 0\]; expected positive"),
        ({"x_scale": None}, "x_scale is missing; give it to bind or to the call"),
        ({"x_zero_point": np.full((6, 4), 128)}, "x_zero_point 128; int8 holds -128 to 127"),
        ({"x_zero_point": np.zeros((6, 4))}, "x_zero_point is float64; expected integers"),
        ({"x": 32}, "x is quantized with group_size=32; the spec has activation_scale='group' wi"),
        ({"x": None}, r"x_scale has shape \(6,\); expected a scalar or \(6, 4\)"),
    ],
)
def test_refuses_what_the_reference_refuses(static, given, message):
    kernel, problem = static
    x, w, call = problem.activation(), problem.weight(), problem.call_arguments()
    if "x" in given:
        x, call = qmm.quantize(x, group_size=given["x"]), {}
    else:
        call |= given
    for compute in (kernel.bind(w), lambda x, **call: qmm.reference(kernel.spec, x, w, **call)):
        with pytest.raises(ArrayError, match=message):
            compute(x, **call)


def test_other_dimensions_are_refused_alike(static):
    kernel, problem = static
    x, w, call = problem.activation(), problem.weight(), problem.call_arguments()
    for compute in (kernel.bind(w), lambda x, **call: qmm.reference(kernel.spec, x, w, **call)):
        with pytest.raises(ArrayError, match=r"x_scale has shape \(6, 4\); expected .*\(2, 3, 4\)"):
            compute(x.reshape(2, 3, K), **call)


def test_groups_of_four_bits_are_not_those_of_another_size():
    """As many groups of another size would have scales of the same shape."""
    spec = qmm.MatmulSpec(n=2, k=96, group_size=64, **GROUPS)
    x = qmm.quantize(np.ones((3, 96)), group_size=48)
    w = qmm.quantize(np.ones((2, 96)), group_size=64)
    with pytest.raises(ArrayError, match="x is quantized with group_size=48; the spec has"):
        qmm.reference(spec, x, w)
