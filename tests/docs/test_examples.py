"""The small examples run as written."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import quantmm as qmm

FOLDER = Path(qmm.__file__).parent / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    """Run an example in this process; what it prints."""

    def example(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return example


@pytest.mark.parametrize(("name", "most"), [("first_kernel", 12), ("chain", 3)])
def test_results_are_near_those_of_the_floats(run, name, most):
    percent = float(re.search(r"([\d.]+)%", run(name))[1])
    assert 0 < percent < most


def test_a_kernel_file_runs_without_a_compiler(run, tmp_path):
    run("deploy", "write", tmp_path)
    command = [sys.executable, str(FOLDER / "deploy.py"), "run", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["3 x 256 results", "imported: no compiler"]


def test_a_log_is_shipped(run, tmp_path):
    out = run("tune_and_ship", tmp_path, 1)
    assert out.startswith("M = 4: ")
    assert [*(tmp_path / "shipped").glob("*/header.json")]


def test_a_target_is_added(run):
    assert run("add_target") == "x86-mychip: equal to the reference\n"
