"""Models' files on the command line: their layers, and the specs that those have."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from ..compiler.compile import compile
from ..errors import KernelFileError, QuantmmError
from ..files import why_not, write_whole
from ..formats.named import FORMATS, fields_of, name_of
from ..formats.spec import MatmulSpec
from ..models.model import Layer, Model
from ..models.open import open_model
from ..models.source import ONE_FILE
from ..models.tensors import SUFFIX
from .reports import rows_to_save, watched
from .tables import show

if TYPE_CHECKING:
    from ..tuning.state import Tuning

#: The format that layers of floats get where nothing is said.
USUAL = "w8a8-dynamic"
#: In a folder of kernels, which layers each is for.
KERNELS = "kernels.json"


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
    for layer in model.layers.values():
        names.setdefault(spec_of(model, layer, floats), []).append(layer.name)
    return [Shape(spec, tuple(each)) for spec, each in names.items()]


def spec_of(model: Model, layer: Layer, floats: Mapping[str, Any]) -> MatmulSpec:
    """The spec of a layer, with a bias where the file has one.

    `floats` are the fields of a layer that is not quantized.
    """
    bias = {"bias": True} if f"{layer.name}.bias" in model.tensors else {}
    if layer.is_float:
        n, k = layer.shape
        experts = {"experts": layer.experts} if layer.experts is not None else {}
        return MatmulSpec(n=n // (layer.experts or 1), k=k, **{**floats, **bias, **experts})
    return layer.spec(**bias)


def specs_in(path: str, formats: Sequence[Mapping[str, Any]]) -> list[list[tuple[MatmulSpec, str]]]:
    """For layers of a model's file that have the same specs, these and what tables call them.

    Parameters
    ----------
    formats : the fields of specs that layers of floats get, each in turn. Quantized layers have
        their own.
    """
    model = open_model(path)
    found: dict[str, dict[MatmulSpec, None]] = {}
    for fields in formats:
        for shape in shapes_of(model, fields):
            found.setdefault(shape.title, {})[shape.spec] = None
    return [[(spec, title) for spec in specs] for title, specs in found.items()]


def file_name(spec: MatmulSpec) -> str:
    """Of a kernel file: its shape and format."""
    words = re.sub(r"[^\w.=-]+", "-", name_of(spec))
    return f"{spec.n}x{spec.k}-{words}.qmm"


def compile_model(path: str, folder: Path, names: Sequence[str], format: str | None) -> None:
    """Compile a kernel file for each distinct spec of a model, and write which layers have it."""
    rows = rows_to_save(names)
    shapes = shapes_of(open_model(path), float_format(format))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KernelFileError(f"cannot write {folder}: {why_not(error, folder)}") from None
    listed = []
    for shape in watched(shapes, lambda shape: f"{shape.spec.n} x {shape.spec.k}"):
        file = folder / file_name(shape.spec)
        first, *others = [compile(shape.spec, row) for row in rows]
        first.save(file, *others)
        spec = json.loads(shape.spec.to_json())
        listed.append({"file": file.name, "spec": spec, "layers": shape.names})
        click.echo(f"{file}: {shape.count} layers, {file.stat().st_size:,} bytes")
    text = json.dumps({"model": path, "targets": [row.name for row in rows], "kernels": listed})
    write_whole(folder / KERNELS, text.encode(), KernelFileError)


def saved_per_token(path: str, tunings: Iterable[Tuning], shapes: Sequence[Shape]) -> list[str]:
    """What tuning saved per row of X, over all layers of a model, for each M."""
    counts = {shape.spec: shape.count for shape in shapes}
    times: dict[int, list[float]] = {}
    for tuning in tunings:
        for each in tuning.outcomes:
            both = times.setdefault(each.m, [0.0, 0.0])
            best = each.tuned if each.choice is not None else each.default
            both[0] += counts[tuning.spec] * each.default
            both[1] += counts[tuning.spec] * best
    return [
        f"{path}, M={m}: {1e6 * (before - after) / m:,.1f} us saved per token, "
        f"{1e6 * after / m:,.1f} instead of {1e6 * before / m:,.1f}"
        for m, (before, after) in times.items()
    ]


float_format_option = click.option(
    "--format",
    "float_format",
    type=click.Choice([*FORMATS]),
    help=f"Of the layers of a model that are not quantized; {USUAL} when left out.",
)


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
        table.add_row(*cells, spec_text(model, layer, floats))
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


def spec_text(model: Model, layer: Layer, floats: Mapping[str, Any]) -> str:
    """The format of a layer's spec, or why it has none."""
    try:
        return name_of(spec_of(model, layer, floats))
    except QuantmmError as error:
        return str(error).removeprefix(f"{layer.file}: {layer.name} has ")
