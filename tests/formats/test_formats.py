"""What the formats promise beyond agreeing with the reference on random problems."""

from __future__ import annotations

import itertools

import numpy as np
import problems
import pytest
import quantmm as qmm
from hypothesis import given
from hypothesis import strategies as st
from quantmm.errors import ArrayError
from quantmm.formats.reference import bounds
from quantmm.formats.spec import CHOICES, FLOAT_TYPES
from quantmm.formats.values import numpy_dtype

SEEDS = st.integers(0, 2**32)


@problems.examples(30)
@given(
    st.sampled_from(FLOAT_TYPES),
    st.sampled_from(CHOICES["activation"]),
    st.booleans(),
    st.integers(1, 20),
    st.integers(1, 200),
    SEEDS,
)
def test_dynamic_equals_quantize_and_the_static_kernel(given_as, activation, zeros, m, k, seed):
    rng = np.random.default_rng(seed)
    formats = {"n": 21, "k": k, "weight": "int4", "group_size": 32, "m": m}
    formats |= {"activation": activation, "activation_zero_point": zeros}
    dynamic = qmm.MatmulSpec(**formats, input=given_as, dynamic=True)
    static = qmm.MatmulSpec(**formats, activation_scale="row")
    w = problems.weight(rng, dynamic)
    x = problems.activation(rng, dynamic, m)
    qx = qmm.quantize(x, activation, symmetric=not zeros)
    y = qmm.compile(dynamic).bind(w)(x)
    np.testing.assert_array_equal(y, qmm.compile(static).bind(w)(qx))


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-40, 3e38])
def test_rows_of_one_value(value):
    spec = qmm.MatmulSpec(n=20, k=40, input="float32", dynamic=True)
    w = problems.weight(np.random.default_rng(0), spec)
    x = np.full((3, 40), value, np.float32)
    problems.assert_agrees(problems.compiled(spec, rows=[3]).bind(w)(x), qmm.reference(spec, x, w))


@pytest.mark.parametrize(
    ("function", "out", "zeros"),
    [
        *((function, "float32", False) for function in CHOICES["activation_fn"]),
        *((function, "int8", True) for function in (None, "relu", "gelu")),
        (None, "float32", True),
        (None, "int8", False),
    ],
)
def test_a_row_with_nan_or_infinity_disturbs_no_other(function, out, zeros):
    rng = np.random.default_rng(0)
    spec = qmm.MatmulSpec(
        n=40,
        k=70,
        input="float32",
        dynamic=True,
        activation_zero_point=zeros,
        out=out,
        activation_fn=function,
        m=11,
    )
    linear = qmm.compile(spec).bind(
        problems.weight(rng, spec), **problems.bind_arguments(rng, spec)
    )
    x = rng.standard_normal((11, 70)).astype(np.float32)
    expected = linear(x)
    others = np.arange(11) != 4
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        x[4, 33] = bad
        y = linear(x)
        np.testing.assert_array_equal(y[others], expected[others])
        if out == "float32":
            assert np.isnan(y[4]).all()


@pytest.mark.parametrize("given_as", ["float16", "bfloat16"])
def test_a_row_with_infinity_in_16_bits_gives_nan(given_as):
    rng = np.random.default_rng(0)
    spec = qmm.MatmulSpec(
        n=8, k=16, input=given_as, dynamic=True, activation_fn="relu", out=given_as, m=2
    )
    x = problems.activation(rng, spec, 2)
    x[0, 3] = np.inf
    y = qmm.compile(spec).bind(problems.weight(rng, spec))(x).astype(np.float32)
    assert np.isnan(y[0]).all()
    assert np.isfinite(y[1]).all()


@pytest.mark.parametrize("zero", [None, 5])
def test_a_static_scale_clips_infinity_and_makes_the_least_integer_of_nan(zero):
    spec = qmm.MatmulSpec(
        n=1, k=5, input="float32", activation_zero_point=zero is not None, out="int32", m=1
    )
    x = np.float32([[np.nan, np.inf, -np.inf, 1e30, 3]])
    for k, expected in enumerate([-128, 127, -128, 127, 3 + (zero or 0)]):
        w = qmm.QTensor(
            np.eye(5, dtype=np.int8)[[k]], np.ones(1, np.float32), None, "int8", None, (1, 5)
        )
        y = qmm.compile(spec).bind(w)(x, x_scale=1.0, x_zero_point=zero)
        assert y.tolist() == [[expected - (zero or 0)]]


