"""Models' files on the command line: their layers, and the specs that those have."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import click
from rich.table import Table

from ..errors import QuantmmError
from ..formats.named import fields_of, name_of
from ..formats.spec import MatmulSpec
from ..models.model import Layer, Model
from ..models.open import open_model
from ..models.source import ONE_FILE
from ..models.tensors import SUFFIX
from .tables import show

#: The format that layers of floats get where nothing is said.
USUAL = "w8a8-dynamic"


@dataclass(frozen=True)
class Shape:
    """Layers of a model that one kernel serves.

    Attributes
    ----------
    spec : theirs.
    names : of the layers.
    """

    spec: MatmulSpec
    names: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many layers."""
        return len(self.names)

    @property
    def title(self) -> str:
        """The first of them, and how many more there are."""
        first = self.names[0]
        return first if self.count == 1 else f"{first} and {self.count - 1} more"


def is_model(path: str) -> bool:
    """Whether a word of the command line is a model's file or folder."""
    return os.path.isdir(path) or path.lower().endswith((SUFFIX, *ONE_FILE))


def shapes_of(model: Model, floats: Mapping[str, Any]) -> list[Shape]:
    """The distinct specs of a model's layers, in the order of their first layers.

    Parameters
    ----------
    floats : fields of the spec of layers that are not quantized.

    Raises
    ------
    UnsupportedError
        A layer has activations that quantmm does not compute.
    SpecError
        A layer's shape, or its format, is one that no kernel has.
    """
    names: dict[MatmulSpec, list[str]] = {}
    for name, layer in model.layers.items():
        names.setdefault(spec_of(layer, floats), []).append(name)
    return [Shape(spec, tuple(each)) for spec, each in names.items()]


def spec_of(layer: Layer, floats: Mapping[str, Any]) -> MatmulSpec:
    """The spec of a layer; `floats` are the fields of one that is not quantized."""
    if layer.is_float:
        n, k = layer.shape
        return MatmulSpec(n=n, k=k, **floats)
    return layer.spec()


def float_format(name: str | None) -> Mapping[str, Any]:
    """The fields of a spec for layers of floats."""
    return fields_of(name or USUAL)


def inspect_model(path: str, format: str | None) -> None:
    """Print the layers of a model, and what they come to."""
    model, floats = open_model(path), float_format(format)
    click.echo(f"{path}: {model.format}, {len(model.layers)} layers")
    table = Table(box=None, pad_edge=False)
    for name in ("layer", "N", "K", "format", "bytes", "spec"):
        right = name in ("N", "K", "bytes")
        table.add_column(name, justify="right" if right else "left", no_wrap=name == "layer")
    for layer in model.layers.values():
        n, k = layer.shape
        cells = layer.name, f"{n}", f"{k}", layer.format, f"{layer.nbytes:,}"
        table.add_row(*cells, spec_text(layer, floats))
    show(table)
    formats = sorted(model.layers.values(), key=lambda layer: layer.format)
    for text, layers in itertools.groupby(formats, key=lambda layer: layer.format):
        rows = list(layers)
        click.echo(f"{text}: {len(rows)} layers, {total(rows):,} bytes")
    beside = len(model.tensors)
    click.echo(f"in all: {total(model.layers.values()):,} bytes of layers; {beside} other tensors")


def total(layers: Iterable[Layer]) -> int:
    """The bytes of layers in their files; those of a table that two of them share count twice."""
    return sum(layer.nbytes for layer in layers)


def spec_text(layer: Layer, floats: Mapping[str, Any]) -> str:
    """The format of a layer's spec, or why it has none."""
    try:
        return name_of(spec_of(layer, floats))
    except QuantmmError as error:
        return str(error).removeprefix(f"{layer.file}: {layer.name} has ")
