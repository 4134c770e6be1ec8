"""Whatever tuning may choose computes the same: tiles, loop orders, passes over K, prefetches."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import problems
import pytest
import quantmm as qmm
from hypothesis import assume, given
from hypothesis import strategies as st
from quantmm.compiler.cpu import function_of, kernel_of
from quantmm.formats.reference import bounds
from quantmm.schedules.cpu.plan import plan_for, with_k_block
from quantmm.schedules.cpu.program import passes_of
from quantmm.schedules.cpu.space import of_trace
from quantmm.schedules.cpu.strategies import GEMV, instruction_for
from quantmm.tuning.choice import Choice
from quantmm.tuning.on_cpu import default_choice, refusal, strategies, variant_of
from quantmm.tuning.search import Search

#: What is set beside what the space samples: small problems have few blocks of K and of rows.
PASSES, BLOCK_ROWS = (1, 2, 3, 4, 5, 8), (1, 16, 40, 1000)


def kernel_with(spec, row, choice):
    """The kernel that has nothing but `choice`."""
    plan = plan_for(spec, row, choice.k_block)
    variant = variant_of(plan, choice)
    return kernel_of(plan, [(variant, function_of(variant, plan.layout))])


@functools.cache
def runnable(row):
    """The row, or where this machine lacks it the loops that it means."""
    return row if qmm.targets.why_not_here(row) is None else qmm.targets.emulated(row)


@st.composite
def choices(draw, spec, row, m):
    search = Search(spec, row, m, draw(st.integers(0, 2**16)), 4)
    strategy = draw(st.sampled_from(strategies(search.plan, m)))
    choice = Choice.of(of_trace(search.schedule(strategy, None).trace))
    parts = passes_of(with_k_block(search.plan, choice.k_block).layout)
    passes = draw(st.sampled_from([each for each in PASSES if parts % each == 0]))
    more = {"k_passes": passes, "block_rows": draw(st.sampled_from(BLOCK_ROWS))}
    choice = dataclasses.replace(choice, parameters=dataclasses.replace(choice.parameters, **more))
    assume(refusal(search.plan, choice) is None)
    return choice


@problems.examples(5)
@given(st.data(), st.integers(1, 70), st.integers(0, 2**32))
def test_any_choice(row, data, m, seed):
    row = runnable(row)
    spec = data.draw(problems.specs(max_n=100, max_k=600))
    choice = data.draw(choices(spec, row, m))
    rng = np.random.default_rng(seed)
    w, x = problems.weight(rng, spec), problems.activation(rng, spec, m)
    bind, call = problems.bind_arguments(rng, spec), problems.call_arguments(rng, spec, m)
    linear = kernel_with(spec, row, choice).bind(w, **bind)
    problems.assert_agrees(linear(x, num_threads=2, **call), bounds(spec, x, w, **bind, **call))


def test_streams_accumulate_in_vectors():
    plan = plan_for(qmm.MatmulSpec(n=64, k=64), qmm.targets.find("x86-amx"))
    assert plan.instruction.registers
    for rows in (1, 9, 16):
        assert instruction_for(plan, GEMV, rows).name == "vpdpbusd zmm"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"k_passes": 3}, "k_passes=3 does not divide the 64 parts of K"),
        ({"k_passes": 2, "block_rows": 1 << 20}, "k_passes=2 keeps"),
        ({"k_passes": 0}, "k_passes=0; expected a whole number of at least 1"),
        ({"rows_inner": 2}, "rows_inner=2; expected 0 or 1"),
    ],
)
def test_what_has_no_code(more, message):
    spec, row = qmm.MatmulSpec(n=100, k=4096), qmm.targets.find("x86-avx512vnni")
    plan = plan_for(spec, row)
    default = default_choice(plan, 512)
    choice = dataclasses.replace(
        default, parameters=dataclasses.replace(default.parameters, **more)
    )
    assert refusal(plan, choice).startswith(message)
