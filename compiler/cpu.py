"""From a spec and a target to a kernel: TensorExpression, schedule, machine code."""

from __future__ import annotations

import dataclasses

import tvm
from tvm import tirx

from .. import targets
from ..formats.spec import MatmulSpec
from ..runtime.info import Function, KernelInfo
from ..runtime.kernel import Kernel
from ..schedules.arguments import arguments, rows_of_x
from ..schedules.cpu.plan import CpuPlan, plan_for
from ..schedules.cpu.program import Parameters, Program
from ..schedules.cpu.strategies import STRATEGIES, instruction_for
from ..schedules.cpu.variants import Variant, variant_with, variants
from ..schedules.records import Record, Tuned
from ..targets import Target, WeightLayout, machine
from ..versions import versions
from .built import Built
from .expr import frontend
from .llvm import llvm_target
from .rewrite import stack
from .rewrite.float_mode import with_usual_floats
from .rewrite.rounding import fuse_group_sums
from .rewrite.stores import store_cpu_tiles
from .rewrite.sums_start import can_start_from_x_sum, start_from_x_sum
from .rewrite.units import over_units
from .side_by_side import side_by_side

#: Nanoseconds of an issue slot, in which costs count a step along K: one per cycle at 3.3 GHz.
SLOT_NS = 0.3


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
    plan = plan_for(spec, targets.find_cpu(target), record.k_block if record else None)
    return kernel_of(plan, choose(plan, record), num_threads)


def kernel_of(
    plan: CpuPlan, choices: list[tuple[Variant, Function]], num_threads: int | None = None
) -> Kernel:
    """A kernel of these functions."""
    row, layout = plan.target, plan.layout
    llvm = llvm_target(row)
    largest_first = [variant for variant, _ in reversed(choices)]  # it takes longest
    funcs = (lower(plan, variant) for variant in largest_first)
    modules = side_by_side(lambda func: compiled(func, llvm), funcs)
    names = [variant.name for variant in largest_first]
    info = KernelInfo(
        spec=plan.spec,
        target=row.name,
        instruction=plan.instruction.name,
        features=tuple(sorted(row.features)),
        architecture=row.architecture or machine.architecture(),
        layout=layout,
        arguments=arguments(plan),
        x_offset=plan.x_shift,
        functions=tuple(function for _, function in choices),
        cost_ns=layout.k_padded / layout.depth * SLOT_NS,
        versions=versions(),
    )
    code = Built(dict(zip(names, modules, strict=True)), info.architecture)
    return Kernel(info, code, num_threads)


def choose(plan: CpuPlan, record: Record | None = None) -> list[tuple[Variant, Function]]:
    """Every variant and what the kernel says of it; for a fixed M the one that M uses."""
    defaults = [(variant, function_of(variant, plan.layout)) for variant in variants(plan)]
    every = list(defaults)
    if record is not None:
        functions = [function for _, function in defaults]
        every += [tuned_choice(plan, record.name, tuned, functions) for tuned in record.tuned]
    if plan.spec.m is None:
        return every
    m = plan.spec.rows_of_each(plan.spec.m)
    fit = (choice for choice in every if choice[1].serves(m))
    return [min(fit, key=lambda choice: choice[1].cost_of(m))]


def function_of(variant: Variant, layout: WeightLayout) -> Function:
    """What a kernel says of a variant."""
    return Function(
        variant.name,
        variant.strategy.name,
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
    plan: CpuPlan, record: str, tuned: Tuned, defaults: list[Function]
) -> tuple[Variant, Function]:
    """A tuned variant; its cost stands to the default's as their measured times do."""
    assert isinstance(tuned.parameters, Parameters)
    strategy, rows = STRATEGIES[tuned.strategy], tuned.parameters.rows
    instruction = instruction_for(plan, strategy, rows)
    assert instruction is not None, "what `records.misfit` refuses"
    variant = variant_with(plan, instruction, strategy, tuned.parameters, f"_m{tuned.m}")
    default = min(each.cost_of(tuned.m) for each in defaults if each.serves(tuned.m))
    function = dataclasses.replace(
        function_of(variant, plan.layout),
        cost=tuned.ratio * default / -(-tuned.m // rows),
        fixed=0.0,
        first_m=tuned.first_m,
        last_m=tuned.last_m,
        record=record,
    )
    return variant, function


def choose_variants(plan: CpuPlan) -> tuple[Variant, ...]:
    """The variants of `choose`, with default parameters."""
    return tuple(variant for variant, _ in choose(plan))


def program_of(plan: CpuPlan, variant: Variant) -> Program:
    """One variant as a TensorExpression."""
    return frontend.program(plan, variant.parameters, variant.instruction)


def lower(plan: CpuPlan, variant: Variant) -> tirx.PrimFunc:
    """One variant as a scheduled function over the caller's arrays."""
    program = program_of(plan, variant)
    func = variant.strategy.schedule(program)
    if can_start_from_x_sum(program) and not plan.spec.weight_zero_point:
        func = start_from_x_sum(program, func)
    if plan.layout.groups > 1:
        func = fuse_group_sums(func, plan.target)
    func = store_cpu_tiles(program, func, plan.spec.n)
    if plan.spec.experts is not None:
        func = over_units(program, func, plan.spec.experts, rows_of_x(plan.spec))
    func = with_usual_floats(func, plan.target)
    return func.with_attr("global_symbol", variant.name)


def machine_code(plan: CpuPlan, variant: Variant) -> tvm.runtime.Executable:
    """The module of one variant, for the LLVM options of the target."""
    return compiled(lower(plan, variant), llvm_target(plan.target))


def compiled(func: tirx.PrimFunc, target: tvm.target.Target) -> tvm.runtime.Executable:
    """The module of one function."""
    mod = tvm.IRModule({func.attrs["global_symbol"]: func})
    return tvm.compile(mod, target=target, tir_pipeline=stack.PIPELINE)


def emit_code(spec: MatmulSpec, target: str | Target, m: int, form: str) -> str:
    """The code that computes `m` rows of `spec`, as text.

    Parameters
    ----------
    form : "te" for the unscheduled TensorExpression, "tir" for the schedule, "ll" or "asm".
    """
    plan = plan_for(dataclasses.replace(spec, m=m), targets.find_cpu(target))
    (variant,) = choose_variants(plan)
    if form == "te":
        return str(program_of(plan, variant).func.script())
    if form == "tir":
        return str(lower(plan, variant).script())
    return str(machine_code(plan, variant).mod.inspect_source(form))
