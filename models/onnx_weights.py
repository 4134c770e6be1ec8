"""What operators of ONNX multiply with, as a `QTensor` or floats: integers and their scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ArrayError
from ..formats.integers import INTEGERS
from ..formats.nibbles import pack_int4, unpack_int4
from ..formats.quantize import QTensor
from .model import Activations
from .onnx_graph import Constant, Graph, attribute, input_name, operator

#: Integers that a weight may have.
WEIGHTS = ("int8", "uint8", "int4", "uint4")


@dataclass(frozen=True, eq=False)
class Weight:
    """What one operator multiplies with.

    Attributes
    ----------
    parts : the constants that it is made of.
    note : what the operator does beside, which the weight does not have.
    """

    format: str
    shape: tuple[int, int]
    parts: tuple[Constant, ...]
    load: Callable[[], QTensor | np.ndarray]
    fields: Mapping[str, Any] | None = None
    activations: Activations | None = None
    note: str | None = None


def integers(
    kind: str,
    matrix: Constant,
    scale: Constant | None,
    zero_point: Constant | None,
    *,
    columns: bool = True,
    block: int | None = None,
    activations: Activations | None = None,
    note: str | None = None,
) -> Weight | None:
    """A matrix of integers with a scale for all, for each column of Y, or each block of K of one.

    Parameters
    ----------
    kind : the operator.
    scale : 1 for all where there is none.
    columns : whether the matrix is stored as (K, N).
    """
    if len(matrix.shape) != 2 or 0 in matrix.shape:
        return None
    n, k = reversed(matrix.shape) if columns else matrix.shape
    if matrix.dtype not in WEIGHTS:
        return Weight(f"{kind} {matrix.dtype}", (n, k), (matrix,), lambda: refuse(kind, matrix))
    beside_it = [part for part in (scale, zero_point) if part is not None]
    shape = next((part.shape for part in beside_it if math.prod(part.shape) != 1), ())
    blocks = (n, 1) if block is None else (n, -(-k // block))
    stored = blocks[::-1] if columns else blocks
    if shape not in ((), stored if block is not None else (n,)):
        raise ArrayError(
            f"the scales of {matrix.name} have shape {shape}; expected () or "
            f"{stored if block is not None else (n,)}"
        )
    group_size = "tensor" if shape == () else block
    final: tuple[int, ...] = () if shape == () else (n,) if block is None else blocks

    def beside(part: Constant) -> np.ndarray:
        values = part.read()
        values = np.broadcast_to(values, shape) if values.size == 1 else values
        values = values.T if len(shape) == 2 and columns else values
        return np.ascontiguousarray(values).reshape(final)

    has_points = zero_point is not None and bool(zero_point.read().any())

    def load() -> QTensor:
        data = matrix.read()
        data = np.ascontiguousarray(data.T) if columns else data
        # Their shape is that of the scales, which the file has not shown to hold before.
        s = np.ones(final, np.float32) if scale is None else beside(scale).astype(np.float32)
        points = None
        if zero_point is not None and has_points:
            points = beside(zero_point).astype(np.int32)
        if INTEGERS[matrix.dtype].packed:
            data = pack_int4(data, fill=0 if points is None else last_of_rows(points))
        return QTensor(data, s, points, matrix.dtype, group_size, (n, k))

    fields = {
        "weight": matrix.dtype,
        "group_size": group_size,
        "weight_zero_point": has_points,
    }
    parts = (matrix, *beside_it)
    per = "" if shape == () else " by column" if block is None else f" g={block}"
    text = f"{kind} {matrix.dtype}{per}"
    return Weight(text, (n, k), parts, load, fields, activations, note)


def last_of_rows(points: np.ndarray) -> np.ndarray:
    """The zero points of the last numbers of all rows."""
    return points[..., -1] if points.ndim == 2 else points


def refuse(kind: str, matrix: Constant) -> np.ndarray:
    """Say that integers are not read."""
    raise ArrayError(
        f"{matrix.name} of {kind} is {matrix.dtype}; expected one of {', '.join(WEIGHTS)}"
    )


def matmul_n_bits(graph: Graph, node: Any) -> Weight | None:
    """Integers (N, blocks, bytes of a block) of 2, 4 or 8 bits, q - 2**(bits - 1) or q - z."""
    matrix, scale, zero_point = (graph.constant(node, index) for index in (1, 2, 3))
    n, k, block = (attribute(node, name, 0) for name in ("N", "K", "block_size"))
    bits = attribute(node, "bits", 4)
    if matrix is None or scale is None:
        return None
    what = f"{operator(node)} with bits={bits}, block_size={block}, N={n}, K={k}"
    whole = all(type(size) is int and size > 0 for size in (n, k, block))
    if bits not in (2, 4, 8) or not whole or block % 8:
        raise ArrayError(f"{matrix.name}: {what}; expected 2, 4 or 8 bits and sizes that fit")
    if input_name(node, 4):
        raise ArrayError(f"{matrix.name}: {what} has g_idx, which is not read")
    blocks = -(-k // block)
    expected = (n, blocks, block * bits // 8)
    if matrix.dtype != "uint8" or math.prod(matrix.shape) != math.prod(expected):
        raise ArrayError(
            f"{matrix.name} is {matrix.dtype}{matrix.shape}; {what} has uint8{expected}"
        )
    points = None if zero_point is None else stored_points(zero_point, n, blocks, bits)
    floats = points is not None and points.dtype.kind == "f"
    # Of 4 and 8 bits, what has its zero point in the middle of its range are numbers with a sign.
    signed = points is None and bits != 2
    dtype = ("int" if signed else "uint") + ("8" if bits == 8 else "4")

    def load() -> QTensor:
        scales = scale.read().astype(np.float32).reshape(n, blocks)
        data = matrix.read().reshape(n, -1)
        data = spread_pairs(data) if bits == 2 else data
        data = np.ascontiguousarray(data[:, : k if bits == 8 else -(-k // 2)])
        zeros = None if floats or signed else points
        if points is None and bits == 2:
            zeros = np.full((n, blocks), 2, np.int32)
        if signed:
            data = (data ^ 0x80).view(np.int8) if bits == 8 else data ^ 0x88
        if bits < 8 and k % 2:  # half of the last byte says nothing
            fill = 0 if zeros is None else zeros[:, -1]
            data = pack_int4(unpack_int4(data, k, signed=signed), fill=fill)
        offset = -(scales * points) if points is not None and floats else None
        return QTensor(data, scales, zeros, dtype, block, (n, k), offset)

    fields = {
        "weight": dtype,
        "group_size": block,
        "weight_zero_point": not signed and not floats,
        "weight_offset": floats,
    }
    parts = tuple(part for part in (matrix, scale, zero_point) if part is not None)
    return Weight(f"MatMulNBits int{bits} g={block}", (n, k), parts, load, fields)


def stored_points(zero_point: Constant, n: int, blocks: int, bits: int) -> np.ndarray:
    """The zero points of MatMulNBits, (N, blocks): int32, or floats that are no whole numbers."""
    values = zero_point.read()
    if zero_point.dtype == "uint8":
        raw = values.reshape(n, -(-blocks * bits // 8))
        each = raw[..., None] >> np.arange(0, 8, bits, dtype=np.uint8) & ((1 << bits) - 1)
        return each.reshape(n, -1)[:, :blocks].astype(np.int32)
    floats = values.astype(np.float32).reshape(n, blocks)
    whole = (floats == np.rint(floats)) & (floats >= 0) & (floats < 1 << bits)
    return floats.astype(np.int32) if whole.all() else floats


def spread_pairs(raw: np.ndarray) -> np.ndarray:
    """Integers of 2 bits, four per byte, as two per byte."""
    halves = np.stack([raw & 0xF, raw >> 4], axis=-1).reshape(len(raw), -1)
    return halves & 3 | (halves & 12) << 2