def test_a_row_whose_range_is_no_float32_gives_nan():
    # Both ends are finite: symmetric scales hold them, and asymmetric ones do not.
    x = np.zeros((2, 16), np.float32)
    x[0, :2] = -3e38, 3e38
    for zeros in (False, True):
        spec = qmm.MatmulSpec(
            n=8, k=16, input="float32", dynamic=True, activation_zero_point=zeros, m=2
        )
        w = qmm.quantize(np.full((8, 16), 1e-3))
        y = qmm.compile(spec).bind(w)(x)
        assert np.isnan(y[0]).all() == zeros
        assert (y[1] == 0).all()


def test_three_layers_chain_in_int8():
    rng = np.random.default_rng(0)
    sizes, m = [70, 96, 50, 33], 13
    x = qmm.quantize(rng.standard_normal((m, sizes[0])), "int8", group_size="tensor")
    scale, zero = x.scale, 0
    ours, theirs = x.data, x.data
    for layer, (k, n) in enumerate(itertools.pairwise(sizes)):
        last = layer == len(sizes) - 2
        spec = qmm.MatmulSpec(
            n=n,
            k=k,
            activation="int8" if layer == 0 else "uint8",
            activation_zero_point=layer > 0,
            bias=True,
            activation_fn=None if last else "relu",
            out="float32" if last else "uint8",
        )
        w = qmm.quantize(rng.standard_normal((n, k)) / np.sqrt(k), "int8")
        bias = rng.standard_normal(n).astype(np.float32)
        call = {"x_scale": scale}
        if layer:
            call["x_zero_point"] = zero
        end = {} if last else {"out_scale": 0.02 + 0.01 * layer, "out_zero_point": 7 * layer}
        ours = problems.compiled(spec, rows=[m]).bind(w, bias, **call, **end)(ours)
        theirs = qmm.reference(spec, theirs, w, bias=bias, **call, **end)
        problems.assert_agrees(ours, theirs)
        assert len(np.unique(ours)) > 20
        if not last:
            scale, zero = end["out_scale"], end["out_zero_point"]


@pytest.mark.parametrize("function", filter(None, CHOICES["activation_fn"]))
def test_activation_functions_over_their_whole_range(function, target):
    values = np.arange(0, 2**32, 54321, dtype=np.uint32).view(np.float32)
    special = np.array([np.inf, -np.inf, np.nan, -0.0, 3e38, -3e38, 1e-45], np.float32)
    rng = np.random.default_rng(0)
    bends = [rng.uniform(-s, s, 2**13).astype(np.float32) for s in (0.1, 1, 5, 20, 100)]
    bias = np.concatenate([values, special, *bends])
    n = len(bias)
    spec = qmm.MatmulSpec(n=n, k=1, m=1, activation_fn=function, bias=True)
    w = qmm.QTensor(np.zeros((n, 1), np.int8), np.ones(n, np.float32), None, "int8", None, (n, 1))
    x = np.zeros((1, 1), np.int8)
    y = qmm.compile(spec, target).bind(w, bias, x_scale=1.0)(x)
    there = bounds(spec, x, w, bias=bias, x_scale=1.0)
    assert ((there.low <= y) & (y <= there.high) | np.isnan(bias) & np.isnan(y)).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_floats_round_half_to_even_and_keep_nan(dtype, target):
    spec = qmm.MatmulSpec(n=16, k=1, m=1, bias=True, out=dtype)
    w = qmm.QTensor(
        np.zeros((16, 1), np.int8), np.ones(16, np.float32), None, "int8", None, (16, 1)
    )
    kernel = qmm.compile(spec, target)
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 16 * 500, dtype=np.uint64).astype(np.uint32)
    # Ties, halves of the smallest numbers, the greatest ones, infinity and NaN.
    edges = [0x3F801000, 0x3F803000, 0x33000000, 0x33000001, 0x33800000, 0x477FEFFF, 0x477FF000]
    edges += [0x47800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0x3F808000, 0x3F818000]
    values = np.concatenate([np.array([*edges, 0, 1], np.uint32), bits]).view(np.float32)
    for bias in values.reshape(-1, 16):
        y = kernel.bind(w, bias, x_scale=1.0)(np.zeros((1, 1), np.int8))[0]
        with np.errstate(over="ignore", invalid="ignore"):
            expected = bias.astype(numpy_dtype(dtype))
        nan = np.isnan(expected)
        np.testing.assert_array_equal(np.isnan(y), nan)
        kept = (y.view(np.uint16) == expected.view(np.uint16))[~nan]
        assert kept.all()


