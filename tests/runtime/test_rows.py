"""X with any number of dimensions before the last one, and X without rows."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import problems
import pytest
import quantmm as qmm
from foreign import Foreign
from quantmm.errors import ArrayError
from quantmm.formats.quantize import METHODS
from quantmm.runtime import info
from quantmm.runtime.rows import as_rows

N, K = 19, 34
LEADS = [(), (1,), (6,), (2, 3), (2, 1, 3), (0,), (2, 0), (0, 3)]
SPECS = {
    "all": qmm.MatmulSpec(
        n=N, k=K, activation_zero_point=True, bias=True, residual=True, out="float16"
    ),
    "packed": qmm.MatmulSpec(n=N, k=K, activation="int4", out="int32"),
    "dynamic": qmm.MatmulSpec(n=N, k=K, input="float32", dynamic=True, activation_zero_point=True),
    "static": qmm.MatmulSpec(n=N, k=K, input="float16", out="int8"),
}


@pytest.fixture(scope="module", params=SPECS)
def case(request):
    """A bound kernel, its spec, and a function that draws a call's arrays for some dimensions."""
    spec = SPECS[request.param]
    rng = np.random.default_rng(0)
    w, bind = problems.weight(rng, spec), problems.bind_arguments(rng, spec)

    def draw(lead):
        m = int(np.prod(lead))
        x = problems.activation(rng, spec, m)
        call = problems.call_arguments(rng, spec, m)
        of_rows = {
            name: array.reshape(lead if array.ndim == 1 else (*lead, -1 if m else N))
            for name, array in call.items()
        }
        return x.reshape(*lead, x.shape[1]), of_rows

    def expected(x, call):
        return qmm.reference(spec, x, w, **bind, **call)

    return problems.compiled(spec, rows=(1, 6)).bind(w, **bind), draw, expected


@pytest.mark.parametrize("lead", LEADS)
def test_any_dimensions(case, lead):
    linear, draw, reference = case
    x, call = draw(lead)
    y, expected = linear(x, **call), reference(x, call)
    assert y.shape == expected.shape == (*lead, N)
    problems.assert_agrees(y.reshape(-1, N), expected.reshape(-1, N))
    out = np.zeros_like(y)
    assert linear(x, out, **call) is out
    np.testing.assert_array_equal(out, y)
    np.testing.assert_array_equal(linear(Foreign(x), **call), y)


@pytest.mark.parametrize("lead", LEADS)
def test_the_reference_of_the_rows_is_that_of_their_matrix(case, lead):
    _, draw, reference = case
    x, call = draw(lead)
    m = int(np.prod(lead))
    flat = {
        name: array.reshape(m, *array.shape[len(lead) :]) if array.ndim >= len(lead) else array
        for name, array in call.items()
    }
    y = reference(x.reshape(m, x.shape[-1]), flat)
    np.testing.assert_array_equal(y.reshape(*lead, N), reference(x, call))


@pytest.mark.parametrize("lead", LEADS)
def test_torch(lead, torch, host_kernel):
    rng = np.random.default_rng(0)
    spec = qmm.MatmulSpec(n=N, k=K, residual=True)
    linear = host_kernel(spec).bind(problems.weight(rng, spec))
    x = problems.integers(rng, "int8", (*lead, K))
    call = {"x_scale": np.full(lead, 0.5, np.float32), "residual": np.ones((*lead, N), np.float32)}
    there = {name: torch.from_numpy(array) for name, array in call.items()}
    expected = linear(x, **call)
    y = linear(torch.from_numpy(x), **there)
    assert isinstance(y, torch.Tensor)
    np.testing.assert_array_equal(y.numpy(), expected)
    wide = torch.zeros(*lead, N + 3)
    if len(lead) < 2:
        linear(torch.from_numpy(x), wide[..., :N], **there)
        np.testing.assert_array_equal(wide[..., :N].numpy(), expected)
        assert (wide[..., N:] == 0).all()


def test_rows_at_one_distance_are_read_in_place():
    whole = np.arange(4 * 6 * 50, dtype=np.int8).reshape(4, 6, 50)
    for x in (whole[..., 5:39], whole[1:3, ..., :34], whole[:, :1, 2:36], whole[2:3, ::2, :34]):
        rows = as_rows("x", x, K)
        assert np.shares_memory(rows, whole)
        np.testing.assert_array_equal(rows, np.array(x).reshape(-1, K))
    for x in (whole[:, :5, :34], whole.transpose(1, 0, 2)[..., :34]):
        rows = as_rows("x", x, K)
        assert not np.shares_memory(rows, whole)
        np.testing.assert_array_equal(rows, np.array(x).reshape(-1, K))


def test_out_with_rows_at_one_distance():
    rng = np.random.default_rng(0)
    spec = qmm.MatmulSpec(n=N, k=K, out="int32")
    w = problems.weight(rng, spec)
    linear = problems.compiled(spec, rows=[6]).bind(w)
    x = problems.integers(rng, "int8", (2, 3, K))
    wide = np.full((2, 3, N + 5), 7, np.int32)
    linear(x, wide[..., 2 : N + 2])
    np.testing.assert_array_equal(wide[..., 2 : N + 2], qmm.reference(spec, x, w))
    wide[..., 2 : N + 2] = 7
    assert (wide == 7).all()
    apart = np.zeros((2, 4, N), np.int32)[:, :3]
    with pytest.raises(ArrayError, match=r"out of \(2, 3, 19\) has rows at several distances; exp"):
        linear(x, apart)


