"""The table of strategies for GPUs. Adding one is adding its file, with a schedule, and a row.

Nothing here imports `tvm`: the files with the schedules are imported when code is generated.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...targets import Instruction
from ...targets.cuda import CudaTarget
from ...targets.cuda_layout import COLUMNS, CudaLayout
from ..plan import x_sign
from . import tiles
from .cost import DOT_PRODUCTS, MATRIX_PRODUCTS, CudaCost
from .plan import CudaPlan
from .program import CudaProgram, CudaTile
from .tiles import ENOUGH_SUMS

if TYPE_CHECKING:
    from tvm import tirx

#: M from which tiles of still more sums are offered. They save bytes out of L2; with fewer rows it
#: is memory that bounds the time, where all tiles read the weights once.
LARGE_M = 1024


@dataclass(frozen=True)
class CudaStrategy:
    """One way to multiply.

    Attributes
    ----------
    name : which functions of kernels and records have, and the module of this package with
        `schedule(program)`.
    tiles : those with which it serves a plan.
    products : of a target, by which it multiplies.
    """

    name: str
    tiles: Callable[[CudaPlan], Sequence[CudaTile]]
    products: Callable[[CudaTarget], tuple[Instruction, ...]]

    def schedule(self, program: CudaProgram) -> tirx.PrimFunc:
        """`program` as a scheduled function over tiles."""
        recipe = importlib.import_module(f".{self.name}", __package__)
        func: tirx.PrimFunc = recipe.schedule(program)
        return func


#: Every strategy by its name, in the order of a kernel's functions.
STRATEGIES = {
    each.name: each
    for each in (
        CudaStrategy("gemv", tiles.gemv_tiles, lambda target: target.dots),
        CudaStrategy("dp4a", tiles.dp4a_tiles, lambda target: target.dots),
        CudaStrategy("splitk", tiles.splitk_tiles, lambda target: target.matrix),
        CudaStrategy("mma", tiles.mma_tiles, lambda target: target.matrix),
    )
}


@dataclass(frozen=True)
class CudaVariant:
    """One kernel: the name of a strategy, tile and product."""

    strategy: str
    tile: CudaTile
    instruction: Instruction

    @property
    def name(self) -> str:
        """The kernel's name in the source."""
        return f"{self.strategy}_{self.tile.rows}x{self.tile.blocks * COLUMNS}"

    def cost(self, layout: CudaLayout) -> CudaCost:
        """The terms of its predicted time, by which a kernel is chosen for each M.

        X costs a gemv nothing: its thread blocks find it in L1, where another one has read it.
        """
        rows, columns = self.tile.rows, self.tile.blocks * COLUMNS
        at_a_time = MATRIX_PRODUCTS if self.instruction.rows > 1 else DOT_PRODUCTS
        return CudaCost(
            rows,
            panels=-(-layout.n_blocks // self.tile.blocks),
            products=rows * columns / at_a_time,
            traffic=columns / layout.halves + (rows if self.tile.stages else 0),
            first_m=LARGE_M if rows * columns > ENOUGH_SUMS else 1,
        )


def variants(plan: CudaPlan) -> tuple[CudaVariant, ...]:
    """The kernels of which one may serve a number of rows: one per number of rows in a tile."""
    return tuple(
        CudaVariant(strategy.name, tile, paired(strategy.products(plan.target), plan))
        for strategy in STRATEGIES.values()
        if strategy.products(plan.target)
        for tile in strategy.tiles(plan)
    )


def paired(instructions: tuple[Instruction, ...], plan: CudaPlan) -> Instruction:
    """The instruction for the signs of a plan."""
    signs = x_sign(plan.spec), plan.layout.dtype
    return next(each for each in instructions if (each.x_dtype, each.w_dtype) == signs)
