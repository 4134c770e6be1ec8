"""The reference against the definition written out as loops over Python numbers."""

from __future__ import annotations

import dataclasses
import math
import random
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import quantmm as qmm
from hypothesis import given
from hypothesis import strategies as st
from quantmm.errors import ArrayError, QuantmmError
from quantmm.formats.checks import SCALARS, takes
from quantmm.formats.problem import random_spec
from quantmm.schedules.arguments import arguments
from quantmm.schedules.cpu.plan import plan_for


def as_float32(value: Fraction | float) -> float:
    return float(np.float32(float(value)))


def by_hand(spec, x, w, sx, zx, bias):
    """One output after the other, with exact integers and one float32 rounding per step.

    sx and zx are numbers, or lists of one for each row and group.
    """
    each = isinstance(sx, list)
    qx, qw = x.tolist(), w.unpacked().tolist()
    size = spec.k if spec.group_size in (None, "tensor") else spec.group_size
    y = np.zeros((len(qx), spec.n), np.float32)
    for m, n in np.ndindex(y.shape):
        total = 0.0
        for g, start in enumerate(range(0, spec.k, size)):
            at = {"tensor": (), None: (n,)}.get(spec.group_size, (n, g))
            zw = 0 if w.zero_point is None else int(w.zero_point[at])
            stop = min(start + size, spec.k)
            z = zx[m][g] if each else zx
            acc = sum((qx[m][k] - z) * (qw[n][k] - zw) for k in range(start, stop))
            step = Fraction(as_float32(acc)) * Fraction(float(w.scale[at]))
            if each:
                step = Fraction(as_float32(step)) * Fraction(sx[m][g])
            total = as_float32(Fraction(total) + step)
        scale = 1 if each else sx
        y[m, n] = as_float32(Fraction(total) * Fraction(scale) + Fraction(float(bias[n])))
    return y


@given(
    st.sampled_from(["int8", "int4", "uint4", "uint8"]),
    st.sampled_from(["int8", "uint8"]),
    st.sampled_from([None, "tensor", 8, 16]),
    st.integers(1, 40),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_equals_the_definition(weight, activation, group_size, k, zero_points, seed):
    rng = np.random.default_rng(seed)
    spec = qmm.MatmulSpec(
        n=3,
        k=k,
        weight=weight,
        activation=activation,
        group_size=group_size,
        weight_zero_point=zero_points,
        activation_zero_point=zero_points,
        bias=True,
    )
    w = qmm.quantize(
        rng.standard_normal((3, k)), weight, group_size=group_size, symmetric=not zero_points
    )
    x = rng.integers(0, 128, (2, k)).astype(activation)
    sx, zx = float(np.float32(rng.uniform(0.01, 1))), 5 if zero_points else 0
    bias = rng.standard_normal(3).astype(np.float32)
    y = qmm.reference(spec, x, w, bias=bias, x_scale=sx, x_zero_point=zx if zero_points else None)
    expected = by_hand(spec, x, w, sx, zx, bias)
    assert np.all(np.abs(y - expected) <= np.spacing(np.abs(expected)))


@given(
    st.sampled_from(["int8", "int4", "uint4", "uint8"]),
    st.sampled_from(["int8", "uint8"]),
    st.sampled_from([8, 16]),
    st.integers(17, 40),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_equals_the_definition_with_scales_of_groups(
    weight, activation, group_size, k, zero_points, seed
):
    rng = np.random.default_rng(seed)
    spec = qmm.MatmulSpec(
        n=3,
        k=k,
        weight=weight,
        activation=activation,
        group_size=group_size,
        activation_scale="group",
        activation_zero_point=zero_points,
        bias=True,
    )
    w = qmm.quantize(rng.standard_normal((3, k)), weight, group_size=group_size, symmetric=True)
    x = rng.integers(0, 128, (2, k)).astype(activation)
    scale = rng.uniform(0.01, 1, (2, spec.groups)).astype(np.float32)
    zero = rng.integers(0, 128, scale.shape) * zero_points
    bias = rng.standard_normal(3).astype(np.float32)
    given = {"x_scale": scale} | ({"x_zero_point": zero} if zero_points else {})
    y = qmm.reference(spec, x, w, bias=bias, **given)
    expected = by_hand(spec, x, w, scale.tolist(), zero.tolist(), bias)
    np.testing.assert_array_equal(y, expected)
    # A QTensor brings the same numbers.
    q = qmm.QTensor(x, scale, zero.astype(np.int32), activation, group_size, x.shape)
    if zero_points:
        np.testing.assert_array_equal(qmm.reference(spec, q, w, bias=bias), y)


def small(**fields):
    spec = qmm.MatmulSpec(n=2, k=2, **fields)
    w = qmm.QTensor(np.int8([[1, 0], [0, 1]]), np.ones(2, np.float32), None, "int8", None, (2, 2))
    return spec, np.int8([[-3, 2], [0, 127]]), w


def test_activation_functions():
    for name, function in {
        "relu": lambda v: max(v, 0.0),
        "gelu": lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))),
        "silu": lambda v: v / (1 + math.exp(-v)),
    }.items():
        spec, x, w = small(activation_fn=name)
        y = qmm.reference(spec, x, w, x_scale=0.5)
        expected = np.float32([[function(v * 0.5) for v in row] for row in x.tolist()])
        np.testing.assert_array_equal(y, expected)


