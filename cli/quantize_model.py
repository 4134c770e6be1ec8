"""`quantmm quantize MODEL`: a whole model, layer by layer, and the table of what that costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from ..errors import WeightFileError
from ..formats.named import FORMATS, fields_of
from ..formats.quantize import dequantize, quantize
from ..formats.ranges import pieces
from ..formats.spec import CHOICES
from ..models.open import open_model
from ..models.write import BLOCK, NAME, Written, chosen_layers, quantize_model
from ..side_by_side import side_by_side
from .tables import show

#: Formats of whole models; the other names that --format takes are formats of one matrix.
WHOLE = [name for name in FORMATS if name not in CHOICES["weight"]]
#: Rows of X, normally distributed, in which the error of X Wᵀ is measured.
ROWS = 8


@dataclass(frozen=True)
class Cost:
    """What quantizing a layer costs, in sums of squares.

    Attributes
    ----------
    floats, bytes : of the weight before, in its file, and after.
    signal, noise : of the weight, and of what it is off by.
    whole, lost : the same of X Wᵀ.
    """

    floats: int
    bytes: int
    signal: float
    noise: float
    whole: float
    lost: float

    def __add__(self, other: Cost) -> Cost:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Cost(*(mine + its for mine, its in pairs))

    @property
    def snr_db(self) -> float:
        """As `ErrorRow.snr_db`."""
        return 10 * math.log10(self.signal / self.noise) if self.noise else math.inf

    @property
    def output_error(self) -> float:
        """As `ErrorRow.output_error`."""
        return math.sqrt(self.lost / self.whole) if self.whole else 0.0


def cost_of(written: Written) -> Cost:
    """What a layer costs, with X quantized as its spec says."""
    spec, weight = written.spec, written.weight
    x = np.random.default_rng(0).standard_normal((ROWS, spec.k), np.float32)
    symmetric = not spec.activation_zero_point
    qx = dequantize(quantize(x, spec.activation, group_size=spec.x_group_size, symmetric=symmetric))

    def some(rows: slice) -> Cost:
        w = written.original[rows].astype(np.float32)
        restored = dequantize(weight.rows(rows))
        y = x @ w.T
        errors = restored - w, qx @ restored.T - y
        return Cost(0, 0, *map(squares, (w, errors[0], y, errors[1])))

    parts = side_by_side(some, pieces(spec.n, BLOCK // spec.k))
    return sum(parts, Cost(written.original.nbytes, written.nbytes, 0, 0, 0, 0))


def squares(values: np.ndarray) -> float:
    """The sum of the squares."""
    return float(np.vdot(values, values))


def quantize_whole(
    path: str,
    output: str | None,
    formats: Sequence[str],
    skip: Sequence[str],
    method: str,
    percentile: float | None,
) -> None:
    """Quantize a model into a folder and print the table of its layers."""
    if len(formats) != 1 or formats[0] not in WHOLE:
        raise click.UsageError(f"a whole model takes one --format of {', '.join(WHOLE)}")
    if output is None:
        raise click.UsageError("a whole model needs --output, the folder to write")
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WeightFileError(f"cannot write {folder}: it is there; expected a new folder")
    model, fields = open_model(path), fields_of(formats[0])
    count = len(chosen_layers(model, skip))
    table = Table(box=None, pad_edge=False)
    table.add_column("layer", no_wrap=True)
    for name in ("N", "K", "bytes", "of the file's", "SNR dB", "error of X Wᵀ"):
        table.add_column(name, justify="right")
    costs, ragged = [], 0
    written = quantize_model(model, folder, fields, skip=skip, method=method, percentile=percentile)
    with bar(count) as (progress, task):
        for each in written:
            progress.update(task, description=each.layer.name)
            costs.append(cost_of(each))
            n, k = each.layer.shape
            ragged += isinstance(each.spec.group_size, int) and k % each.spec.group_size > 0
            table.add_row(each.layer.name, f"{n}", f"{k}", *cells(costs[-1]))
            progress.advance(task)
            del each  # which holds the layer's floats
    table.add_row("in all", "", "", *cells(sum(costs[1:], costs[0])))
    click.echo(f"{path}: {formats[0]}, {method}")
    show(table)
    kept = [name for name, layer in model.layers.items() if layer.is_float]
    if left := len(kept) - count:
        click.echo(f"{left} layers stay floats")
    if ragged:
        click.echo(
            f"{ragged} layers have a K that is no multiple of the group: quantmm reads them, "
            "transformers and vLLM do not"
        )
    click.echo(f"{folder / NAME}: {(folder / NAME).stat().st_size:,} bytes")


def cells(cost: Cost) -> tuple[str, ...]:
    """The numbers of a row."""
    return (
        f"{cost.bytes:,}",
        f"{cost.bytes / cost.floats:.1%}",
        f"{cost.snr_db:.1f}",
        f"{cost.output_error:.3%}",
    )


@contextmanager
def bar(count: int) -> Iterator[tuple[Progress, TaskID]]:
    """A bar on the terminal, over all layers."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress, progress.add_task("", total=count)


def is_whole(path: str, formats: Sequence[Any]) -> bool:
    """Whether a command line asks for a whole model, and not for one matrix."""
    folder = Path(path).is_dir() or path.lower().endswith((".gguf", ".onnx"))
    return folder or any(name in WHOLE for name in formats)
