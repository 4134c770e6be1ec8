"""Whatever a caller hands over works, is copied, or is refused with a message."""

from __future__ import annotations

import io
import itertools
import pickle

import numpy as np
import problems
import pytest
import quantmm as qmm
from foreign import Foreign
from quantmm.errors import ArrayError
from quantmm.runtime import cpu_executor

M, N, K = 5, 19, 33
W = problems.weight(np.random.default_rng(0), qmm.MatmulSpec(n=N, k=K))


@pytest.fixture(scope="module")
def case():
    spec = qmm.MatmulSpec(n=N, k=K)
    linear = qmm.compile(spec).bind(W, x_scale=0.25)
    x = problems.integers(np.random.default_rng(1), "int8", (M, K))
    return linear, x, qmm.reference(spec, x, W, x_scale=0.25)


@pytest.mark.parametrize("seed", range(30))
def test_any_address_and_any_strides(case, seed):
    linear, x, expected = case
    placed = problems.lay_out(np.random.default_rng(seed), x)
    problems.assert_agrees(linear(placed), expected)


def test_read_only_and_big_endian_inputs(case):
    linear, x, expected = case
    frozen = x.copy()
    frozen.flags.writeable = False
    problems.assert_agrees(linear(frozen), expected)
    swapped = np.float32(0.25).astype(">f4")
    problems.assert_agrees(linear(x, x_scale=swapped), expected)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_big_endian_floats(dtype):
    rng = np.random.default_rng(0)
    spec = qmm.MatmulSpec(n=8, k=16, input=dtype, dynamic=True, residual=True, m=3, out=dtype)
    linear = qmm.compile(spec).bind(problems.weight(rng, spec))
    x = problems.activation(rng, spec, 3)
    call = problems.call_arguments(rng, spec, 3)
    swapped = np.dtype(dtype).newbyteorder(">")
    expected = linear(x, **call)
    y = linear(x.astype(swapped), residual=call["residual"].astype(swapped))
    np.testing.assert_array_equal(y, expected)
    assert y.dtype.isnative
    with pytest.raises(ArrayError, match="x is float64"):
        linear(x.astype(">f8"), **call)


def test_a_row_as_a_column():
    # NumPy calls both contiguous, whatever the stride of the only column or row is.
    spec = qmm.MatmulSpec(n=1, k=1)
    linear = qmm.compile(spec).bind(qmm.quantize(np.ones((1, 1), np.float32)), x_scale=1.0)
    column = np.arange(-5, 5, dtype=np.int8)[None].T
    assert column.flags.c_contiguous
    np.testing.assert_array_equal(linear(column), column)
    np.testing.assert_array_equal(linear(column[3:4]), column[3:4])
    with pytest.raises(ArrayError, match=r"out has strides \(4, 40\)"):
        linear(column, np.zeros((1, 10), np.float32).T)


@pytest.mark.parametrize("offset", [0, 4, 12, 60])
def test_out_at_any_address_with_any_row_stride(case, offset):
    linear, x, expected = case
    raw = np.full(M * (N + 7) * 4 + 64, 0xAB, np.uint8)
    wide = raw[offset : offset + M * (N + 7) * 4].view(np.float32).reshape(M, N + 7)
    out = wide[:, :N]
    assert linear(x, out) is out
    problems.assert_agrees(out, expected)
    assert (wide[:, N:].copy().view(np.uint8) == 0xAB).all()
    assert (raw[: offset or None][:offset] == 0xAB).all()


@pytest.mark.parametrize("n", [1, 15, 16, 17, 63, 64, 65])
@pytest.mark.parametrize("m", [1, 2, 3, 9])
def test_nothing_is_written_beside_out(m, n):
    rng = np.random.default_rng(n)
    spec = qmm.MatmulSpec(n=n, k=7, out="int32", m=m)
    w = problems.weight(rng, spec)
    x = problems.integers(rng, "int8", (m, 7))
    guarded = np.full((m + 2, n + 2), 77, np.int32)
    qmm.compile(spec).bind(w)(x, guarded[1:-1, 1:-1])
    np.testing.assert_array_equal(guarded[1:-1, 1:-1], qmm.reference(spec, x, w))
    guarded[1:-1, 1:-1] = 77
    assert (guarded == 77).all()


def test_qtensor_brings_its_scale(case):
    linear, x, expected = case
    q = qmm.QTensor(x, np.asarray(0.25, np.float32), None, "int8", "tensor", (M, K))
    problems.assert_agrees(linear(q), expected)


