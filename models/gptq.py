"""GPTQ as AutoGPTQ and GPTQModel write it: columns of W in words along K, zero points minus one.

qweight int32 (K bits / 32, N), qzeros int32 (G, N bits / 32), scales (G, N), g_idx int32 (K), the
group of each column:  w[n, k] = scales[g, n] (q[k, n] - z[g, n]),  g = g_idx[k].

"gptq" stores (z - 1) modulo 2**bits, "gptq_v2" stores z. Sources: AutoGPTQ,
nn_modules/qlinear/qlinear_cuda_old.py, whose rule a stored 15 follows here (z is 0); GPTQModel,
gptqmodel/utils/model.py, which adds to whole words, so that it has a 0 there too but one more
in the next zero point.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..errors import WeightFileError
from ..formats.quantize import QTensor
from .model import Layer
from .source import Found, Source, found, modules, whole_number
from .tensors import Stored
from .words import (
    as_bytes,
    columns_sorted,
    common,
    fields_of,
    for_all,
    pack_pairs,
    qtensor,
    transposed,
    unpack,
    unpack_rows,
)

PARTS = ("qweight", "qzeros", "scales")
SCALES = ("float16", "bfloat16", "float32")
BITS = (2, 3, 4, 8)
#: What checkpoint_format may be, and what the zero points that are stored lack.
VERSIONS = {"gptq": 1, "gptq_v2": 0}


@dataclass(frozen=True, eq=False)
class Module:
    """A module's tensors, and what they say.

    Attributes
    ----------
    stored_zeros : (N, G), as they are in the file.
    order : of the columns, see `QTensor.order`.
    """

    name: str
    parts: dict[str, Stored]
    bits: int
    shape: tuple[int, int]
    group_size: int
    stored_zeros: np.ndarray
    order: np.ndarray | None

    def zero_points(self, lacking: int) -> np.ndarray:
        """(N, G)."""
        return ((self.stored_zeros.astype(np.int32) + lacking) % (1 << self.bits)).astype(np.int32)


def recognises(source: Source) -> bool:
    """Whether there are modules as GPTQ has them."""
    return source.method in (None, "gptq", "gptqmodel") and bool(modules(source.tensors, PARTS))


def find(source: Source) -> Found:
    """All modules with a qweight."""
    parts = modules(source.tensors, PARTS, ("g_idx",))
    rows = [module(source, name, each) for name, each in parts.items()]
    lacking, note = version(source, rows)
    layers = {row.name: layer(row, lacking) for row in rows}
    return found(layers, parts, *([note] if note else []))


def module(source: Source, name: str, parts: dict[str, Stored]) -> Module:
    """What the small tensors of a module say; the weights are not read."""
    qweight = parts["qweight"].expect("int32", (None, None))
    words, n = qweight.shape
    groups = parts["scales"].expect(SCALES, (None, n)).shape[0]
    width = parts["qzeros"].expect("int32", (groups, None)).shape[1]
    bits, rest = divmod(32 * width, n) if n else (0, 1)
    if rest or bits not in BITS or (words * 32) % bits or not words or not groups:
        raise WeightFileError(
            f"{qweight.path}: {name} has qweight {qweight.shape} and qzeros {(groups, width)}; "
            "expected (K bits / 32, N) and (G, N bits / 32) with 2, 3, 4 or 8 bits"
        )
    k = words * 32 // bits
    says = source.quantization
    uniform = not says.get("dynamic")
    if uniform and says.get("bits", bits) != bits:
        raise WeightFileError(
            f"{qweight.path}: {name} has {bits} bits; expected {says['bits']}, as the settings say"
        )
    size = whole_number(source, "group_size", says.get("group_size", -1), -1)
    if size <= 0 or not uniform:
        size = -(-k // groups)
    if -(-k // size) != groups:
        raise WeightFileError(
            f"{qweight.path}: {name} has {groups} rows of scales; expected {-(-k // size)}, for "
            f"K={k} in groups of {size}"
        )
    order = None
    if "g_idx" in parts:
        g_idx = parts["g_idx"].expect(("int32", "int64"), (k,)).read()
        what = f"{qweight.path}: {name}.g_idx"
        order = columns_sorted(what, g_idx, groups, size)
    zeros = transposed(unpack(as_bytes(parts["qzeros"].read()), bits, n))
    return Module(name, parts, bits, (n, k), size, zeros, order)


def version(source: Source, rows: Iterable[Module]) -> tuple[int, str | None]:
    """What stored zero points lack, and what is to be said of that.

    A file whose zero points are all in the middle of the range, or all one below, is symmetric,
    whatever it is labelled: there is nothing else that these numbers mean.
    """
    label = source.quantization.get("checkpoint_format")
    if label is not None and label not in VERSIONS:
        raise WeightFileError(
            f"{source.path}: checkpoint_format={label!r}; expected {' or '.join(VERSIONS)}"
        )
    shown = {1 if z == middle - 1 else 0 if z == middle else None for z, middle in middles(rows)}
    symmetric = next(iter(shown)) if len(shown) == 1 else None
    if symmetric is not None and source.quantization.get("sym") is not False:
        if label is None or VERSIONS[label] == symmetric:
            return symmetric, None
        meant = next(name for name, lacking in VERSIONS.items() if lacking == symmetric)
        return symmetric, (
            f"labelled {label}, but all zero points are those of a symmetric {meant}; read as that"
        )
    if not source.quantization and shown:
        return 1, (
            "nothing says whether zero points are stored as gptq or as gptq_v2 has them; read as "
            "gptq, so that each is one more than is stored"
        )
    return VERSIONS[label or "gptq"], None


def middles(rows: Iterable[Module]) -> Iterable[tuple[int, int]]:
    """The zero points that are stored, each once, and the middle of their range."""
    for row in rows:
        for z in np.flatnonzero(np.bincount(row.stored_zeros.ravel(), minlength=1)):
            yield int(z), 1 << (row.bits - 1)


def layer(row: Module, lacking: int) -> Layer:
    """A module as a layer."""
    several = common(row.zero_points(lacking))
    group_size = None if row.group_size >= row.shape[1] else row.group_size
    fields = fields_of(row.bits, several, group_size=group_size, weight_order=row.order is not None)
    groups = "channel" if group_size is None else f"g={group_size}"
    return Layer(
        row.name,
        row.shape,
        f"gptq int{row.bits} {groups}{' act-order' if row.order is not None else ''}",
        sum(part.nbytes for part in row.parts.values()),
        row.parts["qweight"].path,
        partial(load, row, lacking, group_size),
        fields,
    )


def load(row: Module, lacking: int, group_size: int | None) -> QTensor:
    """A weight. Words hold K from the low bits on, as `QTensor` has it."""
    k = row.shape[1]
    qweight = row.parts["qweight"].read()
    stored = as_bytes(transposed(qweight)) if row.order is None else in_order(row, qweight)
    if row.order is None and row.bits not in (4, 8):
        stored = pack_pairs(unpack(stored, row.bits, k))
    scale = transposed(row.parts["scales"].read())
    zero_point = row.zero_points(lacking)
    if group_size is None:
        scale, zero_point = scale[:, 0], zero_point[:, 0]
    return qtensor(stored, row.bits, k, scale, zero_point, group_size, order=row.order)


def in_order(row: Module, qweight: np.ndarray) -> np.ndarray:
    """The numbers as they are stored, with the columns of a group side by side."""
    (n, k), packed = row.shape, row.bits <= 4
    stored = np.empty((n, k // 2 if packed else k), np.uint8)

    def some(rows: slice) -> None:
        codes = unpack_rows(qweight[:, rows], row.bits)[row.order]
        stored[rows] = (codes[0::2] | codes[1::2] << 4 if packed else codes).T

    for_all(some, n, n * k)
    return stored