def test_residual_is_added_after_the_activation_function():
    spec, x, w = small(activation_fn="relu", residual=True)
    y = qmm.reference(spec, x, w, residual=np.full((2, 2), -1.5), x_scale=1.0)
    assert y.tolist() == [[-1.5, 0.5], [-1.5, 125.5]]


def test_outputs():
    spec, x, w = small(out="int8")
    y = qmm.reference(spec, x, w, x_scale=1.0, out_scale=2.0, out_zero_point=3)
    # -3 / 2 and 127 / 2 lie between two integers: half to even.
    assert y.tolist() == [[-2 + 3, 4], [3, 64 + 3]]
    assert y.dtype == np.int8
    spec, x, w = small(out="uint8")
    assert qmm.reference(spec, x, w, x_scale=1.0, out_scale=0.4).tolist() == [[0, 5], [0, 255]]
    for out, dtype in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        spec, x, w = small(out=out)
        y = qmm.reference(spec, x, w, x_scale=1 / 3)
        assert y.dtype == dtype
        assert y[1, 1] == dtype(np.float32(127) * np.float32(1 / 3))


def test_float_activations_are_quantized_first():
    spec, _, w = small(input="float32", dynamic=True)
    x = np.float32([[1.0, -2.0], [100.0, 50.0]])
    quantized = qmm.quantize(x, "int8")
    plain = qmm.MatmulSpec(n=2, k=2, activation_scale="row")
    np.testing.assert_array_equal(qmm.reference(spec, x, w), qmm.reference(plain, quantized, w))
    static, _, w = small(input="float32")
    assert qmm.reference(static, [[0.26, 0.24]], w, x_scale=0.5).tolist() == [[0.5, 0.0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((2, 3), np.int8)}, r"x is int8\(2, 3\); expected integers of \(M, 2\)"),
        ({"x": np.zeros((2, 2), np.float32)}, "x is float32"),
        ({"x": np.full((1, 2), 300)}, "x spans 300 to 300"),
        ({"bias": [1.0]}, r"bias is float64\(1,\); expected float32\(2,\)"),
        ({"residual": np.zeros((1, 2))}, r"residual has shape \(1, 2\)"),
        ({"x_scale": 0.0}, "scale 0.0"),
        ({"x_zero_point": 200}, "zero_point 200"),
        ({"x_scale": [1.0] * 3}, r"x_scale has shape \(3,\); expected a scalar or \(2,\)"),
        ({"x_scale": None}, "x_scale is missing; give it to bind or to the call"),
        ({"x_zero_point": None}, "x_zero_point is missing; give it to bind or to the call"),
        ({"x_zero_point": 2**32 + 3}, "x_zero_point 4294967299; int8 holds -128 to 127"),
        ({"x_zero_point": 3.5}, "x_zero_point is float64; expected integers"),
        ({"bias": None}, r"bias is missing; the spec adds one of \(2,\)"),
        ({"residual": None}, r"residual is missing; the spec adds one of \(2, 2\)"),
        ({"out_scale": None}, "out_scale is missing; give it to bind or to the call"),
        ({"out_scale": math.nan}, "out_scale nan; expected positive finite numbers"),
        ({"out_zero_point": 2**32}, "out_zero_point 4294967296; int8 holds -128 to 127"),
        ({"out_zero_point": 128}, "zero_point 128"),
    ],
)
def test_errors(change, message):
    spec, x, w = small(bias=True, residual=True, out="int8", activation_zero_point=True)
    fine = {
        "x": x,
        "bias": [0.0, 0.0],
        "residual": np.zeros((2, 2)),
        "x_scale": 1.0,
        "x_zero_point": 0,
        "out_scale": 1.0,
    }
    qmm.reference(spec, w=w, **fine)
    given = {**fine, **change}
    if "x" in change:
        given["residual"] = np.zeros((given["x"].shape[0], 2))
    with pytest.raises(QuantmmError, match=message):
        qmm.reference(spec, w=w, **given)


