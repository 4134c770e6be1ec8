"""ONNX: weights of small graphs against onnxruntime and onnx.reference, and files that lie."""

from __future__ import annotations

import sys
import tracemalloc

import damaged
import numpy as np
import pytest
import quantmm as qmm
from quantmm.errors import UnsupportedError, WeightFileError
from quantmm.models.open import open_model

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

CONTRIB = "com.microsoft"
X = ("x", TensorProto.FLOAT, [None, 8])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def graph(nodes, initializers, x, y=("y", TensorProto.FLOAT, [None, None])):
    tensors = [
        each if isinstance(each, TensorProto) else numpy_helper.from_array(np.asarray(each), name)
        for name, each in initializers.items()
    ]
    values = [helper.make_tensor_value_info(*each) for each in (x, y)]
    body = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(body, opset_imports=imports, ir_version=10)


def node(type, inputs, domain="", name="layer", output="y", **attributes):
    return helper.make_node(type, inputs, [output], name=name, domain=domain, **attributes)


@pytest.fixture
def opened(tmp_path):
    def write(model):
        path = tmp_path / "model.onnx"
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        return open_model(path)

    return write


def of_identity(model, k, dtype=np.float32):
    """What onnxruntime multiplies with, (N, K): the product with the identity is exact."""
    return by_onnxruntime(model, np.eye(k, dtype=dtype)).T.astype(np.float32)


def by_onnxruntime(model, x):
    """What it computes."""
    runtime = pytest.importorskip("onnxruntime")
    content = model.SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def values_of(weight):
    return qmm.dequantize(weight) if isinstance(weight, qmm.QTensor) else weight


def checked(opened, model, expected, format, activations=None):
    """Opens a model of one layer, which must be exact and fit the spec that it says."""
    found = opened(model)
    assert list(found) == ["layer"]
    layer, weight = found.layers["layer"], found["layer"]
    np.testing.assert_array_equal(values_of(weight), expected)
    assert layer.format == format
    assert layer.shape == expected.shape
    if activations is None:
        assert layer.activations is None
    else:
        assert layer.activations.text == activations
    return found, layer, weight


