"""What compressed-tensors says of activations, what it is not read of, and the package itself."""

from __future__ import annotations

import re

import model_files
import numpy as np
import pytest
import quantmm as qmm
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import of_groups
from quantmm.errors import UnsupportedError, WeightFileError

W8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
W4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 8}


def write(folder, says, tensors=None, name="a"):
    """A module of 2 x 16: int8, or 4 bits in groups of 8."""
    tensors = dict(tensors or {})
    if says is None or "pack" not in says["format"]:
        tensors[f"{name}.weight"] = np.ones((2, 16), np.int8)
        tensors[f"{name}.weight_scale"] = np.ones((2, 1), np.float32)
    else:
        tensors[f"{name}.weight_packed"] = np.ones((2, 2), np.int32)
        tensors[f"{name}.weight_scale"] = np.ones((2, 2), np.float16)
        tensors[f"{name}.weight_shape"] = np.array([2, 16])
    return model_files.Written(tensors, says or {}, np.ones((2, 16))).save(folder)


def activations(**words):
    return {"num_bits": 8, "type": "int", "symmetric": True, **words}


@pytest.mark.parametrize(
    ("format", "x", "text", "fields"),
    [
        ("int-quantized", None, None, {"dynamic": True, "input": "float32"}),
        (
            "int-quantized",
            activations(strategy="token", dynamic=True),
            "int8 token dynamic",
            {"dynamic": True, "input": "float32"},
        ),
        (
            "int-quantized",
            activations(strategy="token", dynamic=True, symmetric=False),
            "int8 token zero points dynamic",
            {"dynamic": True, "input": "float32", "activation_zero_point": True},
        ),
        (
            "pack-quantized",
            activations(strategy="token", dynamic=True, num_bits=4),
            "int4 token dynamic",
            {"dynamic": True, "input": "float32", "activation": "int4"},
        ),
        (
            "pack-quantized",
            activations(strategy="group", dynamic=True, group_size=8),
            "int8 group g=8 dynamic",
            {"dynamic": True, "input": "float32", "activation_scale": "group"},
        ),
        (
            "int-quantized",
            activations(strategy="tensor", dynamic=False),
            "int8 tensor static",
            {"input": "float32", "activation_scale": "tensor"},
        ),
    ],
)
def test_activations_that_are_computed(tmp_path, format, x, text, fields):
    says = of_groups(format, W4 if "pack" in format else W8, x)
    tensors = {"a.input_scale": np.array([0.5], np.float32)}
    tensors["a.input_zero_point"] = np.array([-3], np.int8)
    layer = qmm.open_model(write(tmp_path, says, tensors)).layers["a"]
    weight = {"weight": "int4", "group_size": 8} if "pack" in format else {}
    assert layer.spec() == qmm.MatmulSpec(2, 16, **weight, **fields)
    found = layer.activations
    assert (found and found.text) == text
    if "static" in (text or ""):
        assert (found.scale, found.zero_point) == (0.5, -3)


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (activations(strategy="tensor", dynamic=True), "int8 tensor dynamic"),
        (activations(strategy="token", dynamic=True, type="float"), "float8 token dynamic"),
        (activations(strategy="group", dynamic=True, group_size=16), "int8 group g=16 dynamic"),
        (activations(strategy="tensor_group", dynamic="local"), "int8 tensor_group dynamic"),
        (activations(strategy="token", dynamic=True, num_bits=6), "int6 token dynamic"),
    ],
)
def test_activations_that_are_not(tmp_path, x, text):
    layer = qmm.open_model(write(tmp_path, of_groups("pack-quantized", W4, x))).layers["a"]
    assert layer.activations.text == text
    message = f"a has activations of {re.escape(text)}; quantmm computes int8"
    with pytest.raises(UnsupportedError, match=message):
        layer.spec()
    assert layer.read().shape == (2, 16)


def test_quantized_outputs_are_named(tmp_path):
    says = of_groups("int-quantized", W8, output_activations=activations())
    layer = qmm.open_model(write(tmp_path, says)).layers["a"]
    with pytest.raises(UnsupportedError, match="a has activations of quantized outputs; quantmm"):
        layer.spec()


def test_a_scheme_that_names_a_module_comes_first(tmp_path):
    says = of_groups("int-quantized", W8)
    x = activations(strategy="token", dynamic=True)
    for number, target in enumerate(("re:.*mlp\\.up$", "mlp.up", "layers.0.mlp.up")):
        groups = says["config_groups"] | {"own": {"targets": [target], "weights": W8}}
        groups["own"]["input_activations"] = x
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder, {**says, "config_groups": groups}, name="layers.0.mlp.up")
        layer = qmm.open_model(folder).layers["layers.0.mlp.up"]
        assert layer.activations.text == "int8 token dynamic"


