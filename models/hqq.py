"""HQQ as its state dicts lie in .safetensors: (W_q - zero) scale, and settings as tensors.

A module has W_q, scale, zero and, each as a tensor of one number or of letters, shape, nbits,
group_size, axis and packing. With axis 1 the matrix is seen as (N K / g, g), g being group_size.
A word holds numbers of rows that lie far apart: of the first part of all rows in its high bits, of
the last in its low ones. Source: hqq/core/quantize.py and hqq/core/bitpack.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from ..errors import WeightFileError
from ..formats.quantize import QTensor
from .model import Layer
from .source import Found, Source, found, modules
from .tensors import Stored
from .words import common, fields_of, pack_pairs, qtensor

#: What every module has; `encoded_state_dict` says that settings are tensors.
PARTS = ("W_q", "scale", "zero", "shape", "nbits", "axis", "packing")
#: What it may have beside. Those that are not read here say how it was made.
BESIDE = (
    "group_size",
    "encoded_state_dict",
    "stores_quant_config",
    "offload_meta",
    "channel_wise",
    "optimize",
    "round_zero",
    "view_as_float",
    "unpack_view_dtype",
    "compute_dtype",
    "quant_scale",
    "quant_zero",
)
FLOATS = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Packing:
    """Numbers of `bits` bits in a word, the first of `count` in its highest bits."""

    bits: int
    count: int
    word: str


PACKINGS = {
    "8bit_u8": Packing(8, 1, "uint8"),
    "4bit_u8": Packing(4, 2, "uint8"),
    "3bit_32": Packing(3, 10, "int32"),
    "2bit_u8": Packing(2, 4, "uint8"),
    "1bit_u8": Packing(1, 8, "uint8"),
}


@dataclass(frozen=True, eq=False)
class Module:
    """A module's tensors and settings; `groups` are in a row of the matrix."""

    name: str
    parts: dict[str, Stored]
    packing: Packing
    shape: tuple[int, int]
    groups: int

    @property
    def rows(self) -> int:
        """Of the matrix as it is quantized."""
        return self.shape[0] * self.groups


def recognises(source: Source) -> bool:
    """Whether there are modules as HQQ has them."""
    return bool(modules(source.tensors, PARTS))


def find(source: Source) -> Found:
    """All modules with a W_q."""
    parts = modules(source.tensors, PARTS, BESIDE)
    return found({name: layer(name, rows) for name, rows in parts.items()}, parts)


def number(row: Stored) -> int:
    """A setting that is a number."""
    if row.shape not in ((), (1,)) or row.dtype.kind not in "iu":
        raise WeightFileError(
            f"{row.path}: {row.name} is {row.dtype}{row.shape}; expected one number"
        )
    return int(row.read().reshape(()))


def layer(name: str, parts: dict[str, Stored]) -> Layer:
    """A module as a layer."""
    path = parts["W_q"].path
    if (axis := number(parts["axis"])) != 1:
        raise WeightFileError(
            f"{path}: {name} has axis={axis}, whose groups are of rows of W; expected 1, groups "
            "along K"
        )
    text = parts["packing"].expect("uint8", (None,)).read().tobytes().decode("latin-1")
    if text not in PACKINGS:
        raise WeightFileError(
            f"{path}: {name} has packing={text!r}; expected one of {', '.join(PACKINGS)}"
        )
    n, k = map(int, parts["shape"].expect(("int64", "int32"), (2,)).read())
    size = number(parts["group_size"]) if "group_size" in parts else k
    if n < 1 or k < 1 or size < 1 or k % size:
        raise WeightFileError(
            f"{path}: {name} of {(n, k)} has groups of {size}; expected a number that divides K"
        )
    row = Module(name, parts, PACKINGS[text], (n, k), k // size)
    bits = number(parts["nbits"])
    if not 1 <= bits <= row.packing.bits:
        raise WeightFileError(
            f"{path}: {name} has nbits={bits}; expected 1 to {row.packing.bits}, as {text} holds"
        )
    words = -(-row.rows // row.packing.count)
    if parts["W_q"].nbytes != words * size * np.dtype(row.packing.word).itemsize:
        parts["W_q"].expect(row.packing.word, (words, size))
    for part in ("scale", "zero"):
        parts[part].expect(FLOATS, (row.rows, 1))
    zero_point, _ = zeros(row)
    group_size = None if row.groups == 1 else size
    z = False if zero_point is None else common(zero_point)
    fields = fields_of(row.packing.bits, z, group_size=group_size, weight_offset=zero_point is None)
    return Layer(
        name,
        (n, k),
        f"hqq int{bits} {'channel' if group_size is None else f'g={group_size}'}",
        sum(part.nbytes for part in parts.values()),
        path,
        partial(load, row, group_size),
        fields,
    )


def zeros(row: Module) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Zero points where all are whole numbers that the format has, or else offsets.

    The product of a scale and a zero point is exact in float32 where both have 16 bits.
    """
    zero = row.parts["zero"].read().astype(np.float64).reshape(row.shape[0], row.groups)
    most = 15 if row.packing.bits <= 4 else 255
    if ((zero == np.rint(zero)) & (zero >= 0) & (zero <= most)).all():
        return zero.astype(np.int32), None
    scale = row.parts["scale"].read().astype(np.float64).reshape(zero.shape)
    with np.errstate(over="ignore"):
        return None, (-zero * scale).astype(np.float32)


def load(row: Module, group_size: int | None) -> QTensor:
    """A weight."""
    n, k = row.shape
    packing = row.packing
    words = row.parts["W_q"].read().reshape(-1).view(packing.word).reshape(-1, k // row.groups)
    codes = np.empty((packing.count, *words.shape), np.uint8)
    for place in range(packing.count):
        shift = packing.bits * (packing.count - 1 - place)
        codes[place] = words >> shift & ((1 << packing.bits) - 1)
    stored = codes.reshape(-1, words.shape[1])[: row.rows].reshape(n, k)
    scale = row.parts["scale"].read().reshape(n, row.groups)
    zero_point, offset = zeros(row)
    if group_size is None:
        scale = scale[:, 0]
        zero_point = None if zero_point is None else zero_point[:, 0]
        offset = None if offset is None else offset[:, 0]
    if packing.bits <= 4:
        stored = pack_pairs(stored)
    return qtensor(stored, packing.bits, k, scale, zero_point, group_size, offset=offset)
