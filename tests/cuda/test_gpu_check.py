"""The check on a GPU, where there is none: its tasks on the emulated driver, and its children."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import textwrap
from pathlib import Path

import emulated_torch
import pytest
import quantmm as qmm
from emulated_driver import EmulatedDriver
from quantmm.compiler import nvrtc
from quantmm.runtime import driver as drivers
from quantmm.schedules import cuda_records
from quantmm.tuning import keeping


@pytest.fixture
def gpu_check(monkeypatch):
    """The script as a module, with small problems."""
    path = Path(__file__).parent.parent.parent / "benchmarks" / "gpu_check.py"
    spec = importlib.util.spec_from_file_location("gpu_check", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", module)
    spec.loader.exec_module(module)
    for name, value in {
        "PROBLEMS": 2,
        "LARGEST_N": 30,
        "LARGEST_K": 200,
        "ROWS": (1, 17),
        "SQUARES": ((64, 64, 256),),
        "NARROW": ((32, 512),),
        "FEW": (1, 16),
        "COPY_BYTES": 1 << 10,
        "BEYOND_L2": 0,
        "GRAPH_MS": 0,
        "REPLAYS": 5,
    }.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.fixture
def gpu(monkeypatch):
    """An emulated H100, whose machine code is its source."""

    def source_itself(source, arch, *, form):
        return f"#define __CUDA_ARCH__ 900\n{source}".encode()

    gpu = EmulatedDriver(capability=(9, 0), shared_bytes=227 << 10)
    monkeypatch.setattr(nvrtc, "compile_cuda", source_itself)
    monkeypatch.setattr(drivers, "driver", lambda: gpu)
    monkeypatch.setitem(sys.modules, "torch", emulated_torch.module(gpu))
    return gpu


def test_every_task_is_done_and_its_log_is_used(gpu_check, gpu, tmp_path):
    gpu_check.prepare(tmp_path, "cuda-sm90")
    assert gpu_check.work(tmp_path, math.inf) == 0
    results = gpu_check.assemble(tmp_path)
    assert (results["wrong"], results["failed"], results["skipped"]) == ([], {}, [])
    assert results["compared"] > 20
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    for each in results["times"]:
        assert all(times["how"] == "graph" for times in each["kernels"].values()), each
    figures = [verdict["figure"] for verdict in results["verdicts"]]
    for figure in (
        "64 x 64 x 256 int32, as fast as int_mm",
        "64 x 64 x 256 bfloat16, as fast as int32 and a scaling",
        "64 x 64 x 256 requantized, as fast as bfloat16 matmul",
        "1 x 32 x 512 w8, share of the copy bandwidth",
        "1 x 32 x 512 w4-g128, as fast as w8",
        "16 x 32 x 512 w4-g128, time over that of M = 1",
    ):
        assert figure in figures

    tuned = tmp_path / "tuned"
    assert keeping.check(tuned) == []
    spec = qmm.MatmulSpec(n=32, k=512, out="bfloat16", activation_scale="tensor")
    kernel = qmm.compile(spec, "cuda-sm90", cache=False, log=tuned)
    rows = kernel.report([1, 2, 12, 17])
    assert [row["record"] is not None for row in rows] == [True, False, True, False]
    best = {each["shape"][0]: each["best"] for each in results["times"] if each["format"] == "w8"}
    assert [rows[0]["function"], rows[2]["function"]] == [best[1], best[16]]
    assert qmm.compile(spec, "cuda-sm90", cache=False, log=False).info.record is None


def test_what_fails_takes_nothing_with_it(gpu_check, gpu, tmp_path, monkeypatch):
    gpu_check.prepare(tmp_path, "cuda-sm90")
    (tmp_path / "problem0.qmm").write_bytes(b"damaged")

    def broken(calls):
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(gpu_check, "milliseconds", broken)
    assert gpu_check.work(tmp_path, math.inf) == 0
    results = gpu_check.assemble(tmp_path)
    assert "is not a quantmm kernel file" in results["failed"]["problem 0"]
    assert "an illegal memory access" in results["failed"]["copy"]
    assert results["times"][0]["kernels"]["gemv_1x8"] == {"failed": "an illegal memory access"}
    assert results["times"][0]["best"] is None
    assert results["skipped"] == []
    monkeypatch.setattr(sys.modules["torch"].cuda, "synchronize", broken_gpu)
    (tmp_path / "progress.jsonl").unlink()
    assert gpu_check.work(tmp_path, math.inf) == gpu_check.UNUSABLE
    assert [*gpu_check.states(tmp_path)] == ["problem 0"]


def broken_gpu():
    raise RuntimeError("CUDA error: unspecified launch failure")


CHILD = """
import json, os, sys
from pathlib import Path
folder = Path(sys.argv[2])
progress = folder / "progress.jsonl"
calls = folder / "calls"
calls.write_text(calls.read_text() + "." if calls.exists() else ".")
def say(task, what, content):
    with open(progress, "a") as file:
        file.write(json.dumps({"task": task, "at": 0, what: content}) + "\\n")
