"""The shape of a row: what quantmm must know about a chip to compile for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

from .forms import BYTES, Form

#: How a * b + c is rounded once: by an instruction into which the code generator contracts it, by a
#: function that is called, or through float64.
MultiplyAdd = Literal["contracted", "called", "float64"]

#: The kind of device of a row, by which what differs between the two is told apart.
Device = Literal["cpu", "cuda"]

#: Rows up to which a kernel streams the weights in one pass (gemv), and memory bounds the time. An
#: instruction that is worse for few rows takes over behind them, see `Instruction.from_rows`.
GEMV_ROWS = 4


class Chip(Protocol):
    """What the float arithmetic of a kernel depends on."""

    @property
    def device(self) -> Device:
        """The kind of device that it is a chip of."""

    @property
    def half_floats(self) -> bool:
        """Whether float16 and float32 are converted by an instruction."""

    @property
    def multiply_add(self) -> MultiplyAdd:
        """How a * b + c in float32 gets one rounding."""

    @property
    def max_keeps_nan(self) -> bool:
        """Whether the maximum of a number and NaN, in this order, is NaN."""


@dataclass(frozen=True)
class Instruction:
    """A dot-product instruction: a fragment of int32 sums, each of `depth` products at a time.

    For every row r < rows and lane l < lanes of the fragment

        acc[r, l] += sum over d < depth of x[r, d] * w[l, d],  exact modulo 2**32,

    or what `form` says.

    Attributes
    ----------
    mnemonic : what a disassembler prints; None where the plain loop is left to the compiler.
    x_dtype, w_dtype : bytes of which signs it multiplies: activations, weights.
    rows : of the fragment. With one, x is the same for every lane (a broadcast). Fewer are
        computed where a tile is not a multiple of it, if `shapes`.
    columns : of a block of the weight's layout, the vectors in which results are written; None is
        `lanes`.
    interleave : consecutive k of one column in that layout, [N / columns][K / interleave][columns]
        [interleave]; None is `depth`.
    form : how it reads its operands, see `forms`; all but BYTES add more than the dot product.
    x_lanes : dot products that a vector of activations feeds, each with one of its lanes.
    shapes : the instruction works on any shape up to rows x lanes x depth (matrix tiles).
    weight_bits : widths of stored weights that it reads.
    weights : the least and the greatest weight, as it is stored, for which it is exact; None is all
        that `w_dtype` holds.
    registers : the registers that hold its fragments, where they are not vectors.
    temporaries : vector registers for what lies between the operands and the sum.
    from_rows : rows of a tile from which it is used, where a target has a better one for few.
    slots, load_slots : what a row of a block of columns takes, and what the loading of a fragment
        does, in issue slots of a target's vector dot products.
    intrinsic : module of this package that has its intrinsic.
    llvm_feature : LLVM's name of the feature without which LLVM cannot emit it.
    """

    name: str
    mnemonic: str | None
    x_dtype: str
    w_dtype: str
    lanes: int
    depth: int
    rows: int = 1
    columns: int | None = None
    interleave: int | None = None
    form: Form = BYTES
    x_lanes: int = 1
    shapes: bool = False
    weight_bits: tuple[int, ...] = (8, 4)
    weights: tuple[int, int] | None = None
    registers: int | None = None
    temporaries: int = 0
    from_rows: int = 1
    slots: float = 1.0
    load_slots: float = 1.0
    intrinsic: str | None = None
    llvm_feature: str | None = None

    @property
    def block_columns(self) -> int:
        """Columns of a block of the weight's layout."""
        return self.columns or self.lanes

    @property
    def block_depth(self) -> int:
        """Consecutive k of one column in the weight's layout."""
        return self.interleave or self.depth

    @property
    def alone(self) -> bool:
        """Whether it is all that a dot product takes, with nothing between operands and sum."""
        return self.mnemonic is not None and self.temporaries == 0

    @property
    def products(self) -> int:
        """Products that one instruction adds to each sum."""
        return self.depth // self.form.k_per_product

    @property
    def read_dtypes(self) -> tuple[str, str]:
        """In which it reads activations and weights."""
        return self.form.x_dtype or self.x_dtype, self.form.w_dtype or self.w_dtype

    @property
    def weight_range(self) -> tuple[int, int]:
        """The least and the greatest stored weight that it multiplies exactly."""
        return self.weights or ((0, 255) if self.w_dtype == "uint8" else (-128, 127))

    def reads(self, bits: int, group_size: int | None) -> bool:
        """Whether weights of `bits` in groups of `group_size` lie as it reads them."""
        unit = self.block_depth * (8 // bits)
        return bits in self.weight_bits and (group_size or 0) % unit == 0

    def exact(self, least: int, greatest: int) -> bool:
        """Whether it multiplies weights that are stored as `least` to `greatest` exactly."""
        first, last = self.weight_range
        return first <= least and greatest <= last

    @property
    def operations(self) -> int:
        """Multiplications plus additions that one instruction does."""
        return 2 * self.rows * self.lanes * self.depth


@dataclass(frozen=True)
class Target:
    """One row of the table. All sizes in bytes.

    Attributes
    ----------
    name : what a user writes, such as "x86-avx512vnni".
    architecture : `platform.machine()` of the chips that can run it; None for any.
    llvm : options of TVM's "llvm" target.
    features : CPU features (Linux's /proc/cpuinfo names) without which the code must not run.
    instructions : its dot products, one per pairing of signs that the chip has.
    vector_bytes, vector_registers : the register file that a tile of accumulators must fit.
    tile_rows : numbers of rows that have a tile of their own, so that no M is much worse than
        M + 1. Nine rows of three blocks fill 31 of 32 registers.
    paired_rows : those of the tiles of paired products.
    cache_bytes : the share of a cache for a block of packed activations. They are streamed once
        per panel of weights: for vectors the last level is fast enough, for AMX's tiles L2 is.
    """

    device: ClassVar[Literal["cpu"]] = "cpu"

    name: str
    description: str
    architecture: str | None
    llvm: dict[str, object] = field(hash=False)
    features: frozenset[str]
    instructions: tuple[Instruction, ...]
    vector_bytes: int
    vector_registers: int
    cache_bytes: int
    tile_rows: tuple[int, ...] = tuple(range(1, 10))
    paired_rows: tuple[int, ...] = ()

    @property
    def instruction(self) -> Instruction:
        """The dot product that stands for the chip in tables and in the formula of its peak."""
        return self.instructions[0]

    @property
    def half_floats(self) -> bool:
        """Whether float16 and float32 are converted by an instruction."""
        return self.architecture == "aarch64" or "f16c" in self.features

    @property
    def max_keeps_nan(self) -> bool:
        """TVM compares, and takes the second where neither is greater."""
        return True

    @property
    def multiply_add(self) -> MultiplyAdd:
        """LLVM contracts it to an instruction where there is one."""
        fused = self.architecture == "aarch64" or "fma" in self.features
        return "contracted" if fused else "float64"