def test_row_scales():
    rng = np.random.default_rng(0)
    spec = qmm.MatmulSpec(n=N, k=K, activation_scale="row", activation_zero_point=True)
    w = problems.weight(rng, spec)
    q = qmm.quantize(rng.standard_normal((M, K)), "int8", symmetric=False)
    linear = qmm.compile(spec).bind(w)
    problems.assert_agrees(linear(q), qmm.reference(spec, q, w))
    scales = rng.uniform(0.1, 1, M).astype(np.float32)
    call = {"x_scale": scales, "x_zero_point": 3}
    problems.assert_agrees(linear(q.data, **call), qmm.reference(spec, q.data, w, **call))


def test_one_scale_for_all():
    rng = np.random.default_rng(0)
    spec = qmm.MatmulSpec(n=N, k=K, activation_scale="tensor")
    w = problems.weight(rng, spec)
    q = qmm.quantize(rng.standard_normal((M, K)))
    linear = qmm.compile(spec).bind(w)
    for call in (linear, lambda x: qmm.reference(spec, x, w)):
        with pytest.raises(ArrayError, match=r"x_scale has shape \(5,\); expected a scalar"):
            call(q)


def test_the_defaults_fit_each_other():
    rng = np.random.default_rng(0)
    w = qmm.quantize(rng.standard_normal((N, K)))
    spec = qmm.MatmulSpec(n=N, k=K)
    linear = qmm.compile(spec).bind(w)
    for group_size in (None, "tensor"):
        x = qmm.quantize(rng.standard_normal((M, K)), group_size=group_size)
        problems.assert_agrees(linear(x), qmm.reference(spec, x, w))


def test_one_number_for_all_rows(monkeypatch):
    rng = np.random.default_rng(0)
    spec = qmm.MatmulSpec(n=N, k=K, activation_zero_point=True, out="int8")
    w = problems.weight(rng, spec)
    bound = {"x_scale": 0.25, "x_zero_point": 3, "out_scale": 4.0}
    linear = qmm.compile(spec).bind(w, **bound)
    scales = (np.float32(0.1), np.asarray(0.3, np.float32), np.float64(0.7), [2.0], 3)
    others = [{}, *({"x_scale": scale} for scale in scales), {"x_zero_point": np.int64(-128)}]
    monkeypatch.setattr(cpu_executor, "KEPT_NUMBERS", 2)
    # Each M twice, and one after the other: nothing that was kept may serve another call.
    for m, call in itertools.product((1, M, M, 2, 1), others):
        x = problems.integers(rng, "int8", (m, K))
        expected = qmm.reference(spec, x, w, **bound | call)
        problems.assert_agrees(linear(x, **call), expected)
        problems.assert_agrees(pickle.loads(pickle.dumps(linear))(x, **call), expected)
        problems.assert_agrees(linear.duplicate()(x, **call), expected)
    for call, message in [
        ({"x_scale": -0.5}, "scale -0.5; expected positive"),
        ({"x_zero_point": 128}, "zero_point 128; int8 holds"),
        ({"x_zero_point": True}, "x_zero_point is bool; expected integers"),
        ({"out_zero_point": -129}, "zero_point -129; int8 holds"),
    ]:
        with pytest.raises(ArrayError, match=message):
            linear(x, **call)


def test_torch_in_torch_out(case, torch):
    linear, x, expected = case
    y = linear(torch.from_numpy(x))
    assert isinstance(y, torch.Tensor)
    problems.assert_agrees(y.numpy(), expected)
    out = torch.empty((M, N + 3))[:, :N]
    assert linear(torch.from_numpy(x), out) is out
    problems.assert_agrees(out.numpy(), expected)
    transposed = torch.from_numpy(np.ascontiguousarray(x.T)).T
    problems.assert_agrees(linear(transposed).numpy(), expected)


@pytest.fixture
def other_defaults(torch):
    """A torch whose new tensors are of another device and type unless they are told."""
    dtype = torch.get_default_dtype()
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    yield torch
    torch.set_default_device(None)
    torch.set_default_dtype(dtype)


def test_torchs_defaults_do_not_matter(case, other_defaults):
    linear, x, expected = case
    given = other_defaults.from_numpy(x)
    for there in (given, given.t().contiguous().t(), given[None]):
        y = linear(there)
        assert (y.device.type, y.dtype) == ("cpu", other_defaults.float32)
        problems.assert_agrees(y.numpy().reshape(expected.shape), expected)
    assert linear(given, x_scale=other_defaults.ones((), device="cpu")).device.type == "cpu"
    # Quantized by NumPy, of whatever the numbers were.
    q = qmm.quantize(given.double(), group_size="tensor")
    problems.assert_agrees(linear(q), qmm.reference(linear.kernel.spec, q, W))


