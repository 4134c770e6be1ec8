"""transformers' from_pretrained and save_pretrained with quantmm's integers, on tiny models."""

from __future__ import annotations

import json
import sys
import types
import warnings

import pytest
from quantmm.errors import ModuleError, SpecError, StateError, ToolError, UnsupportedError

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
from quantmm import nn as qnn
from quantmm.nn import requirement

IDS = torch.arange(12)[None]
FORMAT = "w4a8-g32"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder with a Llama of two layers, and the model."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return saved(transformers.LlamaForCausalLM(config), tmp_path_factory)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """The same of a BERT."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    return saved(transformers.BertModel(config, add_pooling_layer=False), tmp_path_factory)


def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.eval().save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def quantized(llama, tmp_path_factory):
    """The Llama as it is quantized on loading, and the folder to which it was saved."""
    config = qnn.QuantmmConfig(FORMAT, skip=["layers.1.mlp.*"])
    model = load(llama[0], quantization_config=config)
    return saved(model, tmp_path_factory)


def load(folder, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)


def logits(model):
    with torch.inference_mode():
        return model(IDS).logits


def test_quantized_on_loading(llama, quantized):
    rows = {row.name: (row.format, len(row.computes)) for row in qnn.report(quantized[1])}
    assert rows == {
        "model.layers.0.self_attn.qkv_proj": (FORMAT, 3),
        "model.layers.0.self_attn.o_proj": (FORMAT, 1),
        "model.layers.0.mlp.gate_up_proj": (FORMAT, 2),
        "model.layers.0.mlp.down_proj": (FORMAT, 1),
        "model.layers.1.self_attn.qkv_proj": (FORMAT, 3),
        "model.layers.1.self_attn.o_proj": (FORMAT, 1),
        "lm_head": (FORMAT, 1),
    }
    found, right = logits(quantized[1]), logits(llama[1])
    assert 0 < (found - right).norm() < 0.1 * right.norm()
    assert quantized[1].generate(IDS, max_new_tokens=2, pad_token_id=0).shape == (1, 14)


def test_a_saved_folder_has_integers_under_their_own_names(quantized):
    folder, model = quantized
    again = load(folder)
    assert torch.equal(logits(again), logits(model))
    assert qnn.report(again) == qnn.report(model)
    with transformers.modeling_utils.safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert "model.layers.0.self_attn.q_proj.data" in names
        assert "model.layers.1.mlp.up_proj.weight" in names
        assert not [name for name in names if "qkv_proj" in name or "gate_up" in name]
        assert "lm_head.weight" not in names
    apart = folder.parent / "apart"
    apart.mkdir(exist_ok=True)
    for path in folder.iterdir():
        text = path.read_bytes().replace(b'"fuse": true', b'"fuse": false')
        (apart / path.name).write_bytes(text)
    apart = load(apart)
    assert len(qnn.report(apart)) == 5 + 1 + 4 + 2
    torch.testing.assert_close(logits(apart), logits(model), rtol=1e-4, atol=1e-5)


def test_other_floats_than_the_folders(quantized):
    again = load(quantized[0], dtype=torch.bfloat16)
    assert again.model.embed_tokens.weight.dtype == torch.bfloat16
    assert again.lm_head.scale.dtype == torch.float32
    assert torch.equal(again.lm_head.scale, quantized[1].lm_head.scale)


def test_an_encoder(bert):
    folder, model = bert
    config = qnn.QuantmmConfig("w8a8", formats={"output.dense": "w4a8-g32"})
    found = transformers.AutoModel.from_pretrained(folder, quantization_config=config)
    assert {row.computes for row in qnn.report(found)} == {("query", "key", "value"), ("dense",)}
    dense = found.encoder.layer[0].intermediate.dense
    assert (dense.spec.activation_fn, dense.spec.weight) == ("gelu", "int8")
    assert found.encoder.layer[0].output.dense.spec.weight == "int4"
    with torch.inference_mode():
        y, right = found(IDS).last_hidden_state, model(IDS).last_hidden_state
    assert torch.nn.functional.cosine_similarity(y, right, dim=-1).min() > 0.99


