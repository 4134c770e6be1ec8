"""Offsets of weights, w = scale q + offset, scales of any sign, and what a `QTensor` accepts."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import problems
import pytest
import quantmm as qmm
from hypothesis import given
from hypothesis import strategies as st
from quantmm.errors import ArrayError, SpecError, WeightFileError
from quantmm.formats.quality import error_report
from safetensors import safe_open
from safetensors.numpy import save_file

GROUPS = (None, "tensor", 8)


def rounded(value):
    """The float32 that is nearest to a fraction."""
    return np.float32(float(value))


def by_definition(spec, x, w, x_scale):
    """Y of a spec without epilogue, number by number, each step rounded once."""
    y = np.empty((len(x), spec.n), np.float32)
    q, shape = w.unpacked().astype(int), (spec.n, spec.groups)
    scale, offset = (
        np.broadcast_to(a.reshape(-1, spec.groups), shape) for a in (w.scale, w.offset)
    )
    for m, n in np.ndindex(y.shape):
        t = Fraction(0)
        for g in range(spec.groups):
            k = slice(g * spec.k_of_group, (g + 1) * spec.k_of_group)
            acc, xsum = int(x[m, k].astype(int) @ q[n, k]), int(x[m, k].astype(int).sum())
            for count, factor in ((acc, scale[n, g]), (xsum, offset[n, g])):
                exact = Fraction(float(np.float32(count))) * Fraction(float(factor)) + t
                t = Fraction(float(rounded(exact)))
        y[m, n] = rounded(t * Fraction(float(x_scale[m])))
    return y


@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("weight", ["int8", "uint4"])
def test_the_reference_rounds_once_per_step(weight, group_size):
    spec = qmm.MatmulSpec(n=3, k=21, weight=weight, group_size=group_size, weight_offset=True)
    rng = np.random.default_rng(1)
    x, w = problems.activation(rng, spec, 4), problems.weight(rng, spec)
    x_scale = rng.uniform(0.1, 1, 4).astype(np.float32)
    y = qmm.reference(spec, x, w, x_scale=x_scale)
    np.testing.assert_array_equal(y, by_definition(spec, x, w, x_scale))


@given(st.integers(0, 2**32))
def test_the_reference_is_the_product_with_the_dequantized_weight(seed):
    rng = np.random.default_rng(seed)
    spec = qmm.MatmulSpec(
        n=int(rng.integers(1, 9)),
        k=int(rng.integers(1, 70)),
        weight=str(rng.choice(["int8", "uint8", "int4", "uint4"])),
        group_size=GROUPS[rng.integers(3)],
        weight_offset=True,
        activation_zero_point=bool(rng.integers(2)),
    )
    x, w = problems.activation(rng, spec, 3), problems.weight(rng, spec)
    call = problems.call_arguments(rng, spec, 3)
    zero = call.get("x_zero_point", np.zeros(3, np.int32))
    floats = call["x_scale"][:, None].astype(float) * (x.astype(float) - zero[:, None])
    weight = qmm.dequantize(w).astype(float)
    y = qmm.reference(spec, x, w, **call)
    most = np.abs(floats) @ np.abs(weight).T + np.abs(floats).sum(axis=1, keepdims=True)
    assert (np.abs(y - floats @ weight.T) <= 1e-5 * most).all()


def test_offsets_of_zero_change_nothing():
    spec = qmm.MatmulSpec(n=5, k=40, group_size=8)
    rng = np.random.default_rng(2)
    x, w = problems.activation(rng, spec, 3), problems.weight(rng, spec)
    with_zeros = qmm.QTensor(*parts(w), np.zeros_like(w.scale))
    added = qmm.MatmulSpec(n=5, k=40, group_size=8, weight_offset=True)
    expected = qmm.reference(spec, x, w, x_scale=1)
    for spec_of, weight in ((spec, with_zeros), (added, with_zeros), (added, w)):
        np.testing.assert_array_equal(qmm.reference(spec_of, x, weight, x_scale=1), expected)


def parts(q):
    return q.data, q.scale, q.zero_point, q.dtype, q.group_size, q.shape


@pytest.mark.parametrize("method", ["absmax", "percentile", "mse"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int4", "uint4"])
@pytest.mark.parametrize("group_size", GROUPS)
def test_quantizes_between_least_and_greatest(dtype, group_size, method):
    values = np.random.default_rng(3).standard_normal((5, 21)).astype(np.float32) + 7
    q = qmm.quantize(values, dtype, group_size=group_size, offset=True, method=method)
    assert q.zero_point is None
    assert q.offset is not None
    assert q.offset.shape == q.scale.shape
    error = np.abs(qmm.dequantize(q) - values)
    steps = qmm.formats.ranges.spread(q.scale, q.shape, group_size)
    if method == "absmax":
        assert (error <= steps * 0.501).all()
        # Zero points would have to reach from 0 to the numbers.
        other = qmm.quantize(values, dtype, group_size=group_size, symmetric=False)
        assert error.sum() < 0.7 * np.abs(qmm.dequantize(other) - values).sum()
    else:
        plain = qmm.quantize(values, dtype, group_size=group_size, offset=True)
        assert (q.scale <= plain.scale).all()


def test_a_block_of_q4_1():
    values = np.linspace(-3, 12, 16, dtype=np.float32)[None]
    q = qmm.quantize(values, "uint4", group_size=32, offset=True)
    assert (q.scale.item(), q.offset.item()) == (1, -3)
    np.testing.assert_array_equal(q.unpacked(), [range(16)])
    np.testing.assert_array_equal(qmm.dequantize(q), values)


@given(st.integers(0, 2**32))
def test_mse_never_errs_more_than_absmax(seed):
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal((4, 24)) ** 3 + rng.integers(-3, 3)).astype(np.float32)
    dtype = str(rng.choice(["int8", "uint4", "int4"]))

    def error(method):
        q = qmm.quantize(values, dtype, group_size=8, offset=True, method=method)
        lost = (qmm.dequantize(q).astype(float) - values).reshape(4, 3, 8)
        return (lost**2).sum(axis=2)

    # Where a range is small beside its offset, sums of both round by a thousandth of a step.
    assert (error("mse") <= error("absmax") * (1 + 1e-2) + 1e-10).all()


@pytest.mark.parametrize("value", [0.0, 2.5, -1e30, 1e-44])
@pytest.mark.parametrize("method", ["absmax", "percentile", "mse"])
def test_one_number_has_scale_zero(value, method):
    values = np.full((2, 11), value, np.float32)
    q = qmm.quantize(values, "uint4", group_size=8, offset=True, method=method)
    assert not q.scale.any()
    np.testing.assert_array_equal(qmm.dequantize(q), values)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"offset": 1.5}, "offset=1.5; expected True or False"),
        ({"offset": True, "scale": 1.0}, "a scale was given with offset=True"),
        ({"offset": True, "zero_point": 1}, "a zero_point was given with offset=True"),
        ({"offset": True, "symmetric": True}, "symmetric=True was given with offset=True"),
    ],
)
def test_what_has_no_meaning_beside_offsets(given, message):
    with pytest.raises(SpecError, match=message):
        qmm.quantize(np.ones((2, 8)), **given)


def test_specs():
    spec = qmm.MatmulSpec(n=2, k=8, weight_offset=True)
    assert qmm.MatmulSpec.from_json(spec.to_json()) == spec
    assert "offset" not in qmm.MatmulSpec(n=2, k=8).to_json()
    with pytest.raises(SpecError, match="weight_offset=True and weight_zero_point=True; expected"):
        qmm.MatmulSpec(n=2, k=8, weight_offset=True, weight_zero_point=True)
    with pytest.raises(SpecError, match="out='int32' is the bare accumulator; weight_offset needs"):
        qmm.MatmulSpec(n=2, k=8, weight_offset=True, out="int32")
    with pytest.raises(SpecError, match="weight_offset=1; expected True or False"):
        qmm.MatmulSpec(n=2, k=8, weight_offset=1)


def test_offsets_that_are_refused():
    data, ones = np.zeros((2, 8), np.int8), np.ones(2, np.float32)
    rest = "int8", None, (2, 8)
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ArrayError, match=rf"offset {bad}, first at \[1\]; expected finite"):
            qmm.QTensor(data, ones, None, *rest, np.float32([0, bad]))
        with pytest.raises(ArrayError, match=rf"scale {bad}, first at \[1\]; expected finite"):
            qmm.QTensor(data, np.float32([1, bad]), None, *rest)
    with pytest.raises(ArrayError, match="offset and zero_point are both given; expected one"):
        qmm.QTensor(data, ones, np.zeros(2, np.int32), *rest, ones)
    with pytest.raises(ArrayError, match=r"offset is float64\(2,\); expected float32\(2,\)"):
        qmm.QTensor(data, ones, None, *rest, np.ones(2))
    q = qmm.QTensor(data, ones, None, *rest, ones)
    with pytest.raises(ArrayError, match="w has offsets; the spec has weight_offset=False"):
        qmm.reference(qmm.MatmulSpec(n=2, k=8), data, q, x_scale=1)
    with pytest.raises(ArrayError, match="x has offsets; expected zero points or none"):
        qmm.reference(qmm.MatmulSpec(n=2, k=8), q, qmm.quantize(np.ones((2, 8))))


@pytest.mark.parametrize("scale", [-1.0, 0.0])
def test_scales_of_activations_are_positive(scale):
    x = qmm.QTensor(np.ones((2, 8), np.int8), np.float32([1, scale]), None, "int8", None, (2, 8))
    with pytest.raises(ArrayError, match=rf"x_scale {scale}, first at \[1\]; expected positive"):
        qmm.reference(qmm.MatmulSpec(n=3, k=8), x, qmm.quantize(np.ones((3, 8))))


def test_scales_of_weights_are_any_finite_numbers():
    scale = np.float32([-2, 0, 1e-45])
    w = qmm.QTensor(np.ones((3, 8), np.int8), scale, None, "int8", None, (3, 8))
    np.testing.assert_array_equal(qmm.dequantize(w)[:, 0], scale)
    y = qmm.reference(qmm.MatmulSpec(n=3, k=8), np.ones((1, 8), np.int8), w, x_scale=1)
    np.testing.assert_array_equal(y, [8 * scale])


def of_numpy(array):
    return array


def of_torch(array):
    torch = pytest.importorskip("torch")
    return torch.from_numpy(np.array(array))


class WithDLPack:
    """An array of a library that NumPy knows nothing of."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__()

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("made", [of_numpy, of_torch, WithDLPack])
def test_arrays_of_any_library(made):
    rng = np.random.default_rng(4)
    data = rng.integers(0, 16, (3, 20), np.uint8)
    half = rng.standard_normal((3, 3)).astype(np.float16)
    offset = qmm.QTensor(made(data), made(half), None, "uint8", 8, (3, 20), made(half))
    for array in (offset.scale, offset.offset):
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, half)
    for dtype in (np.uint8, np.int8, np.int32, np.int64):
        zero = np.arange(3, dtype=dtype)
        beside = made(zero[:, None])
        q = qmm.QTensor(made(data), made(half[:, :1]), beside, "uint8", None, (3, 20))
        assert (q.scale.shape, q.zero_point.dtype) == ((3,), np.int32)
        np.testing.assert_array_equal(q.zero_point, zero)
    one = qmm.QTensor(made(data), made(half[:1, :1]), None, "uint8", "tensor", (3, 20))
    assert one.scale.shape == ()
    np.testing.assert_array_equal(q.data, data)