def test_anything_with_dlpack(case):
    linear, x, expected = case
    problems.assert_agrees(linear(Foreign(x)), expected)
    problems.assert_agrees(linear(Foreign(np.asfortranarray(x))), expected)


def test_refused_inputs(case):
    linear, x, _ = case
    q = qmm.QTensor(x, np.asarray(1, np.float32), None, "int8", "tensor", (M, K))
    shifted = qmm.quantize(np.ones((M, K)), "int8", group_size="tensor", zero_point=1)
    for given, message in [
        (x[:, 1:], r"x is int8\(5, 32\); expected int8\(M, 33\)"),
        (x.astype(np.uint8), r"x is uint8\(5, 33\); expected int8"),
        (x.astype(np.float32), "x is float32"),
        (x.tolist(), "x is list; expected an array"),
        (None, "x is NoneType"),
        (Foreign(x.astype(np.int16)), "x is int16"),
        (shifted, "x has zero points"),
    ]:
        with pytest.raises(ArrayError, match=message):
            linear(given)
    with pytest.raises(ArrayError, match="x_scale was given too"):
        linear(q, x_scale=1.0)


def test_torch_half_precision(torch):
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((M, K)).astype(np.float32))
    w = qmm.quantize(rng.standard_normal((N, K)))
    for name in ("float16", "bfloat16"):
        spec = qmm.MatmulSpec(
            n=N, k=K, input=name, dynamic=True, activation_scale="row", out=name, m=M
        )
        linear = qmm.compile(spec).bind(w)
        given = x.to(getattr(torch, name))
        y = linear(given)
        out = torch.full((M, N + 3), 7.0, dtype=given.dtype)
        assert linear(given.T.contiguous().T, out[:, :N]).data_ptr() == out.data_ptr()
        assert y.dtype == given.dtype
        assert torch.equal(out[:, :N], y)
        assert (out[:, N:] == 7).all()
        assert torch.allclose(y.float(), x @ torch.from_numpy(qmm.dequantize(w)).T, 0.1, 0.2)


@pytest.fixture(scope="module")
def of_floats():
    """A kernel for float32 activations."""
    rng = np.random.default_rng(0)
    spec = qmm.MatmulSpec(n=N, k=K, input="float32", dynamic=True, activation_scale="row", m=M)
    return qmm.compile(spec).bind(problems.weight(rng, spec))


def test_what_torch_does_not_tell_dlpack(of_floats, torch):

    class Sub(torch.Tensor):
        pass

    x = torch.from_numpy(np.random.default_rng(0).standard_normal((M, K)).astype(np.float32))
    assert torch.equal(of_floats(torch._neg_view(x)), of_floats(-x))
    assert isinstance(of_floats(x.as_subclass(Sub)), torch.Tensor)
    learned = torch.nn.Parameter(x)
    with torch.no_grad():
        assert torch.equal(of_floats(learned), of_floats(x))
    with pytest.raises(ArrayError, match=r"x requires a gradient.* pass x\.detach\(\)"):
        of_floats(learned)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_refused_tensors(of_floats, torch):
    x, out = torch.ones(M, K), torch.empty(M, N)
    for given, message in [
        (x.to("meta"), "x is on meta; this kernel reads arrays of the CPU"),
        (x.to_sparse(), "x is a sparse_coo tensor; expected a dense one"),
        (torch.nested.nested_tensor([x, x]), "x is a nested tensor; expected a dense one"),
        (torch._efficientzerotensor((M, K)), "x is a Tensor without memory; expected numbers"),
        (x.to(torch.complex64).conj(), r"x is complex64(5, 33); expected float32(M, 33)"),
        (x.double(), r"x is float64(5, 33); expected float32(M, 33)"),
    ]:
        with pytest.raises(ArrayError) as caught:
            of_floats(given)
        assert str(caught.value) == message
    for given, message in [
        (out.to("meta"), "out is on meta; this kernel writes arrays of the CPU"),
        (out.half(), "out is float16(5, 19); expected float32(5, 19)"),
        (torch._neg_view(out), "out is a view of negated numbers; expected a tensor of its own"),
        (
            out[:1].expand(M, N),
            "out has strides (0, 1) in elements; expected contiguous rows",
        ),
    ]:
        with pytest.raises(ArrayError) as caught:
            of_floats(x, given)
        assert str(caught.value) == message
    # What DLPack refuses has torch's C++ stack in its message.
    with pytest.raises(ArrayError, match="x cannot be read through DLPack") as caught:
        torch.vmap(of_floats)(torch.ones(3, M, K))
    assert "\n" not in str(caught.value)


