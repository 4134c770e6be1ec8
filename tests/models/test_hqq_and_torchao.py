"""State dicts of HQQ and torchao that are not read, or that lie, and what torchao says of X."""

from __future__ import annotations

import model_files
import numpy as np
import pytest
import quantmm as qmm
from model_files import of_torchao
from quantmm.errors import UnsupportedError, WeightFileError

NUMBER = np.array


def hqq_with(folder, tensors):
    drawn = model_files.example(model_files.hqq(), lambda each: each.matrix.shape[1] > 8)
    lying = model_files.Written(drawn.tensors | tensors, {}, drawn.matrix)
    return lying.save(folder)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"a.axis": NUMBER(0, np.int32)},
            "a has axis=0, whose groups are of rows of W; exp",
        ),
        ({"a.axis": np.ones(2, np.int32)}, r"a\.axis is int32\(2,\); expected one number"),
        (
            {"a.packing": np.frombuffer(b"5bit", np.uint8)},
            "packing='5bit'; expected one of 8bit",
        ),
        (
            {"a.group_size": NUMBER(5, np.int32)},
            r"has groups of 5; expected a number that div",
        ),
        ({"a.shape": np.array([2**40, 8])}, r"a\.W_q is .*; expected"),
        ({"a.nbits": NUMBER(9, np.int32)}, r"a has nbits=9; expected 1 to \d, as \dbit"),
        (
            {"a.scale": np.ones((3, 1), np.float16)},
            r"a\.scale is float16\(3, 1\); expected",
        ),
        ({"a.zero": np.ones((3, 1), np.int32)}, r"a\.zero is int32\(3, 1\); expected float16"),
    ],
)
def test_hqq(tmp_path, tensors, message):
    with pytest.raises(WeightFileError, match=message):
        qmm.open_model(hqq_with(tmp_path, tensors))


def write(folder, kind="Int8Tensor", drop=(), add=None, **attributes):
    tensors = {
        "a._weight_qdata": np.full((2, 16), 9, np.int8),
        "a._weight_scale": np.ones((2, 1), np.float32),
        **(add or {}),
    }
    kept = {name: row for name, row in tensors.items() if name not in drop}
    metadata = of_torchao(kind, ["qdata", "scale"], **{"block_size": [1, 16], **attributes})
    return model_files.Written(kept, {}, np.ones((2, 16)), metadata).save(folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            {"kind": "Int4Tensor"},
            r"a\.weight is a Int4Tensor of torchao, which is not read; e",
        ),
        ({"drop": ["a._weight_scale"]}, "a has no scale and attributes of torchao's"),
        ({"block_size": [2, 8]}, r"has block_size=\[2, 8\]; expected all of it, a row, or a part"),
        ({"block_size": [1, 5]}, r"has block_size=\[1, 5\]"),
        ({"block_size": 3}, "has block_size=3"),
        ({"block_size": [1, 8]}, r"a\._weight_scale is float32\(2, 1\); expected .*\(2, 2\)"),
        (
            {"kind": "IntxUnpackedToInt8Tensor", "target_dtype": "int9"},
            "target_dtype='int9'; ex",
        ),
        (
            {"add": {"a._weight_act_pre_scale": np.ones(16, np.float32)}},
            "has act_pre_scale, a fac",
        ),
    ],
)
def test_torchao(tmp_path, words, message):
    with pytest.raises(WeightFileError, match=message):
        qmm.open_model(write(tmp_path, **words))


def test_torchao_holds_numbers_beyond_its_bits(tmp_path):
    model = qmm.open_model(write(tmp_path, "IntxUnpackedToInt8Tensor", target_dtype="int4"))
    with pytest.raises(WeightFileError, match="a holds 9 to 9; expected numbers of 4 bits"):
        model["a"]


@pytest.mark.parametrize(
    ("kind", "attributes", "text", "zero_point"),
    [
        (
            "IntxUnpackedToInt8Tensor",
            {"target_dtype": "int8", "activation_quantization": "int8_asym_per_token"},
            "int8 token zero points dynamic",
            True,
        ),
        (
            "Int8Tensor",
            {"act_quant_kwargs": {"_type": "Q", "_data": {"granularity": {"_type": "PerRow"}}}},
            "int8 token dynamic",
            False,
        ),
        (
            "Int8Tensor",
            {"act_quant_kwargs": {"_type": "Q", "_data": {"granularity": {"_type": "PerTensor"}}}},
            "int8 PerTensor SYMMETRIC dynamic",
            None,
        ),
    ],
)
def test_torchao_says_what_x_is(tmp_path, kind, attributes, text, zero_point):
    layer = qmm.open_model(write(tmp_path, kind, **attributes)).layers["a"]
    assert layer.activations.text == text
    if zero_point is None:
        with pytest.raises(UnsupportedError, match="a has activations of int8 PerTensor SYMMETRIC"):
            layer.spec()
    else:
        spec = layer.spec()
        assert (spec.dynamic, spec.activation_zero_point) == (True, zero_point)
