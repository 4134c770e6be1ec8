"""Kernels for weights with offsets, on every row."""

from __future__ import annotations

import dataclasses

import numpy as np
import problems
import pytest
import quantmm as qmm
from hypothesis import given
from hypothesis import strategies as st
from quantmm.compiler import cpu
from quantmm.formats.reference import bounds
from quantmm.schedules.cpu.plan import plan_for

SEEDS = st.integers(0, 2**32)


def with_offset(spec):
    out = "float32" if spec.out == "int32" else spec.out
    return dataclasses.replace(spec, weight_zero_point=False, weight_offset=True, out=out)


def run(kernel, m, rng):
    spec = kernel.spec
    x, w = problems.activation(rng, spec, m), problems.weight(rng, spec)
    bind, call = problems.bind_arguments(rng, spec), problems.call_arguments(rng, spec, m)
    y = kernel.bind(w, **bind)(x, **call)
    problems.assert_agrees(y, bounds(spec, x, w, **bind, **call))


@problems.examples(8)
@given(st.data(), st.sampled_from([1, 2, 5, 17, 40]), SEEDS)
def test_every_row_with_its_instruction_replaced_by_its_meaning(row, data, m, seed):
    spec = with_offset(data.draw(problems.specs(max_n=100, max_k=150, m=m)))
    run(qmm.compile(spec, qmm.targets.emulated(row)), m, np.random.default_rng(seed))


@problems.examples(8)
@given(st.data(), st.sampled_from([1, 2, 5, 17, 40]), SEEDS)
def test_every_target_of_this_machine(target, data, m, seed):
    spec = with_offset(data.draw(problems.specs(m=m)))
    run(qmm.compile(spec, target), m, np.random.default_rng(seed))


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("zeros", [False, True])
def test_groups_in_passes(passes, zeros):
    # Sums in memory between the passes, and a last group that is shorter.
    spec = qmm.MatmulSpec(
        n=70, k=152, weight="int4", group_size=40, weight_offset=True, activation_zero_point=zeros
    )
    plan = plan_for(spec, qmm.targets.host())
    gemm = next(each for each in cpu.choose(plan) if each[0].strategy.name == "gemm")
    variant = dataclasses.replace(
        gemm[0], parameters=dataclasses.replace(gemm[0].parameters, k_passes=passes)
    )
    kernel = cpu.kernel_of(plan, [(variant, cpu.function_of(variant, plan.layout))])
    run(kernel, 9, np.random.default_rng(0))
