from __future__ import annotations

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
import quantmm as qmm
from quantmm.cli import main as cli_main
from quantmm.compiler import problem as problem_module

SMALL = ["--n", "20", "--k", "33"]


def test_targets(quantmm):
    status, out, _ = quantmm("targets")
    assert status == 0
    for target in qmm.targets.TARGETS:
        (line,) = [line for line in out.splitlines() if line.startswith(target.name)]
        assert target.instruction.name in line
        assert ("yes" in line) == (qmm.targets.why_not_here(target) is None)
    assert out.count("(host)") == 1


def test_compile_writes_a_kernel(quantmm, tmp_path):
    path = tmp_path / "k.qmm"
    status, out, _ = quantmm("compile", *SMALL, "--out", "int32", "--m", 3, "-o", path)
    assert status == 0
    assert str(path) in out
    spec = qmm.MatmulSpec(n=20, k=33, out="int32", m=3)
    assert qmm.load(path).spec == spec
    status, out, _ = quantmm("inspect", path)
    assert json.loads(out)["spec"] == spec.to_json()


def test_verify(quantmm):
    status, out, _ = quantmm("verify", *SMALL, "--m", 7, "--bias", "--group-size", "tensor")
    assert (status, out.strip()) == (0, "1 of 1 problems agree with the reference")
    status, out, _ = quantmm("verify", "--random", 3, "--target", "generic")
    assert (status, out.strip()) == (0, "3 of 3 problems agree with the reference")


def test_a_failure_prints_the_line_that_repeats_it(quantmm, monkeypatch):
    reference = problem_module.reference

    def wrong(*arguments, **keywords):
        return reference(*arguments, **keywords) + np.int32(1)

    monkeypatch.setattr(problem_module, "reference", wrong)
    words = ["verify", *SMALL, "--out", "int32", "--activation", "uint8", "--seed", "5"]
    status, out, err = quantmm(*words)
    assert status == 2
    assert "320 of 320 differ, the first at [0, 0]: got" in err
    again = shlex.split(out.strip())
    assert again[0] == "quantmm"
    assert quantmm(*again[1:])[1:] == (out, err)
    monkeypatch.undo()


def test_random_failures_are_repeated_by_their_line(quantmm, monkeypatch):
    for seed in range(40):
        problem = cli_main.random_problem(seed)
        words = shlex.split(problem.line("host"))[1:]
        seen = []
        with monkeypatch.context() as patch:
            patch.setattr(cli_main, "check", lambda p, kernel, seen=seen: seen.append(p))
            patch.setattr("quantmm.compiler.build.compile", lambda *_: None)
            assert quantmm(*words)[0] == 0
        assert seen == [problem]


def test_bench(quantmm):
    words = ["bench", "--m", "1,40", "--n", "64", "--k", "128", "--threads", "1"]
    status, out, _ = quantmm(*words)
    assert status == 0
    assert [line.split()[:3] for line in out.splitlines()[2:]] == [
        ["1", "64", "128"],
        ["40", "64", "128"],
    ]
    status, out, _ = quantmm(*words, "--json", "--activation-scale", "row")
    first, second = json.loads(out)
    assert (first["m"], first["cold"], second["cold"]) == (1, True, False)
    for row in (first, second):
        assert 0 < row["floor"] < row["median"]
        assert row["share"] == pytest.approx(row["floor"] / row["median"])
        assert row["numpy_ratio"] == pytest.approx(row["numpy"] / row["median"])


@pytest.mark.parametrize(("form", "text"), [("te", "acc"), ("tir", "T.parallel"), ("asm", ".text")])
def test_inspect(quantmm, form, text):
    status, out, _ = quantmm("inspect", *SMALL, "--emit", form)
    assert status == 0
    assert text in out


def test_inspect_reports(quantmm):
    status, out, _ = quantmm("inspect", *SMALL, "--m", 1)
    assert status == 0
    assert json.loads(out)[0]["strategy"] == "gemv"


def test_demo(quantmm):
    status, out, _ = quantmm("demo")
    assert status == 0
    assert "equal to the reference: True" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compile", "--n", "8"], "Missing option '--k'"),
        (["compile", "--n", "0", "--k", "8", "-o", "x"], "n=0; expected a whole number"),
        (["compile", *SMALL, "--target", "z80", "-o", "x"], "no target 'z80'"),
        (["compile", *SMALL, "-o", "/nowhere/k.qmm"], "cannot write /nowhere/k.qmm"),
        (["compile", *SMALL, "--weight", "int3", "-o", "x"], "'int3' is not one of"),
        (["compile", *SMALL, "--group-size", "12", "-o", "x"], "multiple of 8"),
        (["verify"], "give --n and --k, or --random COUNT"),
        (["verify", *SMALL, "--m", "0"], "m=0; expected a whole number"),
        (["bench", "--m", "1,two"], "expected whole numbers such as 1,16,512"),
        (["inspect"], "give --n and --k, or a kernel file"),
        (["inspect", "/nowhere/k.qmm"], "cannot read /nowhere/k.qmm"),
        (["fly"], "No such command 'fly'"),
    ],
)
def test_errors_are_one_line_and_exit_with_2(quantmm, words, message):
    status, out, err = quantmm(*words)
    assert status == 2
    assert out == ""
    assert err.startswith("quantmm: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("command", [None, *sorted(cli_main.cli.commands)])
def test_help(quantmm, command):
    status, out, _ = quantmm(*([command] if command else []), "--help")
    assert status == 0
    assert out.startswith("Usage: quantmm")
    assert "--help" in out


def test_runs_as_a_command():
    code = "from quantmm.cli.main import run; run()"
    done = subprocess.run(
        [sys.executable, "-c", code, "targets"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "(host)" in done.stdout
