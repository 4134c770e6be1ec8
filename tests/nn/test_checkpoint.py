"""`load_model`: models from files of other programs, with the integers of the file."""

from __future__ import annotations

import json

import numpy as np
import pytest
import quantmm as qmm
from quantmm.errors import ModuleError, SpecError, UnsupportedError, WeightFileError

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
from quantmm import nn as qnn
from safetensors.numpy import save_file

IDS = torch.arange(12)[None]
SIZES = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 64, "num_hidden_layers": 2}
HEADS, KV_HEADS = 4, 2


def logits(model):
    with torch.inference_mode():
        return model(IDS).logits


def weights_of(model):
    """The float weights of a model by name, quantized linears dequantized."""
    state = {name: tensor.float() for name, tensor in model.named_parameters()}
    for name, module in model.named_modules():
        if isinstance(module, qnn.Linear):
            state[f"{name}.weight"] = module.dequantize()
    return state


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    """A Llama of two layers as llama.cpp stores it, mostly in Q4_1."""
    return written(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def written(path, only=None):
    """Such a file; all weights in the format `only`, if one is given."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    writer, rng = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_vocab_size(SIZES["vocab_size"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)

    def matrix(name, n, k, kind="Q4_1"):
        kind = gguf.GGMLQuantizationType[only or kind]
        values = rng.standard_normal((n, k)).astype(np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quantize(values, kind), raw_dtype=kind)

    k, hidden = SIZES["hidden_size"], SIZES["intermediate_size"]
    matrix("token_embd", SIZES["vocab_size"], k, "Q8_0")
    writer.add_tensor("output_norm.weight", rng.uniform(0.5, 1, k).astype(np.float32))
    for block in range(SIZES["num_hidden_layers"]):
        at = f"blk.{block}"
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{at}.{norm}.weight", rng.uniform(0.5, 1, k).astype(np.float32))
        for name, n in (("q", k), ("k", k // 2), ("v", k // 2), ("output", k)):
            matrix(f"{at}.attn_{name}", n, k, "Q8_0" if name == "v" and block else "Q4_1")
        matrix(f"{at}.ffn_gate", hidden, k)
        matrix(f"{at}.ffn_up", hidden, k)
        matrix(f"{at}.ffn_down", k, hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def from_gguf(gguf_file):
    return qnn.load_model(gguf_file)


def test_a_gguf_file_has_transformers_own_weights(gguf_file, from_gguf):
    right = transformers.AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32
    )
    apart = weights_of(qnn.load_model(gguf_file, fuse=False))
    for name, tensor in right.named_parameters():
        torch.testing.assert_close(apart[name], tensor, rtol=1e-6, atol=1e-6)
    found, expected = logits(from_gguf), logits(right)
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_a_gguf_file_is_computed_as_it_is(gguf_file, from_gguf):
    first, second = (each.self_attn for each in from_gguf.model.layers)
    spec = first.qkv_proj.spec
    assert (spec.weight, spec.group_size, spec.weight_offset) == ("uint4", 32, True)
    assert spec.activation_scale == "group"
    assert second.v_proj.spec.weight == "int8"
    assert [piece.name for piece in second.q_proj_k_proj.pieces] == ["q_proj", "k_proj"]
    assert from_gguf.lm_head.spec.weight == "int8"
    mine = first.o_proj.to_quantized()
    theirs = qmm.open_model(gguf_file)["blk.0.attn_output"]
    for name in ("data", "scale", "offset"):
        assert np.array_equal(getattr(mine, name), getattr(theirs, name))
    by_row = qnn.load_model(gguf_file, activation_scale="row", fuse=False)
    assert {module.spec.activation_scale for module in by_row.modules() if linear(module)} == {
        "row"
    }


def linear(module):
    return isinstance(module, qnn.Linear)


def test_what_was_a_gguf_file_is_saved(from_gguf, tmp_path):
    from_gguf.save_pretrained(tmp_path)
    for again in (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path),
        qnn.load_model(tmp_path),
        apart := qnn.load_model(tmp_path, fuse=False),
    ):
        torch.testing.assert_close(logits(again), logits(from_gguf))
    assert all(len(row.computes) == 1 for row in qnn.report(apart))
    for given in ({"format": "w8a8"}, {"skip": ("lm_head",)}, {"activation_scale": "row"}):
        (name,) = given
        with pytest.raises(SpecError, match=rf"{name}=.*, whose layers .*; expected no {name}:"):
            qnn.load_model(tmp_path, **given)


def test_weights_that_are_quantized_cannot_be_skipped(gguf_file):
    with pytest.raises(SpecError, match=r"o_proj: skip=\['o_proj'\] has it, but it is Q4_1 in the"):
        qnn.load_model(gguf_file, skip=("o_proj",))


def test_a_gguf_file_of_floats(tmp_path):
    path = written(tmp_path / "floats.gguf", "F16")
    with pytest.raises(ModuleError, match="has floats; expected format=, such as 'w4a8-g32'"):
        qnn.load_model(path)
    with pytest.raises(ModuleError, match=r"skip=\['\*'\] leaves none of the 15 linears of Llama"):
        qnn.load_model(path, "w8a8", skip=("*",))
    found = qnn.load_model(path, "w8a8", skip=("lm_head",))
    assert type(found.lm_head) is torch.nn.Linear
    assert {row.format for row in qnn.report(found)} == {"w8a8-dynamic"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a float Llama with biases, and the model."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **SIZES, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, attention_bias=True
    )
    model = transformers.LlamaForCausalLM(config).eval()
    for name, tensor in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(tensor)
    path = tmp_path_factory.mktemp("floats")
    model.save_pretrained(path)
    return path, model


def test_a_folder_of_floats(folder):
    model = qnn.load_model(folder[0], "w4a8-g32", skip=("lm_head",))
    assert {row.format for row in qnn.report(model)} == {"w4a8-g32"}
    assert type(model) is transformers.LlamaForCausalLM
    assert type(model.lm_head) is torch.nn.Linear


def as_gptq(linears):
    """Weights of linears as GPTQ stores them: 4 bits along K, groups of 32, zero points less 1."""
    tensors = {}
    for name, module in linears:
        q = qmm.quantize(module.weight, "uint4", group_size=32)
        integers, k = q.unpacked().astype(np.uint32), q.shape[1]
        shifts = np.arange(8, dtype=np.uint32) * 4
        packed = (integers.T.reshape(k // 8, 8, -1) << shifts[:, None]).sum(1, dtype=np.uint32)
        zeros = (q.zero_point.T.astype(np.uint32) - 1) & 15
        zeros = (zeros.reshape(len(zeros), -1, 8) << shifts).sum(2, dtype=np.uint32)
        tensors |= {
            f"{name}.qweight": packed.view(np.int32),
            f"{name}.qzeros": zeros.view(np.int32),
            f"{name}.scales": q.scale.T.astype(np.float16),
            f"{name}.g_idx": np.arange(k, dtype=np.int32) // 32,
        }
    return tensors


def test_a_gptq_folder(folder, tmp_path):
    path, model = folder
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    linears = [each for each in model.named_modules() if type(each[1]) is torch.nn.Linear]
    linears = [each for each in linears if each[0] != "lm_head"]
    names = {f"{name}.weight" for name, _ in linears}
    beside = {name: t.numpy() for name, t in model.state_dict().items() if name not in names}
    tensors = {**as_gptq(linears), **beside}
    save_file(
        {name: np.ascontiguousarray(t) for name, t in tensors.items()},
        tmp_path / "model.safetensors",
    )
    found = qnn.load_model(tmp_path)
    assert {row.name for row in qnn.report(found)}.isdisjoint({"lm_head"})
    attention = found.model.layers[0].self_attn
    assert attention.qkv_proj.spec.weight_zero_point
    assert torch.equal(attention.qkv_proj.bias[:64], model.model.layers[0].self_attn.q_proj.bias)
    weight = attention.o_proj.dequantize()
    assert (weight - model.model.layers[0].self_attn.o_proj.weight).abs().max() < 0.01


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"format": "int3"}, SpecError, "no format 'int3'; expected one of"),
        ({"activation_scale": "all"}, SpecError, "activation_scale='all'; expected None, 'row' or"),
        ({}, ModuleError, "has floats; expected format=, such as 'w4a8-g32'"),
    ],
)
def test_refused(folder, given, error, message):
    with pytest.raises(error, match=message):
        qnn.load_model(folder[0], **given)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(WeightFileError):
        qnn.load_model(tmp_path / "nothing.gguf")
    save_file({"a.weight": np.zeros((4, 4), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedError, match=r"transformers finds no model in it: .* expected a"):
        qnn.load_model(tmp_path, "w8a8")


def test_a_layer_that_is_missing(gguf_file, monkeypatch):
    from quantmm.nn import checkpoint

    monkeypatch.setattr(checkpoint.GgufNames, "layer", lambda *_: None)
    with pytest.raises(ModuleError, match=r"q_proj: .* has no layer for it; expected one of GGUF"):
        qnn.load_model(gguf_file)


def test_rows_that_are_more_than_moved(gguf_file, monkeypatch):
    from quantmm.nn import checkpoint

    monkeypatch.setattr(checkpoint.GgufNames, "ordered", lambda self, source, values: values + 1)
    with pytest.raises(UnsupportedError, match=r"q_proj: .* has other numbers in the file than in"):
        qnn.load_model(gguf_file)