def test_bfloat16():
    torch = pytest.importorskip("torch")
    scale = torch.tensor([0.1, -3e38], dtype=torch.bfloat16, requires_grad=True)
    q = qmm.QTensor(torch.ones(2, 8, dtype=torch.int8), scale, None, "int8", None, (2, 8))
    np.testing.assert_array_equal(q.scale, scale.detach().float().numpy())


def test_files(tmp_path):
    path = tmp_path / "q.safetensors"
    q = qmm.quantize(np.arange(42).reshape(2, 21), "uint4", group_size=8, offset=True)
    plain = qmm.QTensor(np.ones((1, 2), np.int8), np.float32([-1]), None, "int8", None, (1, 2))
    spec = qmm.MatmulSpec(n=2, k=21, weight="uint4", group_size=8, weight_offset=True)
    qmm.save_weights(path, {"w": (q, spec), "plain": (plain, None)})
    with safe_open(path, framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    entries = {name: json.loads(text) for name, text in metadata.items()}
    assert entries["quantmm:w"]["version"] == 2
    # Whoever reads only what has no offsets still can.
    assert "offset" not in entries["quantmm:plain"]
    assert entries["quantmm:plain"]["version"] == 1
    loaded = qmm.load_weights(path)
    assert loaded["w"][1] == spec
    for name in ("data", "scale", "offset"):
        np.testing.assert_array_equal(getattr(loaded["w"][0], name), getattr(q, name))
    assert loaded["plain"][0].scale == -1
    tensors["w.offset"][1, 0] = np.nan
    save_file(tensors, path, metadata)
    with pytest.raises(WeightFileError, match=r"w: offset nan, first at \[1, 0\]; expected"):
        qmm.load_weights(path)


def test_quality():
    weight = np.random.default_rng(5).standard_normal((8, 64)) + 3
    fields = {"n": 8, "k": 64, "weight": "uint4", "group_size": 32}
    specs = [
        qmm.MatmulSpec(**fields, **{name: True}) for name in ("weight_zero_point", "weight_offset")
    ]
    _, zeros, offsets = error_report(weight, specs)
    assert offsets.format == "uint4 g=32 offsets"
    assert offsets.bytes == zeros.bytes
    assert offsets.snr_db > zeros.snr_db
