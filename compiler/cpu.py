"""From a spec and a target to a kernel: TensorExpression, schedule, machine code."""

from __future__ import annotations

import dataclasses
import functools
import math

import tvm
from tvm import tirx

from .. import targets
from ..errors import UnsupportedError
from ..formats.spec import MatmulSpec
from ..runtime.arrays import MAX_ELEMENTS
from ..runtime.info import Function, KernelInfo
from ..runtime.kernel import Kernel
from ..schedules.cpu import gemm, gemv, strategies, winograd
from ..schedules.cpu.program import Program
from ..schedules.cpu.strategies import Variant
from ..schedules.operands import Operands, instruction_for, layout_for, operands
from ..schedules.records import Record, Tuned
from ..targets import Target, WeightLayout, machine
from ..targets.layout import k_blocks
from ..versions import versions
from .built import Built
from .expr import frontend
from .llvm import llvm_target
from .rewrite import stack
from .rewrite.float_mode import with_usual_floats
from .rewrite.rounding import fuse_group_sums
from .rewrite.stores import store_within
from .rewrite.sums_start import can_start_from_x_sum, start_from_x_sum

#: Nanoseconds of an issue slot, in which costs count a step along K: one per cycle at 3.3 GHz.
SLOT_NS = 0.3

RECIPES = {"gemm": gemm.schedule, "gemv": gemv.schedule, "winograd": winograd.schedule}


def build(
    spec: MatmulSpec,
    target: str | Target = "host",
    *,
    num_threads: int | None = None,
    record: Record | None = None,
) -> Kernel:
    """What `compile` returns for the same arguments, built now whatever the cache holds.

    Parameters
    ----------
    record : of tuning; None is a kernel with the default parameters.
    """
    row = targets.find_cpu(target)
    chosen = operands(spec, row)
    layout = layout_within_reach(spec, chosen, record.k_block if record else None)
    return kernel_of(spec, row, layout, choose(spec, row, layout, record), num_threads)


def layout_within_reach(
    spec: MatmulSpec, chosen: Operands, k_block: int | None = None
) -> WeightLayout:
    """`layout_for`, in shorter blocks of K if their padding would be what int32 does not reach.

    Raises
    ------
    UnsupportedError
        A weight whose last offset is beyond int32 in any case.
    """
    layout = layout_for(spec, chosen, k_block)
    instruction, group_size, bits = chosen.instruction, layout.group_size, layout.bits
    for size in (layout.k_block, *k_blocks(spec.k, instruction, group_size, bits)):
        within = dataclasses.replace(layout, k_block=size)
        if math.prod(within.shape) - 1 <= MAX_ELEMENTS:
            return within
    raise UnsupportedError(
        f"a weight of n={spec.n}, k={spec.k} is {math.prod(layout.shape)} elements with its "
        f"padding; expected at most {MAX_ELEMENTS + 1}"
    )


def kernel_of(
    spec: MatmulSpec,
    row: Target,
    layout: WeightLayout,
    choices: list[tuple[Variant, Function]],
    num_threads: int | None = None,
) -> Kernel:
    """A kernel of these functions."""
    chosen = operands(spec, row)
    module = machine_code(spec, row, tuple(variant for variant, _ in choices), layout)
    info = KernelInfo(
        spec=spec,
        target=row.name,
        instruction=chosen.instruction.name,
        features=tuple(sorted(row.features)),
        architecture=row.architecture or machine.architecture(),
        layout=layout,
        arguments=frontend.arguments(spec, chosen),
        x_offset=chosen.x_offset,
        functions=tuple(function for _, function in choices),
        cost_ns=layout.k_padded / layout.depth * SLOT_NS,
        versions=versions(),
    )
    return Kernel(info, Built(module, info.architecture), num_threads)