if calls.read_text() == ".":
    say("copy", "begun", True)
    os.abort()
say("problem 0", "begun", True)
say("problem 0", "result", {"compared": 2, "wrong": ["gemv_1x8 m=1 host: 1 of 8 differ"]})
"""


def test_a_child_that_dies_is_followed_by_another(gpu_check, tmp_path, capsys):
    names = ("copy", "problem 0", "problem 1")
    tasks = [{"name": name, "kind": name.split()[0]} for name in names]
    (tmp_path / "index.json").write_text(json.dumps({"target": "cuda-sm90", "tasks": tasks}))
    script = tmp_path / "child.py"
    script.write_text(textwrap.dedent(CHILD))
    assert gpu_check.run(tmp_path, [sys.executable, str(script)]) == 1
    said = capsys.readouterr().out
    assert "FAILED copy: the process ended with status -6" in said
    assert "WRONG  problem 0: gemv_1x8 m=1 host: 1 of 8 differ" in said
    assert "1 tasks skipped" in said
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["compared"], results["skipped"]) == (2, ["problem 1"])


def test_a_child_that_says_nothing_is_ended(gpu_check, tmp_path, monkeypatch):
    tasks = [{"name": "copy", "kind": "copy"}]
    (tmp_path / "index.json").write_text(json.dumps({"target": "cuda-sm90", "tasks": tasks}))
    monkeypatch.setattr(gpu_check, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(gpu_check, "ALL_SECONDS", 1.0)
    assert gpu_check.run(tmp_path, [sys.executable, "-c", "import time; time.sleep(60)"]) == 1


def test_without_kernels(gpu_check, tmp_path, capsys):
    assert gpu_check.run(tmp_path) == 2
    assert "run `gpu_check.py prepare` first" in capsys.readouterr().err


def test_records_that_cannot_be_used(tmp_path):
    spec = qmm.MatmulSpec(n=16, k=256)
    kernel = qmm.compile(spec, "cuda-sm90", cache=False)
    folder = tmp_path / "cuda-sm90-1"
    folder.mkdir()
    header = cuda_records.header("cuda-sm90", kernel.info.versions, "NVIDIA H200")
    (folder / "header.json").write_text(json.dumps(header))
    for measured, message in [
        ('{"m": 1}', "it is damaged"),
        ('{"m": 0, "name": "gemv_1x8", "default": 1, "tuned": 1}', "it is damaged"),
        ('{"m": 1, "name": "gemv_9x9", "default": 2, "tuned": 1}', "no function gemv_9x9; there"),
    ]:
        line = json.dumps({"spec": spec.to_json()})[:-1] + f', "tuned": [{measured}]}}\n'
        (folder / "database_kernel.json").write_text(line)
        with pytest.warns(RuntimeWarning, match=message):
            found = qmm.compile(spec, "cuda-sm90", cache=False, log=tmp_path)
        assert found.info.record is None
    (folder / "header.json").write_text(json.dumps({**header, "schedule": "cuda-0"}))
    assert qmm.compile(spec, "cuda-sm90", cache=False, log=tmp_path).info.record is None
    with pytest.raises(qmm.QuantmmError, match="no log at"):
        qmm.compile(spec, "cuda-sm90", cache=False, log=tmp_path / "nowhere")
