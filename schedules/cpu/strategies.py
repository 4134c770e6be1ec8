"""The table of strategies. Adding one is adding its file, with a schedule and a space, and a row.

Nothing here imports `tvm`: the files with the schedules are imported when code is generated.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...targets import Instruction, Target
from ...targets.target import GEMV_ROWS
from .defaults import gemm_parameters, gemv_parameters
from .plan import CpuPlan, instructions_of
from .program import Parameters, Program

if TYPE_CHECKING:
    from tvm import tirx

    from .space import Scope

#: Rows of the smallest tile of a gemm: 33 rows are 11 of 3, but 4 of 9 with 3 idle ones.
GEMM_TILE_ROWS = 3


@dataclass(frozen=True)
class Strategy:
    """One way to multiply, for tiles of some heights.

    Attributes
    ----------
    name : which functions of kernels and records have, and the module of this package with
        `schedule(program)` and `space(scope)`.
    heights : rows of the tiles that a target has for it.
    defaults : the parameters of a tile of so many rows, by an instruction.
    first_m, last_m : the M that its default tiles serve; no end where `last_m` is None.
    tuned_up_to : the largest M for which tuning tries it; no end where it is None.
    streams : whether weights are read once, as streams from memory: a task has one panel, and
        `Parameters.ahead` is in bytes.
    paired : whether its instruction computes paired products.
    """

    name: str
    heights: Callable[[Target], Iterable[int]]
    defaults: Callable[[CpuPlan, Instruction, int], Parameters]
    first_m: int = GEMV_ROWS + 1
    last_m: int | None = None
    tuned_up_to: int | None = None
    streams: bool = False
    paired: bool = False

    def schedule(self, program: Program) -> tirx.PrimFunc:
        """`program` as a scheduled function over tiles."""
        func: tirx.PrimFunc = self._recipe().schedule(program)
        return func

    def space(self, scope: Scope) -> Mapping[str, Sequence[int]]:
        """What tuning may choose for every one of `Parameters` and for the block of K."""
        options: Mapping[str, Sequence[int]] = self._recipe().space(scope)
        return options

    def _recipe(self) -> Any:
        return importlib.import_module(f".{self.name}", __package__)


#: A gemv has one pass over the weight for all rows; the others take up where it ends.
GEMV = Strategy(
    "gemv",
    heights=lambda target: (rows for rows in target.tile_rows if rows <= GEMV_ROWS),
    defaults=gemv_parameters,
    first_m=1,
    last_m=GEMV_ROWS,
    tuned_up_to=32,
    streams=True,
)
GEMM = Strategy(
    "gemm",
    heights=lambda target: (rows for rows in target.tile_rows if rows >= GEMM_TILE_ROWS),
    defaults=gemm_parameters,
)
PAIRED = Strategy(
    "paired",
    heights=lambda target: target.paired_rows,
    defaults=gemm_parameters,
    paired=True,
)

#: Every strategy by its name.
STRATEGIES = {each.name: each for each in (GEMM, GEMV, PAIRED)}
#: Names that logs of before have for strategies.
NAMES_BEFORE = {"winograd": PAIRED.name}


def name_now(name: str) -> str:
    """The name of a strategy that a log calls `name`."""
    return NAMES_BEFORE.get(name, name)


def instruction_for(plan: CpuPlan, strategy: Strategy, rows: int) -> Instruction | None:
    """The instruction that the target has for a strategy's tile of `rows`, for these operands."""
    fit = [
        instruction
        for instruction in instructions_of(plan)
        if instruction.from_rows <= rows
        and instruction.form.even_and_odd == strategy.paired
        # Streams accumulate in vectors.
        and not (strategy.streams and instruction.registers is not None)
    ]
    return max(fit, key=lambda instruction: instruction.from_rows, default=None)
