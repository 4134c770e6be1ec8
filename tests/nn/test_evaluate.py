"""`evaluate` and its command: perplexity of models of language, cosine of encoders."""

from __future__ import annotations

import math

import pytest
from quantmm.errors import ModuleError, SpecError

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
from quantmm.nn.evaluate import evaluate, positions_of

WORDS = ["[UNK]", *"abcdefghijklmnopqrstuvwxyz"]
TEXT = "a b c a b d e a b z y x a b c " * 3
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}


def with_tokenizer(folder):
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=WORDS[0]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder with a Llama of one layer, and a tokenizer of 26 words."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    model.save_pretrained(folder)
    return with_tokenizer(folder)


def test_perplexity(llama):
    seen = []
    floats, ours = evaluate(
        llama, ["w8a8"], text=TEXT, context=16, watch=lambda *state: seen.append(state)
    )
    assert [floats.format, ours.format] == ["floats", "w8a8"]
    assert (floats.tokens, ours.tokens) == (42, 42)  # 45 words in windows of 16
    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    ids = torch.tensor([WORDS.index(word) for word in TEXT.split()])
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(
                model(each[None]).logits[0, :-1], each[1:], reduction="sum"
            )
            for each in ids.split(16)
        ]
    assert floats.perplexity == pytest.approx(math.exp(sum(losses) / 42), rel=1e-5)
    assert ours.perplexity == pytest.approx(floats.perplexity, rel=0.05)
    assert ours.perplexity != floats.perplexity
    assert 0.25 < ours.nbytes / floats.nbytes < 0.4
    assert seen[:2] == [("floats", 0, 3), ("floats", 1, 3)]
    assert seen[-1] == ("w8a8", 3, 3)


def test_the_cosine_of_an_encoder(tmp_path):
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, initializer_range=0.5)
    transformers.BertModel(config, add_pooling_layer=False).eval().save_pretrained(tmp_path)
    floats, ours = evaluate(with_tokenizer(tmp_path), ["w8a8"], text=TEXT)
    assert floats.cosine == pytest.approx(1)
    assert 0.9 < ours.least_cosine < ours.cosine < 1
    assert ours.tokens == 45


@pytest.mark.parametrize(("padding", "length"), [(1, 14), (0, 15)])
def test_positions_behind_that_of_padding(tmp_path, padding, length):
    config = transformers.RobertaConfig(**SIZES, max_position_embeddings=16, pad_token_id=padding)
    model = transformers.RobertaModel(config, add_pooling_layer=False).eval()
    assert positions_of(config, model) == length
    model.save_pretrained(tmp_path)
    floats, _ = evaluate(with_tokenizer(tmp_path), ["w8a8"], text=TEXT)
    assert floats.tokens == 45


@pytest.mark.parametrize(
    ("formats", "text", "error", "message"),
    [
        (["w5a8"], TEXT, SpecError, "no format 'w5a8'; expected one of"),
        (["file"], TEXT, SpecError, "has floats; expected names of formats, not 'file'"),
        ([], "a", ModuleError, "the text has 1 tokens; expected two or more"),
    ],
)
def test_refused(llama, formats, text, error, message):
    with pytest.raises(error, match=message):
        list(evaluate(llama, formats, text=text))


def test_without_a_tokenizer(llama, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((llama / name).read_bytes())
    with pytest.raises(ModuleError, match=r"no tokenizer in .*; expected the files of one beside"):
        list(evaluate(tmp_path, text=TEXT))


def test_the_command(quantmm, llama, tmp_path):
    text = tmp_path / "text"
    text.write_text(TEXT)
    words = ["evaluate", llama, "--format", "w8a8", "--text", text, "--characters", 40]
    status, out, _ = quantmm(*map(str, words))
    assert status == 0
    head, *rows = out.splitlines()
    assert " ".join(head.split()) == "format bytes of the first perplexity tokens tokens/s"
    assert [row.split()[0] for row in rows] == ["floats", "w8a8"]


def test_a_text_that_is_none(quantmm, llama, tmp_path):
    text = tmp_path / "text"
    text.write_bytes(b"\xff\xfe\xff")
    status, _, err = quantmm("evaluate", str(llama), "--text", str(text))
    assert status == 2
    assert "expected a text in UTF-8" in err
