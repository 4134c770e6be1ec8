"""`quantmm inspect`: what a spec becomes, and what a file holds."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click
from rich.table import Table

from ..bench import sass
from ..compiler.compile import compile
from ..formats.spec import MatmulSpec
from ..runtime import devices
from ..runtime.cuda_info import CudaInfo
from ..runtime.info import KernelInfo
from ..runtime.kernel_file import Stored, contents
from ..runtime.tvm_runtime import without_torch
from .cache import in_short
from .models import float_format_option, inspect_model, is_model
from .options import SIZE, format_options, make_spec, target_option
from .reports import working
from .tables import show

#: Forms of code that it prints.
CPU_FORMS, CUDA_FORMS = ("te", "tir", "ll", "asm"), ("te", "tir", "cuda", "ptx", "sass")


@click.command("inspect")
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
@click.option(
    "--json", "as_json", is_flag=True, help="Everything that a kernel file says of itself."
)
def inspect_command(
    file: str | None,
    n: int | None,
    k: int | None,
    m: int,
    float_format: str | None,
    target: str,
    emit: str,
    as_json: bool,
    **formats: Any,
) -> None:
    """Show what a spec becomes for M rows: a report, the TensorExpression, TIR, or code.

    With FILE, list what a kernel file holds, for this machine or others; or list the layers of a
    model (.safetensors, .gguf, .onnx, or a folder), and the format of the spec that each has.
    """
    if as_json and (file is None or is_model(file)):
        raise click.UsageError("--json is for a kernel file")
    if file is not None:
        if n is not None or k is not None:
            raise click.UsageError("give --n and --k, or a kernel file; not both")
        if emit != "report":
            what = (
                "a model holds no code"
                if is_model(file)
                else ("a kernel file holds machine code only")
            )
            raise click.UsageError(f"--emit {emit}: {what}; give --n and --k")
        if is_model(file):
            inspect_model(file, float_format)
            return
        kernels = contents(file)
        if as_json:
            click.echo(json.dumps(described(kernels), indent=1))
        else:
            click.echo(f"{file}: Y = X Wᵀ with W of {in_short(kernels[0].info.spec)}")
            show(kernels_table(kernels))
        return
    if n is None or k is None:
        raise click.UsageError("give --n and --k, or a kernel file")
    spec = make_spec(n, k, formats)
    if emit == "report":
        with working("compiling"):
            kernel = compile(spec, target)
        click.echo(json.dumps(kernel.report([m]), indent=1))
    else:
        with working("compiling"):
            text = emitted(spec, target, m, emit)
        click.echo(text)


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


def kernels_table(kernels: list[Stored]) -> Table:
    """A row for each kernel of a file, best first."""
    table = Table(box=None, pad_edge=False)
    for name in ("target", "instruction", "runs here", "built with", "bytes", "tuned record"):
        right = name == "bytes"
        table.add_column(name, justify="right" if right else "left", no_wrap=name == "target")
    for stored in kernels:
        info, reason = stored.info, stored.info.why_not_here()
        table.add_row(
            info.target,
            info.instruction,
            "yes" if reason is None else f"no: {reason}",
            ", ".join(f"{name} {version}" for name, version in info.versions.items()),
            f"{len(stored.content):,}",
            ", ".join(records_of(info)) or "none",
        )
    return table


def records_of(info: KernelInfo | CudaInfo) -> list[str]:
    """Names of the tuned records whose parameters a kernel has."""
    functions = info.variants if isinstance(info, CudaInfo) else info.functions
    return [*dict.fromkeys(each.record for each in functions if each.record)]
