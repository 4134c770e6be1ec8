"""Files of AWQ and of MLX that are not read, or that lie."""

from __future__ import annotations

import model_files
import numpy as np
import pytest
import quantmm as qmm
from quantmm.errors import WeightFileError


def check(folder, format, tensors, settings, message, drop=()):
    """An example of a format with some of it changed."""
    drawn = model_files.example(
        model_files.FORMATS[format](), lambda each: len(each.tensors["a.scales"]) > 1
    )
    changed = {name: change(drawn.tensors[name]) for name, change in tensors.items()}
    kept = {name: row for name, row in (drawn.tensors | changed).items() if name not in drop}
    lying = model_files.Written(kept, drawn.settings | settings, drawn.matrix)
    with pytest.raises(WeightFileError, match=message):
        qmm.open_model(lying.save(folder))


@pytest.mark.parametrize(
    ("tensors", "settings", "message"),
    [
        ({}, {"version": "gemv"}, "AWQ's layout 'gemv' is not read; expected gemm, which AutoAWQ"),
        ({}, {"bits": 8}, "AWQ with bits=8; expected 4"),
        ({}, {"group_size": 2**40}, r"a\.scales is .*; expected float16.*\(1, "),
        ({}, {"group_size": None}, "group_size=None in the settings of the quantizer; expected a"),
        ({"a.scales": lambda each: each[:, 1:]}, {}, r"a\.scales is .*\(any, \d+\)"),
        ({"a.qzeros": lambda each: each[1:]}, {}, r"a\.qzeros is int32.*; expected int32\("),
        ({"a.qweight": lambda each: each[:0]}, {}, "a is empty"),
        (
            {"a.qweight": lambda each: each.astype(float)},
            {},
            r"a\.qweight is float64.*expected",
        ),
    ],
)
def test_awq(tmp_path, tensors, settings, message):
    check(tmp_path, "awq", tensors, settings, message)


def test_awq_without_settings(tmp_path):
    strategy = model_files.awq()
    drawn = model_files.example(
        strategy, lambda each: each.matrix.shape[1] == 8 * len(each.tensors["a.scales"])
    )
    drawn.settings.clear()
    model = qmm.open_model(drawn.save(tmp_path))
    assert model.format == "awq"
    np.testing.assert_array_equal(qmm.dequantize(model["a"]), drawn.matrix.astype(np.float32))


@pytest.mark.parametrize(
    ("tensors", "settings", "message", "drop"),
    [
        (
            {},
            {"mode": "mxfp4"},
            "a has MLX's mode 'mxfp4', which is not read; expected affine",
            (),
        ),
        (
            {},
            {},
            "a has no biases beside its scales; MLX's mode affine",
            ["a.biases"],
        ),
        (
            {},
            {"bits": 7},
            "words and .* groups of 32 in a row, so .* bits for .* numbers; ",
            (),
        ),
        ({}, {"group_size": 64, "a": {"group_size": 7}}, r"groups of 7 in a row", ()),
        ({}, {"group_size": "x"}, "group_size='x' in the settings", ()),
        ({"a.biases": lambda each: each[1:]}, {}, r"a\.biases is .*; expected float16", ()),
        (
            {"a.weight": lambda each: each[0]},
            {},
            r"a\.weight is uint32\(.*; expected uint32",
            (),
        ),
    ],
)
def test_mlx(tmp_path, tensors, settings, message, drop):
    check(tmp_path, "mlx", tensors, settings, message, drop)
