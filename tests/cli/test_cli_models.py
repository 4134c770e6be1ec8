"""Commands that take models: inspect, quantize, compile, bench and tune."""

from __future__ import annotations

import json

import model_files
import numpy as np
import pytest
import quantmm as qmm
from quantmm.cli import models
from quantmm.cli.bench import jobs_for, origins
from quantmm.cli.models import saved_per_token, shapes_of
from quantmm.cli.tune import shapes
from quantmm.errors import BenchError
from quantmm.formats.named import fields_of, name_of
from quantmm.tuning.state import Outcome, Tuning
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


def packed_and_floats(folder):
    """A layer of 4 bits with a bias, and two of floats of one shape."""
    tensors = {
        "a.weight_packed": np.ones((2, 2), np.int32),
        "a.weight_scale": np.ones((2, 2), np.float16),
        "a.weight_shape": np.array([2, 16]),
        "a.bias": np.ones(2, np.float32),
        "b.weight": np.ones((8, 16), np.float32),
        "c.weight": np.ones((8, 16), np.float32),
    }
    says = model_files.of_groups("pack-quantized", W4)
    return model_files.Written(tensors, says, np.ones((2, 16))).save(folder)


class NoKernel:
    """Stands for a kernel where only its file's name and place matter: linking takes seconds."""

    def __init__(self, spec, row):
        self.text = f"{row.name} {spec.to_json()}"

    def save(self, path, *others):
        path.write_text("; ".join([self.text, *(each.text for each in others)]))


def test_compile_writes_a_kernel_for_each_spec(quantmm, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "compile", NoKernel)
    model, folder = packed_and_floats(tmp_path), tmp_path / "kernels"
    words = ["--model", model, "--target", "generic,x86-avx2", "--format", "w4a8", "-o", folder]
    status, out, _ = quantmm("compile", *words)
    assert status == 0
    listed = json.loads((folder / "kernels.json").read_text())
    assert listed["targets"] == ["generic", "x86-avx2"]
    assert [each["layers"] for each in listed["kernels"]] == [["a"], ["b", "c"]]
    shared = {"input": "float32", "dynamic": True, "weight": "int4"}
    specs = (
        qmm.MatmulSpec(2, 16, **shared, group_size=8, bias=True),
        qmm.MatmulSpec(8, 16, **shared),
    )
    for spec, each in zip(specs, listed["kernels"], strict=True):
        assert qmm.MatmulSpec(**each["spec"]) == spec
        text = f"generic {spec.to_json()}; x86-avx2 {spec.to_json()}"
        assert (folder / each["file"]).read_text() == text
    assert listed["kernels"][1]["file"] == "8x16-w4a8.qmm"
    assert out.splitlines()[1].startswith(f"{folder}/8x16-w4a8.qmm: 2 layers, ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "k"], "give --n and --k, or --model"),
        (["--n", 8, "--k", 8, "--format", "w4a8", "-o", "k"], "--format is of the layers of a"),
        (["--model", ".", "--n", 8, "--bias", "-o", "k"], "--bias, --n: --model decides this"),
        (["--model", "nowhere", "-o", "k"], "cannot read nowhere: no such file or folder"),
        (["--model", ".", "-o", "config.json"], "cannot write config.json: File exists"),
    ],
)
def test_what_compile_does_not_take(quantmm, tmp_path, monkeypatch, words, message):
    packed_and_floats(tmp_path)
    monkeypatch.chdir(tmp_path)
    status, _, err = quantmm("compile", *words)
    assert status == 2
    assert message in err


def test_bench_takes_the_specs_of_a_file(tmp_path):
    folder = packed_and_floats(tmp_path)
    shared = {"m": [1, 16], "n": [4096], "k": [4096], "hot": False, "activation_scale": None}
    fields = {field: getattr(qmm.MatmulSpec(1, 8), field) for field in ("weight", "dynamic")}
    words = {**shared, "models": [str(folder), "bert-base"]}
    words["format_names"] = ["w4a8", "w8a8-dynamic"]
    jobs = jobs_for({"models"}, "host", [1], **words, **fields)
    found = [(job.layer, job.m, name_of(job.spec)) for job in jobs if "bert" not in job.layer]
    assert found == [
        ("a", 1, "weight=int4 group_size=8 dynamic input=float32 bias"),
        ("a", 16, "weight=int4 group_size=8 dynamic input=float32 bias"),
        ("b and 1 more", 1, "w4a8"),
        ("b and 1 more", 1, "w8a8-dynamic"),
        ("b and 1 more", 16, "w4a8"),
        ("b and 1 more", 16, "w8a8-dynamic"),
    ]
    assert len(jobs) == len(found) + 3 * 2 * 2
    lines = origins(jobs)
    assert "2 x 16 weight=int4 group_size=8 dynamic input=float32 bias: a" in lines
    assert "8 x 16 w4a8: b and 1 more" in lines
    assert "768 x 768 w4a8: bert-base query, key, value, output" in lines
    assert len(lines) == 1 + 2 + 3 * 2
    with pytest.raises(BenchError, match="no model 'x'; expected a file, a folder or some of bert"):
        jobs_for({"models"}, "host", [1], **{**words, "models": ["x"]}, **fields)


def test_tune_says_what_a_token_saves(tmp_path):
    found = shapes(str(packed_and_floats(tmp_path)), None, None, {})
    assert [shape.count for shape in found] == [1, 2]
    choice = object()

    def tuning(spec, *outcomes):
        rows = [Outcome(m, (), 0, which, old, new, 0, m, m) for m, which, old, new in outcomes]
        return Tuning(spec, "host", 1, tuple(rows), None, 1.0)

    first = tuning(found[0].spec, (1, choice, 3e-6, 2e-6), (16, None, 8e-6, 1e-6))
    second = tuning(found[1].spec, (1, choice, 5e-6, 4e-6), (16, choice, 20e-6, 4e-6))
    assert saved_per_token("m", [first, second], found) == [
        "m, M=1: 3.0 us saved per token, 10.0 instead of 13.0",
        "m, M=16: 2.0 us saved per token, 1.0 instead of 3.0",
    ]
    assert saved_per_token("m", [first], found)[0].startswith("m, M=1: 1.0 us saved")


def test_tune_refuses_what_is_no_model(quantmm):
    status, _, err = quantmm("tune", "--model", "nowhere")
    assert status == 2
    assert "no model 'nowhere'; expected a file, a folder or one of bert-base" in err
