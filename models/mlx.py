"""MLX: words along K, low bits first, with a scale and a bias for each group.

weight uint32 (N, K bits / 32), scales (N, G), biases (N, G):  w = scale q + bias.  Modes without
biases (mxfp4 and so on) hold floats. Source: MLX, python/mlx/nn/layers/quantized.py, and
`mx.quantize` in docs/src/python/ops.rst.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ..errors import WeightFileError
from ..formats.quantize import QTensor
from .model import Layer
from .source import Found, Source, found, modules, whole_number
from .tensors import Stored
from .words import as_bytes, fields_of, pack_pairs, qtensor, unpack

PARTS = ("weight", "scales", "biases")
SCALES = ("float16", "bfloat16", "float32")
BITS = (2, 3, 4, 5, 6, 8)
#: Where nothing says how many numbers a group has.
USUAL_GROUP = 64


def recognises(source: Source) -> bool:
    """Whether a module has words with scales."""
    return any(
        parts["weight"].dtype.name == "uint32"
        for parts in modules(source.tensors, PARTS[:2]).values()
    )


def find(source: Source) -> Found:
    """All modules with words, scales and biases."""
    parts = {
        name: rows
        for name, rows in modules(source.tensors, PARTS[:2], PARTS[2:]).items()
        if rows["weight"].dtype.name == "uint32"
    }
    return found({name: layer(source, name, rows) for name, rows in parts.items()}, parts)


def layer(source: Source, name: str, parts: dict[str, Stored]) -> Layer:
    """A module as a layer."""
    weight = parts["weight"].expect("uint32", (None, None))
    says = settings(source, name)
    if (mode := says.get("mode", "affine")) != "affine":
        raise WeightFileError(
            f"{weight.path}: {name} has MLX's mode {mode!r}, which is not read; expected affine"
        )
    if "biases" not in parts:
        raise WeightFileError(
            f"{weight.path}: {name} has no biases beside its scales; MLX's mode affine has them"
        )
    n, words = weight.shape
    groups = parts["scales"].expect(SCALES, (n, None)).shape[1]
    parts["biases"].expect(SCALES, (n, groups))
    size = whole_number(source, "group_size", says.get("group_size", USUAL_GROUP))
    k = groups * size
    bits, rest = divmod(32 * words, k) if k else (0, 1)
    if rest or bits not in BITS or n == 0 or says.get("bits", bits) != bits:
        raise WeightFileError(
            f"{weight.path}: {name} has {words} words and {groups} groups of {size} in a row, so "
            f"{32 * words} bits for {k} numbers; expected {says.get('bits', '2, 3, 4, 5, 6 or 8')} "
            "for each"
        )
    group_size = None if groups == 1 else size
    return Layer(
        name,
        (n, k),
        f"mlx int{bits} {'channel' if group_size is None else f'g={group_size}'}",
        sum(part.nbytes for part in parts.values()),
        weight.path,
        partial(load, parts, bits, k, group_size),
        fields_of(bits, False, group_size=group_size, weight_offset=True),
    )


def settings(source: Source, name: str) -> dict[str, Any]:
    """Those of a module: its own, or all modules'."""
    own = source.quantization.get(name)
    return own if isinstance(own, dict) else source.quantization


def load(parts: dict[str, Stored], bits: int, k: int, group_size: int | None) -> QTensor:
    """A weight."""
    stored = as_bytes(parts["weight"].read())
    if bits != 4:
        stored = unpack(stored, bits, k)
        stored = pack_pairs(stored) if bits < 4 else stored
    scale, offset = parts["scales"].read(), parts["biases"].read()
    if group_size is None:
        scale, offset = scale[:, 0], offset[:, 0]
    return qtensor(stored, bits, k, scale, None, group_size, offset=offset)
