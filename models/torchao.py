"""torchao's tensors as `flatten_tensor_state_dict` puts them into .safetensors.

The metadata has JSON by the name of each tensor ("a.weight"): _type, _data (its attributes) and
_tensor_data_names; those lie as "a._weight_qdata" and so on. Read are Int8Tensor and
IntxUnpackedToInt8Tensor, (qdata - zero_point) scale with qdata int8 (N, K) and one scale for each
block_size of it. Source: torchao/prototype/safetensors/safetensors_support.py and
torchao/quantization/quantize_/workflows/{int8,intx}.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..errors import WeightFileError
from ..formats.integers import INTEGERS
from ..formats.quantize import QTensor
from .floats import WEIGHT
from .model import Activations, Layer
from .source import Found, Source, found
from .tensors import Stored, parsed
from .words import pack_pairs

NAMES = "tensor_names"
PLAIN = "Tensor"
READ = ("Int8Tensor", "IntxUnpackedToInt8Tensor")
FLOATS = ("float16", "bfloat16", "float32")
PER_TOKEN = {"input": "float32", "dynamic": True}


@dataclass(frozen=True, eq=False)
class Tensor:
    """A weight's parts and attributes; `group_size` is what one scale covers."""

    name: str
    parts: dict[str, Stored]
    shape: tuple[int, int]
    bits: int
    group_size: int | str | None


def recognises(source: Source) -> bool:
    """Whether the metadata says so."""
    return NAMES in source.contents.metadata and any("._weight_" in name for name in source.tensors)


def find(source: Source) -> Found:
    """All weights that are tensors of torchao's own."""
    layers: dict[str, Layer] = {}
    parts: dict[str, dict[str, Stored]] = {}
    for key, text in source.contents.metadata.items():
        if not key.endswith(WEIGHT):
            continue
        says = parsed(source.path, text.encode(), f"the metadata of {key}")
        if says.get("_type") == PLAIN:
            continue
        name = key.removesuffix(WEIGHT)
        prefix = f"{name}._weight_"
        parts[name] = {
            each.removeprefix(prefix): row
            for each, row in source.tensors.items()
            if each.startswith(prefix)
        }
        if says.get("_type") not in READ:
            raise WeightFileError(
                f"{source.path}: {key} is a {says.get('_type')} of torchao, which is not read; "
                f"expected {' or '.join(READ)}"
            )
        layers[name] = layer(source, name, parts[name], says)
    return found(layers, parts)


def layer(source: Source, name: str, parts: dict[str, Stored], says: dict[str, Any]) -> Layer:
    """A weight as a layer."""
    data = says.get("_data")
    for part in ("qdata", "scale"):
        if part not in parts or not isinstance(data, dict):
            raise WeightFileError(
                f"{source.path}: {name} has no {part} and attributes of torchao's"
            )
    assert isinstance(data, dict)
    if "act_pre_scale" in parts:
        raise WeightFileError(
            f"{source.path}: {name} has act_pre_scale, a factor of X, which is not read"
        )
    qdata = parts["qdata"].expect("int8", (None, None))
    n, k = qdata.shape
    bits = 8
    if says["_type"] != READ[0]:
        target = unwrapped(data.get("target_dtype"))
        if target not in [f"int{each}" for each in range(1, 9)]:
            raise WeightFileError(
                f"{source.path}: {name} has target_dtype={target!r}; expected int4"
            )
        bits = int(str(target).removeprefix("int"))
    row = Tensor(name, parts, (n, k), bits, group_size_of(source, name, qdata, data))
    rows, groups = scales_of(row)
    parts["scale"].expect(FLOATS, (rows, groups))
    zero = beside(row)
    fields = {
        "weight": "int4" if bits <= 4 else "int8",
        "group_size": row.group_size,
        "weight_zero_point": zero[0] is not None,
        "weight_offset": zero[1] is not None,
    }
    size = row.group_size
    groups_text = f"g={size}" if isinstance(size, int) else size or "channel"
    return Layer(
        name,
        (n, k),
        f"torchao int{bits} {groups_text}",
        sum(part.nbytes for part in parts.values()),
        qdata.path,
        partial(load, row),
        fields,
        activations_of(data, parts),
    )


