"""`quantmm compile`: a kernel file for one target or several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..compiler.compile import compile
from ..errors import KernelFileError
from ..files import check_writable
from ..runtime.kernel_file import contents
from .inspect import records_of
from .models import compile_model, float_format_option
from .options import SIZE, format_options, is_given, make_spec, targets_option
from .reports import rows_to_save, watched


@click.command("compile")
@click.option("--n", type=SIZE, help="Rows of W.")
@click.option("--k", type=SIZE, help="Columns of X and W.")
@click.option("--m", type=SIZE, help="The only M that will be called; any when left out.")
@click.option(
    "--model",
    type=click.Path(),
    help="A model's file or folder: a kernel file for each of its shapes and formats.",
)
@float_format_option
@format_options
@targets_option
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(),
    help="The kernel file to write; the folder with --model.",
)
@click.pass_context
def compile_command(
    context: click.Context,
    /,
    n: int | None,
    k: int | None,
    m: int | None,
    model: str | None,
    float_format: str | None,
    target: list[str],
    output: str,
    **formats: Any,
) -> None:
    """Compile a kernel and write it to a file that `quantmm.load` reads.

    For several targets the file has a kernel for each, and loading takes the best one for its
    machine. The targets may be other machines' than this one. A record that tuning left for the
    spec is used, and named.
    """
    if model is not None:
        given = {name for name in (*formats, "n", "k", "m") if is_given(context, name)}
        if given:
            names = ", ".join("--" + name.replace("_", "-") for name in sorted(given))
            raise click.UsageError(f"{names}: --model decides this; --format is of float layers")
        compile_model(model, Path(output), target, float_format)
        return
    if n is None or k is None:
        raise click.UsageError("give --n and --k, or --model")
    if float_format is not None:
        raise click.UsageError("--format is of the layers of a --model")
    spec = make_spec(n, k, formats, m)
    check_writable(Path(output), KernelFileError)
    rows = rows_to_save(target)
    kernels = [compile(spec, row) for row in watched(rows, lambda row: f"compiling for {row.name}")]
    kernels[0].save(output, *kernels[1:])
    click.echo(f"{output}: {spec.to_json()}")
    for stored in contents(output):
        info, size = stored.info, len(stored.content)
        click.echo(f"  {info.target}: {info.instruction}, {info.architecture}, {size:,} bytes")
        for record in records_of(info):
            click.echo(f"    with the parameters of the tuned record {record}")