def test_refused_dimensions(host_kernel):
    spec = qmm.MatmulSpec(n=N, k=K, residual=True)
    linear = host_kernel(spec).bind(qmm.quantize(np.ones((N, K))))
    x, added = np.ones((2, 3, K), np.int8), np.ones((2, 3, N), np.float32)
    call = {"x_scale": 0.5, "residual": added}
    for given, message in [
        ({"x": x[..., 1:]}, r"x is int8\(2, 3, 33\); expected the shape \(..., 34\)"),
        ({"x": np.int8(1)}, r"x is int8\(\); expected"),
        ({"x": np.array(1, np.int8)}, r"x is int8\(\); expected the shape \(..., 34\)"),
        ({"x": x.astype(np.int16)}, r"x is int16\(6, 34\); expected int8\(M, 34\)"),
        ({"out": np.ones((6, N), np.float32)}, r"out is float32\(6, 19\); .* \(2, 3, 19\)"),
        ({"out": np.ones((2, 3, N))}, r"out is float64\(6, 19\); expected float32\(6, 19\)"),
        ({"residual": added[0]}, r"residual is float32\(3, 19\); .* shape \(2, 3, 19\)"),
        ({"residual": None}, r"residual is missing; the spec adds one of \(6, 19\)"),
        ({"x_scale": np.ones(6)}, r"x_scale has shape \(6,\); expected a scalar or \(2, 3\)"),
        ({"x_scale": [[1.0] * 2] * 3}, r"x_scale has shape \(3, 2\); expected a scalar or \(2, 3"),
    ]:
        with pytest.raises(ArrayError, match=message):
            linear(**{"x": x, **call, **given})
    fixed = qmm.compile(dataclasses.replace(spec, m=6, residual=False)).bind(
        qmm.quantize(np.ones((N, K)))
    )
    assert fixed(x, x_scale=1.0).shape == (2, 3, N)
    with pytest.raises(ArrayError, match="x has 0 rows; this kernel was compiled for m=6"):
        fixed(x[:0], x_scale=1.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("group_size", [None, "tensor", 8])
@pytest.mark.parametrize("dtype", ["int8", "uint4"])
def test_quantized_without_rows(dtype, group_size, method, host_kernel):
    q = qmm.quantize(np.zeros((0, K)), dtype, group_size=group_size, method=method)
    assert q.shape == (0, K)
    assert qmm.dequantize(q).shape == (0, K)
    if dtype == "int8" and group_size != 8:
        spec = qmm.MatmulSpec(n=N, k=K)
        w = qmm.quantize(np.ones((N, K)))
        assert host_kernel(spec).bind(w)(q).shape == qmm.reference(spec, q, w).shape == (0, N)


def assert_in_parts(compiled, m):
    """A call of `m` rows as the reference has it, from arrays whose rows lie apart."""
    rng = np.random.default_rng(0)
    spec = compiled.spec
    assert compiled.most_rows == 10
    w, bind = problems.weight(rng, spec), problems.bind_arguments(rng, spec)
    x, call = problems.activation(rng, spec, m), problems.call_arguments(rng, spec, m)
    wide = np.zeros((m, spec.n + 5), spec.out)
    apart = np.concatenate([x, x], axis=1)[:, : x.shape[1]]
    linear = compiled.bind(w, **bind)
    expected = qmm.reference(spec, x, w, **bind, **call)
    problems.assert_agrees(linear(x, **call), expected)
    assert linear(apart, wide[:, 5:], **call) is not None
    problems.assert_agrees(np.ascontiguousarray(wide[:, 5:]), expected)
    assert (wide[:, :5] == 0).all()
    assert [row["m"] for row in compiled.report([m])] == [m]


@pytest.mark.parametrize("m", [9, 10, 11, 20, 35])
@pytest.mark.parametrize(
    "fields",
    [
        {"activation_zero_point": True, "residual": True, "bias": True, "out": "float16"},
        {"activation_scale": "tensor", "activation": "uint8", "out": "int8"},
        {"input": "float32", "dynamic": True, "group_size": 8, "weight": "int4"},
        {"group_size": 8, "weight": "int4", "activation_scale": "group"},
    ],
)
def test_rows_beyond_int32_are_computed_in_parts(monkeypatch, host_kernel, fields, m):
    monkeypatch.setattr(info, "MAX_ELEMENTS", 2 * 10 * 40 + 1)
    for fixed in (None, m):
        assert_in_parts(host_kernel(qmm.MatmulSpec(n=N, k=40, **fields, m=fixed)), m)


@pytest.mark.parametrize("m", [0, 35])
def test_the_first_call_of_a_process_may_have_no_rows_or_parts(m):
    code = """
import sys, numpy as np, quantmm as qmm
from quantmm.runtime import info
m = int(sys.argv[1])
info.MAX_ELEMENTS = 801
spec = qmm.MatmulSpec(n=19, k=40, out="int32")
linear = qmm.compile(spec, cache=False).bind(qmm.quantize(np.eye(19, 40)))
assert len(linear.kernel.parts(m)) == -(-m // 10)
assert (linear(np.ones((m, 40), np.int8)) == 127).all()
"""
    subprocess.run([sys.executable, "-c", code, str(m)], check=True)


def test_more_results_than_int32_counts():
    # 2**30 + 262,144 of them.
    n, m = 1 << 18, (1 << 12) + 1
    spec = qmm.MatmulSpec(n=n, k=8, m=m, out="int8", activation_scale="tensor")
    rng = np.random.default_rng(0)
    w = problems.weight(rng, spec)
    x = problems.integers(rng, "int8", (m, 8))
    numbers = {"x_scale": 0.01, "out_scale": 0.5}
    linear = qmm.compile(spec).bind(w, **numbers)
    assert linear.kernel.most_rows < m
    y = linear(x)
    for rows in (slice(0, 1), slice(2048, 2050), slice(m - 1, m)):
        problems.assert_agrees(y[rows], qmm.reference(spec, x[rows], w, **numbers))