def test_without_settings(tmp_path):
    model = qmm.open_model(write(tmp_path, None))
    assert model.format == "compressed-tensors"
    assert model.layers["a"].format == "int-quantized int8 channel"
    write(tmp_path, of_groups("pack-quantized", W4))
    (tmp_path / "config.json").unlink()
    model = qmm.open_model(tmp_path)
    assert model.layers["a"].format == "pack-quantized int4 g=8"


@pytest.mark.parametrize(
    ("says", "tensors", "message"),
    [
        (
            of_groups("float-quantized", W8),
            {},
            "the format 'float-quantized' of com",
        ),
        (of_groups("pack-quantized", {**W4, "type": "float"}), {}, "weights of float4, which are"),
        (of_groups("pack-quantized", {**W4, "num_bits": 9}), {}, "weights of int9, which are not"),
        (
            of_groups("pack-quantized", {**W4, "num_bits": 8}),
            {},
            r"a\.weight_packed is int32",
        ),
        (of_groups("int-quantized", {**W8, "strategy": "block"}), {}, "weights by 'block', which"),
        (of_groups("int-quantized", W8, targets=["re:("]), {}, r"target 're:\(': missing \)"),
        (of_groups("int-quantized", W8, targets=3), {}, "targets 3; expected words"),
        (of_groups("int-quantized", 3), {}, "group_0 in config_groups has no weights"),
        (of_groups("int-quantized", W8, 3), {}, "group_0 has input_activations 3"),
        (of_groups("int-quantized", W8, format="x"), {}, "the format 'x' of compressed-tensors"),
        (
            of_groups("int-quantized", W8),
            {"b.weight": np.ones((2, 2), np.float16), "b.weight_scale": np.ones(2, np.float16)},
            "b is float16 with scales, which is not read; expected int8, or 4-bit and 8-bit",
        ),
        (
            of_groups("int-quantized", W8),
            {"b.weight_packed": np.ones((2, 2), np.uint8)},
            "b.weight_packed has no weight_scale and weight_shape beside it",
        ),
    ],
)
def test_what_is_not_read(tmp_path, says, tensors, message):
    folder = write(tmp_path, says, tensors)
    with pytest.raises(WeightFileError, match=message):
        qmm.open_model(folder)


def lies():
    """Tensors of 4 bits that do not fit each other."""
    yield (
        {"a.weight_shape": np.array([3, 16])},
        r"a\.weight_packed has 2 rows; expected 3, as",
    )
    yield {"a.weight_shape": np.array([2, 0])}, "expected no empty shape"
    yield (
        {"a.weight_shape": np.array([2, 64])},
        r"a\.weight_packed is int32\(2, 2\); expected int",
    )
    yield {"a.weight_shape": np.array([2.0, 16])}, r"a\.weight_shape is float64"
    yield (
        {"a.weight_scale": np.ones((2, 3), np.float16)},
        r"a\.weight_scale is float16\(2, 3\)",
    )
    yield (
        {"a.weight_scale": np.ones((2, 2))},
        r"a\.weight_scale is float64\(2, 2\); expec",
    )
    yield (
        {"a.weight_g_idx": np.zeros(16, np.int32)},
        r"a\.weight_g_idx has 16 columns in group 0",
    )
    yield (
        {"a.weight_zero_point": np.zeros((2, 2), np.int32)},
        r"zero_point is int32\(2, 2\)",
    )


@pytest.mark.parametrize(("tensors", "message"), [*lies()])
def test_tensors_that_lie(tmp_path, tensors, message):
    write(tmp_path, of_groups("pack-quantized", W4))
    written = {
        "a.weight_packed": np.ones((2, 2), np.int32),
        "a.weight_scale": np.ones((2, 2), np.float16),
        "a.weight_shape": np.array([2, 16]),
    }
    model_files.save_file(written | tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightFileError, match=message):
        qmm.open_model(tmp_path)


@settings(max_examples=20)
@given(data=st.data())
@pytest.mark.parametrize("format", ["pack-quantized", "int-quantized"])
def test_the_package_reads_the_same(torch, format, data):
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    drawn = data.draw(model_files.FORMATS[format]())
    k, (group,) = drawn.matrix.shape[1], drawn.settings["config_groups"].values()
    size = group["weights"].get("group_size")
    if "a.weight_g_idx" in drawn.tensors or (size and k % size):
        return  # which the package no longer reads
    tensors = {
        name.removeprefix("a."): torch.from_numpy(np.array(values, order="C").astype(wide(values)))
        for name, values in drawn.tensors.items()
    }
    scheme = QuantizationScheme(**group)
    found = BaseCompressor.get_value_from_registry(format).decompress(tensors, scheme)
    np.testing.assert_array_equal(found["weight"].numpy(), drawn.matrix.astype(np.float32))


def wide(values):
    """float32 in place of shorter floats, in which the package would round what it returns."""
    return values.dtype if values.dtype.kind in "iu" else np.float32