@pytest.mark.parametrize("k", [64, 72, 33])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("points", [None, "packed", "whole", "float16"])
def test_matmul_n_bits(opened, rng, bits, points, k):
    n, block = 5, 32
    blocks, most = -(-k // block), 1 << bits
    b = rng.integers(0, 256, (n, blocks, block * bits // 8), np.uint8)
    scale = rng.standard_normal((n, blocks)).astype(np.float16).astype(np.float32)
    inputs, tensors = ["x", "b", "scale"], {"b": b, "scale": scale}
    each = np.stack([b >> shift & (most - 1) for shift in range(0, 8, bits)], axis=-1)
    q = each.reshape(n, -1)[:, :k].astype(np.float32)
    zero = np.full((n, blocks), most // 2, np.float32)
    if points == "packed":
        raw = rng.integers(0, 256, (n, -(-blocks * bits // 8)), np.uint8)
        zero = np.stack([raw >> shift & (most - 1) for shift in range(0, 8, bits)], axis=-1)
        zero, tensors["zero"] = zero.reshape(n, -1)[:, :blocks].astype(np.float32), raw
    elif points is not None:
        zero = rng.integers(0, most, (n, blocks)).astype(np.float32)
        zero += 0.5 if points == "float16" else 0
        tensors["zero"] = zero
    if points is not None:
        inputs.append("zero")
    model = graph(
        [node("MatMulNBits", inputs, CONTRIB, N=n, K=k, bits=bits, block_size=block)],
        tensors,
        ("x", TensorProto.FLOAT, [None, k]),
    )
    spread = [np.repeat(part, block, axis=1)[:, :k] for part in (scale, zero)]
    expected = (spread[0].astype(np.float64) * (q - spread[1])).astype(np.float32)
    _, layer, weight = checked(opened, model, expected, f"MatMulNBits int{bits} g=32")
    spec = layer.spec()
    assert (spec.weight, spec.weight_zero_point) == (weight.dtype, weight.zero_point is not None)
    assert spec.weight_offset == (weight.offset is not None) == (points == "float16")
    qmm.reference(spec, np.ones((1, k), np.float32), weight)
    if bits == 4 and points in (None, "packed"):  # which every build of onnxruntime computes
        np.testing.assert_array_equal(expected, of_identity(model, k))


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("by_column", [False, True])
@pytest.mark.parametrize("operator", ["MatMul", "Gemm", "turned"])
def test_qdq(opened, rng, dtype, by_column, operator):
    n, k = 3, 10
    stored = (n, k) if operator != "MatMul" else (k, n)
    q = rng.integers(-128, 128, stored).astype(np.int8).astype(dtype)
    scale = rng.uniform(0.1, 1, n if by_column else ()).astype(np.float32)
    zero = rng.integers(0, 50, scale.shape).astype(dtype)
    tensors = {"q": q, "scale": scale, "zero": zero, "sx": np.float32(0.5), "zx": np.uint8(7)}
    axis = 1 if operator == "MatMul" else 0
    nodes = [
        node("DequantizeLinear", ["q", "scale", "zero"], name="d", output="w", axis=axis),
        node("QuantizeLinear", ["x", "sx", "zx"], name="qx", output="xq"),
        node("DequantizeLinear", ["xq", "sx", "zx"], name="dx", output="xd"),
    ]
    if operator == "turned":
        nodes.append(node("Transpose", ["w"], name="t", output="wt", perm=[1, 0]))
        nodes.append(node("MatMul", ["xd", "wt"]))
    else:
        more = {"transB": 1} if operator == "Gemm" else {}
        nodes.append(node(operator, ["xd", "w"], **more))
    model = graph(nodes, tensors, ("x", TensorProto.FLOAT, [None, k]))
    matrix = q.T if operator == "MatMul" else q
    column = (lambda v: v[:, None]) if by_column else (lambda v: v)
    steps = matrix.astype(np.float32) - column(zero).astype(np.float32)
    expected = (column(scale) * steps).astype(np.float32)
    text = f"QDQ {dtype}" + (" by column" if by_column else "")
    found, layer, weight = checked(opened, model, expected, text, "uint8 tensor static")
    spec = layer.spec()
    assert (spec.activation, spec.activation_zero_point, spec.dynamic) == ("uint8", True, False)
    assert (layer.activations.scale, layer.activations.zero_point) == (0.5, 7)
    assert layer.nbytes == q.nbytes + scale.nbytes + zero.nbytes
    assert set(found.tensors) == {"sx", "zx"}
    x = rng.standard_normal((4, k)).astype(np.float32)
    given = {"x_scale": layer.activations.scale, "x_zero_point": layer.activations.zero_point}
    y = qmm.reference(spec, x, weight, **given)
    evaluated = ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(y, evaluated, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [TensorProto.INT4, TensorProto.UINT4])
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_qdq_in_blocks_of_four_bits(opened, rng, dtype, raw, transposed):
    n, k, block = 3, 33, 16
    least = -8 if dtype == TensorProto.INT4 else 0
    q = rng.integers(least, least + 16, (n, k))
    scale = rng.standard_normal((n, 3)).astype(np.float32)
    zero = rng.integers(least, least + 16, (n, 3))
    parts = {"q": q, "zero": zero} if transposed else {"q": q.T, "zero": zero.T}
    tensors = {"scale": scale if transposed else scale.T}
    for name, part in parts.items():
        if raw:
            flat = np.append(part.reshape(-1), 0)[: part.size + part.size % 2].astype(np.uint8) & 15
            packed = (flat[::2] | flat[1::2] << 4).tobytes()
            tensors[name] = helper.make_tensor(name, dtype, part.shape, packed, raw=True)
        else:
            tensors[name] = helper.make_tensor(name, dtype, part.shape, part.reshape(-1))
    axis = 1 if transposed else 0
    dequantize = node(
        "DequantizeLinear",
        ["q", "scale", "zero"],
        name="d",
        output="w",
        axis=axis,
        block_size=block,
    )
    gemm = node("Gemm", ["x", "w"], transB=int(transposed))
    model = graph([dequantize, gemm], tensors, ("x", TensorProto.FLOAT, [None, k]))
    spread = [np.repeat(part, block, axis=1)[:, :k] for part in (scale, zero)]
    expected = (spread[0] * (q - spread[1]).astype(np.float32)).astype(np.float32)
    name = "int4" if least else "uint4"
    _, layer, weight = checked(opened, model, expected, f"QDQ {name} g=16")
    assert layer.spec().group_size == weight.group_size == 16
    evaluated = ReferenceEvaluator(model).run(None, {"x": np.eye(k, dtype="f4")})[0]
    np.testing.assert_array_equal(evaluated.T, expected)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("zero", [False, True])
def test_matmul_integer_behind_dynamic_quantize_linear(opened, rng, scaled, zero):
    n, k = 4, 9
    q = rng.integers(-128, 128, (k, n)).astype(np.int8)
    scale = rng.uniform(0.1, 1, n).astype(np.float32)
    z = rng.integers(-9, 9, n).astype(np.int8) * zero
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        node("MatMulInteger", ["xq", "q", "xz", "z"], output="acc"),
        node("Cast", ["acc"], name="cast", output="f", to=TensorProto.FLOAT),
    ]
    if scaled:
        nodes.append(node("Mul", ["xs", "scale"], name="scales", output="both"))
        nodes.append(node("Mul", ["f", "both"], name="mul"))
    else:
        nodes.append(node("Relu", ["f"], name="relu"))
    model = graph(nodes, {"q": q, "z": z, "scale": scale}, ("x", TensorProto.FLOAT, [None, k]))
    steps = q.T.astype(np.float32) - z[:, None]
    expected = scale[:, None] * steps if scaled else steps
    text = "MatMulInteger int8" + (" by column" if scaled else "")
    if scaled:
        _, layer, weight = checked(opened, model, expected, text, "uint8 tensor dynamic")
        assert (weight.zero_point is not None) == zero == layer.fields["weight_zero_point"]
        message = "activations of uint8 tensor dynamic; quantmm computes"
        with pytest.raises(UnsupportedError, match=message):
            layer.spec()
        assert layer.spec(input="float32", dynamic=True).dynamic
    else:
        with pytest.warns(RuntimeWarning, match="layer: the graph does not say its scale; it is"):
            opened(model)


def test_matmul_integer_alone(opened, rng):
    q = rng.integers(0, 256, (8, 4)).astype(np.uint8)
    model = graph(
        [node("MatMulInteger", ["x", "q", "xz"])],
        {"q": q, "xz": np.int8(3)},
        ("x", TensorProto.INT8, [None, 8]),
        ("y", TensorProto.INT32, [None, 4]),
    )
    with pytest.warns(RuntimeWarning, match="the graph does not say its scale"):
        found = opened(model)
    spec = found.layers["layer"].spec()
    assert (spec.weight, spec.activation, spec.out) == ("uint8", "int8", "int32")
    x = rng.integers(-128, 128, (3, 8)).astype(np.int8)
    y = qmm.reference(spec, x, found["layer"], x_zero_point=3)
    evaluated = ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_array_equal(y, evaluated)


@pytest.mark.parametrize("operator", ["QLinearMatMul", "QGemm", "MatMulIntegerToFloat"])
def test_integers_on_both_sides(opened, rng, operator):
    n, k = 4, 8
    transposed = operator == "QGemm"
    q = rng.integers(-128, 128, (n, k) if transposed else (k, n)).astype(np.int8)
    scale = rng.uniform(0.1, 1, n).astype(np.float32)
    tensors = {
        "q": q,
        "s": scale,
        "z": np.zeros(n, np.int8),
        "xs": np.float32(0.5),
        "xz": np.uint8(128),
        "ys": np.float32(2),
        "yz": np.uint8(9),
    }
    y = ("y", TensorProto.FLOAT, [None, n])
    if operator == "QLinearMatMul":
        made = node(operator, ["x", "xs", "xz", "q", "s", "z", "ys", "yz"])
        y = ("y", TensorProto.UINT8, [None, n])
    elif operator == "QGemm":
        made = node(operator, ["x", "xs", "xz", "q", "s", "z"], CONTRIB, transB=1, alpha=1.0)
    else:
        made = node(operator, ["x", "q", "xs", "s", "xz", "z"], CONTRIB)
    model = graph([made], tensors, ("x", TensorProto.UINT8, [None, k]), y)
    expected = scale[:, None] * (q if transposed else q.T).astype(np.float32)
    text = f"{operator} int8 by column"
    _, layer, weight = checked(opened, model, expected, text, "uint8 tensor static")
    assert weight.zero_point is None
    spec = layer.spec()
    assert (spec.input, spec.activation_zero_point) == (None, True)
    if operator == "QGemm":
        x = rng.integers(0, 256, (3, k)).astype(np.uint8)
        given = {"x_scale": 0.5, "x_zero_point": 128}
        np.testing.assert_allclose(
            qmm.reference(spec, x, weight, **given), by_onnxruntime(model, x), rtol=1e-6
        )


def test_dynamic_quantize_matmul(opened, rng):
    q = rng.integers(-128, 128, (8, 4)).astype(np.int8)
    made = node("DynamicQuantizeMatMul", ["x", "q", "s"], CONTRIB)
    model = graph([made], {"q": q, "s": np.float32(0.25)}, ("x", TensorProto.FLOAT, [None, 8]))
    expected = np.float32(0.25) * q.T.astype(np.float32)
    checked(opened, model, expected, "DynamicQuantizeMatMul int8", "uint8 tensor dynamic")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("raw", [False, True])
def test_floats(opened, rng, dtype, raw):
    number = TensorProto.DataType.Value(
        {"float32": "FLOAT", "float64": "DOUBLE"}.get(dtype, dtype.upper())
    )
    values = rng.standard_normal((8, 4)).astype(helper.tensor_dtype_to_np_dtype(number))
    tensor = helper.make_tensor(
        "w", number, (8, 4), values.tobytes() if raw else values.reshape(-1), raw=raw
    )
    model = graph([node("Gemm", ["x", "w", "c"])], {"w": tensor, "c": np.ones(4, "f4")}, X)
    found, layer, weight = checked(opened, model, values.T, dtype)
    assert layer.fields is None
    assert weight.dtype.name == dtype
    np.testing.assert_array_equal(found.tensors["c"], np.ones(4))


def test_what_is_no_layer(opened, rng):
    tensors = {"w": rng.standard_normal((2, 8, 4)).astype("f4"), "i": np.ones((8, 4), np.int32)}
    nodes = [
        node("MatMul", ["x", "x"], name="a", output="a"),
        node("MatMul", ["x", "w"], name="b", output="b"),
        node("MatMul", ["x", "i"], name="c", output="c"),
        node("MatMul", ["x"], name="d", output="d"),
        node("MatMulNBits", ["x", "x", "x"], CONTRIB, name="e", output="e"),
    ]
    found = opened(graph(nodes, tensors, X))
    assert list(found) == []
    assert set(found.tensors) == {"w", "i"}


def test_names_of_layers_and_graphs_within(opened, rng):
    w, v = (rng.standard_normal((8, 4)).astype("f4") for _ in range(2))
    branches = [rng.standard_normal((8, 4)).astype("f4") for _ in range(2)]

    def inner(matrix):
        return helper.make_graph(
            [
                node("MatMul", ["x", "own"], name="same", output="p"),
                node("MatMul", ["x", "own"], name="", output="q"),
            ],
            "inner",
            [],
            [helper.make_tensor_value_info("p", 1, None)],
            [numpy_helper.from_array(matrix, "own")],
        )

    nodes = [
        node("MatMul", ["x", "w"], name="same", output="y"),
        node("Constant", [], name="k", output="u", value=numpy_helper.from_array(v, "")),
        node("MatMul", ["x", "u"], name="10", output="z"),
        node(
            "If",
            ["y"],
            name="if",
            output="i",
            then_branch=inner(branches[0]),
            else_branch=inner(branches[1]),
        ),
    ]
    found = opened(graph(nodes, {"w": w}, X))
    assert set(found) == {"10", "same", "same:p", "same:p:p", "q", "q:q"}
    np.testing.assert_array_equal(found["10"], v.T)
    np.testing.assert_array_equal(found["same"], w.T)
    for names in (("same:p", "same:p:p"), ("q", "q:q")):
        for name, matrix in zip(names, branches[::-1], strict=True):  # "else" comes first
            np.testing.assert_array_equal(found[name], matrix.T)


def test_a_product_that_is_multiplied(opened, rng):
    made = node("Gemm", ["x", "w"], alpha=0.5)
    with pytest.warns(RuntimeWarning, match=r"layer: its product is multiplied with alpha=0\.5"):
        opened(graph([made], {"w": np.ones((8, 4), "f4")}, X))


def external(tmp_path, rng, location="data/model.onnx_data", **changed):
    """A model whose weight lies in another file."""
    values = rng.standard_normal((8, 4)).astype(np.float32)
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data/model.onnx_data").write_bytes(bytes(64) + values.tobytes())
    tensor = TensorProto(name="w", data_type=1, dims=(8, 4), data_location=TensorProto.EXTERNAL)
    place = {"location": location, "offset": "64", "length": "128"} | changed
    for key, value in place.items():
        tensor.external_data.add(key=key, value=value)
    return graph([node("MatMul", ["x", "w"])], {"w": tensor}, X), values


def test_weights_in_another_file(opened, tmp_path, rng):
    model, values = external(tmp_path, rng)
    found = opened(model)
    assert found.layers["layer"].nbytes == 128
    np.testing.assert_array_equal(found["layer"], values.T)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"location": "../model.onnx_data"},
            r"w: it lies in '\.\./model\.onnx_data'; expected the",
        ),
        (
            {"location": "/etc/passwd"},
            "w: it lies in '/etc/passwd'; expected the name of a file in",
        ),
        ({"location": ""}, "w: it lies in ''; expected the name of a file in the model's folder"),
        ({"offset": "-1"}, "w: its offset is '-1'; expected a whole number"),
        ({"length": "9" * 99}, "w: its length is '999.*'; expected a whole number"),
        ({"length": "100"}, "w: it has 100 bytes; its shape takes 128"),
    ],
)
def test_weights_in_files_that_cannot_be(opened, tmp_path, rng, changed, message):
    model, _ = external(tmp_path, rng, **changed)
    with pytest.raises(WeightFileError, match=r"model\.onnx: " + message):
        opened(model)


def test_files_that_are_missing_or_short(opened, tmp_path, rng):
    found = opened(external(tmp_path, rng, offset="65")[0])
    with pytest.raises(WeightFileError, match="w would be 128 bytes from byte 65 on"):
        found["layer"]
    found = opened(external(tmp_path, rng, location="nothing")[0])
    with pytest.raises(WeightFileError, match=r"cannot read .*w: No such file or directory"):
        found["layer"]


BLOCKS = {"N": 4, "K": 32, "bits": 4, "block_size": 32}


def n_bits(changed=None, inputs=("x", "b", "s"), b=(4, 1, 16)):
    tensors = {
        "b": np.zeros(b, np.uint8),
        "s": np.ones(4, np.float32),
        "g": np.arange(32, dtype="i4"),
    }
    made = node("MatMulNBits", inputs, CONTRIB, **BLOCKS | (changed or {}))
    return graph([made], tensors, ("x", 1, [None, 32]))


def qdq(q, scale, **attributes):
    dequantize = node("DequantizeLinear", ["q", "s"], name="d", output="w", **attributes)
    return graph([dequantize, node("MatMul", ["x", "w"])], {"q": q, "s": scale}, X)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b"GGUF", "is no ONNX file: "),
        (b"", "is no ONNX file: it has no graph"),
        (n_bits({"bits": 3}), "b: .*MatMulNBits with bits=3.*; expected 2, 4 or 8 bits"),
        (n_bits({"K": -1}), "b: .*K=-1; expected 2, 4 or 8 bits and sizes that fit"),
        (n_bits({"N": 5}), r"b is uint8\(4, 1, 16\); .*N=5, K=32 has uint8\(5, 1, 16\)"),
        (n_bits({"N": 2**62, "K": 2**62}), r"b is uint8\(4, 1, 16\); "),
        (n_bits(inputs=("x", "b", "s", "", "g")), "b: .* has g_idx, which is not read"),
        (
            qdq(np.ones((8, 4), "i1"), np.ones(8, "f4"), axis=0),
            "q has scales along axis 0; ",
        ),
        (
            qdq(np.ones((8, 4), "i1"), np.ones(3, "f4")),
            r"the scales of q have shape \(3,\)",
        ),
    ],
)
def test_files_that_lie(opened, model, message):
    with pytest.raises(WeightFileError, match=message) as caught:
        opened(model)
    assert "model.onnx" in str(caught.value)


