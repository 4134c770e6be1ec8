"""The check on a GPU, where there is none: its tasks on the emulated driver, and its children."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import emulated_card
import emulated_torch
import pytest
import quantmm as qmm
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
    gpu = emulated_card.install(monkeypatch)
    monkeypatch.setitem(sys.modules, "torch", emulated_torch.module(gpu))
    return gpu


@pytest.fixture(scope="module")
def prepared_once():
    """Where the prepared folder of this module is, once a test has asked for it."""
    return []


@pytest.fixture
def prepared(gpu_check, gpu, tmp_path, tmp_path_factory, prepared_once):
    """What the check does on this GPU, prepared in `tmp_path`."""
    if not prepared_once:
        prepared_once.append(tmp_path_factory.mktemp("prepared"))
        gpu_check.prepare(prepared_once[0], "cuda-sm90")
    shutil.copytree(prepared_once[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


class Here:
    """A worker in this process."""

    def __init__(self, gpu_check):
        self._tasks, self.alive, self.closed = gpu_check.Tasks(), True, False

    def call(self, method, *arguments, seconds):
        return getattr(self._tasks, method)(*arguments)

    def close(self):
        self.closed = True


def test_every_task_is_done_and_its_log_is_used(gpu_check, prepared, tmp_path):
    gpu_check.work(tmp_path, Here(gpu_check))
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


def test_what_fails_takes_nothing_with_it(gpu_check, gpu, prepared, tmp_path, monkeypatch):
    (tmp_path / "problem0.qmm").write_bytes(b"damaged")

    def broken(calls):
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(gpu_check, "milliseconds", broken)
    worker = Here(gpu_check)
    gpu_check.work(tmp_path, worker)
    results = gpu_check.assemble(tmp_path)
    assert "is not a quantmm kernel file" in results["failed"]["problem 0"]
    assert "an illegal memory access" in results["failed"]["copy"]
    assert results["times"][0]["kernels"]["gemv_1x8"] == {"failed": "an illegal memory access"}
    assert results["times"][0]["best"] is None
    assert results["skipped"] == []
    assert not worker.closed
    monkeypatch.setattr(sys.modules["torch"].cuda, "synchronize", broken_gpu)
    gpu_check.work(tmp_path, worker)
    assert worker.closed


def broken_gpu():
    raise RuntimeError("CUDA error: unspecified launch failure")


CHILD = """
import os, time
class Tasks:
    def do(self, folder, task):
        if task["name"] == "copy":
            print("no such device", flush=True)
            os.abort()
        if task["name"] == "torch":
            time.sleep(60)
        if task["name"] == "problem 0":
            time.sleep(0.6)
        return {"compared": 2, "wrong": ["gemv_1x8 m=1 host: 1 of 8 differ"], "seconds": 0.0}
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
    """The class by which a child does these tasks."""
    (tmp_path / "gpu_check_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    def write(*names):
        tasks = [{"name": name, "kind": name.split()[0]} for name in names]
        index = {"target": "cuda-sm90", "tasks": tasks}
        (tmp_path / "index.json").write_text(json.dumps(index))
        return "gpu_check_child:Tasks"

    return write


def test_a_child_that_dies_is_followed_by_another(gpu_check, child, tmp_path, capsys, monkeypatch):
    place = child("problem 0", "copy", "problem 1", "graph of it")
    monkeypatch.setattr(gpu_check, "PROBLEM_SECONDS", 0.5)  # less than problem 0 takes
    assert gpu_check.run(tmp_path, place) == 1
    said = capsys.readouterr().out
    assert "FAILED copy: SIGABRT: no such device" in said
    for name in ("problem 0", "graph of it"):
        assert f"WRONG  {name}: gemv_1x8 m=1 host: 1 of 8 differ" in said
    assert "1 tasks skipped" in said
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["compared"], results["skipped"]) == (4, ["problem 1"])


def test_a_child_that_says_nothing_is_ended(gpu_check, child, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu_check, "SILENT_SECONDS", 0.5)
    assert gpu_check.run(tmp_path, child("torch")) == 1
    assert "FAILED torch: not done after 0.5 s" in capsys.readouterr().out


def test_without_kernels(gpu_check, tmp_path, capsys):
    assert gpu_check.run(tmp_path) == 2
    assert "run `gpu_check.py prepare` first" in capsys.readouterr().err


def test_records_that_cannot_be_used(gpu, tmp_path):
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
