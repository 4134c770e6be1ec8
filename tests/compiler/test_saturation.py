"""Chips whose products of bytes saturate: exact at the ends of ranges, signs or sums by rows."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import quantmm as qmm
from quantmm.compiler.cpu import choose, kernel_of
from quantmm.formats.integers import INTEGERS
from quantmm.schedules.cpu.plan import plan_for
from quantmm.schedules.cpu.strategies import GEMM, GEMV, PAIRED

ROWS = [row for row in qmm.targets.TARGETS if row.paired_rows]


def runnable(row):
    """The row, or where this machine lacks it the loops that it means."""
    return row if qmm.targets.why_not_here(row) is None else qmm.targets.emulated(row)


#: Of activations and weights.
SIGNS = (
    ("int8", "int8"),
    ("uint8", "uint8"),
    ("int8", "uint8"),
    ("int8", "int7"),
    ("uint8", "int7"),
)
#: A number of rows for each strategy, by which its function is asked for.
STRATEGIES = {GEMV: 4, GEMM: 20, PAIRED: 26}


def every_strategy(spec, row):
    """A kernel with one function of each strategy, for its number of rows alone."""
    plan, chosen = plan_for(spec, row), []
    for strategy, m in STRATEGIES.items():
        choices = [each for each in choose(plan) if each[0].strategy == strategy]
        if not choices:
            continue
        variant, function = min(choices, key=lambda each: each[0].cost_of(m, plan.layout.n_blocks))
        chosen.append((variant, dataclasses.replace(function, first_m=m, last_m=m)))
    return kernel_of(plan, chosen)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize(
    ("k", "group_size", "signs"),
    [
        *((*size, signs) for size in ((333, None), (200, 64)) for signs in SIGNS),
        (4, None, SIGNS[0]),
        (1, None, SIGNS[1]),
    ],
)
def test_the_ends_of_every_range(row, signs, k, group_size):
    activation, weight = signs
    spec = qmm.MatmulSpec(
        n=48, k=k, activation=activation, weight=weight, out="float32", group_size=group_size
    )
    kernel = every_strategy(spec, runnable(row))
    x_ends, w_ends = (INTEGERS[dtype].range for dtype in signs)
    served = {each.strategy: each.first_m for each in kernel.info.functions}
    assert len(served) == (2 if weight == "int7" else 3)
    for (strategy, m), x_end, w_end in itertools.product(
        served.items(), (*x_ends, None), (*w_ends, None)
    ):
        assert kernel.plan(m).strategy == strategy
        x = ends(x_ends, (m, k), x_end, 1).astype(activation)
        w = ends(w_ends, (48, k), w_end, 2).astype(INTEGERS[weight].stored)
        groups = 1 if group_size is None else -(-k // group_size)
        shape = (48,) if group_size is None else (48, groups)
        tensor = qmm.QTensor(w, np.ones(shape, np.float32), None, weight, group_size, w.shape)
        exact = x.astype(np.int64) @ w.astype(np.int64).T
        np.testing.assert_array_equal(kernel.bind(tensor, x_scale=1.0)(x), exact.astype(np.float32))


def ends(limits, shape, end, seed):
    """`end` everywhere, or where it is None both ends by chance."""
    if end is not None:
        return np.full(shape, end)
    return np.random.default_rng(seed).choice(limits, shape)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_weights_of_seven_bits_need_no_other_form(row):
    spec = qmm.MatmulSpec(n=48, k=64, weight="int7", weight_zero_point=True)
    plan = plan_for(spec, row)
    assert plan.instruction.name.startswith("vpmaddubsw")
    assert (plan.x_shift, plan.w_shift) == (128, 0)
    other = dataclasses.replace(plan.instruction, weights=(-63, 63))
    without = dataclasses.replace(
        row, instructions=tuple(other if i == plan.instruction else i for i in row.instructions)
    )
    assert plan_for(spec, without).instruction != other


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_few_rows_do_not_pay_for_sums(row):
    kernel = qmm.compile(qmm.MatmulSpec(n=256, k=256), row)
    assert all(kernel.plan(m).strategy != PAIRED.name for m in range(1, 10))
    assert kernel.plan(512).strategy == PAIRED.name
