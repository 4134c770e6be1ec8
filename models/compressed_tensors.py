"""compressed-tensors, which llm-compressor and vLLM write: packed integers, and integers as bytes.

pack-quantized: weight_packed int32 (N, ceil(K bits / 32)) of q + 2**(bits - 1), weight_shape (2),
weight_scale, weight_zero_point signed: int32 (ceil(N bits / 32), G) of the same numbers, packed
along N; int-quantized: weight int8 (N, K), weight_scale, weight_zero_point int8. Scales are (N, G),
(N, 1) or (1):  w = scale (q - z).  weight_g_idx (K) is the group of each column where it has no -1.
Source: compressed_tensors/compressors/{pack_quantized,naive_quantized}, quantization/quant_args.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..errors import SpecError, WeightFileError
from ..formats.quantize import QTensor
from ..formats.spec import MatmulSpec
from .blocks import reading
from .model import Layer
from .model import activations_of as of_ours
from .schemes import Scheme, activations_of, scheme_of, schemes
from .source import Found, Source, found, modules
from .tensors import Stored, parsed
from .words import as_bytes, columns_sorted, pack_pairs, transposed, unpack

METHOD = "compressed-tensors"
#: In a file's metadata: JSON, by the names of layers the specs of those that quantmm wrote.
SPECS = "quantmm_specs"
PACKED = ("weight_packed", "weight_scale", "weight_shape")
PLAIN = ("weight", "weight_scale")
#: What a module may have beside.
BESIDE = ("weight_zero_point", "weight_g_idx", "input_scale", "input_zero_point")
SCALES = ("float16", "bfloat16", "float32")
#: Where nothing says how many bits there are, these are tried.
BITS = (4, 8)


@dataclass(frozen=True, eq=False)
class Module:
    """A module's tensors, and what they and the settings say."""

    name: str
    parts: dict[str, Stored]
    bits: int
    shape: tuple[int, int]
    group_size: int | str | None
    order: np.ndarray | None

    @property
    def weight(self) -> Stored:
        """The tensor of integers."""
        return self.parts["weight_packed" if self.packed else "weight"]

    @property
    def packed(self) -> bool:
        """Whether integers lie in words."""
        return "weight_packed" in self.parts


def recognises(source: Source) -> bool:
    """Whether the settings or the tensors' names say so."""
    if source.method is not None:
        return source.method == METHOD
    return any(key.endswith(".weight_packed") for key in source.tensors) or any(
        parts["weight"].dtype.name == "int8" for parts in modules(source.tensors, PLAIN).values()
    )


def find(source: Source) -> Found:
    """All modules with a packed weight, or one of int8."""
    listed = schemes(source)
    parts = modules(source.tensors, PACKED, BESIDE)
    for name, rows in modules(source.tensors, PLAIN, BESIDE).items():
        if (kind := rows["weight"].dtype.name) != "int8":
            raise WeightFileError(
                f"{rows['weight'].path}: {name} is {kind} with scales, which is not read; expected "
                "int8, or 4-bit and 8-bit integers that are packed"
            )
        parts[name] = rows
    for key in source.tensors:
        if key.endswith(".weight_packed") and key.removesuffix(".weight_packed") not in parts:
            raise WeightFileError(
                f"{source.path}: {key} has no {' and '.join(PACKED[1:])} beside it, which "
                "pack-quantized has; other packed formats are not read"
            )
    specs = said_specs(source)
    layers = {}
    for name, rows in parts.items():
        layers[name] = layer(name, rows, scheme_of(name, listed))
        if name in specs:
            layers[name] = with_spec(layers[name], specs[name])
    return found(layers, parts)


def said_specs(source: Source) -> dict[str, Any]:
    """The specs of layers, as JSON, where quantmm wrote the file."""
    text = source.contents.metadata.get(SPECS)
    return {} if text is None else parsed(source.path, text.encode(), SPECS)


def with_spec(layer: Layer, text: Any) -> Layer:
    """A layer of which quantmm said more than compressed-tensors has words for.

    Raises
    ------
    WeightFileError
        That is no spec, or one for another weight.
    """
    with reading(layer.file, layer.name):
        spec = MatmulSpec.from_json(text)
        fields = dict(layer.fields or {})
        if (fields["weight"], spec.weight) == ("int8", "int7"):
            fields["weight"] = "int7"
            layer = replace(layer, fields=fields, load=partial(as_int7, layer.load))
        own = layer.spec()
        for name in ("n", "k", *fields):
            if getattr(spec, name) != getattr(own, name):
                raise SpecError(
                    f"{name}={getattr(spec, name)!r} in {SPECS}; the weight has "
                    f"{getattr(own, name)!r}"
                )
        return replace(layer, activations=of_ours(spec))


def as_int7(load: Callable[[], QTensor | np.ndarray]) -> QTensor:
    """A weight of int8 whose numbers int7 holds."""
    weight = load()
    assert isinstance(weight, QTensor)
    return replace(weight, dtype="int7")


def layer(name: str, parts: dict[str, Stored], scheme: Scheme | None) -> Layer:
    """A module as a layer."""
    shape = shape_of(parts)
    bits, size = bits_of(name, parts, shape, scheme), group_size_of(parts, shape, scheme)
    row = Module(name, parts, bits, shape, size, order_of(name, parts, shape, size))
    zero_point = "weight_zero_point" in parts and bool(zero_points(row).any())
    fields: dict[str, Any] = {
        "weight": "int4" if row.bits <= 4 else "int8",
        "group_size": row.group_size,
        "weight_zero_point": zero_point,
        "weight_order": row.order is not None,
    }
    groups = f"g={size}" if isinstance(size, int) else size or "channel"
    kind = "pack-quantized" if row.packed else "int-quantized"
    return Layer(
        name,
        shape,
        f"{kind} int{row.bits} {groups}{' act-order' if row.order is not None else ''}",
        sum(part.nbytes for part in parts.values()),
        row.weight.path,
        partial(load, row, zero_point),
        fields,
        activations_of(scheme, parts, row.group_size),
    )


