from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import quantmm as qmm
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from quantmm.errors import ArrayError, SpecError
from quantmm.formats.ranges import BLOCK, SHRINK

RANGES = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int7": (-64, 63),
}
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


def test_seven_bits_are_stored_as_bytes():
    q = qmm.quantize([[1.25, -2.0, 0.5]], "int7")
    assert (q.data.dtype, q.data.tolist()) == (np.int8, [[39, -63, 16]])
    assert q.scale.tolist() == [float(np.float32(2) / np.float32(63))]
    assert qmm.quantize([[-9.0, 9.0]], "int7", scale=0.125).data.tolist() == [[-64, 63]]


def test_asymmetric_covers_the_range_and_keeps_zero():
    q = qmm.quantize([[-1.0, 0.0, 3.0]], "uint8")
    assert q.data.tolist() == [[0, 64, 255]]
    assert q.zero_point.tolist() == [64]
    assert qmm.dequantize(q)[0, 1] == 0


@pytest.mark.filterwarnings("error")
def test_clips_what_is_infinitely_many_steps():
    q = qmm.quantize([[3e38, -3e38, 1e-30]], "int8", scale=1e-30)
    assert q.data.tolist() == [[127, -128, 1]]
    q = qmm.quantize([[3e38, -3e38, 1e-30]], "uint4", scale=1e-30, zero_point=3)
    assert q.unpacked().tolist() == [[15, 0, 4]]


def test_zero_rows_have_scale_one():
    q = qmm.quantize(np.zeros((2, 3)), "int8")
    assert q.scale.tolist() == [1, 1]
    assert q.data.tolist() == [[0, 0, 0]] * 2


def test_last_group_may_be_shorter():
    x = np.arange(20, dtype=np.float32).reshape(1, 20)
    q = qmm.quantize(x, "int8", group_size=16)
    assert q.scale.shape == (1, 2)
    np.testing.assert_array_equal(q.scale[0], np.float32([15, 19]) / np.float32(127))


