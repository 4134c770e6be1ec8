"""AWQ as AutoAWQ's GEMM layout has it: words along N, in the order in which a kernel loads them.

qweight int32 (K, N / 8), qzeros int32 (G, N / 8), scales (G, N): nibble i of a word c is column
8 c + COLUMNS[i], and w[n, k] = scales[g, n] (q[k, n] - z[g, n]), zero points as they are.
Source: AutoAWQ, awq/utils/packing_utils.py and awq/modules/linear/gemm.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from ..errors import WeightFileError
from ..formats.quantize import QTensor
from .model import Layer
from .source import Found, Source, found, modules, whole_number
from .tensors import Stored
from .words import as_bytes, common, fields_of, for_all, qtensor, transposed, unpack

PARTS = ("qweight", "qzeros", "scales")
SCALES = ("float16", "bfloat16", "float32")
#: The column that each nibble of a word holds.
COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, eq=False)
class Module:
    """A module's tensors; `zero_points` are (N, G)."""

    name: str
    parts: dict[str, Stored]
    shape: tuple[int, int]
    group_size: int
    zero_points: np.ndarray


def recognises(source: Source) -> bool:
    """Whether the settings say so: tensors have the names of GPTQ's."""
    parts = modules(source.tensors, PARTS)
    if source.method is not None or not parts:
        return source.method == "awq" and bool(parts)
    return all(
        len(each["scales"].shape) == len(each["qweight"].shape) == 2
        and each["scales"].shape[1] == 8 * each["qweight"].shape[1]
        for each in parts.values()
    )


def find(source: Source) -> Found:
    """All modules with a qweight."""
    says = source.quantization
    version = says.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        raise WeightFileError(
            f"{source.path}: AWQ's layout {version!r} is not read; expected gemm, which AutoAWQ "
            "writes unless it is told otherwise"
        )
    if (bits := says.get("bits", says.get("w_bit", 4))) != 4:
        raise WeightFileError(f"{source.path}: AWQ with bits={bits!r}; expected 4")
    parts = modules(source.tensors, PARTS)
    return found({name: layer(source, name, each) for name, each in parts.items()}, parts)


def layer(source: Source, name: str, parts: dict[str, Stored]) -> Layer:
    """A module as a layer."""
    qweight = parts["qweight"].expect("int32", (None, None))
    k, words = qweight.shape
    n = 8 * words
    says = source.quantization
    size = whole_number(
        source, "group_size", says.get("group_size", says.get("q_group_size", 0)), -1
    )
    groups = parts["scales"].expect(SCALES, (None, n)).shape[0]
    if not groups or not words or not k:
        raise WeightFileError(f"{qweight.path}: {name} is empty")
    if size <= 0:
        size = -(-k // groups)
    parts["scales"].expect(SCALES, (-(-k // size), n))
    zeros = parts["qzeros"].expect("int32", (groups, words)).read()
    zero_points = transposed(in_order(unpack(as_bytes(zeros), 4, n))).astype(np.int32)
    group_size = None if size >= k else size
    row = Module(name, parts, (n, k), size, zero_points)
    return Layer(
        name,
        row.shape,
        f"awq int4 {'channel' if group_size is None else f'g={group_size}'}",
        sum(part.nbytes for part in parts.values()),
        qweight.path,
        partial(load, row, group_size),
        fields_of(4, common(zero_points), group_size=group_size),
    )


def in_order(codes: np.ndarray) -> np.ndarray:
    """Columns where they belong: `codes` has them as the nibbles of words."""
    out = np.empty_like(codes)
    for nibble, column in enumerate(COLUMNS):
        out[:, column::8] = codes[:, nibble::8]
    return out


def load(row: Module, group_size: int | None) -> QTensor:
    """A weight. Two rows of the file become one of pairs along K, half of the numbers at a time."""
    n, k = row.shape
    packed = as_bytes(row.parts["qweight"].read())
    stored = np.empty((n, -(-k // 2)), np.uint8)

    def some(rows: slice) -> None:
        words = packed[:, rows.start // 2 : rows.stop // 2]
        pairs = np.empty((stored.shape[1], 2 * words.shape[1]), np.uint8)
        first, second = words[0::2], words[1::2]
        for half in (0, 1):  # the low nibbles of all bytes, and the high ones
            both = (first & 15) if half == 0 else first >> 4
            both[: k // 2] |= second << 4 if half == 0 else second & 0xF0
            for byte in range(4):
                pairs[:, COLUMNS[2 * byte + half] :: 8] = both[:, byte::4]
        stored[rows] = pairs.T

    for_all(some, n, n * k)
    scale, zero_point = transposed(row.parts["scales"].read()), row.zero_points
    if group_size is None:
        scale, zero_point = scale[:, 0], zero_point[:, 0]
    return qtensor(stored, 4, k, scale, zero_point, group_size)
