"""The formats that have names: those in which other libraries multiply too.

A name stands for fields of `MatmulSpec`; every other combination can be timed too, without peers.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping
from typing import Any

from ..errors import SpecError
from .spec import MatmulSpec

#: Floats in and out, X quantized row by row inside the call.
FLOATS: dict[str, Any] = {"input": "float32", "dynamic": True}

#: By name, the fields of a spec that are not at their defaults. X of "int8" and "int7" has one
#: scale in all, as other libraries have it. "-xg": X has a scale for each of the weight's groups;
#: "-offset": weights have offsets, as ggml's Q4_1 and Q4_K, MLX and HQQ have them.
FORMATS: dict[str, dict[str, Any]] = {
    "int8": {"activation_scale": "tensor"},
    "int7": {"weight": "int7", "activation_scale": "tensor"},
    "w8a8-dynamic": FLOATS,
    "w7a8-dynamic": FLOATS | {"weight": "int7"},
    "w4a8": FLOATS | {"weight": "int4"},
    "w4a8-g128": FLOATS | {"weight": "int4", "group_size": 128},
    "w4a8-g32": FLOATS | {"weight": "int4", "group_size": 32},
    "w4a8-g128-xg": FLOATS | {"weight": "int4", "group_size": 128, "activation_scale": "group"},
    "w4a8-g32-xg": FLOATS | {"weight": "int4", "group_size": 32, "activation_scale": "group"},
    "w8a8-g32-xg": FLOATS | {"group_size": 32, "activation_scale": "group"},
    "w4a8-g128-offset": FLOATS | {"weight": "uint4", "group_size": 128, "weight_offset": True},
    "w4a8-g32-offset": FLOATS | {"weight": "uint4", "group_size": 32, "weight_offset": True},
}


def fields_of(name: str) -> dict[str, Any]:
    """The fields that a name stands for.

    Raises
    ------
    SpecError
        No such name.
    """
    if name not in FORMATS:
        raise SpecError(f"no format {name!r}; expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


def fits(name: str, pattern: str) -> bool:
    """Whether a pattern, as in names of files, means a layer's name or its end behind a dot."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"*.{pattern}")


def is_named(spec: MatmulSpec) -> bool:
    """Whether other libraries have the format of `spec`."""
    return name_of(spec) in FORMATS


def name_of(spec: MatmulSpec) -> str:
    """The name of a spec's format; without one, the fields that decide it."""
    given = changed(spec)
    for name, fields in FORMATS.items():
        if given == changed(MatmulSpec(n=spec.n, k=spec.k, **fields)):
            return name
    return " ".join(
        field if value is True else f"{field}={value}" for field, value in given.items()
    )


def changed(spec: MatmulSpec) -> Mapping[str, Any]:
    """The fields of a spec that decide its format, without those that nobody would miss.

    These are the ones at their defaults, and of a dynamic spec what a scale covers.
    """
    said = () if spec.dynamic else ("activation_scale",)
    return {
        field.name: getattr(spec, field.name)
        for field in dataclasses.fields(MatmulSpec)
        if field.name not in ("n", "k", "m")
        and (getattr(spec, field.name) != field.default or field.name in said)
    }


def weight_bytes(spec: MatmulSpec) -> int:
    """Bytes that a call must read: the weight's numbers and its float32 scales and offsets."""
    row = -(-spec.k // 2) if spec.four_bit_weight else spec.k
    scales = 1 if spec.group_size == "tensor" else spec.weight_rows * spec.groups
    return spec.weight_rows * row + (8 if spec.weight_offset else 4) * scales
