"""From a spec and a target to a kernel: TensorExpression, schedule, machine code."""

from __future__ import annotations

import dataclasses
import math

import tvm
from tvm import tirx

from .. import schedules, targets
from ..errors import UnsupportedError
from ..schedules import Variant, gemm, gemv
from ..targets import Target, WeightLayout, machine
from . import frontend, lowering
from .arrays import MAX_ELEMENTS
from .kernel import Kernel, KernelInfo
from .llvm import llvm_target
from .operands import for_rows, layout_for, operands
from .rounding import fuse_group_sums
from .spec import MatmulSpec
from .starting import can_start_from_x_sum, start_from_x_sum
from .tiles import store_within
from .versions import versions

RECIPES = {"gemm": gemm.schedule, "gemv": gemv.schedule}


def build(
    spec: MatmulSpec, target: str | Target = "host", *, num_threads: int | None = None
) -> Kernel:
    """What `compile` returns for the same arguments, built now whatever the cache holds."""
    row = targets.find_cpu(target)
    chosen = operands(spec, row)
    layout = layout_for(spec, chosen)
    if math.prod(layout.shape) > MAX_ELEMENTS:
        raise UnsupportedError(
            f"a weight of n={spec.n}, k={spec.k} has more than 2**31 - 1 elements"
        )
    variants = choose_variants(spec, row, layout)
    module = machine_code(spec, row, variants)
    info = KernelInfo(
        spec=spec,
        target=row.name,
        instruction=chosen.instruction.name,
        features=tuple(sorted(row.features)),
        architecture=row.architecture or machine.architecture(),
        layout=layout,
        arguments=frontend.arguments(spec, chosen),
        x_offset=chosen.x_offset,
        variants=tuple(
            (v.name, v.strategy, v.tile.rows, v.instruction.name, v.cost(layout.n_blocks))
            for v in variants
        ),
        block_rows=max(1, row.cache_bytes // layout.k_padded),
        versions=versions(),
    )
    return Kernel(info, module, num_threads)


def choose_variants(spec: MatmulSpec, target: Target, layout: WeightLayout) -> tuple[Variant, ...]:
    """Every variant, or for a spec with a fixed M the one that M uses."""
    chosen = operands(spec, target)
    every = schedules.variants(
        target, layout, lambda rows: for_rows(chosen, target, rows).instruction
    )
    if spec.m is None:
        return every
    m = spec.m
    return (min(every, key=lambda v: -(-m // v.tile.rows) * v.cost(layout.n_blocks)),)


def lower(spec: MatmulSpec, target: Target, variant: Variant) -> tirx.PrimFunc:
    """One variant as a scheduled function over the caller's arrays."""
    chosen = operands(spec, target)
    layout = layout_for(spec, chosen)
    program = frontend.program(spec, layout, target, chosen, variant.tile)
    func = RECIPES[variant.strategy](program)
    if can_start_from_x_sum(program) and not spec.weight_zero_point:
        func = start_from_x_sum(program, func)
    if program.layout.groups > 1:
        func = fuse_group_sums(func, target)
    return store_within(program, func, spec.n).with_attr("global_symbol", variant.name)


def machine_code(
    spec: MatmulSpec, target: Target, variants: tuple[Variant, ...]
) -> tvm.runtime.Executable:
    """The variants compiled into one module, for the LLVM options of `target`."""
    llvm = llvm_target(target)
    mod = tvm.IRModule({v.name: lower(spec, target, v) for v in variants})
    return tvm.compile(mod, target=llvm, tir_pipeline=lowering.PIPELINE)


def emit_code(spec: MatmulSpec, target: str | Target, m: int, form: str) -> str:
    """The code that computes `m` rows of `spec`, as text.

    Parameters
    ----------
    form : "te" for the unscheduled TensorExpression, "tir" for the schedule, "ll" or "asm".
    """
    row = targets.find_cpu(target)
    chosen = operands(spec, row)
    layout = layout_for(spec, chosen)
    (variant,) = choose_variants(dataclasses.replace(spec, m=m), row, layout)
    if form == "te":
        return str(frontend.program(spec, layout, row, chosen, variant.tile).func.script())
    if form == "tir":
        return str(lower(spec, row, variant).script())
    return str(machine_code(spec, row, (variant,)).mod.inspect_source(form))