@pytest.mark.parametrize("activation", ["int8", "int4"])
@pytest.mark.parametrize("group_size", [None, 32, 128])
def test_4_bit_weights_take_half_a_byte(activation, group_size):
    spec = qmm.MatmulSpec(
        n=4096, k=1024, weight="int4", activation=activation, group_size=group_size
    )
    w = qmm.quantize(np.eye(4096, 1024), "int4", group_size=group_size)
    linear = problems.compiled(spec, rows=[1]).bind(w)
    scales = 4 * 4096 * spec.groups
    assert linear.nbytes - scales <= 0.52 * spec.n * spec.k


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_torch_floats_in_and_out(dtype, torch):
    rng = np.random.default_rng(0)
    spec = qmm.MatmulSpec(n=40, k=64, input=dtype, dynamic=True, out=dtype, residual=True)
    w, x = problems.weight(rng, spec), problems.activation(rng, spec, 5)
    residual = problems.call_arguments(rng, spec, 5)["residual"]
    linear = problems.compiled(spec, rows=[5]).bind(w)
    expected = linear(x, residual=residual).astype(np.float32)
    tx, tr = (
        torch.from_numpy(a.astype(np.float32)).to(getattr(torch, dtype)) for a in (x, residual)
    )
    y = linear(tx, residual=tr)
    assert y.dtype == tx.dtype
    np.testing.assert_array_equal(y.float().numpy(), expected)
    out = torch.empty((5, 50), dtype=tx.dtype)[:, :40]
    assert linear(tx.T.contiguous().T, out, residual=tr) is out
    np.testing.assert_array_equal(out.float().numpy(), expected)
    # One library's array beside another's, and one that is read-only.
    x.flags.writeable = False
    np.testing.assert_array_equal(linear(x, out, residual=tr).float().numpy(), expected)
    mixed = np.empty(y.shape, numpy_dtype(dtype))
    np.testing.assert_array_equal(linear(tx, mixed, residual=residual), expected.astype(x.dtype))
    assert linear(tx, tr, residual=tr) is tr
    np.testing.assert_array_equal(tr.float().numpy(), expected)


@pytest.mark.parametrize(("n", "out"), [(7, "float32"), (96, "bfloat16"), (131, "float32")])
def test_a_residual_that_is_the_output(target, n, out):
    rng = np.random.default_rng(n)
    spec = qmm.MatmulSpec(n=n, k=40, out=out, residual=True, activation_fn="relu")
    w = problems.weight(rng, spec)
    kernel = problems.compiled(spec, target, rows=(1, 3, 40), num_threads=2)
    linear = kernel.bind(w, x_scale=0.25)
    for m in (1, 3, 40):
        x = problems.activation(rng, spec, m)
        residual = problems.call_arguments(rng, spec, m)["residual"]
        expected = qmm.reference(spec, x, w, x_scale=0.25, residual=residual)
        wide = np.zeros((m + 1, n + 8), residual.dtype)
        for h in (residual.copy(), wide[:m, 1 : n + 1]):
            h[...] = residual
            assert linear(x, h, residual=h) is h
            problems.assert_agrees(np.ascontiguousarray(h), expected)
            h[...] = residual
            linear(x, h, residual=h[:])
            problems.assert_agrees(np.ascontiguousarray(h), expected)
        flat, shifted = (wide.reshape(-1)[i : m * n + i].reshape(m, n) for i in (0, 1))
        for other in (shifted, wide[:m, 2 : n + 2]):
            with pytest.raises(ArrayError, match=r"out (may share|shares) memory with residual"):
                linear(x, flat, residual=other)