def traced_by(way, torch, module, x):
    """Make a graph of a module, or call it without numbers."""
    if way == "trace":
        torch.jit.trace(module, x)
    elif way == "onnx":
        pytest.importorskip("onnx", reason="onnx is not installed")
        torch.onnx.export(module, (x,), io.BytesIO(), dynamo=False)
    elif way == "fx":
        from torch.fx.experimental.proxy_tensor import make_fx

        make_fx(module)(x)
    else:
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode() as mode:
            module(mode.from_tensor(x))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["trace", "onnx", "fx", "fake"])
def test_what_makes_a_graph_is_refused(of_floats, way, torch):

    class Calls(torch.nn.Module):
        def forward(self, x):
            return of_floats(x * 2)

    x = torch.ones(M, K)
    message = {"fake": "x is a FakeTensor, which has no numbers"}.get(
        way, "x is traced, and a kernel's call would be missing in the graph"
    )
    message += "; expected a call outside of torch's tracing, or quantmm.nn.Linear"
    with pytest.raises(ArrayError, match=message):
        traced_by(way, torch, Calls(), x)
    assert torch.equal(Calls()(x), of_floats(2 * x))


def test_out_beside_x_in_one_array(of_floats):
    rng = np.random.default_rng(0)
    whole = np.zeros((2 * M, N + K + 5), np.float32)
    whole[:M, :K] = rng.standard_normal((M, K))
    x = whole[:M, :K]
    expected = of_floats(x.copy())
    kept = whole.copy()
    out = whole[:M, K + 2 : K + 2 + N]
    np.testing.assert_array_equal(of_floats(x, out), expected)
    kept[:M, K + 2 : K + 2 + N] = expected
    np.testing.assert_array_equal(whole, kept)
    for place in (whole[:M, K - 1 : K - 1 + N], whole[M - 1 : -1, :N], whole.reshape(-1)):
        taken = place[: M * N].reshape(M, N)
        with pytest.raises(ArrayError, match="out shares memory with x; expected memory of its"):
            of_floats(x, taken)
    doubled = whole[:, :N][::2]
    with pytest.raises(ArrayError, match="out may share memory with x; expected memory of its"):
        of_floats(x, doubled)
    # Rows in turn, the first of them of either.
    for first in (0, 1):
        rows = whole[first::2]
        rows[:, :K] = rng.standard_normal((M, K))
        expected = of_floats(rows[:, :K].copy())
        np.testing.assert_array_equal(of_floats(rows[:, :K], whole[1 - first :: 2, :N]), expected)


def test_masked_arrays_are_refused():
    rng = np.random.default_rng(0)
    spec = qmm.MatmulSpec(n=N, k=K, bias=True, residual=True)
    kernel = qmm.compile(spec)
    call = {"residual": np.ones((M, N), np.float32), "x_scale": np.ones(M, np.float32)}
    call |= {"x": problems.integers(rng, "int8", (M, K)), "out": np.ones((M, N), np.float32)}
    bind = {"bias": np.ones(N, np.float32), "x_scale": np.ones((), np.float32)}
    linear = kernel.bind(W, **bind)

    def masked(array):
        return np.ma.masked_array(array, np.ones(array.shape, bool))

    q = [W.data, W.scale, None, "int8", None, (N, K)]
    calls = [
        *((name, lambda name=name: linear(**call | {name: masked(call[name])})) for name in call),
        *(
            (name, lambda name=name: kernel.bind(W, **bind | {name: masked(bind[name])}))
            for name in bind
        ),
        *(
            (
                name,
                lambda name=name: qmm.reference(
                    spec,
                    w=W,
                    bias=bind["bias"],
                    **{
                        **{key: value for key, value in call.items() if key != "out"},
                        name: masked(call[name]),
                    },
                ),
            )
            for name in ("x", "residual", "x_scale")
        ),
        ("x", lambda: linear(masked(call["x"][None]), residual=call["residual"][None])),
        ("x", lambda: qmm.quantize(masked(np.ones((M, K))))),
        ("x", lambda: qmm.quantize([masked(np.ones(K)), np.ones(K)])),
        ("scale", lambda: qmm.quantize(np.ones((M, K)), scale=masked(np.ones(M)))),
        ("data", lambda: qmm.QTensor(masked(W.data), *q[1:])),
        ("scale", lambda: qmm.QTensor(W.data, masked(W.scale), *q[2:])),
        ("values", lambda: qmm.pack_int4(masked(np.ones((M, K), np.int8)))),
    ]
    for name, refused in calls:
        with pytest.raises(
            ArrayError, match=rf"^{name} is a masked array, whose mask has no meaning"
        ):
            refused()


