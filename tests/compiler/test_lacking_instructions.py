"""Rows for x86 chips with instructions that this CPU may lack: those are executed in software."""

from __future__ import annotations

import numpy as np
import problems
import pytest
import quantmm as qmm
from hypothesis import given
from hypothesis import strategies as st
from illegal_instructions import EMULATED, emulating
from quantmm.bench import limits
from quantmm.formats.reference import bounds
from quantmm.runtime import memory
from quantmm.runtime.tvm_runtime import tvm_ffi
from quantmm.targets import machine

ROWS = ("x86-amx", "x86-avxvnniint8", "x86-avxvnni")


@pytest.fixture(params=ROWS)
def lacking(request, monkeypatch):
    """A row, on a machine that pretends to have its features."""
    target = qmm.targets.find(request.param)
    here = machine.cpu_features()
    if reason := machine.why_not(target.architecture, target.features - EMULATED):
        pytest.skip(reason)
    monkeypatch.setattr(machine, "cpu_features", lambda: here | EMULATED)
    if "amx_tile" not in here:
        monkeypatch.setattr(machine, "tiles_refused", lambda: None)
    return target


@pytest.fixture
def lacking_here():
    """Features that this CPU does not have."""
    return EMULATED - machine.cpu_features()


@problems.examples(25)
@given(st.data(), st.integers(1, 70), st.integers(0, 2**32))
def test_any_problem(lacking, data, m, seed):
    spec = data.draw(problems.specs(max_n=100, max_k=200, m=m))
    rng = np.random.default_rng(seed)
    w, x = problems.weight(rng, spec), problems.activation(rng, spec, m)
    bind, call = problems.bind_arguments(rng, spec), problems.call_arguments(rng, spec, m)
    linear = qmm.compile(spec, lacking).bind(w, **bind)
    with emulating():
        y = linear(x, **call)
    problems.assert_agrees(y, bounds(spec, x, w, **bind, **call))


def test_the_instruction_was_emulated(lacking_here, lacking):
    rng = np.random.default_rng(0)
    spec = qmm.MatmulSpec(n=100, k=300, out="int32")
    w, x = problems.weight(rng, spec), problems.activation(rng, spec, 40)
    with emulating() as count:
        y = problems.compiled(spec, lacking, rows=[40]).bind(w)(x, num_threads=2)
    np.testing.assert_array_equal(y, qmm.reference(spec, x, w))
    mnemonics = {"x86-amx": "tdpbusd", "x86-avxvnniint8": "vpdpbssd", "x86-avxvnni": "vpdpbusd"}
    assert count[mnemonics[lacking.name]] > 0 or not lacking.features & lacking_here
    assert count["ldtilecfg"] == count["tilerelease"]


def test_peak_kernel_does_the_operations_that_are_counted(lacking, monkeypatch):
    monkeypatch.setattr(limits, "PEAK_REPEATS", 2)
    rng = np.random.default_rng(0)
    x, w, y = (
        memory.aligned_empty(shape, dtype) for shape, dtype in limits.peak_arrays(lacking, 2)
    )
    x[...], w[...] = rng.integers(0, 100, x.shape), rng.integers(0, 100, w.shape)
    kernel = limits.function(limits.peak_schedule(lacking, 2), lacking)
    with emulating():
        kernel(*map(tvm_ffi.from_dlpack, (x, w, y)))
    depth = lacking.instruction.depth
    rows = x.astype(np.int64).reshape(len(x), -1, depth)
    columns = w.astype(np.int64)
    if columns.ndim > 4:  # [step][block][k / 4][lane][4]
        columns = columns.swapaxes(2, 3)
    columns = columns.reshape(len(w), -1, depth)
    once = np.einsum("sad,sbd->ab", rows, columns)
    got = y if y.ndim == 4 else y.swapaxes(2, 3)  # [thread][row][row in fragment][block][lane]
    for sums in got.reshape(2, *once.shape):
        np.testing.assert_array_equal(sums, 2 * once)