def test_weight_must_fit_the_spec():
    _, x, w = small()
    with pytest.raises(ArrayError, match=r"w is int8\(2, 2\) .*; the spec has int4\(2, 2\)"):
        qmm.reference(qmm.MatmulSpec(n=2, k=2, weight="int4"), x, w)


def both(spec, x, w, bias=None, **call):
    """Call the reference and a kernel."""
    yield lambda: qmm.reference(spec, x, w, bias=bias, **call)
    yield lambda: qmm.compile(spec).bind(w, bias)(x, **call)


@pytest.mark.parametrize(
    ("fields", "given", "message"),
    [
        ({"group_size": 8}, {}, r"w is int8\(2, 16\) with group_size=None; the spec has .*=8"),
        ({}, {"w": {"symmetric": False}}, "w has zero points; the spec has weight_zero_point=Fal"),
        ({}, {"bias": [0.0, 0.0]}, "a bias was given; the spec has bias=False"),
        ({"bias": True}, {}, r"bias is missing; the spec adds one of \(2,\)"),
        ({}, {"residual": np.ones((1, 2))}, "a residual was given; the spec has residual=False"),
        ({}, {"x_scale": None}, "x_scale is missing; give it to bind or to the call"),
        ({}, {"x_zero_point": 3}, "x_zero_point was given; the spec has activation_zero_point=F"),
        ({}, {"out_scale": 1.0}, "out_scale was given; only int8 and uint8 outputs have one"),
        ({"out": "int32"}, {}, "x_scale was given; out='int32' is the sum without scales"),
        ({"input": "float32", "dynamic": True}, {}, "x_scale was given; a dynamic spec finds it"),
        ({}, {"x": {"symmetric": True}}, "x is a QTensor, which has a scale of its own"),
        ({}, {"x": {"zero_point": 1}, "x_scale": None}, "x has zero points; the spec has act"),
        ({"input": "float32"}, {"x": {}}, "x is a QTensor; the spec quantizes float32 activations"),
        ({}, {"x": {"dtype": "uint8"}}, r"x is uint8\(1, 16\); expected int8 of \(M, 16\)"),
    ],
)
def test_refuses_what_a_kernel_refuses(fields, given, message):
    floats = np.linspace(-1, 3, 32, dtype=np.float32).reshape(2, 16)
    spec = qmm.MatmulSpec(n=2, k=16, m=1, **fields)
    w = qmm.quantize(floats, "int8", **given.pop("w", {}))
    x = floats[:1] if spec.input else np.ones((1, 16), np.int8)
    if "x" in given:
        x = qmm.quantize(floats[:1], group_size="tensor", **given.pop("x"))
    for call in both(spec, x, w, **{"x_scale": 1.0, **given}):
        with pytest.raises(ArrayError, match=message):
            call()


@given(st.integers(0, 2**32))
def test_takes_the_numbers_that_a_kernel_takes(seed):
    draw = random.Random(seed)
    spec = random_spec(lambda choices: draw.choice(list(choices)), 8, 64)
    plan = plan_for(spec, qmm.targets.find("generic"))
    assert {name for name in SCALARS if takes(name, spec)} == {
        name for name in arguments(plan) if name in SCALARS
    }


def test_int32_of_one_group_is_the_bare_sum():
    w = qmm.quantize(np.linspace(-1, 3, 32).reshape(2, 16), "int8", group_size=16)
    spec = qmm.MatmulSpec(n=2, k=16, group_size=16, out="int32")
    x = np.arange(16, dtype=np.int8)[None]
    expected = x.astype(np.int32) @ w.data.T.astype(np.int32)
    np.testing.assert_array_equal(qmm.reference(spec, x, w), expected)


def test_a_bias_in_bfloat16_is_widened(torch):
    spec, x, w = small(bias=True)
    bias = torch.tensor([0.5, -3.140625], dtype=torch.bfloat16, requires_grad=True)
    expected = qmm.reference(spec, x, w, bias=[0.5, -3.140625], x_scale=1.0)
    for each in (bias, np.array([0.5, -3.140625], ml_dtypes.bfloat16)):
        for call in both(spec, x, w, each, x_scale=1.0):
            np.testing.assert_array_equal(call(), expected)


