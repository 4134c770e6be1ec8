"""A model's file as a mapping from layers to weights, each read when it is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..errors import UnsupportedError, WeightFileError
from ..formats.named import name_of
from ..formats.quantize import QTensor
from ..formats.spec import MatmulSpec
from ..formats.weights import FLOATS
from .blocks import reading

T = TypeVar("T")

#: What activations are where a file says nothing of them: floats, quantized in the call.
FLOATS_IN: dict[str, Any] = {"input": "float32", "dynamic": True}
#: The fields of a spec that say what X is.
OF_X = ("activation", "activation_scale", "activation_zero_point", "dynamic", "input")


@dataclass(frozen=True, eq=False)
class Activations:
    """What a file says of a layer's X.

    Attributes
    ----------
    text : in its words: "int8 token dynamic", "float8".
    fields : those of a `MatmulSpec` (activation, activation_scale, dynamic, input,
        activation_zero_point), or None where quantmm computes no such thing.
    scale, zero_point : the given numbers of a static scheme, as `bind` takes x_scale and
        x_zero_point.
    """

    text: str
    fields: Mapping[str, Any] | None
    scale: np.ndarray | None = None
    zero_point: np.ndarray | None = None


def activations_of(spec: MatmulSpec) -> Activations:
    """What a spec of ours in a file says of a layer's X, and of Y."""
    return Activations(name_of(spec), {name: getattr(spec, name) for name in (*OF_X, "out")})


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight in a model's file.

    Attributes
    ----------
    name : as the module is called: without ".weight".
    shape : (N, K), of outputs and inputs, however the file has them; the rows of experts, which
        lie one behind the other, are all counted.
    format : as people know it: "gptq int4 g=128", "Q4_K", "float16".
    nbytes : in the file, scales and all.
    file : where it is.
    load : gives the weight; call `read` instead, which names the layer in errors.
    fields : of a `MatmulSpec`, what the weight decides (weight, group_size, weight_zero_point,
        weight_offset, weight_order, experts); None for floats.
    activations : what the file says of X; None where it says nothing.
    experts : how many matrices lie one behind the other in a weight of floats.
    shared : whether the weight is a table of embeddings, which is one of the model's other tensors.
    """

    name: str
    shape: tuple[int, int]
    format: str
    nbytes: int
    file: Path
    load: Callable[[], QTensor | np.ndarray] = field(repr=False)
    fields: Mapping[str, Any] | None = None
    activations: Activations | None = None
    shared: bool = False
    experts: int | None = None

    @property
    def is_float(self) -> bool:
        """Whether the weight is not quantized."""
        return self.fields is None and self.format in FLOATS

    def read(self) -> QTensor | np.ndarray:
        """The weight: quantized, or an array (N, K) of float32, float16 or bfloat16.

        Raises
        ------
        WeightFileError
            The file is damaged, or was changed.
        """
        with reading(self.file, self.name):
            weight = self.load()
            if weight.shape != self.shape:
                raise WeightFileError(
                    f"{self.file}: {self.name} has shape {weight.shape}; expected {self.shape}"
                )
            return weight

    def spec(self, **fields: Any) -> MatmulSpec:
        """The spec that fits the weight, and what the file says of activations.

        Where it says nothing, X arrives as float32 and is quantized in the call, row by row.

        Parameters
        ----------
        fields : of the spec, instead of these, or more of them (bias, out and so on).

        Raises
        ------
        UnsupportedError
            The file asks for activations that quantmm does not compute, and `fields` for no others;
            or holds floats, which have no format of their own.
        SpecError
            The fields do not fit each other.
        """
        n, k = self.shape
        if self.fields is None and not self.is_float:
            raise UnsupportedError(
                f"{self.file}: {self.name} is {self.format}, which quantmm does not read"
            )
        if self.fields is None and "weight" not in fields:
            raise UnsupportedError(
                f"{self.name} is {self.format}, which is not quantized; expected a format"
            )
        said: Mapping[str, Any] = FLOATS_IN
        if self.activations is not None:
            said = self.activations.fields or FLOATS_IN
            if self.activations.fields is None and fields.keys().isdisjoint(OF_X):
                raise UnsupportedError(
                    f"{self.file}: {self.name} has activations of {self.activations.text}; "
                    "quantmm computes int8 and uint8 ones, by tensor, row or group"
                )
        decided = {**(self.fields or {}), **said, **fields}
        if self.experts is not None:
            decided.setdefault("experts", self.experts)
        n //= (decided.get("experts") or 1) * (2 if decided.get("gated") else 1)
        return MatmulSpec(n=n, k=k, **decided)


class Lazy(Mapping[str, T]):
    """Values by name, each made anew when it is asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], T]]) -> None:
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> T:
        return self._makers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


class Model(Lazy[QTensor | np.ndarray]):
    """The weights of a model's file by the names of their layers: `QTensor`, or float matrices.

    A weight is read whenever it is asked for, and not kept.

    Attributes
    ----------
    path : the file or folder.
    format : of the quantized layers: "gptq", "GGUF", "floats" and so on.
    layers : what is known of each weight before it is read.
    tensors : everything else by its name in the file, read when it is asked for: biases, norms,
        tables of embeddings.
    config : what the file or config.json says of the model, or {}.
    notes : what a reader could not tell, in sentences.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        format: str,
        layers: Mapping[str, Layer],
        tensors: Mapping[str, Callable[[], np.ndarray]],
        config: Mapping[str, Any] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        super().__init__({name: layer.read for name, layer in layers.items()})
        self.path = Path(path)
        self.format = format
        self.layers = dict(layers)
        self.tensors: Lazy[np.ndarray] = Lazy(tensors)
        self.config: dict[str, Any] = dict(config or {})
        self.notes = notes

    def __repr__(self) -> str:
        return f"<Model {self.path}: {self.format}, {len(self.layers)} layers>"
