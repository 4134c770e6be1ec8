"""Whole models that are quantized into folders: what is written is what is read again."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import weakref
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import quantmm as qmm
from hypothesis import given, settings
from hypothesis import strategies as st
from quantmm.errors import SpecError, WeightFileError
from quantmm.formats.named import FORMATS, fields_of
from quantmm.models.write import quantize_model
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

#: Those of `FORMATS` that compressed-tensors has words for.
WRITTEN = [
    name
    for name, fields in FORMATS.items()
    if fields.get("dynamic") and not fields.get("weight_offset")
]


def write_floats(folder, rng, dtype=np.float32, shapes=((5, 40), (3, 24)), **config):
    folder.mkdir(exist_ok=True)
    tensors = {
        f"layers.{i}.up.weight": rng.standard_normal(shape).astype(dtype)
        for i, shape in enumerate(shapes)
    }
    tensors["layers.0.up.bias"] = np.arange(5, dtype=dtype)
    tensors["embed_tokens.weight"] = rng.standard_normal((7, 5)).astype(dtype)
    tensors["steps"] = np.array(3, np.int64)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": True, **config}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "quantize_config.json").write_text("{}")
    return tensors


def assert_same(a, b):
    for name in ("data", "scale", "dtype", "group_size", "shape", "zero_point", "offset", "order"):
        mine, its = getattr(a, name), getattr(b, name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == its.dtype
            np.testing.assert_array_equal(mine, its)
        else:
            assert mine == its


@settings(max_examples=25)
@given(
    seed=st.integers(0, 99),
    format=st.sampled_from(WRITTEN),
    dtype=st.sampled_from(["float32", "float16", "bfloat16", "float64"]),
    n=st.integers(1, 9),
    k=st.integers(1, 150),
)
def test_what_is_written_is_read_again(seed, format, dtype, n, k):
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as place:
        source, target = Path(place) / "in", Path(place) / "out"
        shapes = (5, 33), (n, k)
        tensors = write_floats(source, rng, np.dtype(dtype), shapes)
        model = qmm.open_model(source)
        written = {
            each.layer.name: each for each in quantize_model(model, target, fields_of(format))
        }
        assert list(written) == ["layers.0.up", "layers.1.up"]
        again = qmm.open_model(target)
        assert list(again) == ["lm_head", "layers.0.up", "layers.1.up"] or list(again) == [
            "layers.0.up",
            "layers.1.up",
            "lm_head",
        ]
        for name, each in written.items():
            assert_same(again[name], each.weight)
            assert again.layers[name].spec() == each.spec
            assert again.layers[name].nbytes == each.nbytes
            assert each.spec == qmm.MatmulSpec(*each.layer.shape, **FORMATS[format])
        for name in ("layers.0.up.bias", "embed_tokens.weight", "steps"):
            assert again.tensors[name].tobytes() == tensors[name].tobytes()
            assert again.tensors[name].shape == tensors[name].shape
        assert (target / "tokenizer.json").exists()
        assert not (target / "quantize_config.json").exists()
        with safe_open(target / "model.safetensors", framework="np") as file:
            assert set(file.keys()) == set(load_file(target / "model.safetensors"))


def test_scales_have_the_dtype_of_the_model(tmp_path):
    rng = np.random.default_rng(0)
    source = tmp_path / "in"
    w = write_floats(source, rng, ml_dtypes.bfloat16)["layers.0.up.weight"]
    model = qmm.open_model(source)
    (first, _) = quantize_model(model, tmp_path / "out", fields_of("w4a8-g32"), method="mse")
    scale = first.weight.scale
    assert (scale == scale.astype(ml_dtypes.bfloat16)).all()
    assert (scale != qmm.quantize(w, "int4", group_size=32, method="mse").scale).any()
    assert_same(first.weight, qmm.quantize(w, "int4", group_size=32, scale=scale))


def test_scales_that_float16_does_not_hold(tmp_path):
    tensors = {
        "a.weight": np.full((2, 8), 6e-8, np.float16),
        "b.weight": np.zeros((2, 8), np.float16),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    model = qmm.open_model(tmp_path / "m.safetensors")
    for each in quantize_model(model, tmp_path / "out", fields_of("w8a8-dynamic")):
        assert (each.weight.scale > 0).all()
    again = qmm.open_model(tmp_path / "out")
    assert not qmm.dequantize(again["b"]).any()


def test_layers_that_are_skipped(tmp_path):
    rng = np.random.default_rng(0)
    tensors = write_floats(tmp_path / "in", rng)
    model = qmm.open_model(tmp_path / "in")
    (one,) = quantize_model(model, tmp_path / "out", fields_of("w4a8"), skip=["0.up"])
    assert one.layer.name == "layers.1.up"
    again = qmm.open_model(tmp_path / "out")
    np.testing.assert_array_equal(again["layers.0.up"], tensors["layers.0.up.weight"])
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert settings["ignore"] == ["layers.0.up", "lm_head"]


@pytest.mark.parametrize(
    ("format", "words", "error", "message"),
    [
        ("w4a8-g32-offset", {}, SpecError, "has weights for which compressed-tensors has no words"),
        ("int8", {}, SpecError, "takes X quantized; expected a format that quantizes it"),
        ("w4a8", {"skip": ["head"]}, SpecError, "skip head fits none of the 3 layers"),
        ("w4a8", {"skip": ["*"]}, WeightFileError, "in has no layers to quantize"),
    ],
)
def test_what_is_not_written(tmp_path, format, words, error, message):
    write_floats(tmp_path / "in", np.random.default_rng(0))
    model = qmm.open_model(tmp_path / "in")
    with pytest.raises(error, match=message):
        next(quantize_model(model, tmp_path / "out", fields_of(format), **words))
    one_scale = {**fields_of("w8a8-dynamic"), "group_size": "tensor"}
    with pytest.raises(SpecError, match="has one scale for all rows; expected one per row"):
        next(quantize_model(model, tmp_path / "out", one_scale))
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_quantized_already(tmp_path):
    write_floats(tmp_path / "in", np.random.default_rng(0))
    for _ in quantize_model(qmm.open_model(tmp_path / "in"), tmp_path / "q", fields_of("w4a8")):
        pass
    with pytest.raises(WeightFileError, match=r"layers\.0\.up is pack-quantized int4 channel al"):
        next(quantize_model(qmm.open_model(tmp_path / "q"), tmp_path / "r", fields_of("w4a8")))


def test_nothing_is_left_of_what_failed(tmp_path):
    write_floats(tmp_path / "in", np.random.default_rng(0))
    model = qmm.open_model(tmp_path / "in")
    writing = quantize_model(model, tmp_path / "out", fields_of("w4a8"))
    next(writing)
    writing.close()
    assert not list((tmp_path / "out").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightFileError, match=r"cannot write .*file: File exists"):
        next(quantize_model(model, tmp_path / "file", fields_of("w4a8")))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("3", "a spec is a JSON object"),
        (7, "the JSON object must be str"),
        (
            qmm.MatmulSpec(5, 40, weight="int4"),
            "weight='int4' in quantmm_specs; the weight has",
        ),
        (qmm.MatmulSpec(5, 48), "k=48 in quantmm_specs; the weight has 40"),
        (qmm.MatmulSpec(5, 40, group_size=8), "group_size=8 in quantmm_specs; the weight has None"),
        (qmm.MatmulSpec(5, 40, "int7"), "data -?[0-9]+; int7 holds -64 to 63"),
    ],
)
def test_specs_that_lie(tmp_path, spec, message):
    write_floats(tmp_path / "in", np.random.default_rng(0))
    for _ in quantize_model(
        qmm.open_model(tmp_path / "in"), tmp_path / "out", fields_of("w8a8-dynamic")
    ):
        pass
    file = tmp_path / "out" / "model.safetensors"
    text = spec.to_json() if isinstance(spec, qmm.MatmulSpec) else spec
    save_file(load_file(file), file, {"quantmm_specs": json.dumps({"layers.0.up": text})})
    with pytest.raises(WeightFileError, match=message):
        qmm.open_model(tmp_path / "out")["layers.0.up"]


@pytest.mark.parametrize("format", ["w4a8-g32", "w8a8-dynamic"])
def test_transformers_reads_it(torch, tmp_path, format):
    """A small model in bfloat16: the weights that it computes with are ours."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "in")
    model = qmm.open_model(tmp_path / "in")
    written = [*quantize_model(model, tmp_path / "out", fields_of(format), skip=["lm_head"])]
    assert len(written) == 7
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out",
        quantization_config=transformers.CompressedTensorsConfig(run_compressed=False),
    )
    for each in written:
        found = loaded.get_submodule(each.layer.name).weight.detach().float().numpy()
        expected = qmm.dequantize(each.weight).astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(found, expected)