def test_a_family_without_a_pattern_says_so(tmp_path):
    config = transformers.GPTNeoXConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    transformers.GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="no pattern for GPTNeoXForCausalLM: every linear is a"):
        model = load(tmp_path, quantization_config=qnn.QuantmmConfig())
    assert {row.format for row in qnn.report(model)} == {"w8a8-dynamic"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load(tmp_path, quantization_config=qnn.QuantmmConfig(fuse=False))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"format": "w3a8"}, SpecError, "no format 'w3a8'; expected one of w8a8, "),
        ({"format": None}, SpecError, "no format None; expected one of"),
        ({"formats": {"lm_head": "int3"}}, SpecError, "no format 'int3'; expected one of"),
        ({"skip": "lm_head"}, SpecError, "skip='lm_head'; expected names of linears, such as"),
        ({"skip": [1]}, SpecError, r"skip=\[1\]; expected names of linears, such as"),
        ({"version": 2}, StateError, "has version 2; this quantmm reads 1: load it with the"),
        ({"version": None}, StateError, "has version None; this quantmm reads 1"),
    ],
)
def test_refused_settings(given, error, message):
    with pytest.raises(error, match=message):
        qnn.QuantmmConfig(**given)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device_map": "meta"}, UnsupportedError, "device_map has meta; expected the CPU"),
        ({"device_map": {"": "cuda:0"}}, UnsupportedError, "device_map has cuda:0; expected the"),
        ({"skip": ["*"]}, ModuleError, r"skip=\['\*'\] leaves none of the 15 linears of LlamaFor"),
    ],
)
def test_refused_loading(llama, options, error, message):
    config = qnn.QuantmmConfig(skip=options.pop("skip", ()))
    with pytest.raises(error, match=message):
        load(llama[0], quantization_config=config, **options)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"version": 7}, StateError, "has version 7; this quantmm reads 1"),
        ({"layers": None}, ModuleError, "has no layers; expected those that save_pretrained"),
        (
            {"layers": [{"format": {}, "names": ["model.lin"]}]},
            StateError,
            "has the linear 'model.lin', which LlamaForCausalLM has not; expected a folder",
        ),
        (
            {"layers": [{"format": {"weight": "int3"}, "names": ["lm_head"]}]},
            StateError,
            "quantization_config, lm_head: weight='int3'; expected one of",
        ),
    ],
)
def test_damaged_folders(quantized, tmp_path, changed, error, message):
    for path in quantized[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"].update(changed)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=message):
        load(tmp_path)


def test_a_state_of_another_format(quantized):
    model = quantized[1]
    state = model.model.layers[0].self_attn.o_proj.get_extra_state()
    with pytest.raises(StateError, match=r"_extra_state has .* the module has"):
        model.lm_head.set_extra_state(state)


def test_a_model_without_linears(tmp_path):
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4)
    transformers.GPT2Model(config).save_pretrained(tmp_path)
    with pytest.raises(ModuleError, match=r"expected torch\.nn\.Linear in GPT2Model; it has none"):
        transformers.AutoModel.from_pretrained(tmp_path, quantization_config=qnn.QuantmmConfig())


def test_transformers_that_are_missing_or_old(monkeypatch):
    install = r"pip install 'quantmm\[transformers\]'"
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ToolError, match=f"needs transformers for this, .* installed: {install}"):
        requirement.require_transformers()
    old = types.SimpleNamespace(__version__="4.57.1")
    monkeypatch.setitem(sys.modules, "transformers", old)
    with pytest.raises(
        ToolError, match=f"found transformers 4.57.1; expected 5.24 or .* {install}"
    ):
        requirement.require_transformers()


def test_other_names_of_the_module():
    with pytest.raises(AttributeError, match="has no attribute 'Quantize'"):
        _ = qnn.Quantize
