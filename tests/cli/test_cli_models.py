"""Commands that take models: `inspect MODEL` and `quantize MODEL`."""

from __future__ import annotations

import json

import model_files
import numpy as np
import pytest
import quantmm as qmm
from quantmm.cli.models import shapes_of
from quantmm.formats.named import fields_of
from safetensors.numpy import save_file

W4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 8}


@pytest.fixture
def floats(tmp_path):
    """Two layers of one shape, one of another, and a head that is the table of tokens."""
    rng, folder = np.random.default_rng(0), tmp_path / "floats"
    folder.mkdir()
    shapes = {"h.0.up": (8, 32), "h.1.up": (8, 32), "down": (32, 8), "embed_tokens": (9, 8)}
    tensors = {
        f"{name}.weight": rng.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(tensors | {"norm": np.ones(8, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    return folder


def cells(line):
    return line.split()


def test_inspect_lists_layers(quantmm, floats):
    status, out, _ = quantmm("inspect", floats)
    assert status == 0
    first, header, *rows, floats_line, all_line = out.splitlines()
    assert first == f"{floats}: floats, 4 layers"
    assert cells(header) == ["layer", "N", "K", "format", "bytes", "spec"]
    assert [cells(row) for row in rows] == [
        ["down", "32", "8", "float32", "1,024", "w8a8-dynamic"],
        ["h.0.up", "8", "32", "float32", "1,024", "w8a8-dynamic"],
        ["h.1.up", "8", "32", "float32", "1,024", "w8a8-dynamic"],
        ["lm_head", "9", "8", "float32", "288", "w8a8-dynamic"],
    ]
    assert floats_line == "float32: 4 layers, 3,360 bytes"
    assert all_line == "in all: 3,360 bytes of layers; 2 other tensors"
    assert "w4a8-g32" in quantmm("inspect", floats, "--format", "w4a8-g32")[1]


def test_inspect_names_activations_that_are_not_computed(quantmm, tmp_path):
    x = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
    tensors = {
        "a.weight_packed": np.ones((2, 2), np.int32),
        "a.weight_scale": np.ones((2, 2), np.float16),
        "a.weight_shape": np.array([2, 16]),
    }
    says = model_files.of_groups("pack-quantized", W4, x)
    model_files.Written(tensors, says, np.ones((2, 16))).save(tmp_path)
    _, out, _ = quantmm("inspect", tmp_path)
    assert "activations of float8 token dynamic; quantmm computes int8" in out


def test_inspect_tells_what_is_damaged(quantmm, floats):
    (floats / "model.safetensors").write_bytes(b"123")
    status, _, err = quantmm("inspect", floats)
    assert status == 2
    assert err.startswith(f"quantmm: {floats}/model.safetensors: the header's length would be")


def test_shapes_are_those_of_distinct_specs(floats):
    shapes = shapes_of(qmm.open_model(floats), fields_of("w4a8"))
    assert [(shape.spec.n, shape.spec.k, shape.title) for shape in shapes] == [
        (32, 8, "down"),
        (8, 32, "h.0.up and 1 more"),
        (9, 8, "lm_head"),
    ]
    assert {shape.spec.weight for shape in shapes} == {"int4"}


def test_quantize_a_whole_model(quantmm, floats, tmp_path):
    out_folder = tmp_path / "q"
    words = ["--format", "w4a8", "--skip", "h.1.*", "--method", "mse", "-o", out_folder]
    status, out, _ = quantmm("quantize", floats, *words)
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == f"{floats}: w4a8, mse"
    rows = [cells(line) for line in lines[2:5]]
    assert [row[0] for row in rows] == ["down", "h.0.up", "in"]
    model = qmm.open_model(out_folder)
    total = 0
    for name, row in zip(("down", "h.0.up"), rows, strict=False):
        w = qmm.open_model(floats)[name]
        q = qmm.quantize(w, "int4", method="mse")
        np.testing.assert_array_equal(model[name].data, q.data)
        np.testing.assert_array_equal(model[name].scale, q.scale)
        (_, report) = qmm.error_report(w, [model.layers[name].spec()], method="mse")
        assert float(row[5]) == pytest.approx(report.snr_db, abs=0.06)
        total += model.layers[name].nbytes
        assert row[3] == f"{model.layers[name].nbytes:,}"
    assert rows[2][2] == f"{total:,}"
    assert "2 layers stay floats" in lines
    assert lines[-1].startswith(f"{out_folder / 'model.safetensors'}: ")
    status, _, err = quantmm("quantize", floats, *words)
    assert (status, err) == (
        2,
        f"quantmm: cannot write {out_folder}: it is there; expected a new folder\n",
    )


def test_quantize_tells_of_groups_that_others_do_not_read(quantmm, floats, tmp_path):
    words = ["--format", "w4a8-g32", "-o", tmp_path / "q"]
    _, out, _ = quantmm("quantize", floats, *words)
    assert "1 layers have a K that is no multiple of the group: quantmm reads them" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "w4a8"], "a whole model needs --output, the folder to write"),
        (["-o", "q"], "a whole model takes one --format of w8a8-dynamic, "),
        (["--format", "w4a8", "--format", "int8", "-o", "q"], "a whole model takes one --format"),
        (["--format", "w4a8", "--tensor", "a", "-o", "q"], "--format decides all of a whole model"),
        (["--format", "w4a8", "--skip", "x", "-o", "q"], "--skip x fits none of the 4 layers"),
        (["--format", "w4a8-g32-offset", "-o", "q"], "compressed-tensors has no words"),
    ],
)
def test_what_a_whole_model_is_not_quantized_with(quantmm, floats, monkeypatch, words, message):
    monkeypatch.chdir(floats.parent)
    status, _, err = quantmm("quantize", floats, *words)
    assert status == 2
    assert message in err
    assert not (floats.parent / "q").exists()


def test_skip_is_of_whole_models(quantmm, tmp_path):
    np.save(tmp_path / "w.npy", np.ones((2, 8), np.float32))
    status, _, err = quantmm("quantize", tmp_path / "w.npy", "--skip", "a")
    assert status == 2
    assert "--skip names layers of a whole model; FILE is one matrix" in err
