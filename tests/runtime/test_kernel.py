"""Every compiled kernel computes what the reference says, for any shape and any M."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import problems
import pytest
import quantmm as qmm
from hypothesis import example, given
from hypothesis import strategies as st
from quantmm.compiler.expr import frontend
from quantmm.errors import UnsupportedError
from quantmm.formats.reference import bounds
from quantmm.schedules import plan as plans
from quantmm.schedules.cpu.plan import k_block_sizes, plan_for

SEEDS = st.integers(0, 2**32)


def run(kernel, m, rng):
    spec = kernel.spec
    w = problems.weight(rng, spec)
    x = problems.lay_out(rng, problems.activation(rng, spec, m))
    bind, call = problems.bind_arguments(rng, spec), problems.call_arguments(rng, spec, m)
    y = kernel.bind(w, **bind)(x, **call)
    problems.assert_agrees(y, bounds(spec, x, w, **bind, **call))


@problems.examples(15)
@given(problems.specs(), st.lists(st.integers(1, 70), min_size=5, max_size=5), SEEDS)
@example(qmm.MatmulSpec(n=1, k=1), [1, 2, 3, 64, 65], 0)
@example(qmm.MatmulSpec(n=1000, k=333), [1, 7, 8, 9, 200], 0)
@example(qmm.MatmulSpec(n=4095, k=1111, activation="uint8", out="int32"), [1, 5, 17, 33, 40], 0)
def test_one_kernel_serves_every_m(spec, ms, seed):
    rng = np.random.default_rng(seed)
    kernel = problems.compiled(spec, rows=ms)
    for m in ms:
        run(kernel, m, rng)


@problems.examples(30)
@given(st.data(), st.integers(1, 130), SEEDS)
def test_fixed_m_on_every_target(target, data, m, seed):
    spec = data.draw(problems.specs(m=m))
    run(qmm.compile(spec, target), m, np.random.default_rng(seed))


@problems.examples(14)
@given(st.data(), st.integers(1, 40), SEEDS)
def test_every_row_with_its_instruction_replaced_by_its_meaning(row, data, m, seed):
    spec = data.draw(problems.specs(max_n=100, max_k=150, m=m))
    emulated = qmm.targets.emulated(row)
    assert qmm.targets.why_not_here(emulated) is None
    run(qmm.compile(spec, emulated), m, np.random.default_rng(seed))


@pytest.mark.parametrize("m", range(1, 34))
def test_neighbouring_m(ragged_linear, m):
    rng = np.random.default_rng(m)
    linear, w = ragged_linear
    x = problems.integers(rng, "int8", (m, 333))
    np.testing.assert_array_equal(linear(x), qmm.reference(linear.kernel.spec, x, w))


@pytest.fixture(scope="module")
def ragged_linear():
    spec = qmm.MatmulSpec(n=77, k=333, out="int32")
    w = problems.weight(np.random.default_rng(0), spec)
    return qmm.compile(spec).bind(w), w


def test_large_m_is_split_into_blocks():
    rng = np.random.default_rng(0)
    spec = qmm.MatmulSpec(n=40, k=8192, out="int32")
    kernel = problems.compiled(spec, rows=[1000])
    functions = [dataclasses.replace(each, block_rows=100) for each in kernel.info.functions]
    kernel.info = dataclasses.replace(kernel.info, functions=tuple(functions))
    assert kernel.plan(1000).mo >= 10
    run(kernel, 1000, rng)


def test_rows_of_x_do_not_disturb_each_other():
    rng = np.random.default_rng(0)
    spec = qmm.MatmulSpec(n=33, k=65, out="int32")
    linear = qmm.compile(spec).bind(problems.weight(rng, spec))
    x = problems.integers(rng, "int8", (19, 65))
    together = linear(x)
    for i in range(19):
        np.testing.assert_array_equal(linear(x[i : i + 1])[0], together[i])


def test_report_names_what_each_m_uses(target):
    kernel = qmm.compile(qmm.MatmulSpec(n=64, k=64), target)
    rows = kernel.report([1, 512])
    assert rows[0]["strategy"] == "gemv"
    assert rows[0]["function"] != rows[1]["function"]
    assert {row["instruction"] for row in rows} <= {each.name for each in target.instructions}
    assert {row["record"] for row in rows} == {None}
    fixed = qmm.compile(qmm.MatmulSpec(n=64, k=64, m=3), target)
    assert [row["m"] for row in fixed.report()] == [3]


def test_a_weight_whose_last_offset_is_the_last_of_int32(target, monkeypatch):
    # With a smaller int32: the padded weight has one element more than it counts.
    spec = qmm.MatmulSpec(n=64, k=250)
    sizes = k_block_sizes(plan_for(spec, target))
    elements = math.prod(plan_for(spec, target).layout.shape)
    for module in (plans, frontend):
        monkeypatch.setattr(module, "MAX_ELEMENTS", elements - 1)
    kernel = problems.compiled(spec, target, rows=(1, 3, 40))
    for m in (1, 3, 40):
        run(kernel, m, np.random.default_rng(m))
    monkeypatch.setattr(plans, "MAX_ELEMENTS", elements - 2)
    fits = [size for size in sizes if -(-250 // size) * size * 64 < elements]
    if fits:
        assert qmm.compile(spec, target).info.layout.k_block == fits[0]
    monkeypatch.setattr(plans, "MAX_ELEMENTS", 64 * 250 - 2)
    with pytest.raises(
        UnsupportedError, match=f"is {elements} elements with its padding; expected"
    ):
        qmm.compile(spec, target)
