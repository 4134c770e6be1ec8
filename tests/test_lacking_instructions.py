"""Rows for x86 chips with instructions that this CPU may lack: those are executed in software."""

from __future__ import annotations

import numpy as np
import problems
import pytest
import quantmm as qmm
from hypothesis import given, settings
from hypothesis import strategies as st
from illegal_instructions import emulating
from quantmm.targets import machine

#: What the emulator can do instead of the CPU.
EMULATED = {"avx_vnni", "avx_vnni_int8", "amx_tile", "amx_int8"}
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
        monkeypatch.setattr(machine, "permit_tiles", lambda name: None)
    return target


@pytest.fixture
def lacking_here():
    """Features that this CPU does not have."""
    return EMULATED - machine.cpu_features()


@settings(max_examples=40)
@given(st.data(), st.integers(1, 70), st.integers(0, 2**32))
def test_any_problem(lacking, data, m, seed):
    spec = data.draw(problems.specs(max_n=100, max_k=200, m=m))
    rng = np.random.default_rng(seed)
    w, x = problems.weight(rng, spec), problems.activation(rng, spec, m)
    bind, call = problems.bind_arguments(rng, spec), problems.call_arguments(rng, spec, m)
    linear = qmm.compile(spec, lacking).bind(w, **bind)
    with emulating():
        y = linear(x, **call)
    problems.assert_agrees(y, qmm.reference(spec, x, w, **bind, **call))


def test_the_instruction_was_emulated(lacking_here, lacking):
    rng = np.random.default_rng(0)
    spec = qmm.MatmulSpec(n=100, k=300, out="int32")
    w, x = problems.weight(rng, spec), problems.activation(rng, spec, 40)
    with emulating() as count:
        y = qmm.compile(spec, lacking).bind(w)(x, num_threads=2)
    np.testing.assert_array_equal(y, qmm.reference(spec, x, w))
    mnemonics = {"x86-amx": "tdpbusd", "x86-avxvnniint8": "vpdpbssd", "x86-avxvnni": "vpdpbusd"}
    assert count[mnemonics[lacking.name]] > 0 or not lacking.features & lacking_here
    assert count["ldtilecfg"] == count["tilerelease"]
