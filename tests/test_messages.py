"""What users get wrong, and what they are told: a `QuantmmError` that helps, or a warning."""

from __future__ import annotations

import errno
import io
import os
import pickle
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import quantmm as qmm
from quantmm import extras, files
from quantmm.cli import reports
from quantmm.errors import ArrayError, KernelFileError, QuantmmError, SpecError, TargetError
from quantmm.formats.spec import MatmulSpec

W = np.random.default_rng(0).standard_normal((24, 32)).astype(np.float32)
SPEC = MatmulSpec(n=24, k=32)
X = np.ones((3, 32), np.int8)


def with_nan():
    matrix = W.copy()
    matrix[3, 5] = np.nan
    return matrix


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: qmm.compile("4096x1024"), SpecError, "spec is '4096x1024'; expected a MatmulSpec"),
        (lambda: qmm.compile({"n": 1}), SpecError, r"spec is \{'n': 1\}; expected a MatmulSpec"),
        (lambda: qmm.compile(np.zeros(99)), SpecError, "spec is ndarray; expected a MatmulSpec"),
        (lambda: qmm.tune("a", m=[1]), SpecError, "spec is 'a'; expected a MatmulSpec, as in"),
        (lambda: qmm.reference("a", X, W), SpecError, "spec is 'a'; expected a MatmulSpec"),
        (lambda: qmm.error_report(W, SPEC), SpecError, r"one MatmulSpec; expected .*in \[spec\]"),
        (lambda: MatmulSpec(n=1, k=1, wieght="int8"), SpecError, "no field 'wieght' .*'weight'?"),
        (lambda: MatmulSpec(n=1, k=1, x="int8"), SpecError, "no field 'x' .*expected n, k, weight"),
        (lambda: MatmulSpec(n=1), SpecError, "a spec needs 'k'"),
        (lambda: MatmulSpec(), SpecError, "a spec needs 'n'"),
        (lambda: qmm.load(None), KernelFileError, "the path is None; expected the name of a file"),
        (lambda: qmm.load("a\0b"), KernelFileError, r"cannot read 'a\\x00b': embedded null"),
        (lambda: qmm.open_model(None), QuantmmError, "the path is None; expected the name of a f"),
        (lambda: qmm.read_matrix(7), QuantmmError, "the path is 7; expected the name of a file"),
        (lambda: qmm.load_weights(7), QuantmmError, "the path is 7; expected the name of a file"),
        (lambda: qmm.save_weights(7, {}), QuantmmError, "the path is 7; expected the name of a f"),
        (lambda: qmm.compile(SPEC, log=5), QuantmmError, "the path is 5; expected the name of a f"),
        (lambda: qmm.tune(SPEC, log=5), QuantmmError, "the path is 5; expected the name of a file"),
        (
            lambda: qmm.compile(SPEC, "x86-avx512vni"),
            TargetError,
            "no target 'x86-avx512vni'; did you mean 'x86-avx512vnni' or 'x86-avx512'",
        ),
        (lambda: qmm.compile(SPEC, "sm90"), TargetError, "did you mean 'cuda-sm90'"),
        (lambda: qmm.compile(SPEC, "z80"), TargetError, "the targets are host, cuda, x86-amx"),
        (lambda: qmm.compile(SPEC, 5), TargetError, "no target 5; the targets are host"),
        (
            lambda: qmm.quantize(W.reshape(2, 12, 32)),
            ArrayError,
            r"x has shape \(2, 12, 32\); expected a matrix .*, such as x\.reshape\(-1, 32\)",
        ),
        (lambda: qmm.quantize(with_nan()), ArrayError, r"NaN or infinity, first at \[3, 5\]"),
        (
            lambda: qmm.quantize(W, scale=[1.0] * 20 + [-2.0] * 4),
            ArrayError,
            r"scale -2\.0, first at \[20\]; expected positive finite numbers",
        ),
        (
            lambda: qmm.reference(SPEC, X, qmm.quantize(W)),
            ArrayError,
            "x_scale is missing; .*or give x as a QTensor, which quantize makes",
        ),
    ],
)
def test_errors_help(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_errors_of_a_kernel_help(host_kernel):
    kernel = host_kernel(SPEC)
    linear = kernel.bind(qmm.quantize(W))
    static = host_kernel(MatmulSpec(n=24, k=32, input="float32")).bind(qmm.quantize(W))
    for call, message in (
        (lambda: kernel.save(None), "the path is None; expected the name of a file or folder"),
        (lambda: kernel.report(5), r"m=5; expected several numbers of rows, as in \[1, 16\]"),
        (lambda: kernel.report(["1"]), r"m=\['1'\]; expected several numbers"),
        (lambda: kernel.bind(qmm.quantize(W.T)), r"w is int8\(32, 24\) .*transposed\? It is N x K"),
        (lambda: linear(X.T.copy()), r"x is int8\(32, 3\); expected .*; is it transposed\?"),
        (lambda: linear(X), "x_scale is missing; .*QTensor"),
        (lambda: linear(X.astype(np.float32)), "expected int8.* a spec with input='float32'"),
        (lambda: static(X.astype(np.float32)), "x_scale is missing; .* a spec with dynamic=True"),
    ):
        with pytest.raises(QuantmmError, match=message):
            call()


def test_a_spec_is_what_it_was():
    """Checking the names of fields leaves the signature, copies and pickles as dataclasses' are."""
    assert pickle.loads(pickle.dumps(SPEC)) == SPEC
    assert MatmulSpec(24, 32) == SPEC
    with pytest.raises(SpecError, match="no field 'colour'"):
        qmm.quantize(W).spec(colour="red")


def test_groups_longer_than_k_are_said():
    message = "group_size=64 is more than K=32: every row has one group, as with group_size=None"
    with pytest.warns(RuntimeWarning, match=message) as warned:
        q = qmm.quantize(W, group_size=64)
    assert warned[0].filename == __file__
    np.testing.assert_array_equal(q.data, qmm.quantize(W).data)
    with pytest.warns(RuntimeWarning, match=message):
        qmm.compile(MatmulSpec(n=24, k=32, group_size=64, m=1))


def test_binding_a_kernel_of_another_machine_is_said():
    kernel = qmm.compile(SPEC, "arm-i8mm" if os.uname().machine == "x86_64" else "x86-avx2")
    message = f"the bound kernel for {kernel.info.target} cannot be called here: needs "
    with pytest.warns(RuntimeWarning, match=message):
        kernel.bind(qmm.quantize(W))


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_read_only_folder_has_one_wording(monkeypatch, tmp_path, code):
    """Asked before the work, found while writing, or of a folder to be made."""
    wording = f"the folder {tmp_path} is read-only for this user"
    refused = OSError(code, os.strerror(code))
    path = tmp_path / "k.qmm"
    assert files.why_not(refused, path) == files.why_not(refused, path.absolute()) == wording
    assert files.why_not(refused, tmp_path / "new" / "newer") == wording
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(KernelFileError, match=re.escape(f"cannot write {path}: {wording}")):
        files.check_writable(path, KernelFileError)

    def refuse(*_):
        raise refused

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(KernelFileError, match=re.escape(f"cannot write {path}: {wording}")):
        files.write_whole(path, b"", KernelFileError)


def test_what_a_program_sees():
    assert "tune" in dir(qmm)
    assert not {"Any", "TYPE_CHECKING", "importlib"} & set(dir(qmm))
    for name in dir(qmm):
        assert getattr(qmm, name) is not None


def test_extras_are_those_of_the_package():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML")
    project = tomllib.loads((Path(qmm.__file__).parent / "pyproject.toml").read_text())["project"]
    known = set(project["optional-dependencies"]) - {"test", "docs"}
    assert {extra.name for extra in extras.EXTRAS} == known
    with pytest.raises(AssertionError):
        extras.install("nothing")


@pytest.mark.parametrize(
    ("example", "module", "extra"),
    [("digits", "sklearn.datasets", "examples"), ("encoder", "torch", "torch")],
)
def test_examples_say_which_extra_they_need(monkeypatch, example, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    path = Path(qmm.__file__).parent / "examples" / f"{example}.py"
    with pytest.raises(SystemExit, match=re.escape(f": {extras.install(extra)}")):
        runpy.run_path(str(path))


@pytest.mark.parametrize("terminal", [True, False])
def test_work_is_shown_on_terminals_alone(monkeypatch, terminal):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr("rich.console.Console.is_terminal", terminal)
    with reports.working("comparing"):
        pass
    assert list(reports.watched([1, 2], lambda item: f"item {item}")) == [1, 2]
    assert ("comparing" in out.getvalue()) == terminal
    assert ("item 2" in out.getvalue()) == terminal


def test_ctrl_c_while_modules_are_imported(tmp_path):
    """In the command it is one line; in other programs what Python makes of it."""
    code = """
import sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == "quantmm.formats":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
import quantmm.cli.main
"""
    ends = {}
    for name in ("quantmm", "program.py"):
        script = tmp_path / name
        script.write_text(code)
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
        ends[name] = done.returncode, done.stderr
    assert ends["quantmm"] == (130, "quantmm: interrupted\n")
    status, said = ends["program.py"]
    assert status not in (0, 130)
    assert said.endswith("KeyboardInterrupt\n")
