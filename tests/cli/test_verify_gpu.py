"""`quantmm verify` of GPUs: generated code on the CPU, and on a card, which is emulated here."""

from __future__ import annotations

import shlex
import types

import emulated_card
import pytest
import quantmm as qmm
from quantmm.cli import verify as cli_verify
from quantmm.compiler.emulation import toolchain
from quantmm.targets import verified
from quantmm.versions import cuda_versions

SMALL = ["--n", 24, "--k", 72, "--activation-scale", "tensor"]


@pytest.fixture
def judged(monkeypatch):
    """What is checked, without a kernel."""
    seen = []
    monkeypatch.setattr(cli_verify, "check", lambda problem, kernel: seen.append(kernel))
    monkeypatch.setattr("quantmm.compiler.emulation.kernels.build", lambda *_, **how: how)
    return seen


def test_generated_code_on_the_cpu(quantmm):
    words = ["verify", "--target", "cuda-sm80", "--emulated", *SMALL, "--m", 3]
    assert quantmm(*words, "--function", "gemv_4x8") == (
        0,
        "1 of 1 problems agree with the reference\n",
        "",
    )


def test_a_failure_prints_the_line_that_repeats_it(quantmm, monkeypatch):
    monkeypatch.setattr(cli_verify, "check", lambda *_: "all of it differs")
    monkeypatch.setattr("quantmm.compiler.emulation.kernels.build", lambda *_, **how: how)
    words = ["verify", "--target", "cuda-sm80", "--emulated", "--random", 1, "--seed", 3]
    status, out, err = quantmm(*words)
    assert (status, err) == (2, "quantmm: all of it differs\n")
    again = shlex.split(out.strip())
    assert "--emulated" in again
    assert "--function" in again
    assert quantmm(*again[1:])[1:] == (out, err)


def test_random_problems_take_every_function(quantmm, judged):
    words = ["verify", "--target", "cuda-sm90", "--emulated", "--random", 60]
    assert quantmm(*words)[0] == 0
    strategies = {each["function"].partition("_")[0] for each in judged}
    assert strategies == {"gemv", "splitk", "mma"}


def test_what_the_time_ended_is_gone_on_with(quantmm, judged, monkeypatch, tmp_path):
    times = iter([0.0, 0.0, 0.0, 9.0, *[0.0] * 9])
    clock = types.SimpleNamespace(monotonic=lambda: next(times))
    monkeypatch.setattr(cli_verify, "time", clock)
    path = tmp_path / "verified.json"
    words = ["verify", "--target", "cuda-sm80", "--emulated", "--record", path]
    status, out, _ = quantmm(*words, "--random", 6, "--seed", 0, "--time-limit", 5)
    assert status == 0
    first, *_, last = out.strip().splitlines()
    assert first == "2 of 6 problems agree with the reference"
    assert last == "the time was over; go on with --random 4 --seed 2"
    (record,) = verified.read(path)
    assert (record.how, record.problems) == (verified.GENERATED, 2)
    assert record.versions == cuda_versions()
    assert quantmm(*words, *last.split()[-4:])[0] == 0
    assert [each.problems for each in verified.read(path)] == [6]
    # Problems that were counted are not counted twice.
    assert quantmm(*words, "--random", 3, "--seed", 1)[0] == 0
    assert [each.problems for each in verified.read(path)] == [3]


def test_on_a_card(quantmm, monkeypatch, tmp_path):
    gpu = emulated_card.install(monkeypatch, "cuda-sm80")
    monkeypatch.setattr(cli_verify, "LARGE", cli_verify.SMALL)
    path = tmp_path / "verified.json"
    for target in ("cuda", "cuda-sm80"):
        words = ["verify", "--target", target, "--random", 1, "--seed", 2, "--record", path]
        assert quantmm(*words)[0] == 0
    assert gpu.launches
    (record,) = verified.read(path)
    assert (record.how, record.cpu, record.target) == ("native", "emulated", "cuda-sm80")


def test_without_a_card(quantmm, monkeypatch):
    words = ["verify", "--target", "cuda-sm80", "--random", 1]
    status, _, err = quantmm(*words)
    assert status == 2
    assert "target cuda-sm80 cannot run here: no CUDA driver" in err
    assert "with --emulated it is verified with its generated code on the CPU" in err
    emulated_card.install(monkeypatch, "cuda-sm75")
    assert "needs compute capability 8.0; there is emulated (7.5); with --emu" in quantmm(*words)[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*SMALL, "--function", "gemv_9x9"], "--function gemv_9x9: cuda-sm80 has gemv_1x"),
        (["--random", 1, "--function", "gemv_1x8"], "--function is for one problem; --random"),
        (["--random", 1, "--time-limit", 0], "--time-limit is 0.0; expected more than 0 seconds"),
    ],
)
def test_what_cannot_be(quantmm, words, message):
    status, _, err = quantmm("verify", "--target", "cuda-sm80", "--emulated", *words)
    assert status == 2
    assert message in err


def test_a_cpu_has_no_functions_to_choose(quantmm):
    words = ["verify", "--target", "generic", *SMALL, "--function", "gemv"]
    assert "--function gemv: generic has none to choose" in quantmm(*words)[2]


def test_no_compiler_for_the_emulation(quantmm, monkeypatch):
    monkeypatch.setattr(toolchain, "COMPILERS", ())
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    toolchain.compiler.cache_clear()
    toolchain.runtime.cache_clear()
    try:
        words = ["verify", "--target", "cuda-sm80", "--emulated", *SMALL, "--m", 1]
        status, _, err = quantmm(*words)
        assert status == 2
        assert "emulating a GPU needs a C++ compiler (), or pip install 'quantmm[link]'" in err
        with pytest.raises(qmm.errors.ToolError):
            toolchain.compiler()
    finally:
        toolchain.compiler.cache_clear()
        toolchain.runtime.cache_clear()
