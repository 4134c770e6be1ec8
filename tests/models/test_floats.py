"""Models of floats in .safetensors: layers, names, shards, and every way in which they can lie."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import warnings

import ml_dtypes
import numpy as np
import pytest
import quantmm as qmm
from quantmm.errors import SpecError, UnsupportedError, WeightFileError
from safetensors.numpy import save_file

RNG = np.random.default_rng(0)


def matrix(n, k, dtype=np.float32):
    return RNG.standard_normal((n, k)).astype(dtype)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ml_dtypes.bfloat16])
def test_one_file(tmp_path, dtype):
    w = matrix(3, 5, dtype)
    path = tmp_path / "m.safetensors"
    save_file({"a.weight": w, "a.bias": w[0], "norm.weight": w[0]}, path)
    model = qmm.open_model(path)
    assert list(model) == ["a"]
    assert model["a"].dtype == w.dtype
    assert model["a"].tobytes() == w.tobytes()
    assert sorted(model.tensors) == ["a.bias", "norm.weight"]
    assert model.tensors["a.bias"].tobytes() == w[0].tobytes()
    layer = model.layers["a"]
    assert (layer.shape, layer.format, layer.nbytes) == ((3, 5), w.dtype.name, w.nbytes)
    assert layer.file == path
    assert (model.format, len(model), model.config, model.notes) == ("floats", 1, {}, ())
    assert "a" in model
    assert "floats, 1 layers" in repr(model)
    with pytest.raises(KeyError):
        model["b"]


def test_a_layer_of_floats_takes_any_format(tmp_path):
    save_file({"a.weight": matrix(3, 16)}, tmp_path / "m.safetensors")
    layer = qmm.open_model(tmp_path).layers["a"]
    spec = layer.spec(weight="int4", group_size=8, bias=True)
    expected = qmm.MatmulSpec(3, 16, "int4", group_size=8, input="float32", dynamic=True, bias=True)
    assert spec == expected
    with pytest.raises(UnsupportedError, match="a is float32, which is not quantized; expected a"):
        layer.spec()


def test_a_qtensor_says_its_spec():
    w = qmm.quantize(matrix(3, 16), "uint4", group_size=8)
    spec = w.spec(input="float32", dynamic=True)
    fields = {"weight": "uint4", "group_size": 8, "weight_zero_point": True}
    assert spec == qmm.MatmulSpec(3, 16, **fields, input="float32", dynamic=True)
    with pytest.raises(SpecError, match="group_size=16; the weight has group_size=8"):
        w.spec(group_size=16)
    assert qmm.quantize(matrix(6, 8)).spec(n=3, gated=True) == qmm.MatmulSpec(3, 8, gated=True)


def write_folder(folder, shards, config=None, index=True):
    """A Hugging Face folder."""
    placed = {}
    for number, tensors in enumerate(shards):
        name = f"model-{number}.safetensors"
        save_file(tensors, folder / name)
        placed |= dict.fromkeys(tensors, name)
    if index:
        text = json.dumps({"metadata": {}, "weight_map": placed})
        (folder / "model.safetensors.index.json").write_text(text)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))


def test_shards_and_names(tmp_path):
    names = ["layers.10.up", "layers.2.up", "layers.2.down"]
    others = ["model.embed_tokens", "wte", "bert.embeddings.word_embeddings"]
    shards = [{f"{name}.weight": matrix(2, 3) for name in part} for part in (names, others)]
    write_folder(tmp_path, shards, {"tie_word_embeddings": False, "hidden_size": 3})
    save_file({"stray.weight": matrix(2, 2)}, tmp_path / "other.safetensors")
    model = qmm.open_model(tmp_path)
    assert list(model) == ["layers.2.down", "layers.2.up", "layers.10.up"]
    assert sorted(model.tensors) == sorted(f"{name}.weight" for name in others)
    assert model.config["hidden_size"] == 3
    for tensors in shards:
        for key, values in tensors.items():
            name = key.removesuffix(".weight")
            found = model[name] if name in model else model.tensors[key]
            np.testing.assert_array_equal(found, values)


def test_a_head_may_be_the_table_of_tokens(tmp_path):
    table = matrix(7, 4)
    write_folder(tmp_path, [{"model.embed_tokens.weight": table}], {"tie_word_embeddings": True})
    model = qmm.open_model(tmp_path)
    np.testing.assert_array_equal(model["lm_head"], table)
    assert list(model.tensors) == ["model.embed_tokens.weight"]


def test_gpt2_has_its_weights_the_other_way_round(tmp_path):
    w = matrix(4, 6)
    tensors = {"h.0.attn.c_attn.weight": w, "head.weight": w}
    write_folder(tmp_path, [tensors], {"model_type": "gpt2"}, index=False)
    model = qmm.open_model(tmp_path)
    np.testing.assert_array_equal(model["h.0.attn.c_attn"], w.T)
    assert model.layers["h.0.attn.c_attn"].shape == (6, 4)
    np.testing.assert_array_equal(model["head"], w)


def test_what_is_no_matrix_is_a_tensor(tmp_path):
    tensors = {
        "a.weight": np.zeros((0, 3), np.float32),
        "b.weight": np.zeros((2, 2, 2), np.float32),
        "c.weight": np.zeros((2, 2), np.int8),
        "d": matrix(2, 2),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    model = qmm.open_model(tmp_path)
    assert list(model) == []
    assert sorted(model.tensors) == sorted(tensors)
    assert model.tensors["a.weight"].shape == (0, 3)


def test_import_loads_no_reader():
    code = "import sys, quantmm; print([m for m in sys.modules if m.startswith('quantmm.models')])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_what_is_no_model(tmp_path):
    cases = {
        "nothing": r"cannot read .*nothing: no such file or folder",
        "m.bin": r"m\.bin, which may execute code when it is read: expected a folder, or a file in",
        "m.txt": r"cannot read .*m\.txt: expected a folder, or a file in \.safetensors, \.gguf or",
    }
    for name, message in cases.items():
        if name != "nothing":
            (tmp_path / name).write_bytes(b"abc")
        with pytest.raises(WeightFileError, match=message):
            qmm.open_model(tmp_path / name)
    with pytest.raises(WeightFileError, match=r"holds m\.bin, which may execute code when it is"):
        qmm.open_model(tmp_path)
    (tmp_path / "m.bin").unlink()
    with pytest.raises(WeightFileError, match=r"holds no \.safetensors, \.gguf or \.onnx file"):
        qmm.open_model(tmp_path)
    for name in ("a.gguf", "b.onnx"):
        (tmp_path / name).write_bytes(b"abc")
    with pytest.raises(WeightFileError, match=r"holds a\.gguf, b\.onnx; name one of these files"):
        qmm.open_model(tmp_path)


def with_header(path, header, data=b"\0" * 64):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


ROW = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "the header is no JSON"),
        (b"[]", "the header is list; expected a JSON object"),
        (b"\xff\xfe", "the header is no JSON"),
        (b'{"a.weight": {}, "a.weight": {}}', "the header has 'a.weight' twice; expected it once"),
        ({"__metadata__": {"a": 1}}, "__metadata__ is no table of words"),
        ({"a": 3}, "a has no dtype, shape and data_offsets"),
        ({"a": {**ROW, "dtype": "F33"}}, "a is 'F33'; expected one of BOOL, U8"),
        ({"a": {**ROW, "dtype": ["F32"]}}, r"a is \['F32'\]; expected one of"),
        ({"a": {**ROW, "shape": [2, -2]}}, r"a has shape \[2, -2\]; expected whole numbers"),
        ({"a": {**ROW, "shape": [True, 4]}}, r"a has shape \[True, 4\]; expected whole numbers"),
        ({"a": {**ROW, "shape": [2, 3]}}, r"of F32\(2, 3\) has data_offsets \[0, 16\]; exp"),
        ({"a": {**ROW, "shape": [2**40, 2**40]}}, "data_offsets .* bytes apart"),
        ({"a": {**ROW, "data_offsets": [16]}}, "data_offsets .16.; expected two that are 16 bytes"),
        ({"a": {**ROW, "data_offsets": [64, 80]}}, "a ends at byte .*; the file has"),
        ({"a": ROW, "b": {**ROW, "data_offsets": [8, 24]}}, "b begins within a; expected one"),
    ],
)
def test_damaged_headers(tmp_path, header, message):
    path = with_header(tmp_path / "m.safetensors", header)
    with pytest.raises(WeightFileError, match=r"m\.safetensors.*" + message):
        qmm.open_model(path)


def test_deep_json(tmp_path):
    path = with_header(tmp_path / "m.safetensors", b"[" * 200_000)
    with pytest.raises(WeightFileError, match="is no JSON"):
        qmm.open_model(path)


def test_short_files(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"1234567")
    with pytest.raises(WeightFileError, match="the header's length would be 8 bytes from byte 0"):
        qmm.open_model(path)
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(WeightFileError, match=r"the header has 4,611,686,.* bytes; expected at"):
        qmm.open_model(path)


def test_a_file_that_is_cut_short_later(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a.weight": matrix(64, 64)}, path)
    model = qmm.open_model(path)
    with path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(WeightFileError, match=r"m\.safetensors: a\.weight ends at byte 1,000; ex"):
        model["a"]


def test_indexes_that_lie(tmp_path):
    write_folder(tmp_path, [{"a.weight": matrix(2, 2)}, {"b.weight": matrix(2, 2)}])
    index = tmp_path / "model.safetensors.index.json"
    right = json.loads(index.read_text())["weight_map"]
    for placed, message in (
        (None, "no weight_map from tensors to files"),
        ({"a.weight": 3}, "no weight_map from tensors to files"),
        (right | {"c.weight": "../x.safetensors"}, r"names '../x.safetensors', which is not in"),
        (right | {"c.weight": "model-0.safetensors"}, r"model-0\.safetensors lacks c\.weight, wh"),
        (right | {"a.weight": "model-1.safetensors"}, "lacks a.weight"),
        ({"b.weight": "model-0.safetensors"}, r"holds a\.weight; model.* has it in None"),
    ):
        index.write_text(json.dumps({"weight_map": placed}))
        with pytest.raises(WeightFileError, match=message):
            qmm.open_model(tmp_path)
    index.unlink()
    save_file({"a.weight": matrix(2, 2)}, tmp_path / "model-2.safetensors")
    with pytest.raises(WeightFileError, match=r"a\.weight is in .*model-0.* and in .*model-2"):
        qmm.open_model(tmp_path)
    (tmp_path / "config.json").write_text("[]")


def write_header(path, header, nbytes):
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(nbytes))


def test_weights_of_other_formats_are_no_floats(tmp_path):
    """They would be left out, and what is written of the model would lie."""
    header = {
        "a.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b.weight": {"dtype": "F8_E4M3", "shape": [2, 2], "data_offsets": [16, 20]},
    }
    write_header(tmp_path / "m.safetensors", header, 20)
    with pytest.warns(RuntimeWarning, match=r"1 weights of float8_e4m3fn .*, such as b\.weight"):
        assert list(qmm.open_model(tmp_path)) == ["a"]
    settings = {"quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(WeightFileError, match="is quantized by fp8, which is not read"):
        qmm.open_model(tmp_path)


def test_a_suffix_in_capitals(tmp_path):
    save_file({"a.weight": matrix(2, 3)}, tmp_path / "M.SAFETENSORS")
    assert list(qmm.open_model(tmp_path)) == ["a"]


def test_many_dimensions(tmp_path):
    header = {"a": {"dtype": "F32", "shape": [2] * 33, "data_offsets": [0, 4]}}
    path = tmp_path / "m.safetensors"
    write_header(path, header, 4)
    with pytest.raises(WeightFileError, match="a has 33 dimensions; expected at most 32"):
        qmm.open_model(path)
