"""The command `quantmm`. Every error is one line on stderr and exit status 2."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any, TextIO

import click
import numpy as np

from ..bench import sass
from ..compiler.compile import compile
from ..errors import KernelFileError, QuantmmError
from ..files import check_writable
from ..formats.quantize import quantize
from ..formats.reference import reference
from ..formats.spec import MatmulSpec
from ..interrupt import INTERRUPTED
from ..runtime import devices
from ..runtime.kernel_file import Stored, contents
from ..runtime.tvm_runtime import without_torch
from ..versions import VERSION
from .bench import bench_command
from .cache import cache_command
from .logs import logs_command
from .models import compile_model, float_format_option, inspect_model, is_model
from .options import SIZE, format_options, is_given, make_spec, target_option, targets_option
from .quantize import quantize_command
from .rpc import serve_command, tracker_command
from .targets import targets_command
from .tune import tune_command
from .verify import verify_command

FAILURE = 2
#: Forms of code that `inspect` prints.
CPU_FORMS, CUDA_FORMS = ("te", "tir", "ll", "asm"), ("te", "tir", "cuda", "ptx", "sass")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(VERSION)
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
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Rather a question mark in the output than none of it.
        sys.stdout.reconfigure(errors="replace")
    status = outcome()
    if sys.stdout is not None:
        status = finish(sys.stdout, status)
    sys.exit(status)


def outcome() -> int | None:
    """Do what the command line says; the exit status, None for success."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = warn
            return cli(prog_name="quantmm", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return FAILURE
    except click.ClickException as error:
        return complain(error.format_message())
    except click.Abort as error:
        complain(str(error) or "interrupted")
        return INTERRUPTED
    except MemoryError as error:
        return complain(f"not enough memory: {error}")
    except OSError as error:
        return complain(reason(error))
    except (QuantmmError, UnicodeError) as error:
        return complain(str(error))


def reason(error: OSError) -> str:
    """What the system says, and of which file, without the number of the error."""
    if isinstance(error, QuantmmError) or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def finish(output: TextIO, status: int | None) -> int | None:
    """Write what is still to be written, while its failing can be told; the exit status."""
    try:
        output.flush()
    except OSError as error:
        # Python would try again at its end.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
        return status or complain(reason(error))
    return status


def warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning like an error, but go on."""
    complain(str(message))


def complain(message: str) -> int:
    """Print one line on stderr."""
    click.echo("quantmm: " + " ".join(message.split()), err=True)
    return FAILURE


@cli.command("compile")
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
    machine. The targets may be other machines' than this one.
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
    rows = [devices.find(name) for name in target]
    first, *others = [compile(spec, row) for row in rows]
    first.save(output, *others)
    click.echo(f"{output}: {spec.to_json()}")
    for stored in contents(output):
        info, size = stored.info, len(stored.content)
        click.echo(f"  {info.target}: {info.instruction}, {info.architecture}, {size:,} bytes")


@cli.command()
@click.argument("file", required=False, type=click.Path())
@click.option("--n", type=SIZE, help="Rows of W.")
@click.option("--k", type=SIZE, help="Columns of X and W.")
@click.option("--m", type=SIZE, default=512, show_default=True, help="Rows of X.")
@format_options
@float_format_option
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
    float_format: str | None,
    target: str,
    emit: str,
    **formats: Any,
) -> None:
    """Show what a spec becomes for M rows: a report, the TensorExpression, TIR, or code.

    With FILE, report what a kernel file holds, for this machine or others; or list the layers of a
    model (.safetensors, .gguf, .onnx, or a folder), and the format of the spec that each has.
    """
    if file is not None:
        if n is not None or k is not None:
            raise click.UsageError("give --n and --k, or a kernel file; not both")
        if is_model(file):
            inspect_model(file, float_format)
            return
        if emit != "report":
            raise click.UsageError(
                f"--emit {emit}: a kernel file holds machine code only; give --n and --k"
            )
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
    row = devices.find(target)
    forms = CUDA_FORMS if row.device == "cuda" else CPU_FORMS
    if form not in forms:
        raise click.UsageError(f"--emit {form}: {row.name} has {', '.join(forms)}")
    with without_torch():
        from ..compiler import cpu, cuda
    if row.device == "cuda":
        if form == "sass":
            return sass.text(compile(dataclasses.replace(spec, m=m), row).cubin)
        return cuda.emit_code(spec, row, m, form)
    return cpu.emit_code(spec, row, m, form)


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
    rng = np.random.default_rng(0)
    m, n, k = 16, 1024, 1024
    x, weights = rng.standard_normal((m, k)), rng.standard_normal((n, k))
    click.echo(f"Y = X Wᵀ with X {m} x {k} and W {n} x {k}, both quantized to int8")
    w, qx = quantize(weights), quantize(x)
    spec = MatmulSpec(n=n, k=k)
    # Not from the cache: this shows that everything is there that compiling needs.
    kernel = compile(spec, "host", cache=False)
    click.echo(f"compiled for {kernel.info.target} ({kernel.info.instruction})")
    y = kernel.bind(w)(qx)
    exact = bool(np.array_equal(y, reference(spec, qx, w)))
    error = np.abs(y - x @ weights.T).max() / np.abs(x @ weights.T).max()
    click.echo(f"equal to the reference: {exact}; error of the quantization: {error:.2%}")
    click.echo(json.dumps(dataclasses.asdict(kernel.plan(m))))
    if not exact:
        raise QuantmmError("the kernel differs from the reference")