def test_numbers_that_are_not_read(opened):
    found = opened(qdq(np.ones((8, 4), "i2"), np.ones((), "f4")))
    assert found.layers["layer"].format == "QDQ int16"
    with pytest.raises(WeightFileError, match="q of QDQ is int16; expected one of int8"):
        found["layer"]
    float8 = TensorProto(name="w", data_type=17, dims=(3,), raw_data=b"abc")
    with pytest.raises(WeightFileError, match="w: its numbers are of type 17; expected float32"):
        opened(graph([], {"w": float8}, X)).tensors["w"]


def test_shapes_that_do_not_fit_the_numbers(opened):
    tensor = TensorProto(name="w", data_type=1, dims=(2**40, 2**20), raw_data=b"abcd")
    found = opened(graph([node("MatMul", ["x", "w"])], {"w": tensor}, X))
    with pytest.raises(WeightFileError, match="w: it has 4 bytes; its shape takes 4,611,686,018"):
        found["layer"]


def test_scales_that_are_no_numbers(opened):
    found = opened(qdq(np.ones((8, 4), "i1"), np.full(4, np.nan, "f4")))
    with pytest.raises(WeightFileError, match=r"model\.onnx: layer: scale nan, first at \[0\]"):
        found["layer"]


def test_two_tensors_of_one_name(opened):
    model = graph([], {"w": np.ones(3, "f4")}, X)
    model.graph.initializer.append(model.graph.initializer[0])
    with pytest.raises(WeightFileError, match="w is there twice; expected it once"):
        opened(model)


