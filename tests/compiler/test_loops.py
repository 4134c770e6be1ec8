"""Steps of schedules find loops by the names of their axes."""

from __future__ import annotations

import pytest
import quantmm as qmm
from quantmm import targets
from quantmm.compiler.cpu import choose_variants, program_of
from quantmm.schedules.cpu.loops import loops_over
from quantmm.schedules.cpu.plan import plan_for
from tvm.s_tir import Schedule


@pytest.fixture
def schedule():
    plan = plan_for(qmm.MatmulSpec(n=16, k=64, m=2, out="int32"), targets.find("x86-avx512vnni"))
    (variant,) = choose_variants(plan)
    return Schedule(program_of(plan, variant).func)


def test_the_innermost_loop_along_an_axis(schedule):
    acc = schedule.get_sblock("acc")
    (k,) = loops_over(schedule, acc, "kk")
    _, inner = schedule.split(k, [None, 4])
    lane, found = loops_over(schedule, acc, "lane", "kk")
    assert schedule.get(found).same_as(schedule.get(inner))
    assert int(schedule.get(lane).extent) == 16


def test_an_axis_that_a_block_does_not_have(schedule):
    with pytest.raises(LookupError, match="acc has no axis kb; it has o, i, part, r, nb, lane, kk"):
        loops_over(schedule, schedule.get_sblock("acc"), "kb")


def test_an_axis_along_which_no_loop_walks(schedule):
    acc, y = schedule.get_sblock("acc"), schedule.get_sblock("y")
    schedule.compute_at(acc, loops_over(schedule, y, "lane")[0])
    with pytest.raises(LookupError, match="no loop around acc walks along its axis part"):
        loops_over(schedule, acc, "part")