def test_refused_outputs(case):
    linear, x, _ = case
    out = np.empty((M, N), np.float32)
    frozen = out.copy()
    frozen.flags.writeable = False
    own = np.zeros(4 * M * max(N, K), np.int8)
    for given, message in [
        (out[:4], r"out is float32\(4, 19\); expected float32\(5, 19\)"),
        (out.astype(np.int32), "out is int32"),
        (np.empty((N, M), np.float32).T, "contiguous rows"),
        (np.empty((2 * M, N), np.float32)[::-2], "contiguous rows"),
        (np.broadcast_to(np.float32(0), (M, N)), "out is read-only; expected a writable array"),
        (frozen, "out is read-only; expected a writable array"),
        ([1, 2], "out is list; expected an array"),
    ]:
        with pytest.raises(ArrayError, match=message):
            linear(x, given)
    inside = own[: M * K].reshape(M, K)
    with pytest.raises(ArrayError, match="out shares memory with x"):
        linear(inside, own[: 4 * M * N].view(np.float32).reshape(M, N))


def test_refused_scales_and_weights(case):
    linear, x, _ = case
    kernel = linear.kernel
    spec = kernel.spec
    w = problems.weight(np.random.default_rng(0), spec)
    for scale, message in [
        (0.0, "scale 0.0; expected positive"),
        (-1.0, "scale -1.0"),
        (np.nan, "scale nan"),
        (np.float32(np.inf), "scale inf"),
        (np.array([np.nan]), "scale nan"),
        (1e-60, "scale 0.0"),
        (np.ones(M + 1), r"x_scale has shape \(6,\); expected a scalar or \(5,\)"),
        ("1", "x_scale holds str32; expected real numbers"),
        (True, "x_scale is bool; expected numbers"),
        (1e300, r"x_scale holds 1e\+300, which is beyond float32"),
    ]:
        with pytest.raises(ArrayError, match=message):
            linear(x, x_scale=scale)
    with pytest.raises(ArrayError, match="x_scale is missing"):
        kernel.bind(w)(x)
    with pytest.raises(ArrayError, match="bias was given"):
        kernel.bind(w, np.ones(N))
    with pytest.raises(ArrayError, match="w is ndarray; expected a QTensor"):
        kernel.bind(np.ones((N, K), np.int8))
    with pytest.raises(ArrayError, match=r"w is int8\(18, 33\)"):
        kernel.bind(qmm.quantize(np.ones((18, K))))
    with pytest.raises(ArrayError, match="w has zero points"):
        kernel.bind(qmm.quantize(np.ones((N, K)), "int8", zero_point=1))
    biased = qmm.compile(qmm.MatmulSpec(n=N, k=K, bias=True, m=M))
    with pytest.raises(ArrayError, match=r"bias is missing; the spec adds one of \(19,\)"):
        biased.bind(w)
    with pytest.raises(ArrayError, match="bias is float64"):
        biased.bind(w, np.ones(N + 1))
    with pytest.raises(ArrayError, match="compiled for m=5"):
        biased.bind(w, np.ones(N), x_scale=1.0)(x[:4])
    zero = qmm.compile(qmm.MatmulSpec(n=N, k=K, activation_zero_point=True, m=M)).bind(w)
    with pytest.raises(ArrayError, match="zero_point 128; int8 holds"):
        zero(x, x_scale=1.0, x_zero_point=128)
    with pytest.raises(ArrayError, match="x_zero_point is float64; expected integers"):
        zero(x, x_scale=1.0, x_zero_point=0.5)
    with pytest.raises(ArrayError, match="x_zero_point is missing"):
        zero(x, x_scale=1.0)


def test_too_many_elements(case):
    linear, _, _ = case
    with pytest.raises(ArrayError, match="expected 1 to"):
        linear.kernel.plan(2**31 // K + 1)
