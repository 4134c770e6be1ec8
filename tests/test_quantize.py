from __future__ import annotations

import math

import numpy as np
import pytest
import quantmm as qmm
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from quantmm.errors import ArrayError, SpecError

RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7), "uint4": (0, 15)}
FLOATS = st.floats(-1000, 1000, width=32)
GROUPS = st.sampled_from([None, "tensor", 8, 16, 64])


def matrices():
    shapes = st.tuples(st.integers(1, 5), st.integers(1, 40))
    return shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=FLOATS))


@given(matrices(), st.sampled_from(sorted(RANGES)), GROUPS, st.booleans())
def test_error_is_at_most_half_a_step(x, dtype, group_size, symmetric):
    if symmetric and dtype.startswith("u"):
        x = abs(x)  # an unsigned format without a zero point has no negative numbers
    q = qmm.quantize(x, dtype, group_size=group_size, symmetric=symmetric)
    least, greatest = RANGES[dtype]
    integers = q.unpacked()
    assert least <= integers.min() <= integers.max() <= greatest
    for i, j in np.ndindex(x.shape):
        at = () if group_size == "tensor" else (i, j // group_size) if group_size else (i,)
        scale = float(q.scale[at])
        # Half a step, and what rounding of the float32 scale and zero point may add to it.
        allowed = scale * (0.5 + 1e-4) + (0.5 * scale if q.zero_point is not None else 0)
        assert abs(float(qmm.dequantize(q)[i, j]) - float(x[i, j])) <= allowed + 1e-30


@given(matrices())
def test_rounds_half_to_even(x):
    q = qmm.quantize(x, "int8", scale=1.0)
    for value, integer in zip(x.ravel().tolist(), q.data.ravel().tolist(), strict=True):
        assert integer == min(127, max(-128, round(value)))


def test_absmax_reaches_the_greatest_integer():
    q = qmm.quantize([[1.0, -2.0, 0.5]], "int8")
    assert q.data.tolist() == [[64, -127, 32]]
    assert q.scale.tolist() == [float(np.float32(2) / np.float32(127))]
    assert q.zero_point is None


def test_asymmetric_covers_the_range_and_keeps_zero():
    q = qmm.quantize([[-1.0, 0.0, 3.0]], "uint8")
    assert q.data.tolist() == [[0, 64, 255]]
    assert q.zero_point.tolist() == [64]
    assert qmm.dequantize(q)[0, 1] == 0


def test_zero_rows_have_scale_one():
    q = qmm.quantize(np.zeros((2, 3)), "int8")
    assert q.scale.tolist() == [1, 1]
    assert q.data.tolist() == [[0, 0, 0]] * 2


def test_last_group_may_be_shorter():
    x = np.arange(20, dtype=np.float32).reshape(1, 20)
    q = qmm.quantize(x, "int8", group_size=16)
    assert q.scale.shape == (1, 2)
    np.testing.assert_array_equal(q.scale[0], np.float32([15, 19]) / np.float32(127))


@given(st.integers(1, 9), st.integers(1, 9), st.booleans(), st.randoms(use_true_random=False))
def test_int4_round_trip(rows, k, signed, random):
    low = -8 if signed else 0
    values = np.array([[random.randint(low, low + 15) for _ in range(k)] for _ in range(rows)])
    packed = qmm.pack_int4(values)
    assert packed.dtype == np.uint8
    assert packed.shape == (rows, math.ceil(k / 2))
    if (values.min() >= 0) != signed:
        np.testing.assert_array_equal(qmm.unpack_int4(packed, k, signed=signed), values)
    for i, j in np.ndindex(values.shape):
        byte = int(packed[i, j // 2])
        assert (byte >> 4 if j % 2 else byte & 15) == values[i, j] % 16


def test_odd_k_is_padded_with_the_zero_point():
    q = qmm.quantize([[-1.0, 0.0, 2.0]], "uint4")
    assert q.data[0, 1] >> 4 == q.zero_point[0]
    assert qmm.pack_int4([[1, 2, 3]]).tolist() == [[0x21, 0x03]]
    assert qmm.pack_int4([[-1, -8, 7]]).tolist() == [[0x8F, 0x07]]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": [[1.0, math.nan]]}, ArrayError, "NaN or infinity"),
        ({"x": [[math.inf]]}, ArrayError, "NaN or infinity"),
        ({"x": np.zeros((0, 3))}, ArrayError, "at least one element"),
        ({"x": np.zeros((2, 2, 2))}, ArrayError, r"not shape \(2, 2, 2\)"),
        ({"x": [[1.0]], "dtype": "int7"}, SpecError, "dtype='int7'"),
        ({"x": [[1.0]], "method": "magic"}, SpecError, "method='magic'"),
        ({"x": [[1.0]], "group_size": 12}, SpecError, "multiple of 8"),
        ({"x": [[1.0]], "group_size": 0}, SpecError, "multiple of 8"),
        ({"x": [[1.0]], "group_size": "row"}, SpecError, "group_size='row'"),
        ({"x": [[1.0]], "scale": 0.0}, ArrayError, "scale 0.0; expected positive"),
        ({"x": [[1.0]], "scale": -1.0}, ArrayError, "scale -1.0; expected positive"),
        ({"x": [[1.0]], "scale": math.nan}, ArrayError, "scale nan; expected positive"),
        ({"x": [[1.0]], "scale": [1.0, 2.0]}, ArrayError, r"shape \(2,\); expected \(1,\)"),
        ({"x": [[1.0]], "zero_point": 128}, ArrayError, "zero_point 128; int8 holds -128 to 127"),
        ({"x": [[1.0]], "zero_point": 0.5}, ArrayError, "expected integers"),
        ({"x": [[1.0]], "zero_point": 1, "symmetric": True}, SpecError, "symmetric=True"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        qmm.quantize(**{"dtype": "int8", **arguments})


def test_packing_errors():
    with pytest.raises(ArrayError, match="span -9 to 0"):
        qmm.pack_int4([[-9, 0]])
    with pytest.raises(ArrayError, match="expected an array of integers"):
        qmm.pack_int4([[0.5]])
    with pytest.raises(ArrayError, match="5 4-bit values are stored in 3 bytes"):
        qmm.unpack_int4(np.zeros((1, 2), np.uint8), 5)


def test_qtensor_errors():
    data, scale = np.zeros((2, 3), np.int8), np.ones(2, np.float32)
    with pytest.raises(ArrayError, match="stored as int8"):
        qmm.QTensor(data[:, :2], scale, None, "int8", None, (2, 3))
    with pytest.raises(ArrayError, match="stored as uint8"):
        qmm.QTensor(data, scale, None, "int4", None, (2, 3))
    with pytest.raises(ArrayError, match=r"scale is float32\(3,\); expected float32\(2,\)"):
        qmm.QTensor(data, np.ones(3, np.float32), None, "int8", None, (2, 3))
    with pytest.raises(ArrayError, match="zero_point is int64"):
        qmm.QTensor(data, scale, np.zeros(2, np.int64), "int8", None, (2, 3))
