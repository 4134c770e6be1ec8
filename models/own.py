"""quantmm's own weights: those of `save_weights`, and the states of `quantmm.nn`'s modules.

A weight NAME lies as NAME.data, NAME.scale and so on, as a `QTensor` has them. What they are is in
the file's metadata (formats/weights.py), or in NAME._extra_state: the spec of a module, as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..errors import WeightFileError
from ..formats.quality import weight_label
from ..formats.quantize import QTensor
from ..formats.spec import MatmulSpec
from ..formats.weights import KEY, PARTS, read_weight
from .blocks import reading
from .model import FLOATS_IN, Layer, activations_of
from .source import Found, Source, modules
from .tensors import Stored, parsed

STATE = "_extra_state"
MODULE = ("data", "scale", STATE)


@dataclass(frozen=True)
class Stand:
    """A file as `read_weight` takes it."""

    tensors: Mapping[str, Stored]

    def keys(self) -> list[str]:
        """Names of tensors."""
        return [*self.tensors]

    def get_tensor(self, name: str) -> np.ndarray:
        """One of them."""
        return self.tensors[name].read()


def recognises(source: Source) -> bool:
    """Whether there are weights of quantmm's."""
    return any(key.startswith(KEY) for key in source.contents.metadata) or bool(
        modules(source.tensors, MODULE)
    )


def find(source: Source) -> Found:
    """All of them."""
    layers: dict[str, Layer] = {}
    for key, text in source.contents.metadata.items():
        if key.startswith(KEY):
            name = key.removeprefix(KEY)
            with reading(source.path, name):
                layers[name] = of_metadata(source, name, text)
    for name, parts in modules(source.tensors, MODULE, PARTS[2:]).items():
        with reading(source.path, name):
            spec = MatmulSpec.from_json(parts[STATE].read().tobytes().decode())
            layers[name] = layer(source, name, spec, partial(of_module, parts, spec))
    used = {f"{name}.{part}" for name in layers for part in (*PARTS, STATE)}
    return Found(layers, frozenset(used & source.tensors.keys()))


def of_metadata(source: Source, name: str, text: str) -> Layer:
    """A layer that `save_weights` wrote, with its spec or without."""
    says = parsed(source.path, text.encode(), f"the metadata of {name}")
    if "spec" in says:
        spec = MatmulSpec.from_json(json.dumps(says["spec"]))
    else:
        n, k = says["shape"]
        fields = {"n": n, "k": k, "weight": says["dtype"], "group_size": says.get("group_size")}
        fields |= {f"weight_{part}": bool(says.get(part)) for part in PARTS[2:]}
        spec = MatmulSpec(**fields, **FLOATS_IN)

    def load() -> QTensor:
        return read_weight(Stand(source.tensors), name, text)[0]

    return layer(source, name, spec, load)


def of_module(parts: Mapping[str, Stored], spec: MatmulSpec) -> QTensor:
    """The weight of a module."""
    arrays = [parts[part].read() if part in parts else None for part in PARTS]
    data, scale, zero_point, offset, order = arrays
    assert data is not None
    assert scale is not None
    shape = spec.weight_rows, spec.k
    return QTensor(data, scale, zero_point, spec.weight, spec.group_size, shape, offset, order)


def layer(source: Source, name: str, spec: MatmulSpec, load: Callable[[], QTensor]) -> Layer:
    """A layer of a spec."""
    rows = [source.tensors.get(f"{name}.{part}") for part in PARTS]
    stored = [row for row in rows if row is not None]
    if not stored:
        raise WeightFileError(f"{source.path}: no tensor {name}.data")
    fields = {
        "weight": spec.weight,
        "group_size": spec.group_size,
        "weight_zero_point": spec.weight_zero_point,
        "weight_offset": spec.weight_offset,
        "weight_order": spec.weight_order,
    }
    if spec.experts is not None:
        fields["experts"] = spec.experts
    if spec.gated:
        fields |= {"gated": True, "activation_fn": spec.activation_fn}
    return Layer(
        name,
        (spec.weight_rows, spec.k),
        f"quantmm {weight_label(spec)}",
        sum(row.nbytes for row in stored),
        stored[0].path,
        load,
        fields,
        activations_of(spec),
    )