def test_refused_arguments():
    rng = np.random.default_rng(0)

    def linear(**fields):
        spec = qmm.MatmulSpec(n=8, k=16, m=2, **fields)
        return qmm.compile(spec).bind(problems.weight(rng, spec)), spec

    x = np.ones((2, 16), np.float32)
    dynamic, spec = linear(input="float32", dynamic=True)
    with pytest.raises(ArrayError, match="x_scale was given; a dynamic spec finds it from X"):
        dynamic(x, x_scale=1.0)
    with pytest.raises(ArrayError, match="quantizes float32 activations itself"):
        dynamic(qmm.quantize(x))
    with pytest.raises(ArrayError, match=r"x is float64\(2, 16\); expected float32\(M, 16\)"):
        dynamic(x.astype(np.float64))
    with pytest.raises(ArrayError, match="out_scale was given; only int8 and uint8 outputs"):
        dynamic(x, out_scale=1.0)
    with pytest.raises(ArrayError, match="a residual was given; the spec has residual=False"):
        dynamic(x, residual=x)
    with pytest.raises(ArrayError, match="x_zero_point was given; a dynamic spec"):
        qmm.compile(spec).bind(problems.weight(rng, spec), x_zero_point=1)
    requantized, _ = linear(out="uint8")
    quantized = np.ones((2, 16), np.int8)
    with pytest.raises(ArrayError, match="out_scale is missing"):
        requantized(quantized, x_scale=1.0)
    w = problems.weight(rng, requantized.kernel.spec)
    for zero in ({}, {"out_zero_point": 0}):
        y = requantized.kernel.bind(w, x_scale=1.0, out_scale=40.0, **zero)(quantized)
        expected = qmm.reference(requantized.kernel.spec, quantized, w, x_scale=1.0, out_scale=40.0)
        problems.assert_agrees(y, expected)
    with pytest.raises(ArrayError, match="zero_point 256; uint8 holds 0 to 255"):
        requantized(quantized, x_scale=1.0, out_scale=1.0, out_zero_point=256)
    with pytest.raises(ArrayError, match=r"scale 0\.0; expected positive"):
        requantized(quantized, x_scale=1.0, out_scale=0.0)
    added, _ = linear(residual=True)
    with pytest.raises(ArrayError, match=r"residual is missing; the spec adds one of \(2, 8\)"):
        added(quantized, x_scale=1.0)
    with pytest.raises(ArrayError, match=r"residual is float32\(2, 16\); expected float32\(M, 8\)"):
        added(quantized, x_scale=1.0, residual=x)
    with pytest.raises(ArrayError, match="residual has 1 rows; expected 2"):
        added(quantized, x_scale=1.0, residual=x[:1, :8])
    packed, _ = linear(weight="int4", activation="int4")
    with pytest.raises(ArrayError, match=r"x is uint8\(2, 16\); expected uint8\(M, 8\)"):
        packed(np.ones((2, 16), np.uint8), x_scale=1.0)
    int32, _ = linear(out="int32")
    with pytest.raises(ArrayError, match="x_scale was given; out='int32' is the sum without"):
        int32(quantized, x_scale=1.0)
    grouped = qmm.MatmulSpec(n=8, k=16, group_size=8, m=2)
    with pytest.raises(ArrayError, match="with group_size=None; the spec has int8"):
        qmm.compile(grouped).bind(qmm.quantize(np.ones((8, 16))))


@pytest.fixture
def flushing(torch):
    """A calling thread that flushes subnormal numbers to zero; a function that starts it."""
    if not torch.set_flush_denormal(False):
        pytest.skip("this CPU does not flush subnormal numbers")
    yield lambda: torch.set_flush_denormal(True)
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("zeros", [False, True])
def test_a_caller_that_flushes_subnormals_has_the_same_results(target, flushing, zeros):
    rng = np.random.default_rng(0)
    spec = qmm.MatmulSpec(
        n=1024, k=64, input="float32", dynamic=True, activation_zero_point=zeros, bias=True
    )
    w = qmm.quantize(rng.standard_normal((1024, 64)))
    bias = np.full(1024, 1e-39, np.float32)
    linear = problems.compiled(spec, target, rows=(1, 3, 170)).bind(w, bias)
    # Rows whose scales are subnormal numbers, between some whose scales are not.
    x = rng.standard_normal((170, 64)) * 10.0 ** rng.integers(-43, -30, (170, 1))
    x = x.astype(np.float32)
    expected = qmm.reference(spec, x, w, bias=bias)
    assert ((np.abs(expected) > 0) & (np.abs(expected) < 1e-38)).any()
    assert linear.kernel.report((170,))[0]["threads"] > 1 or linear.kernel.num_threads == 1
    least = np.array([1e-39], np.float32)
    flushing()
    calls = [linear(x[:m], num_threads=threads) for m in (1, 3, 170) for threads in (1, 2)]
    still = (least * np.float32(1)).view(np.int32)[0]
    bits = [y.view(np.int32) for y in calls]
    # NumPy flushes too: compared are integers.
    assert still == 0
    for y in bits:
        assert np.abs(y - expected[: len(y)].view(np.int32)).max() <= 1
