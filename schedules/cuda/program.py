"""What the frontend hands to a recipe for GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...targets import Instruction
from ...targets.cuda_layout import CudaLayout

if TYPE_CHECKING:
    from tvm import tirx


#: Rows of a fragment of sums on the tensor core, whatever instructions it takes.
FRAGMENT_ROWS = 16
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
    """

    rows: int
    blocks: int
    warps: tuple[int, int, int] = (1, 1, 1)
    steps: int = 1
    stages: int = 0

    @property
    def warps_in_all(self) -> int:
        """Warps of a thread block."""
        over_rows, over_columns, over_k = self.warps
        return over_rows * over_columns * over_k


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
