"""What the kernel tests draw: specs that compile, and arrays that lie anyhow in memory."""

from __future__ import annotations

import numpy as np
import quantmm as qmm
from hypothesis import strategies as st

EXTREMES = {"int8": [-128, 127, 0, -1, 1], "uint8": [0, 255, 128, 1]}


@st.composite
def specs(draw, max_n=150, max_k=300, m=None):
    out = draw(st.sampled_from(["float32", "int32"]))
    return qmm.MatmulSpec(
        n=draw(st.one_of(st.integers(1, max_n), st.sampled_from([1, 16, 17, 64, 96]))),
        k=draw(st.one_of(st.integers(1, max_k), st.sampled_from([1, 3, 4, 63, 64, 65, 256]))),
        activation=draw(st.sampled_from(["int8", "uint8"])),
        group_size=draw(st.sampled_from([None, "tensor"])),
        activation_zero_point=draw(st.booleans()),
        activation_scale=draw(st.sampled_from(["tensor", "row"])),
        out=out,
        bias=out == "float32" and draw(st.booleans()),
        m=m,
    )


def integers(rng, dtype, shape):
    """Random integers, or nothing but extremes."""
    if rng.random() < 0.3:
        return rng.choice(np.array(EXTREMES[dtype], dtype), shape)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


def weight(rng, spec):
    data = integers(rng, spec.weight, (spec.n, spec.k))
    scale = rng.uniform(1e-3, 1, () if spec.group_size == "tensor" else (spec.n,))
    scale = np.asarray(scale, np.float32)
    return qmm.QTensor(data, scale, None, spec.weight, spec.group_size, (spec.n, spec.k))


def bind_arguments(rng, spec):
    return {"bias": rng.standard_normal(spec.n).astype(np.float32)} if spec.bias else {}


def call_arguments(rng, spec, m):
    shape = (m,) if spec.activation_scale == "row" else ()
    arguments = {}
    if spec.out == "float32":
        arguments["x_scale"] = rng.uniform(1e-3, 1, shape).astype(np.float32)
    if spec.activation_zero_point:
        info = np.iinfo(spec.activation)
        arguments["x_zero_point"] = rng.integers(info.min, info.max + 1, shape, dtype=np.int32)
    return arguments


def lay_out(rng, array):
    """The same values at an odd address, with strides, transposed, reversed, or as they are."""
    rows, columns = array.shape
    way = rng.integers(5)
    if way == 0:
        raw = np.zeros(array.nbytes + 64, np.uint8)
        offset = int(rng.integers(1, 64)) // array.itemsize * array.itemsize + array.itemsize
        result = raw[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape)
    elif way == 1:
        wide = np.zeros((rows, columns + int(rng.integers(1, 9))), array.dtype)
        result = wide[:, 1 : columns + 1] if wide.shape[1] > columns else wide
    elif way == 2:
        result = np.zeros((columns, rows), array.dtype).T
    elif way == 3:
        result = np.zeros((2 * rows, 3 * columns), array.dtype)[::-2, ::-3]
    else:
        return array
    result[...] = array
    return result


def assert_agrees(y, expected):
    """Integers equal, floats within one unit in the last place."""
    assert y.dtype == expected.dtype
    if expected.dtype.kind == "i":
        np.testing.assert_array_equal(y, expected)
    else:
        assert np.all(np.abs(y - expected) <= np.spacing(np.abs(expected)))
