"""What the frontend hands to a recipe for GPUs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...targets import Instruction
from ...targets.cuda_layout import CudaLayout

if TYPE_CHECKING:
    from tvm import tirx


#: What numbers of warps are called, in the order of `CudaTile.warps`.
WARPS = ("warps_over_rows", "warps_over_columns", "warps_over_k")
#: Rows of a fragment of sums on the tensor core, whatever instructions it takes.
FRAGMENT_ROWS = 16
#: Columns of a band of panels. Blocks that run at a time read the fewest bytes into L2 where they
#: have as many rows as columns: 132 tiles of 128 x 256, or twice as many of half the size, are some
#: 2,100 rows of a band.
BAND_COLUMNS = 2048
#: Bytes between rows of a tile of sums in shared memory, see `cuda_steps.ROUND`.
SKEW = 32


@dataclass(frozen=True)
class CudaTile:
    """What a thread block computes: `rows` rows of X times `blocks` blocks of 8 columns.

    Attributes
    ----------
    warps : over rows, over columns and over K.
    steps : of K that lie in shared memory at a time (`CudaLayout`).
    stages : of the pipeline that fills it; 0 where operands are read straight from memory.
    band : columns of a band of panels at most, see `steps.grid`.
    """

    rows: int
    blocks: int
    warps: tuple[int, int, int] = (1, 1, 1)
    steps: int = 1
    stages: int = 0
    band: int = BAND_COLUMNS

    @property
    def warps_in_all(self) -> int:
        """Warps of a thread block."""
        over_rows, over_columns, over_k = self.warps
        return over_rows * over_columns * over_k

    def numbers(self) -> dict[str, int]:
        """Its fields as numbers by name, as tuning and records have them."""
        fields = dataclasses.asdict(self)
        warps = zip(WARPS, fields.pop("warps"), strict=True)
        return {**fields, **dict(warps)}

    @classmethod
    def of(cls, numbers: Mapping[str, int]) -> CudaTile:
        """The inverse of `numbers`."""
        fields = dict(numbers)
        over_rows, over_columns, over_k = (fields.pop(name) for name in WARPS)
        return cls(warps=(over_rows, over_columns, over_k), **fields)


@dataclass(frozen=True)
class CudaProgram:
    """A TensorExpression on its way to a kernel.

    Attributes
    ----------
    parts : into how many parts K is cut, each with int32 sums of its own: the groups, or what
        several warps share out.
    """

    func: tirx.PrimFunc
    layout: CudaLayout
    instruction: Instruction
    tile: CudaTile
    parts: int

    @property
    def k_loops(self) -> int:
        """Loops of "acc" along K: over steps, both weights of a byte where it has two, and k."""
        return 2 if self.layout.halves == 1 else 3
