"""The register file: what a tile takes of it."""

from __future__ import annotations

from ...targets import Instruction, Target, WeightLayout
from .plan import CpuPlan
from .program import Tile, x_steps


def budget(target: Target, instruction: Instruction) -> int:
    """The registers that a tile may take."""
    return instruction.registers or target.vector_registers


def sums_of(layout: WeightLayout) -> int:
    """Sums of each row and column: integers, and beside them floats where there are groups."""
    return 2 if layout.groups > 1 else 1


def registers(plan: CpuPlan, instruction: Instruction, tile: Tile, sums: int) -> int:
    """Registers that a tile needs: sums, weights, activations, and what lies between them.

    4-bit weights are two vectors once they are unpacked, with a mask.

    Parameters
    ----------
    sums : of each row and column that stay in registers, see `sums_of`.
    """
    target, layout = plan.target, plan.layout
    fragments, blocks = -(-tile.rows // instruction.rows), tile.blocks
    if instruction.registers is not None:
        return blocks * (fragments + 1) + 1
    accumulators = sums * tile.rows * max(1, layout.lanes * 4 // target.vector_bytes)
    form, steps = instruction.form, layout.steps_per_byte
    weights = max(1, layout.step_bytes // target.vector_bytes) * steps * form.w_components
    # Vectors of activations stay for several steps, and the compiler loads some of the next early.
    stay = x_steps(layout, instruction) > 1
    activations = tile.rows + 2 if stay else min(2, instruction.rows * form.x_components)
    mask = steps - 1
    return blocks * (accumulators + weights) + activations + mask + instruction.temporaries


def fitting(plan: CpuPlan, instruction: Instruction, rows: int, sums: int) -> list[int]:
    """Blocks of columns of a tile that fit the register file with so many sums.

    At least one, or one of each matrix, which then passes through memory.
    """
    most, least = budget(plan.target, instruction), plan.layout.matrices
    fit = [
        blocks
        for blocks in range(2 * least, most + 1, least)
        if registers(plan, instruction, Tile(rows, blocks), sums) <= most
    ]
    return [least, *fit]
