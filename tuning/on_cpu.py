"""What tuning knows of CPUs: the default of an M, the spaces, what a choice is like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..compiler.linker import command as linker_command
from ..runtime.tvm_runtime import without_torch
from ..schedules.cpu import validation
from ..schedules.cpu.plan import CpuPlan, k_block_sizes, with_k_block
from ..schedules.cpu.program import Parameters
from ..schedules.cpu.registers import registers, sums_of
from ..schedules.cpu.strategies import GEMM, STRATEGIES, instruction_for
from ..schedules.cpu.variants import Variant, variant_with, variants
from ..targets import Target, machine
from .choice import Choice

if TYPE_CHECKING:
    from ..schedules.cpu.space import Scope

#: Tiles up to this height are tried where a target's dot products can compute them.
MOST_ROWS = 16
#: Sizes of a block of K that are tried, the default among them: shorter ones were never better.
MOST_K_BLOCKS = 3


def default_choice(plan: CpuPlan, m: int) -> Choice:
    """What a kernel without a record computes `m` rows with."""
    layout = plan.layout
    fit = (variant for variant in variants(plan) if variant.serves(m))
    best = min(fit, key=lambda v: v.cost_of(m, layout.n_blocks))
    return Choice(best.strategy.name, layout.k_block, best.parameters)


def variant_of(plan: CpuPlan, choice: Choice) -> Variant:
    """The function that a choice stands for, of a plan with its block of K."""
    assert isinstance(choice.parameters, Parameters)
    strategy = STRATEGIES[choice.strategy]
    instruction = instruction_for(plan, strategy, choice.parameters.rows)
    assert instruction is not None, "what `refusal` names"
    return variant_with(plan, instruction, strategy, choice.parameters)


def refusal(plan: CpuPlan, choice: Choice) -> str | None:
    """Why a choice has no code; None when it has."""
    assert isinstance(choice.parameters, Parameters)
    assert choice.k_block is not None
    with_its_block = with_k_block(plan, choice.k_block)
    return validation.refusal(with_its_block, choice.strategy, choice.parameters)


def space(plan: CpuPlan, m: int) -> Mapping[str, Mapping[str, Sequence[int]]]:
    """What may be chosen for `m` rows, by strategy and decision."""
    scope = scope_of(plan, m)
    return {name: STRATEGIES[name].space(scope) for name in strategies(plan, m)}


def strategies(plan: CpuPlan, m: int) -> tuple[str, ...]:
    """The strategies that may be the best for `m` rows."""
    return tuple(
        name
        for name, strategy in STRATEGIES.items()
        if m <= (strategy.tuned_up_to or m) and instruction_for(plan, strategy, m) is not None
    )


def scope_of(plan: CpuPlan, m: int) -> Scope:
    """What the spaces depend on."""
    from ..schedules.cpu.space import Scope

    row, rows = plan.target, []
    for count in sorted({*range(1, MOST_ROWS + 1), *row.tile_rows}):
        instruction = instruction_for(plan, GEMM, count)
        assert instruction is not None
        fragments = -(-count // instruction.rows)
        if count % (fragments if instruction.shapes else instruction.rows) == 0:
            rows.append(count)
        if count >= m and rows:
            break
    sizes = tuple(k_block_sizes(plan)[:MOST_K_BLOCKS])
    return Scope(row, plan.layout, m, tuple(reversed(rows)), sizes)


def features(plan: CpuPlan, m: int, choice: Choice) -> list[float]:
    """Numbers that say what a choice does to registers, caches and padding."""
    p = choice.parameters
    assert isinstance(p, Parameters)
    assert choice.k_block is not None
    plan = with_k_block(plan, choice.k_block)
    variant, layout = variant_of(plan, choice), plan.layout
    tiles = -(-m // p.rows)
    return [
        math.log2(variant.cost_of(m, layout.n_blocks)),
        2.0 * STRATEGIES[choice.strategy].streams,
        math.log2(p.rows),
        math.log2(p.blocks),
        math.log2(p.panels),
        math.log2(p.ahead + 1) / 4,
        math.log2(p.unroll),
        math.log2(p.few_tiles + 1) / 2,
        math.log2(min(p.block_rows, m)) / 2,
        math.log2(choice.k_block) / 2,
        math.log2(p.k_passes),
        2.0 * p.rows_inner,
        registers(plan, variant.instruction, p.tile, sums_of(layout)) / 16,
        4.0 * (tiles * p.rows / m - 1),
    ]


def tools(row: Target) -> dict[str, Any]:
    """What building needs is asked for; what a log says of it beside the machine's header.

    Raises
    ------
    ToolError
        There is no linker for the target.
    """
    linker_command(row.architecture or machine.architecture())
    with without_torch():
        from tvm.target import codegen
    return {"llvm": codegen.llvm_version_major()}
