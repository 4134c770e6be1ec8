"""NVIDIA's GPUs, by compute capability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .target import Instruction, MultiplyAdd

#: Threads of a warp, which multiply together.
WARP = 32


def products(
    name: str, mnemonic: str, rows: int, lanes: int, depth: int
) -> tuple[Instruction, ...]:
    """An instruction in every pairing of signs, which it does all."""
    return tuple(
        Instruction(name, mnemonic, x_dtype, w_dtype, lanes=lanes, depth=depth, rows=rows)
        for x_dtype in ("int8", "uint8")
        for w_dtype in ("int8", "uint8")
    )


#: PTX ISA, "Integer Arithmetic Instructions: dp4a" and "Matrix multiply-accumulate: mma".
DP4A = products("dp4a", "IDP.4A", rows=1, lanes=1, depth=4)
MMA_M8N8K16 = products("mma.sync m8n8k16", "IMMA.8816", rows=8, lanes=8, depth=16)
MMA_M16N8K32 = products("mma.sync m16n8k32", "IMMA.16832", rows=16, lanes=8, depth=32)


@dataclass(frozen=True)
class CudaTarget:
    """One row of the table of GPUs.

    Attributes
    ----------
    capability : compute capability, (major, minor), of the chips that can run it. Code for one runs
        on later ones of the same major number.
    matrix : the tensor core's products, one per pairing of signs; none where there is no such core.
    dots : dot products of single threads.
    multiprocessors : of the largest card that is named, for the choice of a tile. Small tiles on a
        card that has fewer cost little; large tiles that leave one half empty cost much.
    shared_bytes : shared memory that one block may ask for (CUDA C++ Programming Guide, "Technical
        Specifications per Compute Capability").
    """

    device: ClassVar[Literal["cuda"]] = "cuda"

    name: str
    description: str
    capability: tuple[int, int]
    matrix: tuple[Instruction, ...]
    multiprocessors: int
    shared_bytes: int
    dots: tuple[Instruction, ...] = DP4A
    half_floats: bool = False
    multiply_add: MultiplyAdd = "called"
    max_keeps_nan: bool = False

    @property
    def arch(self) -> str:
        """As compilers write it, such as "sm_80"."""
        major, minor = self.capability
        return f"sm_{major}{minor}"

    @property
    def instruction(self) -> Instruction:
        """The product that stands for the chip in tables and in the formula of its peak."""
        return (self.matrix or self.dots)[0]


def runs(code: tuple[int, int], device: tuple[int, int]) -> bool:
    """Whether a device executes machine code for the capability `code`."""
    return code[0] == device[0] and code[1] <= device[1]


#: The oldest first: the order in which features came.
CUDA_TARGETS = (
    CudaTarget(
        "cuda-sm75-dp4a",
        "NVIDIA Turing without tensor cores (GeForce GTX 16)",
        (7, 5),
        (),
        24,
        64 << 10,
    ),
    CudaTarget("cuda-sm75", "NVIDIA Turing (T4, RTX 20)", (7, 5), MMA_M8N8K16, 40, 64 << 10),
    CudaTarget("cuda-sm80", "NVIDIA Ampere (A100)", (8, 0), MMA_M16N8K32, 108, 163 << 10),
    CudaTarget("cuda-sm86", "NVIDIA Ampere (A10, RTX 30)", (8, 6), MMA_M16N8K32, 72, 99 << 10),
    CudaTarget("cuda-sm89", "NVIDIA Ada (L4, L40, RTX 40)", (8, 9), MMA_M16N8K32, 142, 99 << 10),
    CudaTarget("cuda-sm90", "NVIDIA Hopper (H100, H200)", (9, 0), MMA_M16N8K32, 132, 227 << 10),
    CudaTarget("cuda-sm100", "NVIDIA Blackwell (B200)", (10, 0), MMA_M16N8K32, 148, 227 << 10),
    CudaTarget("cuda-sm120", "NVIDIA Blackwell (RTX 50)", (12, 0), MMA_M16N8K32, 170, 99 << 10),
)