def unwrapped(value: Any) -> Any:
    """An attribute, which may be an object of JSON with its type."""
    return value.get("_data") if isinstance(value, dict) else value


def group_size_of(
    source: Source, name: str, qdata: Stored, data: dict[str, Any]
) -> int | str | None:
    """What `block_size` says that one scale covers."""
    n, k = qdata.shape
    block = data.get("block_size")
    if isinstance(block, list) and [type(each) for each in block] == [int, int] and n and k:
        if block == [n, k]:
            return "tensor" if n > 1 else None
        if block[0] == 1 and block[1] > 0 and k % block[1] == 0:
            return None if block[1] == k else int(block[1])
    raise WeightFileError(
        f"{source.path}: {name} of {qdata.shape} has block_size={block!r}; expected all of it, a "
        "row, or a part of a row that divides it"
    )


def scales_of(row: Tensor) -> tuple[int, int]:
    """The shape of the scales in the file."""
    n, k = row.shape
    if row.group_size == "tensor":
        return 1, 1
    return n, k // row.group_size if isinstance(row.group_size, int) else 1


def beside(row: Tensor) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Zero points or offsets, in the shape of the scales in the file."""
    if "zero_point" not in row.parts:
        return None, None
    zero = row.parts["zero_point"].expect(("int8", *FLOATS), scales_of(row)).read()
    wide = zero.astype(np.float64)
    least, greatest = INTEGERS["int4" if row.bits <= 4 else "int8"].range
    if ((wide == np.rint(wide)) & (wide >= least) & (wide <= greatest)).all():
        return (zero.astype(np.int32) if wide.any() else None), None
    scale = row.parts["scale"].read().astype(np.float64)
    with np.errstate(over="ignore"):
        return None, (-wide * scale).astype(np.float32)


def load(row: Tensor) -> QTensor:
    """A weight."""
    data = row.parts["qdata"].read()
    zero_point, offset = (in_shape(each, row) for each in beside(row))
    scale = in_shape(row.parts["scale"].read(), row)
    assert scale is not None
    dtype = "int4" if row.bits <= 4 else "int8"
    if dtype == "int4":
        if data.min() < -8 or data.max() > 7:
            raise WeightFileError(
                f"{row.parts['qdata'].path}: {row.name} holds {data.min()} to {data.max()}; "
                "expected numbers of 4 bits"
            )
        odd = row.shape[1] % 2
        data = pack_pairs(data.view(np.uint8) & 15)
        if odd and zero_point is not None:
            last = zero_point if zero_point.ndim < 2 else zero_point[:, -1]
            data[:, -1] |= (last & 15).astype(np.uint8) << 4
    return QTensor(data, scale, zero_point, dtype, row.group_size, row.shape, offset)


def in_shape(values: np.ndarray | None, row: Tensor) -> np.ndarray | None:
    """Scales and so on in the shape that `QTensor` has them in."""
    if values is None or isinstance(row.group_size, int):
        return values
    return values.reshape(()) if row.group_size == "tensor" else values.reshape(-1)


def activations_of(data: dict[str, Any], parts: dict[str, Stored]) -> Activations | None:
    """What is said of X: none, per token, or something else, which is named."""
    per_token = unwrapped(data.get("activation_quantization"))
    if isinstance(per_token, str) and per_token.upper() == "INT8_ASYM_PER_TOKEN":
        fields = {**PER_TOKEN, "activation_zero_point": True}
        return Activations("int8 token zero points dynamic", fields)
    says = unwrapped(data.get("act_quant_kwargs"))
    if per_token is None and says is None:
        return None
    if per_token is not None or not isinstance(says, dict) or "act_quant_scale" in parts:
        return Activations(f"torchao {per_token or 'static int8'}", None)
    granularity = says.get("granularity")
    kind = granularity.get("_type") if isinstance(granularity, dict) else granularity
    mapping = unwrapped(says.get("mapping_type", "SYMMETRIC"))
    if kind != "PerRow" or mapping not in ("SYMMETRIC", "ASYMMETRIC"):
        return Activations(f"int8 {kind} {mapping} dynamic", None)
    fields = {**PER_TOKEN, "activation_zero_point": mapping == "ASYMMETRIC"}
    return Activations(f"int8 token{' zero points' * (mapping != 'SYMMETRIC')} dynamic", fields)
