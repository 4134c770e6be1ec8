"""The command `quantmm`. Every error is one line on stderr and exit status 2."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from typing import Any

import click
import numpy as np
from rich.console import Console

from .. import __version__, targets
from ..bench import sass
from ..compiler import runtime
from ..compiler.compile import compile
from ..compiler.kernel_file import Stored, contents
from ..compiler.quantize import quantize
from ..compiler.reference import reference
from ..compiler.spec import MatmulSpec
from ..errors import QuantmmError
from .bench import bench_command
from .cache import cache_command
from .logs import logs_command
from .options import (
    format_options,
    make_spec,
    size_options,
    target_option,
    targets_option,
)
from .quantize import quantize_command
from .rpc import serve_command, tracker_command
from .targets import targets_command
from .tune import tune_command
from .verify import verify_command

FAILURE = 2
#: Forms of code that `inspect` prints.
CPU_FORMS, CUDA_FORMS = ("te", "tir", "ll", "asm"), ("te", "tir", "cuda", "ptx", "sass")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def cli() -> None:
    """Compile, check and time quantized matrix multiplications Y = X Wᵀ.

    X is M x K (activations), W is N x K (weights); both are integers with scales.
    """


cli.add_command(targets_command)
cli.add_command(quantize_command)
cli.add_command(verify_command)
cli.add_command(cache_command)
cli.add_command(bench_command)
cli.add_command(tune_command)
cli.add_command(logs_command)
cli.add_command(tracker_command)
cli.add_command(serve_command)


def run() -> None:
    """The entry point of the command line."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = warn
            status = cli(prog_name="quantmm", standalone_mode=False)
    except click.ClickException as error:
        status = complain(error.format_message())
    except click.Abort:
        status = complain("interrupted")
    except QuantmmError as error:
        status = complain(str(error))
    sys.exit(status)


def warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning like an error, but go on."""
    complain(str(message))


def complain(message: str) -> int:
    """Print one line on stderr."""
    click.echo("quantmm: " + " ".join(message.split()), err=True)
    return FAILURE


@cli.command("compile")
@size_options
@click.option("--m", type=int, help="The only M that will be called; any when left out.")
@format_options
@targets_option
@click.option("-o", "--output", required=True, type=click.Path(), help="The kernel file to write.")
def compile_command(
    n: int, k: int, m: int | None, target: list[str], output: str, **formats: Any
) -> None:
    """Compile a kernel and write it to a file that `quantmm.load` reads.

    For several targets the file has a kernel for each, and loading takes the best one for its
    machine. The targets may be other machines' than this one.
    """
    spec = make_spec(n, k, formats, m)
    rows = [targets.find(name) for name in target]
    first, *others = [compile(spec, row) for row in rows]
    first.save(output, *others)
    click.echo(f"{output}: {spec.to_json()}")
    for stored in contents(output):
        info, size = stored.info, len(stored.library)
        click.echo(f"  {info.target}: {info.instruction}, {info.architecture}, {size:,} bytes")


@cli.command()
@click.argument("file", required=False, type=click.Path())
@click.option("--n", type=int, help="Rows of W.")
@click.option("--k", type=int, help="Columns of X and W.")
@click.option("--m", type=int, default=512, show_default=True, help="Rows of X.")
@format_options
@target_option
@click.option(
    "--emit",
    type=click.Choice(["report", *dict.fromkeys((*CPU_FORMS, *CUDA_FORMS))]),
    default="report",
    show_default=True,
    help="What to print; ll and asm of CPUs, cuda, ptx and sass of GPUs.",
)
def inspect(
    file: str | None,
    n: int | None,
    k: int | None,
    m: int,
    target: str,
    emit: str,
    **formats: Any,
) -> None:
    """Show what a spec becomes for M rows: a report, the TensorExpression, TIR, or code.

    With FILE, report what a kernel file holds, for this machine or others.
    """
    if file is not None:
        click.echo(json.dumps(described(contents(file)), indent=1))
        return
    if n is None or k is None:
        raise click.UsageError("give --n and --k, or a kernel file")
    spec = make_spec(n, k, formats)
    if emit == "report":
        click.echo(json.dumps(compile(spec, target).report([m]), indent=1))
    else:
        click.echo(emitted(spec, target, m, emit))


def emitted(spec: MatmulSpec, target: str, m: int, form: str) -> str:
    """The code that computes `m` rows, as text."""
    row = targets.find(target)
    forms = CUDA_FORMS if isinstance(row, targets.CudaTarget) else CPU_FORMS
    if form not in forms:
        raise click.UsageError(f"--emit {form}: {row.name} has {', '.join(forms)}")
    with runtime.without_torch():
        from ..compiler import build, cuda_build
    if isinstance(row, targets.CudaTarget):
        if form == "sass":
            return sass.text(compile(dataclasses.replace(spec, m=m), row).cubin)
        return cuda_build.emit_code(spec, row, m, form)
    return build.emit_code(spec, row, m, form)


def described(kernels: list[Stored]) -> dict[str, Any]:
    """What a kernel file holds, best first, and why some of it does not run here."""
    rows = []
    for info in (stored.info for stored in kernels):
        fields = info.to_dict()
        spec = fields.pop("spec")
        rows.append({"why_not_here": info.why_not_here(), **fields})
    return {"spec": spec, "kernels": rows}


@cli.command()
def demo() -> None:
    """Quantize, compile, multiply and compare: the whole way on a small example."""
    console = Console()
    rng = np.random.default_rng(0)
    m, n, k = 16, 1024, 1024
    x, weights = rng.standard_normal((m, k)), rng.standard_normal((n, k))
    console.print(f"Y = X Wᵀ with X {m} x {k} and W {n} x {k}, both quantized to int8")
    w, qx = quantize(weights, "int8"), quantize(x, "int8", group_size="tensor")
    spec = MatmulSpec(n=n, k=k)
    # Not from the cache: this shows that everything is there that compiling needs.
    kernel = compile(spec, "host", cache=False)
    console.print(f"compiled for {kernel.info.target} ({kernel.info.instruction})")
    y = kernel.bind(w)(qx)
    exact = bool(np.array_equal(y, reference(spec, qx, w)))
    error = np.abs(y - x @ weights.T).max() / np.abs(x @ weights.T).max()
    console.print(f"equal to the reference: {exact}; error of the quantization: {error:.2%}")
    console.print(json.dumps(dataclasses.asdict(kernel.plan(m))))
    if not exact:
        raise QuantmmError("the kernel differs from the reference")
