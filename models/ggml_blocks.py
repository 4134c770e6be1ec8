"""The blocks in which ggml stores a weight, as the integers, scales and offsets of a `QTensor`.

A row is a whole number of blocks. The structs are those of llama.cpp's ggml/src/ggml-common.h, and
what they mean is that of `dequantize_row_*` in ggml-quants.c, of which gguf-py's quants.py is the
copy in NumPy. Every scale here is a float16, or the product of one and a whole number of at most 8
bits, which float32 holds exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

#: Integers, scales and, where there are any, offsets; of which groups are the last axis.
Parts = tuple[np.ndarray, np.ndarray, "np.ndarray | None"]


@dataclass(frozen=True)
class BlockType:
    """A row of the table of ggml's types.

    Attributes
    ----------
    weights, nbytes : of a block.
    plain : the dtype of numbers that are stored as they are.
    fields : the struct of a block, where `read` reads it.
    dtype, group_size : of the `QTensor`.
    read : from blocks (rows, blocks) of that struct what `Parts` says: the data (rows, bytes of a
        row), the scales and the offsets (rows, groups).
    """

    name: str
    weights: int
    nbytes: int
    plain: np.dtype | None = None
    fields: np.dtype | None = None
    dtype: str = ""
    group_size: int = 32
    read: Callable[[np.ndarray], Parts] | None = None

    @property
    def is_integer(self) -> bool:
        """Whether it holds integers without scales, as no weight does."""
        return self.plain is not None and self.plain.kind == "i"

    @property
    def multiplied(self) -> bool:
        """Whether a weight of this type is read."""
        return self.read is not None or (self.plain is not None and not self.is_integer)

    @property
    def has_offset(self) -> bool:
        """Whether a weight of this type has offsets."""
        return self.fields is not None and not {"m", "dmin"}.isdisjoint(self.fields.names or ())

    def __post_init__(self) -> None:
        if self.fields is not None and self.fields.itemsize != self.nbytes:
            raise ValueError(f"{self.name}: {self.fields.itemsize} bytes, not {self.nbytes}")


def floats_of(halves: np.ndarray) -> np.ndarray:
    """float16 numbers as float32."""
    return halves.astype(np.float32)


def flat(blocks: np.ndarray) -> np.ndarray:
    """What belongs to the blocks of a row, one behind the other."""
    return blocks.reshape(len(blocks), math.prod(blocks.shape[1:]))


def bytes_of(field: np.ndarray) -> np.ndarray:
    """The bytes of a field of all blocks in memory of their own, where NumPy is fast on them."""
    run = np.dtype((np.void, field.shape[-1] * field.itemsize))
    return np.ascontiguousarray(field.view(run)).view(np.uint8)


def interleaved(planes: list[np.ndarray]) -> np.ndarray:
    """For each block its bytes (..., n) of the first plane, then of the second, and so on."""
    n = planes[0].shape[-1]
    whole = np.empty((*planes[0].shape[:-1], len(planes), n), np.uint8)
    runs = whole.view(np.dtype((np.void, n)))[..., 0]
    for i, plane in enumerate(planes):
        runs[..., i] = plane.view(runs.dtype)[..., 0]
    return whole


def neighbours(q: np.ndarray) -> list[np.ndarray]:
    """4-bit integers, two per byte as `pack_int4` has them, in planes of half the bytes.

    ggml has numbers i and i + n of 2 n in byte i, along the last axis of `q`, (..., n) of bytes.
    """
    words = q.view("<u2")
    planes = []
    for shift in (0, 4):
        nibbles = words >> shift
        nibbles &= 0x0F0F
        nibbles |= nibbles >> 4
        planes.append(nibbles.astype(np.uint8))  # the low byte
    return planes


def five_bits(blocks: np.ndarray) -> np.ndarray:
    """The integers of Q5_0 and Q5_1, whose highest bits are in four bytes of their own."""
    low = bytes_of(blocks["q"])
    integers = flat(interleaved([low & 0xF, low >> 4]))
    highest = np.unpackbits(flat(bytes_of(blocks["high"])), axis=-1, bitorder="little")
    highest <<= 4
    integers |= highest
    return integers.view(np.int8)


def six_bits(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 8 scales and 8 minima of Q4_K and Q5_K, of 6 bits each, in 12 bytes."""
    first, second, third = (packed[..., start : start + 4] for start in (0, 4, 8))
    scales = np.concatenate([first & 63, third & 15 | first >> 2 & 48], axis=-1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 2 & 48], axis=-1)
    return scales, minima


def q4_0(blocks: np.ndarray) -> Parts:
    """D (q - 8)."""
    data = interleaved(neighbours(bytes_of(blocks["q"]) ^ 0x88))
    return flat(data), floats_of(blocks["d"]), None


def q4_1(blocks: np.ndarray) -> Parts:
    """D q + m."""
    data = interleaved(neighbours(bytes_of(blocks["q"])))
    return flat(data), floats_of(blocks["d"]), floats_of(blocks["m"])


def q5_0(blocks: np.ndarray) -> Parts:
    """D (q - 16)."""
    return five_bits(blocks) - np.int8(16), floats_of(blocks["d"]), None


def q5_1(blocks: np.ndarray) -> Parts:
    """D q + m."""
    return five_bits(blocks), floats_of(blocks["d"]), floats_of(blocks["m"])


def q8_0(blocks: np.ndarray) -> Parts:
    """D q."""
    return flat(bytes_of(blocks["q"])).view(np.int8), floats_of(blocks["d"]), None


