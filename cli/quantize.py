"""`quantmm quantize`: what formats cost on a weight from a file, and the quantized weight."""

from __future__ import annotations

import functools
import itertools
import os
from typing import Any

import click
import numpy as np
from rich.table import Table

from ..formats.quality import ErrorRow, error_report, quantize_weight
from ..formats.quantize import METHODS, PERCENTILE
from ..formats.spec import CHOICES, MatmulSpec
from ..formats.weights import find_matrix, save_weights
from .options import HELP, GroupSize, format_options, is_given, make_spec
from .quantize_model import WHOLE, is_whole, quantize_whole
from .reports import working
from .tables import show

#: What a weight may have beside scales.
BESIDE = ("weight_zero_point", "weight_offset")

#: What is compared when nothing is chosen: weight, group size, and of `BESIDE` what there is.
USUAL: list[tuple[str, int | None, dict[str, bool]]] = [
    ("int8", None, {}),
    ("int8", 128, {}),
    ("int4", None, {}),
    ("int4", 128, {}),
    ("int4", 32, {}),
    ("uint4", 32, {"weight_zero_point": True}),
    ("uint4", 32, {"weight_offset": True}),
]


@click.command("quantize")
@click.argument("file", type=click.Path())
@click.option("--tensor", help="Name of the matrix in FILE; needed where there are several.")
@click.option(
    "--weight",
    "--format",
    "weights",
    type=click.Choice([*CHOICES["weight"], *WHOLE]),
    multiple=True,
    help=HELP["weight"] + " May be repeated. The last names are formats of whole models.",
)
@click.option(
    "--group-size",
    "group_sizes",
    type=GroupSize(),
    multiple=True,
    help=HELP["group_size"] + " May be repeated: each is combined with each format.",
)
@functools.partial(format_options, but=("weight", "group_size"))
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default=METHODS[0],
    show_default=True,
    help="How the range of the weight is found.",
)
@click.option(
    "--percentile",
    type=float,
    help=f"Percentile that --method percentile keeps; {PERCENTILE} when left out.",
)
@click.option(
    "--skip",
    multiple=True,
    metavar="PATTERN",
    help="Of a whole model: layers that stay floats, such as lm_head or 'layers.0.*'. May be "
    "repeated.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    help="The .safetensors file to write; the folder for a whole model.",
)
def quantize_command(
    file: str,
    tensor: str | None,
    weights: tuple[str, ...],
    group_sizes: tuple[int | str | None, ...],
    method: str,
    percentile: float | None,
    skip: tuple[str, ...],
    output: str | None,
    **formats: Any,
) -> None:
    """Compare formats on the matrix in FILE, and write it quantized.

    FILE is .npy, .npz or .safetensors and holds W, N x K. The table has the size, the error of the
    weight and that of X Wᵀ for activations from a normal distribution. With --output the weight
    is also written, with its spec, in the one format chosen; `quantmm.load_weights` reads it.

    With a folder, a .gguf or a .onnx, or with --format of a whole model (w4a8-g128 and so on),
    every layer of a model of floats is quantized, one at a time, into the folder --output, in the
    conventions of compressed-tensors, which vLLM and transformers read.
    """
    if is_whole(file, weights):
        context = click.get_current_context()
        if any(is_given(context, name) for name in ("tensor", "group_sizes", *formats)):
            raise click.UsageError("--format decides all of a whole model's format")
        quantize_whole(file, output, weights, skip, method, percentile)
        return
    if skip:
        raise click.UsageError("--skip names layers of a whole model; FILE is one matrix")
    chosen = list(itertools.product(weights or ("int8", "int4"), group_sizes or (None,)))
    if output is not None and (not weights or len(chosen) != 1):
        raise click.UsageError("--output writes one weight; choose one --weight and --group-size")
    if output is not None and same_file(file, output):
        raise click.UsageError(f"--output {output} is FILE, which it would replace; name another")
    name, matrix = find_matrix(file, tensor)
    n, k = matrix.shape
    said = {name: formats[name] for name in BESIDE if formats[name]}
    if weights or group_sizes or said:
        words = [(weight, size, said) for weight, size in chosen]
    else:
        words = [row for row in USUAL if row[1] is None or row[1] <= k]
    specs = [
        make_spec(n, k, {**formats, "weight": weight, "group_size": size, **beside})
        for weight, size, beside in words
    ]
    if output is not None:
        (spec,) = specs
        q = quantize_weight(matrix, spec, method, percentile)
        save_weights(output, {name: (q, spec)})
    with working("comparing with the product in float64"):
        rows = error_report(matrix, specs, method=method, percentile=percentile)
    click.echo(f"{name} of {file}: N={n}, K={k}, {method}")
    show(error_table(rows))
    for note in clipped(matrix, specs):
        click.echo(note)
    if output is not None:
        click.echo(f"{output}: {name}, {spec.to_json()}")


def same_file(a: str, b: str) -> bool:
    """Whether two paths lead to one file that is there."""
    try:
        return os.path.samefile(a, b)
    except OSError:
        return False


def clipped(matrix: np.ndarray, specs: list[MatmulSpec]) -> list[str]:
    """A line for each format without a zero point that makes negative numbers zero."""
    weights = [
        spec.weight
        for spec in specs
        if spec.weight.startswith("u")
        and not (spec.weight_zero_point or spec.weight_offset)
        and matrix.min() < 0
    ]
    notes = [
        f"{weight} without --weight-zero-point: negative weights are clipped to 0"
        for weight in dict.fromkeys(weights)
    ]
    spec = specs[0]
    if spec.activation.startswith("u") and not spec.activation_zero_point:
        notes.append(
            f"{spec.activation} without --activation-zero-point: negative activations are clipped "
            "to 0"
        )
    return notes


def error_table(rows: list[ErrorRow]) -> Table:
    """What `error_report` found, as a table."""
    table = Table(box=None, pad_edge=False)
    table.add_column("weight", no_wrap=True)
    table.add_column("activation", no_wrap=True)
    for name in ("bytes", "of float32", "SNR dB", "error of X Wᵀ"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.format,
            row.activation,
            f"{row.bytes:,}",
            f"{row.ratio:.1%}",
            f"{row.snr_db:.1f}",
            f"{row.output_error:.3%}",
        )
    return table