def test_groups_of_columns_that_lie_anywhere():
    # GPTQ's act-order: column c is in the group g_idx[c].
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((5, 24)), rng.standard_normal((3, 24)).astype(np.float32)
    g_idx = rng.permutation(np.repeat(np.arange(3), 8))
    order = np.argsort(g_idx, kind="stable")
    q = dataclasses.replace(qmm.quantize(w[:, order], "int4", group_size=8), order=order)
    floats, integers = qmm.dequantize(q), q.unpacked()
    for column, group in enumerate(g_idx):
        stored = list(order).index(column)
        np.testing.assert_array_equal(floats[:, column], q.scale[:, group] * integers[:, stored])
    spec = qmm.MatmulSpec(
        n=5, k=24, weight="int4", group_size=8, weight_order=True, input="float32", dynamic=True
    )
    y = qmm.reference(spec, x, q)
    xq = qmm.quantize(x)
    np.testing.assert_allclose(y, qmm.dequantize(xq) @ floats.T, rtol=1e-5, atol=1e-5)
    # A weight without an order has the columns of X.
    plain = dataclasses.replace(q, order=None)
    sorted_x = dataclasses.replace(xq, data=xq.data[:, order])
    given = dataclasses.replace(spec, input=None, dynamic=False)
    np.testing.assert_array_equal(qmm.reference(given, sorted_x, plain), y)
    with pytest.raises(ArrayError, match="w has an order; the spec has weight_order=False"):
        qmm.reference(dataclasses.replace(spec, weight_order=False), x, q)
    with pytest.raises(ArrayError, match="x has an order; expected the columns as they are"):
        qmm.reference(given, dataclasses.replace(xq, order=order), plain)


def test_gated_multiplies_the_function_of_a_gate_with_up():
    # W has the rows of the gate, 1 0 and 0 1, before those of up, 2 0 and 0 -1.
    w = qmm.QTensor(
        np.array([[1, 0], [0, 1], [2, 0], [0, -1]], np.int8),
        np.ones(4, np.float32),
        None,
        "int8",
        None,
        (4, 2),
    )
    spec = qmm.MatmulSpec(n=2, k=2, gated=True, activation_fn="relu")
    x = np.array([[3, 5], [-3, 5]], np.int8)
    assert qmm.reference(spec, x, w, x_scale=1.0).tolist() == [[18, -25], [0, -25]]
    spec = dataclasses.replace(spec, bias=True, residual=True)
    given = {"bias": [1, 0, 0, 2], "residual": np.full((2, 2), 0.5)}
    y = qmm.reference(spec, x, w, x_scale=1.0, **given)
    assert y.tolist() == [[24.5, -14.5], [0.5, -14.5]]


def test_gated_weights_have_an_even_number_of_rows():
    spec = qmm.MatmulSpec(n=2, k=2, gated=True, bias=True)
    x, odd, even = np.zeros((1, 2), np.int8), *(qmm.quantize(np.ones((n, 2))) for n in (3, 4))
    with pytest.raises(ArrayError, match="w has 3 rows; gated=True takes those of a gate and of"):
        qmm.reference(spec, x, odd, x_scale=1.0, bias=[0, 0])
    with pytest.raises(ArrayError, match=r"bias is float64\(2,\); expected float32\(4,\)"):
        qmm.reference(spec, x, even, x_scale=1.0, bias=[0.0, 0.0])


def test_mxfp4_is_int8_in_groups_with_powers_of_two():
    """Of the OCP Microscaling formats: numbers of e2m1, and exponents of 8 bits for 32 of them."""
    rng = np.random.default_rng(0)
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    numbers = rng.choice([-1, 1], (5, 96)) * rng.choice(magnitudes, (5, 96))
    exponents = rng.integers(64, 192, (5, 3))
    exact = numbers * np.repeat(2.0 ** (exponents - 127), 32, axis=1)
    scale = (2.0 ** (exponents - 128)).astype(np.float32)
    w = qmm.QTensor((2 * numbers).astype(np.int8), scale, None, "int8", 32, (5, 96))
    assert np.array_equal(qmm.dequantize(w), exact.astype(np.float32))
    x = rng.integers(-128, 128, (3, 96), dtype=np.int8)
    y = qmm.reference(w.spec(), x, w, x_scale=1.0)
    assert np.allclose(y, x.astype(np.float64) @ exact.T, rtol=1e-5)