def choose(
    spec: MatmulSpec, target: Target, layout: WeightLayout, record: Record | None = None
) -> list[tuple[Variant, Function]]:
    """Every variant and what the kernel says of it; for a fixed M the one that M uses."""
    chosen = operands(spec, target)
    defaults = [
        (variant, function_of(variant, layout))
        for variant in strategies.variants(
            target, layout, functools.partial(instruction_for, chosen, target)
        )
    ]
    every = list(defaults)
    if record is not None:
        functions = [function for _, function in defaults]
        every += [
            tuned_choice(target, layout, chosen, record.name, tuned, functions)
            for tuned in record.tuned
        ]
    if spec.m is None:
        return every
    m = spec.m
    fit = (choice for choice in every if choice[1].serves(m))
    return [min(fit, key=lambda choice: choice[1].cost_of(m))]


def function_of(variant: Variant, layout: WeightLayout) -> Function:
    """What a kernel says of a variant."""
    return Function(
        variant.name,
        variant.strategy,
        variant.tile.rows,
        variant.instruction.name,
        variant.cost(layout.n_blocks),
        variant.parameters.block_rows,
        -(-layout.n_blocks // variant.tile.width),
        variant.first_m,
        variant.last_m,
        fixed=variant.fixed(layout.n_blocks),
    )


def tuned_choice(
    target: Target,
    layout: WeightLayout,
    chosen: Operands,
    record: str,
    tuned: Tuned,
    defaults: list[Function],
) -> tuple[Variant, Function]:
    """A tuned variant; its cost stands to the default's as their measured times do."""
    rows = tuned.parameters.rows
    instruction = instruction_for(chosen, target, tuned.strategy, rows)
    assert instruction is not None, "what `records.misfit` refuses"
    variant = strategies.tuned(
        target,
        layout,
        instruction,
        tuned.strategy,
        tuned.parameters,
        f"_m{tuned.m}",
    )
    default = min(each.cost_of(tuned.m) for each in defaults if each.serves(tuned.m))
    function = dataclasses.replace(
        function_of(variant, layout),
        cost=tuned.ratio * default / -(-tuned.m // rows),
        fixed=0.0,
        first_m=tuned.first_m,
        last_m=tuned.last_m,
        record=record,
    )
    return variant, function


def choose_variants(spec: MatmulSpec, target: Target, layout: WeightLayout) -> tuple[Variant, ...]:
    """The variants of `choose`, with default parameters."""
    return tuple(variant for variant, _ in choose(spec, target, layout))


def program_of(spec: MatmulSpec, target: Target, variant: Variant, layout: WeightLayout) -> Program:
    """One variant as a TensorExpression."""
    chosen = operands(spec, target)
    return frontend.program(spec, layout, target, chosen, variant.parameters, variant.instruction)


def lower(
    spec: MatmulSpec, target: Target, variant: Variant, layout: WeightLayout | None = None
) -> tirx.PrimFunc:
    """One variant as a scheduled function over the caller's arrays, for the default layout or any.

    Raises
    ------
    UnsupportedError
        The target has no instruction for the spec's weights.
    """
    layout = layout or layout_for(spec, operands(spec, target))
    program = program_of(spec, target, variant, layout)
    func = RECIPES[variant.strategy](program)
    if can_start_from_x_sum(program) and not spec.weight_zero_point:
        func = start_from_x_sum(program, func)
    if program.layout.groups > 1:
        func = fuse_group_sums(func, target)
    func = with_usual_floats(store_within(program, func, spec.n), target)
    return func.with_attr("global_symbol", variant.name)


def machine_code(
    spec: MatmulSpec,
    target: Target,
    variants: tuple[Variant, ...],
    layout: WeightLayout | None = None,
) -> tvm.runtime.Executable:
    """The variants compiled into one module, for the LLVM options of `target`."""
    llvm = llvm_target(target)
    mod = tvm.IRModule({v.name: lower(spec, target, v, layout) for v in variants})
    return tvm.compile(mod, target=llvm, tir_pipeline=stack.PIPELINE)


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
        return str(program_of(spec, row, variant, layout).func.script())
    if form == "tir":
        return str(lower(spec, row, variant).script())
    return str(machine_code(spec, row, (variant,)).mod.inspect_source(form))