def test_without_the_package(opened, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(WeightFileError, match=r"without the package onnx: pip install"):
        opened(b"")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_fuzz(tmp_path, rng):
    q = rng.integers(-128, 128, (8, 4)).astype(np.int8)
    tensors = {"q": q, "s": np.ones(4, "f4"), "z": np.zeros(4, "i1"), "sx": np.float32(1)}
    tensors |= {"b": rng.integers(0, 256, (4, 1, 16), np.uint8), "zx": np.uint8(3)}
    tensors["i"] = helper.make_tensor("i", TensorProto.INT4, (8, 4), np.zeros(32, int))
    nodes = [
        node("DequantizeLinear", ["q", "s", "z"], name="d", output="w", axis=1),
        node("DequantizeLinear", ["xq", "sx", "zx"], name="dx", output="xd"),
        node("MatMul", ["xd", "w"], name="a", output="a"),
        node("MatMulNBits", ["x", "b", "s", "z"], CONTRIB, name="b", output="n", **BLOCKS),
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        node("MatMulInteger", ["xq", "q", "xz"], name="m", output="acc"),
        node("DequantizeLinear", ["i", "s"], name="e", output="f"),
        node("Gemm", ["x", "f"], name="g", output="y"),
    ]
    tensors["z"] = np.zeros(4, np.uint8)
    content = graph(nodes, tensors, X).SerializeToString()
    assert damaged.fuzz(content, tmp_path / "model.onnx", seed=1) > 0


def test_a_small_file_that_claims_large_scales(opened):
    """Nothing is made in a shape that the file has not shown to hold."""
    shape = [1 << 26]
    claimed = [
        TensorProto(name="w", data_type=TensorProto.INT8, dims=[1, *shape]),
        TensorProto(name="s", data_type=TensorProto.FLOAT, dims=shape),
        numpy_helper.from_array(np.int8([3]), "z"),
    ]
    nodes = [
        node("DequantizeLinear", ["w", "s", "z"], name="d", output="f", axis=1),
        node("MatMul", ["x", "f"]),
    ]
    tracemalloc.start()
    model = opened(graph(nodes, {each.name: each for each in claimed}, X))
    with pytest.raises(WeightFileError, match="w: it has 0 bytes; its shape takes 67,108,864"):
        model["layer"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 22


def test_scales_of_which_none_is_the_weights(opened, rng):
    q = rng.integers(-9, 9, (8, 4)).astype(np.int8)
    nodes = [
        node("MatMulInteger", ["x", "w"], output="p"),
        node("Cast", ["p"], name="c", output="f", to=TensorProto.FLOAT),
        node("Mul", ["a", "b"], name="m", output="ab"),
        node("Mul", ["f", "ab"], name="n", output="y"),
    ]
    parts = {"w": q, "a": np.float32(0.5), "b": np.float32(0.25)}
    with pytest.warns(RuntimeWarning, match="the graph does not say its scale"):
        opened(graph(nodes, parts, ("x", TensorProto.INT8, [None, 8])))


def test_a_quantizer_says_its_type_by_an_attribute(opened, rng):
    nodes = [
        node("QuantizeLinear", ["x", "s"], name="q", output="xq", output_dtype=TensorProto.INT8),
        node("DequantizeLinear", ["xq", "s"], name="d", output="xd"),
        node("DequantizeLinear", ["w", "s"], name="e", output="wd"),
        node("MatMul", ["xd", "wd"]),
    ]
    parts = {"w": rng.integers(-9, 9, (8, 4)).astype(np.int8), "s": np.float32(0.5)}
    assert opened(graph(nodes, parts, X)).layers["layer"].activations.text.startswith("int8 ")
