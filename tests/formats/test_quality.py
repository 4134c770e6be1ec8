"""`error_report`, by hand and against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import quantmm as qmm
from hypothesis import given
from hypothesis import strategies as st
from quantmm.errors import ArrayError, SpecError
from quantmm.formats import quality

EXACT = np.float32([[127, 64, -3], [-127, 32, 0]])


def spec(w, **formats):
    n, k = np.shape(w)
    return qmm.MatmulSpec(n=n, k=k, **formats)


def test_the_first_row_is_float32():
    rows = qmm.error_report(EXACT, [])
    assert rows == [qmm.ErrorRow("float32", "float32", 24, 1.0, math.inf, 0.0)]


def test_float32_itself_loses_what_float64_holds():
    (row,) = qmm.error_report(EXACT.astype(np.float64) / 3, [], EXACT)
    assert 140 < row.snr_db < 170
    assert 1e-9 < row.output_error < 1e-7


def test_what_integers_hold_has_no_error():
    one_scale = spec(EXACT, activation_scale="tensor")
    rows = qmm.error_report(EXACT, [one_scale], x=[[127.0, -5, 1], [3, 0, 7]])
    assert rows[1:] == [qmm.ErrorRow("int8 channel", "int8 tensor", 14, 14 / 24, math.inf, 0.0)]


def test_weight_error_by_hand():
    # 2.25 becomes 2: the signal is 49 + 2.25², the noise 0.25²; Y = 127 * 2.25 becomes 127 * 2.
    w = [[7, 2.25]]
    row = qmm.error_report(w, [spec(w, weight="int4")], x=[[0.0, 127]])[1]
    assert row.snr_db == pytest.approx(10 * math.log10(54.0625 / 0.0625))
    assert row.output_error == pytest.approx(1 / 9)
    assert (row.bytes, row.ratio) == (5, 5 / 8)


@pytest.mark.parametrize(
    ("formats", "label", "lost"),
    [
        ({"activation_scale": "tensor"}, "int8 tensor", [0.27, 0.004]),  # one step is 1
        ({}, "int8 row", [0, 0.004]),  # in the second row 0.01
        ({"dynamic": True, "input": "float32"}, "int8 row", [0, 0.004]),
    ],
)
def test_activation_error_by_hand(formats, label, lost):
    w, x = np.eye(2) * 127, np.array([[127, 1], [1.27, 0.004]])
    row = qmm.error_report(w, [spec(w, **formats)], x)[1]
    assert row.activation == label
    assert row.snr_db == math.inf
    assert row.output_error == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(x), rel=1e-4)


def test_activation_zero_point_by_hand():
    w, x = np.eye(2) * 127, [[-5, 250]]  # 255 steps of 1 from -5 on
    without, having = (
        qmm.error_report(w, [spec(w, activation="uint8", activation_zero_point=zero)], x)[1]
        for zero in (False, True)
    )
    assert (having.activation, having.output_error) == ("uint8 row zero points", 0)
    # -5 is clipped to 0; 250 is the greatest number and exact.
    assert without.activation == "uint8 row"
    assert without.output_error == pytest.approx(5 / math.hypot(5, 250))


@pytest.mark.parametrize(
    ("formats", "label", "size"),
    [
        ({}, "int8 channel", 3 * 21 + 3 * 4),
        ({"group_size": "tensor"}, "int8 tensor", 3 * 21 + 4),
        ({"weight": "int4"}, "int4 channel", 3 * 11 + 3 * 4),
        ({"weight": "int4", "group_size": 8}, "int4 g=8", 3 * 11 + 3 * 3 * 4),
        (
            {"weight": "uint4", "group_size": 16, "weight_zero_point": True},
            "uint4 g=16 zero points",
            3 * 11 + 3 * 2 * 8,
        ),
    ],
)
def test_size(formats, label, size):
    w = np.random.default_rng(0).standard_normal((3, 21))
    row = qmm.error_report(w, [spec(w, **formats)])[1]
    assert (row.format, row.bytes, row.ratio) == (label, size, size / (3 * 21 * 4))


@st.composite
def problems(draw):
    n, k, m = draw(st.integers(1, 6)), draw(st.integers(1, 40)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    weight = draw(st.sampled_from(["int8", "uint8", "int4", "uint4"]))
    activation = draw(st.sampled_from(["int8", "uint8", "int4"]))
    formats = {
        "weight": weight,
        "group_size": draw(st.sampled_from([None, "tensor", 8, 32])),
        "weight_zero_point": weight.startswith("u") or draw(st.booleans()),
        "activation": activation,
        "activation_zero_point": activation == "uint8" or draw(st.booleans()),
        "activation_scale": draw(st.sampled_from(["tensor", "row"])),
    }
    x, w = rng.standard_normal((m, k)), rng.standard_normal((n, k))
    return x, w, qmm.MatmulSpec(n=n, k=k, **formats)


@given(problems(), st.sampled_from(["absmax", "percentile", "mse"]))
def test_is_what_the_reference_and_dequantize_show(problem, method):
    x, w, spec = problem
    row = qmm.error_report(w, [spec], x, method=method)[1]
    q = qmm.quantize(
        w,
        spec.weight,
        group_size=spec.group_size,
        symmetric=not spec.weight_zero_point,
        method=method,
    )
    noise = ((qmm.dequantize(q).astype(np.float64) - w) ** 2).sum()
    if noise > 1e-12:
        assert row.snr_db == pytest.approx(10 * math.log10((w**2).sum() / noise))
    qx = qmm.quantize(
        x,
        spec.activation,
        group_size=None if spec.activation_scale == "row" else "tensor",
        symmetric=not spec.activation_zero_point,
    )
    y = qmm.reference(spec, qx, q)
    exact = x @ w.T
    error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
    assert row.output_error == pytest.approx(error, rel=1e-3, abs=1e-5)


def test_rows_are_in_the_order_of_the_specs():
    w = np.random.default_rng(0).standard_normal((8, 64))
    formats = [("int4", 8), ("int8", None), ("int4", None)]
    specs = (spec(w, weight=weight, group_size=size) for weight, size in formats)
    rows = qmm.error_report(w, specs)
    assert [row.format for row in rows] == ["float32", "int4 g=8", "int8 channel", "int4 channel"]
    assert rows[2].snr_db > rows[1].snr_db > rows[3].snr_db
    assert rows[2].output_error < rows[1].output_error < rows[3].output_error


def test_activations_left_out_are_64_normal_rows():
    w = np.random.default_rng(1).standard_normal((5, 33))
    x = np.random.default_rng(0).standard_normal((64, 33), np.float32)
    assert qmm.error_report(w, [spec(w)]) == qmm.error_report(w, [spec(w)], x)


def test_methods_reach_the_weight():
    w = np.random.default_rng(0).standard_t(3, (8, 256))
    only = [spec(w, weight="int4")]
    absmax, mse = (qmm.error_report(w, only, method=method)[1] for method in ("absmax", "mse"))
    assert mse.snr_db > absmax.snr_db + 1
    assert mse.output_error < absmax.output_error
    all_of_it, most_of_it = (
        qmm.error_report(w, only, method="percentile", percentile=percentile)[1]
        for percentile in (100, 99)
    )
    assert all_of_it == absmax
    assert most_of_it != absmax


def test_zeros_have_no_error():
    w = np.zeros((2, 3))
    for row in qmm.error_report(w, [spec(w), spec(w, weight="int4")]):
        assert (row.snr_db, row.output_error) == (math.inf, 0)


def test_an_error_where_all_should_be_zero_is_infinite():
    w = [[1.0, 0.3]]  # 0.3 is no multiple of 1 / 7
    row = qmm.error_report(w, [spec(w, weight="int4")], x=[[-0.3, 1.0]])[1]
    assert row.output_error == math.inf


def test_large_weights_are_compared_in_pieces(monkeypatch):
    w = np.random.default_rng(0).standard_normal((37, 20)).astype(np.float32)
    whole = qmm.error_report(w, [spec(w)])
    monkeypatch.setattr(quality, "BLOCK", 65)
    for row, piecewise in zip(whole, qmm.error_report(w, [spec(w)]), strict=True):
        assert piecewise.snr_db == pytest.approx(row.snr_db)
        assert piecewise.output_error == pytest.approx(row.output_error)


W = np.ones((2, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"specs": [spec(W), spec(W.T)]}, SpecError, "a spec has n=3, k=2; W has n=2, k=3"),
        ({"specs": ["int8"]}, SpecError, "specs holds 'int8'; expected MatmulSpec"),
        ({"W": np.ones(3)}, ArrayError, r"W has shape \(3,\); expected a matrix"),
        ({"W": np.ones((0, 3))}, ArrayError, r"W has shape \(0, 3\); expected a matrix"),
        ({"W": [[math.inf]]}, ArrayError, "W holds NaN or infinity"),
        ({"W": [["a"]]}, ArrayError, "W holds str32; expected real numbers"),
        ({"W": [[1e40] * 3]}, ArrayError, r"W holds 1e\+40, which is beyond float32; expected"),
        ({"W": [[1, 2], [3]]}, ArrayError, "W is list; expected an array of numbers"),
        ({"x": [[1e40] * 3]}, ArrayError, r"x holds 1e\+40, which is beyond float32; expected"),
        ({"x": np.ones((4, 2))}, ArrayError, "x has K=2; W has K=3"),
        ({"x": [[1, 2, math.nan]]}, ArrayError, "x holds NaN or infinity"),
        ({"x": np.ones((1, 2, 3))}, ArrayError, r"x has shape \(1, 2, 3\); expected a matrix"),
        ({"specs": [spec(W)], "method": "magic"}, SpecError, "method='magic'"),
        ({"specs": [spec(W)], "percentile": 99}, SpecError, "percentile=99 with method='absmax'"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        qmm.error_report(**{"W": W, "specs": [], **arguments})
