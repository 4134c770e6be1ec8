"""The table of strategies for GPUs. Adding one is adding its file, with a schedule, and a row.

Nothing here imports `tvm`: the files with the schedules are imported when code is generated.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...targets import Instruction
from ...targets.cuda import CudaTarget
from ...targets.cuda_layout import COLUMNS, CudaLayout
from ..plan import x_sign
from . import spaces, tiles
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
    space : what tuning may choose for every number of a tile.
    first_m, last_m : rows for which tuning tries it; no end where `last_m` is None.
    """

    name: str
    tiles: Callable[[CudaPlan], Sequence[CudaTile]]
    products: Callable[[CudaTarget], tuple[Instruction, ...]]

    space: Callable[[CudaPlan], Mapping[str, Sequence[int]]]
    first_m: int = 1
    last_m: int | None = None

    def schedule(self, program: CudaProgram) -> tirx.PrimFunc:
        """`program` as a scheduled function over tiles."""
        recipe = importlib.import_module(f".{self.name}", __package__)
        func: tirx.PrimFunc = recipe.schedule(program)
        return func


def threads_alone(target: CudaTarget) -> tuple[Instruction, ...]:
    """Dot products of single threads, for chips that have no tensor core."""
    return () if target.matrix else target.dots


#: Every strategy by its name, in the order of a kernel's functions.
STRATEGIES = {
    each.name: each
    for each in (
        CudaStrategy(
            "gemv", tiles.gemv_tiles, lambda target: target.dots, spaces.of_gemv, last_m=16
        ),
        CudaStrategy("dp4a", tiles.dp4a_tiles, threads_alone, spaces.of_dp4a, first_m=5),
        CudaStrategy(
            "splitk", tiles.splitk_tiles, lambda target: target.matrix, spaces.of_splitk, 3, 256
        ),
        CudaStrategy("mma", tiles.mma_tiles, lambda target: target.matrix, spaces.of_mma, 17),
    )
}


@dataclass(frozen=True)
class CudaVariant:
    """One kernel: the name of a strategy, tile and product; `label` is what its name ends with."""

    strategy: str
    tile: CudaTile
    instruction: Instruction
    label: str = ""

    @property
    def name(self) -> str:
        """The kernel's name in the source."""
        return f"{self.strategy}_{self.tile.rows}x{self.tile.blocks * COLUMNS}{self.label}"

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
        variant_with(plan, strategy.name, tile)
        for strategy in STRATEGIES.values()
        if strategy.products(plan.target)
        for tile in strategy.tiles(plan)
    )


def variant_with(plan: CudaPlan, strategy: str, tile: CudaTile, label: str = "") -> CudaVariant:
    """A strategy's kernel with any tile."""
    products = STRATEGIES[strategy].products(plan.target)
    return CudaVariant(strategy, tile, paired(products, plan), label)


def paired(instructions: tuple[Instruction, ...], plan: CudaPlan) -> Instruction:
    """The instruction for the signs of a plan."""
    signs = x_sign(plan.spec), plan.layout.dtype
    return next(each for each in instructions if (each.x_dtype, each.w_dtype) == signs)