def test_a_large_matrix_is_what_its_rows_are():
    x = np.random.default_rng(0).standard_normal((3 * BLOCK // 100, 203)).astype(np.float32)
    for dtype, group_size in (("int8", None), ("uint4", 32), ("int4", 64)):
        for method in ("absmax", "percentile", "mse"):
            q = qmm.quantize(x, dtype, group_size=group_size, method=method)
            whole = qmm.dequantize(q)
            for i in (0, BLOCK // 203 - 1, BLOCK // 203, len(x) - 1):
                row = qmm.quantize(x[i], dtype, group_size=group_size, method=method)
                np.testing.assert_array_equal(q.data[i], row.data[0])
                np.testing.assert_array_equal(q.scale[i], row.scale[0])
                np.testing.assert_array_equal(whole[i], qmm.dequantize(row)[0])


@pytest.mark.parametrize(
    ("x", "dtype", "scale", "zero_point", "data"),
    [
        # 75 % of the way from the least to the greatest of five numbers is the fourth.
        ([-5, 4, 3, -1, 1], "int8", 4 / 127, None, [-128, 127, 95, -32, 32]),
        ([-50, 7, 3, 2, 1], "int4", 1, None, [-8, 7, 3, 2, 1]),
        # Of four numbers it is a quarter of the way from the third to the fourth.
        ([-1, 1, -3, 7], "int8", 4 / 127, None, [-32, 32, -95, 127]),
        # Asymmetric: -1 is the fourth from above, 4 the fourth from below.
        ([-4, -1, 0, 4, 9], "uint8", 5 / 255, 51, [0, 0, 51, 255, 255]),
        # Zero stays in the range.
        ([1, 2, 3, 5, 100], "uint4", 5 / 15, 0, [3, 6, 9, 15, 15]),
        ([-1, -2, -3, -5, -100], "uint8", 5 / 255, 255, [204, 153, 102, 0, 0]),
        # Nothing but zero is left: all of the range is taken.
        ([0, 0, 0, 0, -5], "int8", 5 / 127, None, [0, 0, 0, 0, -127]),
        ([0, 0, 0, 0, 5], "uint8", 5 / 255, 0, [0, 0, 0, 0, 255]),
    ],
)
@pytest.mark.parametrize("group_size", [None, "tensor", 8])
def test_percentile_by_hand(x, dtype, scale, zero_point, data, group_size):
    q = qmm.quantize([x], dtype, group_size=group_size, method="percentile", percentile=75)
    np.testing.assert_allclose(q.scale, scale, rtol=1e-7)
    assert (q.zero_point is None) == (zero_point is None)
    if zero_point is not None:
        assert q.zero_point.ravel().tolist() == [zero_point]
    assert q.unpacked().tolist() == [data]


def test_percentile_of_groups():
    x = np.arange(20, dtype=np.float32).reshape(1, 20)
    q = qmm.quantize(x, "int8", group_size=16, method="percentile", percentile=80)
    # The thirteenth of 0 to 15; 2.4 from 16 on, of 16 to 19.
    np.testing.assert_allclose(q.scale, np.float32([[12, 18.4]]) / 127, rtol=1e-7)
    assert q.data[0, 13:].tolist() == [127, 127, 127, 110, 117, 124, 127]


@given(matrices(), st.sampled_from(sorted(RANGES)), GROUPS, st.booleans(), st.floats(50.1, 99.9))
def test_percentile_agrees_with_numpy(x, dtype, group_size, symmetric, percentile):
    q = qmm.quantize(
        x,
        dtype,
        group_size=group_size,
        symmetric=symmetric,
        method="percentile",
        percentile=percentile,
    )
    least, greatest = RANGES[dtype]
    for scale, values in zip(q.scale.ravel(), parts(x, group_size), strict=True):
        if symmetric:
            high = np.percentile(abs(values), percentile)
            low = -high
            width = high / greatest
        else:
            low = min(-np.percentile(-values, percentile), 0)
            high = max(np.percentile(values, percentile), 0)
            width = (high - low) / (greatest - least)
        if high - low > 1e-30:
            np.testing.assert_allclose(scale, width, rtol=1e-6)


def parts(x, group_size):
    """The numbers that share each scale, float64, in the order of the scales."""
    x = x.astype(np.float64)
    if group_size == "tensor":
        return [x.ravel()]
    size = group_size or x.shape[1]
    return [row[start : start + size] for row in x for start in range(0, len(row), size)]


@given(matrices(), st.sampled_from(sorted(RANGES)), GROUPS, st.booleans())
def test_the_hundredth_percentile_is_absmax(x, dtype, group_size, symmetric):
    formats = {"group_size": group_size, "symmetric": symmetric}
    q = qmm.quantize(x, dtype, **formats)
    p = qmm.quantize(x, dtype, method="percentile", percentile=100, **formats)
    assert q.scale.tobytes() == p.scale.tobytes()
    assert q.data.tobytes() == p.data.tobytes()


def test_the_percentile_is_99_9_by_default():
    x = np.arange(1001, dtype=np.float32)  # steps of a tenth of a percent
    assert qmm.quantize(x, method="percentile").scale.tolist() == [
        np.float32(999) / np.float32(127)
    ]


def test_percentile_between_numbers_whose_difference_is_no_float32():
    x = np.float32([[-3e38, 3e38]])
    q = qmm.quantize(x, "int8", method="percentile", percentile=99, symmetric=True)
    np.testing.assert_allclose(q.scale, 3e38 / 127, rtol=1e-6)
    # 99 % of the way from one to the other: 2.94e38 on both sides, which is too wide a range.
    with pytest.raises(ArrayError, match=r"x spans -2.9.*e\+38 to 2.9.*e\+38 under"):
        qmm.quantize(x, "uint8", method="percentile", percentile=99)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("group_size", [None, "tensor", 8])
def test_a_range_that_is_no_float32_is_refused(group_size):
    x = np.zeros((2, 16), np.float32)
    x[1, :2] = -3e38, 3e38
    message = r"x spans -3e\+38 to 3e\+38 under one scale; expected a range .* at most 3\.4028"
    with pytest.raises(ArrayError, match=message):
        qmm.quantize(x, "int8", group_size=group_size, symmetric=False)
    assert qmm.quantize(x, "int8", group_size=group_size).unpacked()[1, :2].tolist() == [-127, 127]
    x[1, 0] = 0
    q = qmm.quantize(x, "int8", group_size=group_size, symmetric=False)
    assert q.unpacked()[1, 1] == 127


def test_a_group_may_be_far_longer_than_k():
    x = np.random.default_rng(0).standard_normal((4, 100))
    long = qmm.quantize(x, "uint4", group_size=2**60)
    rows = qmm.quantize(x, "uint4")
    np.testing.assert_array_equal(long.data, rows.data)
    np.testing.assert_array_equal(long.scale[:, 0], rows.scale)
    np.testing.assert_array_equal(qmm.dequantize(long), qmm.dequantize(rows))


def test_mse_by_hand():
    # A hundred 1.0 and 8.75, with the scale 1.25 f: 100 (1.25 f - 1)² + (8.75 - 8.75 f)² is
    # 2.063 for 0.86, 2.060 for 0.87 and 2.103 for 0.88.
    x = np.array([[1.0] * 100 + [8.75]])
    q = qmm.quantize(x, "int4", method="mse")
    assert q.scale.tolist() == [np.float32(1.25) * np.float32(0.87)]
    assert q.unpacked().tolist() == [[1] * 100 + [7]]
    assert qmm.quantize(x, "int4").scale.tolist() == [1.25]


def test_mse_asymmetric_by_hand():
    # Mirrored and shifted, the same: 15 steps hold -8.75 to 10, zero_point 7 stays.
    x = np.array([[1.0] * 100 + [-8.75, 10.0]])
    q = qmm.quantize(x, "uint4", method="mse")
    assert q.zero_point.tolist() == [7]
    errors = {}
    for factor in SHRINK:
        scale = 1.25 * float(factor)
        steps = np.clip(np.rint(x / scale), -7, 8)
        errors[float(np.float32(1.25) * factor)] = ((steps * scale - x) ** 2).sum()
    assert q.scale[0] == min(errors, key=errors.get)
    assert q.scale[0] < 1.25


def test_mse_keeps_what_is_exact():
    q = qmm.quantize([[1.0, -7.0, 3.0], [0, 0, 0], [14, 2, 8]], "int4", method="mse")
    assert q.scale.tolist() == [1, 1, 2]
    assert q.unpacked().tolist() == [[1, -7, 3], [0, 0, 0], [7, 1, 4]]


def errors_of(q, x, group_size):
    difference = qmm.dequantize(q).astype(np.float64) - x
    return np.array([(values**2).sum() for values in parts(difference, group_size)])


def least_of_grid(x, dtype, group_size, symmetric):
    """The least error per scale that any factor leaves, by trying each as a given scale."""
    q = qmm.quantize(x, dtype, group_size=group_size, symmetric=symmetric)
    given = {"symmetric": True} if symmetric else {"zero_point": q.zero_point}
    tried = [
        errors_of(
            qmm.quantize(x, dtype, group_size=group_size, scale=scale, **given), x, group_size
        )
        for scale in (q.scale * factor for factor in SHRINK)
        if (scale > 0).all()
    ]
    return np.min(tried, axis=0)


@settings(max_examples=50)
@given(matrices(), st.sampled_from(sorted(RANGES)), GROUPS, st.booleans())
def test_mse_finds_the_least_error_of_its_grid(x, dtype, group_size, symmetric):
    formats = {"group_size": group_size, "symmetric": symmetric}
    q = qmm.quantize(x, dtype, method="mse", **formats)
    least = least_of_grid(x, dtype, group_size, symmetric)
    assert (errors_of(q, x, group_size) <= least * (1 + 1e-5) + 1e-60).all()


@pytest.mark.parametrize("group_size", [None, "tensor"])
def test_mse_finds_it_beyond_a_block(group_size):
    x = np.random.default_rng(0).standard_t(3, (2, BLOCK + 100)).astype(np.float32)
    q = qmm.quantize(x, "int4", group_size=group_size, method="mse")
    least = least_of_grid(x, "int4", group_size, True)
    np.testing.assert_allclose(errors_of(q, x, group_size), least, rtol=1e-5)


@given(
    st.tuples(st.integers(1, 5), st.integers(1, 40)).flatmap(
        lambda shape: hnp.arrays(
            np.float32, shape, elements=st.floats(-(2.0**126), 2.0**126, width=32)
        )
    ),
    st.sampled_from(sorted(RANGES)),
    GROUPS,
    st.booleans(),
)
def test_mse_is_never_worse_than_absmax(x, dtype, group_size, symmetric):
    formats = {"group_size": group_size, "symmetric": symmetric}
    errors = [
        errors_of(qmm.quantize(x, dtype, method=method, **formats), x, group_size)
        for method in ("mse", "absmax")
    ]
    assert (errors[0] <= errors[1] * (1 + 1e-12)).all()


def test_mse_beats_absmax_where_there_are_outliers():
    x = np.random.default_rng(0).standard_t(3, (8, 256))
    for dtype in ("int4", "uint4"):
        mse, absmax = (
            errors_of(qmm.quantize(x, dtype, method=method), x, None)
            for method in ("mse", "absmax")
        )
        assert mse.sum() < 0.9 * absmax.sum()


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
        (
            {"x": np.zeros((3, 0))},
            ArrayError,
            r"x has shape \(3, 0\); expected a matrix that is not empty",
        ),
        ({"x": np.zeros((2, 2, 2))}, ArrayError, r"x has shape \(2, 2, 2\); expected a matrix"),
        ({"x": [[1.0]], "dtype": "int3"}, SpecError, "dtype='int3'"),
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
        ({"zero_point": 2**32 + 5}, ArrayError, "zero_point 4294967301; int8 holds -128 to 127"),
        ({"zero_point": np.uint64(2**40)}, ArrayError, "zero_point 1099511627776; int8 holds"),
        ({"zero_point": 3.0}, ArrayError, "zero_point is float64; expected integers"),
        ({"zero_point": True}, ArrayError, "zero_point is bool; expected integers"),
        ({"x": [["a"]]}, ArrayError, "x holds str32; expected real numbers"),
        ({"x": [[1.0, 2.0], [3.0]]}, ArrayError, "x is list; expected an array of numbers: "),
        ({"x": [[1 + 2j]]}, ArrayError, "x holds complex128; expected real numbers"),
        ({"x": [[None]]}, ArrayError, "x holds object; expected real numbers"),
        ({"x": None}, ArrayError, "x holds object; expected real numbers"),
        ({"x": [[1e300]]}, ArrayError, r"x holds 1e\+300, which is beyond float32"),
        ({"x": [[-(10**39)]]}, ArrayError, "x holds object"),
        ({"scale": 1e39}, ArrayError, r"scale holds 1e\+39, which is beyond float32"),
        ({"scale": "1"}, ArrayError, "scale holds str32; expected real numbers"),
        ({"dtype": ["int8"]}, SpecError, r"dtype=\['int8'\]; expected one of int8"),
        ({"dtype": None}, SpecError, "dtype=None; expected one of int8"),
        ({"group_size": True}, SpecError, "group_size=True; expected None, 'tensor' or a multiple"),
        ({"group_size": np.ones(2)}, SpecError, r"group_size=array.*; expected None"),
        ({"x": [[1.0]], "zero_point": 1, "symmetric": True}, SpecError, "symmetric=True"),
        ({"method": "mse", "scale": 1.0}, SpecError, "method='mse' finds the scale, but a scale"),
        ({"method": "percentile", "scale": 1.0}, SpecError, "method='percentile' finds the scale"),
        ({"percentile": 99}, SpecError, "percentile=99 with method='absmax'; expected method='p"),
        ({"method": "mse", "percentile": 99}, SpecError, "percentile=99 with method='mse'"),
        ({"method": "percentile", "percentile": 50}, SpecError, "percentile=50; expected more"),
        ({"method": "percentile", "percentile": 100.1}, SpecError, "more than 50, at most 100"),
        ({"method": "percentile", "percentile": math.nan}, SpecError, "percentile=nan; expected"),
        ({"method": "percentile", "percentile": "99"}, SpecError, "percentile='99'; expected"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        qmm.quantize(**{"x": [[1.0]], "dtype": "int8", **arguments})


def test_packing_errors():
    for values, fill, message in [
        ([[-9, 0]], 0, "values span -9 to 0; 4 bits hold -8 to 7 or 0 to 15"),
        ([[0.5]], 0, r"values is float64\(1, 1\); expected an array of integers"),
        ("a", 0, "values holds str32; expected real numbers"),
        (3, 0, "values is one number; expected an array of integers"),
        ([[1]], [1, 2, 3], r"fill has shape \(3,\); expected \(1,\) or a scalar"),
        ([[1]], 100, "fill span 100 to 100; 4 bits hold"),
        ([[1]], math.nan, r"fill is float64\(\); expected an array of integers"),
    ]:
        with pytest.raises(ArrayError, match=message):
            qmm.pack_int4(values, fill)
    with pytest.raises(ArrayError, match="5 4-bit values are stored in 3 bytes"):
        qmm.unpack_int4(np.zeros((1, 2), np.uint8), 5)


def test_dequantizes_nothing():
    q = qmm.QTensor(np.zeros((2, 0), np.int8), np.ones(2, np.float32), None, "int8", None, (2, 0))
    assert qmm.dequantize(q).shape == (2, 0)


def test_qtensor_errors():
    data, scale = np.zeros((2, 3), np.int8), np.ones(2, np.float32)
    with pytest.raises(ArrayError, match="stored as int8"):
        qmm.QTensor(data[:, :2], scale, None, "int8", None, (2, 3))
    with pytest.raises(ArrayError, match="stored as uint8"):
        qmm.QTensor(data, scale, None, "int4", None, (2, 3))
    with pytest.raises(ArrayError, match=r"scale is float32\(3,\); expected float32\(2,\)"):
        qmm.QTensor(data, np.ones(3, np.float32), None, "int8", None, (2, 3))
    with pytest.raises(ArrayError, match=r"zero_point is int64\(3,\); expected int32\(2,\)"):
        qmm.QTensor(data, scale, np.zeros(3, np.int64), "int8", None, (2, 3))
    with pytest.raises(ArrayError, match=r"zero_point is float32\(2,\); expected int32\(2,\)"):
        qmm.QTensor(data, scale, scale, "int8", None, (2, 3))
    with pytest.raises(ArrayError, match="zero_point 128; int8 holds -128 to 127"):
        qmm.QTensor(data, scale, np.full(2, 128, np.int32), "int8", None, (2, 3))
    with pytest.raises(ArrayError, match="zero_point 4294967296; int8 holds -128 to 127"):
        qmm.QTensor(data, scale, np.full(2, 2**32), "int8", None, (2, 3))
    for outside in (-65, 64):
        with pytest.raises(ArrayError, match=f"data {outside}; int7 holds -64 to 63"):
            qmm.QTensor(np.full_like(data, outside), scale, None, "int7", None, (2, 3))
    with pytest.raises(ArrayError, match="zero_point 64; int7 holds -64 to 63"):
        qmm.QTensor(data, scale, np.full(2, 64, np.int32), "int7", None, (2, 3))
    for order, message in [
        ([0, 1], r"order is int64\(2,\); expected a permutation, int32\(3,\)"),
        ([0.0, 1.0, 2.0], r"order is float64\(3,\); expected a permutation"),
        ([0, 1, 3], "order holds 3; expected each of 0 to 2 once"),
        ([0, -1, 2], "order holds -1; expected each of 0 to 2 once"),
        ([0, 2, 2], "order lacks 1; expected each of 0 to 2 once"),
    ]:
        with pytest.raises(ArrayError, match=message):
            qmm.QTensor(data, scale, None, "int8", None, (2, 3), order=np.array(order))
    with pytest.raises(ArrayError, match="data is list; expected an array"):
        qmm.QTensor(data.tolist(), scale, None, "int8", None, (2, 3))
    with pytest.raises(ArrayError, match="scale is list; expected an array"):
        qmm.QTensor(data, [1.0, 1.0], None, "int8", None, (2, 3))
    with pytest.raises(ArrayError, match="zero_point is list; expected an array"):
        qmm.QTensor(data, scale, [0, 0], "int8", None, (2, 3))
    with pytest.raises(ArrayError, match="shape=6; expected"):
        qmm.QTensor(data, scale, None, "int8", None, 6)
    with pytest.raises(SpecError, match="shape=-2; expected a whole number of at least 0"):
        qmm.QTensor(data, scale, None, "int8", None, (-2, 3))
    with pytest.raises(ArrayError, match="q is ndarray; expected a QTensor, see quantize"):
        qmm.dequantize(data)


def test_sizes_of_any_integer_type():
    q = qmm.quantize(np.ones((2, 16)), "int8", group_size=np.int64(8))
    assert type(q.group_size) is int
    again = qmm.QTensor(q.data, q.scale, None, "int8", np.int16(8), (np.int64(2), np.int64(16)))
    assert [type(size) for size in (again.group_size, *again.shape)] == [int] * 3


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int32"])
def test_torch_tensors(dtype, torch):
    values = np.random.default_rng(0).integers(-9, 9, (3, 16)) * 0.375
    tensor = torch.tensor(values).to(getattr(torch, dtype))
    whole = tensor.double().numpy()
    given = [tensor, tensor.T.contiguous().T]
    if tensor.is_floating_point():
        given += [tensor.clone().requires_grad_(), torch.nn.Parameter(tensor)]
    for each in given:
        for weight in ("int8", "uint4"):
            q, expected = qmm.quantize(each, weight), qmm.quantize(whole, weight)
            np.testing.assert_array_equal(q.data, expected.data)
            np.testing.assert_array_equal(q.scale, expected.scale)
        spec = qmm.MatmulSpec(n=3, k=16)
        assert qmm.error_report(each, [spec], each) == qmm.error_report(whole, [spec], whole)


def test_bfloat16_is_quantized_as_what_it_is():
    values = np.array([[1.0, -2.5, 3.140625]], ml_dtypes.bfloat16)
    np.testing.assert_array_equal(
        qmm.quantize(values).scale, qmm.quantize(values.astype(np.float32)).scale
    )
