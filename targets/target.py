"""The shape of a row: what quantmm must know about a chip to compile for it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Instruction:
    """A dot-product instruction: `lanes` int32 sums, each of `depth` products.

    For every lane l:  acc[l] += sum over d < depth of x[d] * w[l, d],  exact modulo 2**32.

    The activation bytes x are the same for every lane (a broadcast), the weight bytes w differ;
    so W is stored as [N / lanes][K / depth][lanes][depth] and one load feeds one instruction.
    """

    name: str
    #: What a disassembler prints; None where the plain loop is left to the compiler.
    mnemonic: str | None
    #: dtype in which the instruction reads activations and weights.
    x_dtype: str
    w_dtype: str
    lanes: int
    depth: int
    #: Module of this package that holds the intrinsic beside the loop that it means, under
    #: NAMES[x_dtype, w_dtype].
    intrinsic: str | None = None

    @property
    def operations(self) -> int:
        """Multiplications plus additions that one instruction does."""
        return 2 * self.lanes * self.depth


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
    cache_bytes : the share of the last-level cache for a block of packed activations. They are
        streamed once per panel of weights, so L2 need not hold them, but memory is too slow.
    """

    name: str
    description: str
    architecture: str | None
    llvm: dict[str, object] = field(hash=False)
    features: frozenset[str]
    instructions: tuple[Instruction, ...]
    vector_bytes: int
    vector_registers: int
    cache_bytes: int

    @property
    def instruction(self) -> Instruction:
        """The dot product that stands for the chip in tables and in the formula of its peak."""
        return self.instructions[0]

    @property
    def half_floats(self) -> bool:
        """Whether float16 and float32 are converted by an instruction."""
        return "f16c" in self.features

    @property
    def fused_multiply_add(self) -> bool:
        """Whether a * b + c in float32 is one instruction with one rounding."""
        return "fma" in self.features