def test_a_layer_is_let_go_before_the_next_is_read(tmp_path):
    """So that a model takes memory for one layer."""
    write_floats(tmp_path / "in", np.random.default_rng(0), shapes=((5, 40), (3, 24), (4, 24)))
    model, held = qmm.open_model(tmp_path / "in"), []

    def watched(layer):
        def load():
            assert not any(array() is not None for array in held)
            array = layer.load()
            held.append(weakref.ref(array))
            return array

        return dataclasses.replace(layer, load=load)

    model.layers = {name: watched(layer) for name, layer in model.layers.items()}
    fields = fields_of("w4a8-g32")
    for each in quantize_model(model, tmp_path / "out", fields, skip=["lm_head"]):
        del each
    assert len(held) == 3


def test_scales_below_those_of_the_dtype(tmp_path):
    """What is written is what was measured, also where scales are as small as can be."""
    w = np.random.default_rng(0).standard_normal((64, 40))
    w[5] = 1e-39
    save_floats(tmp_path / "in", w, ml_dtypes.bfloat16)
    written = [*quantize_model(qmm.open_model(tmp_path / "in"), tmp_path / "out", W8A8)]
    assert_same(qmm.open_model(tmp_path / "out")["a"], written[0].weight)


def test_a_number_that_is_none_is_named_with_its_layer(tmp_path):
    w = np.ones((600, 4096), np.float32)
    w[500, 4] = np.nan
    save_floats(tmp_path / "in", w)
    message = r"a: the weight holds NaN or infinity, first at \[500, 4\]"
    with pytest.raises(WeightFileError, match=message):
        [*quantize_model(qmm.open_model(tmp_path / "in"), tmp_path / "out", W8A8)]


W8A8 = fields_of("w8a8-dynamic")


def save_floats(folder, w, dtype=np.float32):
    folder.mkdir()
    save_file({"a.weight": w.astype(dtype)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