def shape_of(parts: dict[str, Stored]) -> tuple[int, int]:
    """(N, K) of a module."""
    if "weight_packed" not in parts:
        n, k = parts["weight"].expect("int8", (None, None)).shape
        where = parts["weight"]
    else:
        where = parts["weight_packed"].expect("int32", (None, None))
        n, k = map(int, parts["weight_shape"].expect(("int64", "int32"), (2,)).read())
        if n != where.shape[0]:
            raise WeightFileError(
                f"{where.path}: {where.name} has {where.shape[0]} rows; expected {n}, as "
                f"{parts['weight_shape'].name} says"
            )
    if n < 1 or k < 1:
        raise WeightFileError(f"{where.path}: {where.name} is of {(n, k)}; expected no empty shape")
    return n, k


def bits_of(
    name: str, parts: dict[str, Stored], shape: tuple[int, int], scheme: Scheme | None
) -> int:
    """The bits of a number; the width of the words fits them."""
    if "weight_packed" not in parts:
        return 8
    n, k = shape
    width = parts["weight_packed"].shape[1]
    if scheme is not None:
        parts["weight_packed"].expect("int32", (n, math.ceil(k * scheme.bits / 32)))
        return scheme.bits
    fitting = [bits for bits in BITS if math.ceil(k * bits / 32) == width]
    if len(fitting) != 1:
        raise WeightFileError(
            f"{parts['weight_packed'].path}: {name} has {width} words for K={k}, and no settings "
            f"say how many bits a number has; expected {' or '.join(map(str, BITS))}"
        )
    return fitting[0]


def group_size_of(
    parts: dict[str, Stored], shape: tuple[int, int], scheme: Scheme | None
) -> int | str | None:
    """What one scale covers, by the shape of the scales and what the settings say."""
    n, k = shape
    scale = parts["weight_scale"]
    if math.prod(scale.shape) == 1 and n > 1:
        scale.expect(SCALES, scale.shape)
        return "tensor"
    if len(scale.shape) == 1:
        scale.expect(SCALES, (n,))
        return None
    groups = scale.expect(SCALES, (n, None)).shape[1]
    size = scheme.group_size if scheme is not None else None
    if size is None:
        if groups == 1:
            return None
        size = -(-k // groups) if groups else k
    scale.expect(SCALES, (n, -(-k // size)))
    return size


def order_of(
    name: str, parts: dict[str, Stored], shape: tuple[int, int], size: int | str | None
) -> np.ndarray | None:
    """The order of the columns, if they have one."""
    if "weight_g_idx" not in parts or not isinstance(size, int):
        return None
    stored, k = parts["weight_g_idx"], shape[1]
    g_idx = stored.expect(("int32", "int64"), (k,)).read()
    if (g_idx == -1).any():  # as it is made, before anybody fills it in
        return None
    return columns_sorted(f"{stored.path}: {stored.name}", g_idx, -(-k // size), size)


def zero_points(row: Module) -> np.ndarray:
    """As signed integers, of the shape that `QTensor` has scales in."""
    n, k = row.shape
    stored = row.parts["weight_zero_point"]
    scales = (1, 1)
    if row.group_size != "tensor":
        groups = -(-k // row.group_size) if isinstance(row.group_size, int) else 1
        scales = n, groups
    if row.packed and stored.dtype.name == "int32":
        stored.expect("int32", (math.ceil(scales[0] * row.bits / 32), scales[1]))
        columns = unpack(as_bytes(transposed(stored.read())), row.bits, scales[0])
        values = transposed(columns).astype(np.int32) - (1 << row.bits - 1)
    else:
        if math.prod(stored.shape) != math.prod(scales):
            stored.expect("int8", scales)
        values = stored.expect("int8", stored.shape).read().reshape(scales).astype(np.int32)
    return in_shape(values, row.group_size)


def in_shape(values: np.ndarray, group_size: int | str | None) -> np.ndarray:
    """Scales or zero points in the shape that `QTensor` has them in."""
    if group_size == "tensor":
        return values.reshape(())
    return values.reshape(-1) if group_size is None else values


def load(row: Module, zero_point: bool) -> QTensor:
    """A weight; the numbers of packed ones are 2**(bits - 1) more than they mean."""
    n, k = row.shape
    data = row.weight.read()
    z = zero_points(row) if zero_point else None
    if not row.packed:
        data = data if row.order is None else data[:, row.order]
    elif row.bits == 4 and row.order is None:
        data = as_bytes(data)[:, : -(-k // 2)] ^ np.uint8(0x88)
    else:
        codes = unpack(as_bytes(data), row.bits, k)
        codes = (codes if row.order is None else codes[:, row.order]) - np.uint8(1 << row.bits - 1)
        data = codes.view(np.int8) if row.bits > 4 else pack_pairs(codes & 15)
    dtype = "int4" if row.bits <= 4 else "int8"
    if dtype == "int4" and k % 2:  # what pads an odd K is the zero point
        pad = np.zeros((), np.uint8) if z is None else (z & 15).astype(np.uint8)
        data[:, -1] = data[:, -1] & 15 | (pad if pad.ndim < 2 else pad[:, -1]) << 4
    scale = in_shape(row.parts["weight_scale"].read(), row.group_size)
    return QTensor(data, scale, z, dtype, row.group_size, (n, k), None, row.order)
