"""The worked examples of the quantization document, digit for digit."""

from __future__ import annotations

import numpy as np
import pytest
import quantmm as qmm

X = np.array([[0.3, -0.2, 0.1], [-0.5, 0.4, 0.2]])
W = np.array([[0.6, -0.1, 0.3], [-0.4, 0.7, -0.2]])
QX = [[3, -2, 1], [-5, 4, 2]]
QW = [[6, -1, 3], [-4, 7, -2]]
PRODUCT = [[23, -28], [-28, 44]]
RESULT = [[0.23, -0.28], [-0.28, 0.44]]

FORMATS = [("int8", "int8"), ("int4", "int4"), ("int8", "int4")]


def tensor(values, dtype, scale=0.1):
    return qmm.quantize(values, dtype, group_size="tensor", scale=scale)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_vector_example(dtype):
    x, w = tensor([[0.5, -0.2]], dtype), tensor([[0.8, -0.6]], "int8")
    assert x.unpacked().tolist() == [[5, -2]]
    assert w.unpacked().tolist() == [[8, -6]]
    spec = qmm.MatmulSpec(n=1, k=2, activation=dtype, group_size="tensor", out="int32")
    assert qmm.reference(spec, x, w).tolist() == [[52]]
    spec = qmm.MatmulSpec(n=1, k=2, activation=dtype, group_size="tensor")
    assert np.round(qmm.reference(spec, x, w), 6).tolist() == [[np.float32(0.52)]]


@pytest.mark.parametrize(("activation", "weight"), FORMATS)
def test_matrix_example(activation, weight):
    x, w = tensor(X, activation), tensor(W, weight)
    assert x.unpacked().tolist() == QX
    assert w.unpacked().tolist() == QW
    formats = {"activation": activation, "weight": weight, "group_size": "tensor"}
    integers = qmm.MatmulSpec(n=2, k=3, out="int32", **formats)
    assert qmm.reference(integers, x, w).tolist() == PRODUCT
    result = qmm.reference(qmm.MatmulSpec(n=2, k=3, **formats), x, w)
    np.testing.assert_array_equal(np.round(result, 6), np.float32(RESULT))


def test_dequantized_operands_are_the_originals():
    np.testing.assert_array_equal(qmm.dequantize(tensor(X, "int8")), np.float32(X))
    np.testing.assert_array_equal(qmm.dequantize(tensor(W, "int4")), np.float32(W))


def test_compiled_kernel_gives_the_same_digits():
    x, w = tensor(X, "int8"), tensor(W, "int8")
    for out, expected in (("int32", PRODUCT), ("float32", np.float32(RESULT))):
        spec = qmm.MatmulSpec(n=2, k=3, group_size="tensor", out=out)
        y = qmm.compile(spec)(x, w)
        np.testing.assert_array_equal(np.round(y, 6), expected)
        np.testing.assert_array_equal(y, qmm.reference(spec, x, w))