def scaled(d: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """The scale of each block times its groups' factors."""
    with np.errstate(invalid="ignore"):  # infinity times 0, which no `QTensor` holds
        return flat(floats_of(d)[..., None] * factors)


def of_superblocks(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scales and offsets of Q4_K and Q5_K, d sc and -dmin m."""
    scales, minima = six_bits(blocks["scales"])
    return scaled(blocks["d"], scales), scaled(blocks["dmin"], -minima.astype(np.float32))


def q4_k(blocks: np.ndarray) -> Parts:
    """D sc q - dmin m, where 32 bytes hold two groups."""
    planes = [plane for i in range(4) for plane in neighbours(bytes_of(blocks["q"][..., i, :]))]
    return flat(interleaved(planes)), *of_superblocks(blocks)


def q5_k(blocks: np.ndarray) -> Parts:
    """D sc q - dmin m, where bit g of 32 bytes belongs to group g."""
    high = bytes_of(blocks["high"])
    planes = []
    for group in range(8):
        if group % 2 == 0:
            two = bytes_of(blocks["q"][..., group // 2, :])
        fifth = high << (4 - group) if group < 4 else high >> (group - 4)
        planes.append(nibble(two, group % 2) | fifth & 16)
    return flat(interleaved(planes)).view(np.int8), *of_superblocks(blocks)


def q6_k(blocks: np.ndarray) -> Parts:
    """D sc (q - 32), where two bits of 32 bytes belong to each of four runs of 32 numbers."""
    planes = []
    for half in range(2):
        high = bytes_of(blocks["high"][..., half, :])
        low = [bytes_of(blocks["q"][..., 2 * half + i, :]) for i in range(2)]
        for run in range(4):
            two = high << (4 - 2 * run) if run < 2 else high >> (2 * run - 4)
            planes.append(nibble(low[run % 2], run // 2) | two & 48)
    data = flat(interleaved(planes)).view(np.int8) - np.int8(32)
    return data, scaled(blocks["d"], blocks["scales"]), None


def nibble(q: np.ndarray, high: int) -> np.ndarray:
    """The low or the high halves of bytes."""
    return q >> 4 if high else q & 0xF


HALF = "<f2"


def struct(*fields: tuple[str, str] | tuple[str, str, tuple[int, ...]]) -> np.dtype:
    """A struct without gaps."""
    return np.dtype([*fields])


FOUR = ("q", "u1", (16,))
FIFTH = ("high", "u1", (4,))
K_SCALES = ("d", HALF), ("dmin", HALF), ("scales", "u1", (12,))
Q4_0 = struct(("d", HALF), FOUR)
Q4_1 = struct(("d", HALF), ("m", HALF), FOUR)
Q5_0 = struct(("d", HALF), FIFTH, FOUR)
Q5_1 = struct(("d", HALF), ("m", HALF), FIFTH, FOUR)
Q8_0 = struct(("d", HALF), ("q", "i1", (32,)))
Q4_K = struct(*K_SCALES, ("q", "u1", (4, 32)))
Q5_K = struct(*K_SCALES, ("high", "u1", (32,)), ("q", "u1", (4, 32)))
Q6_K = struct(("q", "u1", (4, 32)), ("high", "u1", (2, 32)), ("scales", "i1", (16,)), ("d", HALF))

#: By their numbers in files. Those without `plain` and `read` are known by name and size alone.
#: Numbers of 5 and 6 bits are int7: the narrowest format that has its bytes.
BLOCK_TYPES = {
    0: BlockType("F32", 1, 4, plain=np.dtype("<f4")),
    1: BlockType("F16", 1, 2, plain=np.dtype("<f2")),
    2: BlockType("Q4_0", 32, 18, fields=Q4_0, dtype="int4", read=q4_0),
    3: BlockType("Q4_1", 32, 20, fields=Q4_1, dtype="uint4", read=q4_1),
    6: BlockType("Q5_0", 32, 22, fields=Q5_0, dtype="int7", read=q5_0),
    7: BlockType("Q5_1", 32, 24, fields=Q5_1, dtype="int7", read=q5_1),
    8: BlockType("Q8_0", 32, 34, fields=Q8_0, dtype="int8", read=q8_0),
    9: BlockType("Q8_1", 32, 40),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144, fields=Q4_K, dtype="uint4", read=q4_k),
    13: BlockType("Q5_K", 256, 176, fields=Q5_K, dtype="int7", read=q5_k),
    14: BlockType("Q6_K", 256, 210, fields=Q6_K, dtype="int7", group_size=16, read=q6_k),
    15: BlockType("Q8_K", 256, 292),
    16: BlockType("IQ2_XXS", 256, 66),
    17: BlockType("IQ2_XS", 256, 74),
    18: BlockType("IQ3_XXS", 256, 98),
    19: BlockType("IQ1_S", 256, 50),
    20: BlockType("IQ4_NL", 32, 18),
    21: BlockType("IQ3_S", 256, 110),
    22: BlockType("IQ2_S", 256, 82),
    23: BlockType("IQ4_XS", 256, 136),
    24: BlockType("I8", 1, 1, plain=np.dtype("<i1")),
    25: BlockType("I16", 1, 2, plain=np.dtype("<i2")),
    26: BlockType("I32", 1, 4, plain=np.dtype("<i4")),
    27: BlockType("I64", 1, 8, plain=np.dtype("<i8")),
    28: BlockType("F64", 1, 8, plain=np.dtype("<f8")),
    29: BlockType("IQ1_M", 256, 56),
    30: BlockType("BF16", 1, 2, plain=np.dtype(ml_dtypes.bfloat16)),
    34: BlockType("TQ1_0", 256, 54),
    35: BlockType("TQ2_0", 256, 66),
    39: BlockType("MXFP4", 32, 17),
    40: BlockType("NVFP4", 64, 36),
    41: BlockType("Q1_0", 128, 18),
}
