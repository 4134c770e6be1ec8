"""examples/llm.py decodes in compiled steps with a cache of a fixed size."""

from __future__ import annotations

import shutil

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
from quantmm.examples import llm
from quantmm.nn import quantize_

IDS = torch.arange(3, 8)[None]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    quantize_(model, "w8a8")
    return model


def test_a_token_follows_from_all_before(model):
    with torch.no_grad():
        found = llm.Decoder(model, 16, compiled=False).tokens(IDS, 4)
        ids = torch.cat([IDS, torch.tensor([found])], dim=1)
        assert found == model(ids).logits[0, 4:-1].argmax(-1).tolist()


@pytest.mark.skipif(
    not shutil.which("g++") and not shutil.which("clang++"), reason="inductor needs a C++ compiler"
)
def test_a_compiled_step_has_no_break(model):
    torch._dynamo.reset()
    decoder, seconds = llm.Decoder(model, 16), []
    with torch.no_grad():
        found = decoder.tokens(IDS, 6, seconds)
        assert found == llm.Decoder(model, 16, compiled=False).tokens(IDS, 6)
    assert len(seconds) == 5


def test_more_tokens_than_there_is_room_for(model):
    with pytest.raises(ValueError, match=r"5 \+ 12 tokens; expected at most 16, for which the"):
        llm.Decoder(model, 16, compiled=False).tokens(IDS, 12)


def test_random_weights(model, capsys, monkeypatch):
    monkeypatch.setattr(llm, "RANDOM", model.config)
    threads = torch.get_num_threads()
    llm.main(["--eager", "--tokens", "2", "--threads", str(threads)])
    shown = capsys.readouterr().out
    assert shown.startswith("5 matmuls of 8 linears:")
    assert "bytes of w8a8-dynamic" in shown
    assert "tokens/s" in shown
