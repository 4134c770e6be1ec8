"""Damaged files of every format: a weight or a `WeightFileError`, in little memory."""

from __future__ import annotations

import random
import tracemalloc
import warnings
from collections import deque

import model_files
import numpy as np
import pytest
import quantmm as qmm
from mutations import count, damaged, damaged_json, damaged_safetensors
from quantmm.errors import WeightFileError
from quantmm.formats.named import fields_of
from quantmm.models.write import quantize_model

#: What reading a small file may take, whatever that says of itself.
MEMORY = 4 << 20


def written(format):
    """A small module that is as good as any."""
    if format == "floats":
        rng = np.random.default_rng(0)
        tensors = {"a.weight": rng.standard_normal((4, 8)), "b": rng.integers(0, 9, 3)}
        return model_files.Written(tensors, {}, tensors["a.weight"])
    return model_files.example(
        model_files.FORMATS[format](), lambda each: 64 < each.matrix.size < 1000
    )


def outcome(folder):
    """Open a model and read all of it: what is wrong, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = qmm.open_model(folder)
            for name, layer in model.layers.items():
                assert model[name].shape == layer.shape
            for name in model.tensors:
                model.tensors[name]
        except WeightFileError as error:
            return str(error)
    return None


@pytest.mark.parametrize("format", [*model_files.FORMATS, "floats", "quantize"])
def test_damaged_files(tmp_path, format):
    if format == "quantize":
        written("floats").save(tmp_path)
        model = qmm.open_model(tmp_path)
        deque(quantize_model(model, tmp_path, fields_of("w7a8-dynamic")), 0)
    else:
        written(format).save(tmp_path, tie_word_embeddings=False)
    assert outcome(tmp_path) is None
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    content, text = file.read_bytes(), config.read_text()
    rng = random.Random(format)
    refused = 0
    times = count(100)
    tracemalloc.start()
    try:
        for _ in range(times):
            file.write_bytes(content)
            config.write_text(text)
            if format != "floats" and rng.random() < 0.3:
                if rng.random() < 0.2:
                    config.write_bytes(damaged(rng, text.encode()))
                else:
                    config.write_text(damaged_json(rng, text))
            else:
                file.write_bytes(damaged_safetensors(rng, content))
            if (message := outcome(tmp_path)) is not None:
                refused += 1
                assert str(tmp_path) in message
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    assert refused > times / 4
