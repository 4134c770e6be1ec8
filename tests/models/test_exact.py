"""Every format in .safetensors is read to the bit: by its own definition in float64."""

from __future__ import annotations

import tempfile
from pathlib import Path

import model_files
import numpy as np
import pytest
import quantmm as qmm
from hypothesis import given, settings
from hypothesis import strategies as st
from quantmm.formats.checks import check_weight
from quantmm.models import words


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Matrices of these tests are read in several pieces, some of them on all cores."""
    monkeypatch.setattr(words, "TILE", 16)
    monkeypatch.setattr(words, "BLOCK", 512)


@pytest.mark.parametrize("format", model_files.FORMATS)
@settings(max_examples=30)
@given(data=st.data())
def test_weights_are_what_their_format_says(format, data):
    written = data.draw(model_files.FORMATS[format]())
    with tempfile.TemporaryDirectory() as folder:
        model = qmm.open_model(written.save(Path(folder)))
        assert list(model) == ["a"]
        assert not model.tensors
        layer, w = model.layers["a"], model["a"]
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(qmm.dequantize(w), written.matrix.astype(np.float32))
    assert layer.shape == written.matrix.shape
    assert layer.nbytes == sum(values.nbytes for values in written.tensors.values())
    check_weight(layer.spec(), w)
    # What pads an odd K is the zero point, as `quantize` has it.
    if w.dtype.endswith("int4") and w.shape[1] % 2:
        z = (
            0
            if w.zero_point is None
            else w.zero_point
            if w.zero_point.ndim < 2
            else w.zero_point[:, -1]
        )
        np.testing.assert_array_equal(w.data[:, -1] >> 4, np.asarray(z) & 15)
