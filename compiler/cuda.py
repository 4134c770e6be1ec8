"""From a spec and a GPU's target to CUDA C++: TensorExpression, schedule, code."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from tvm import tirx

from ..errors import UnsupportedError
from ..formats.spec import MatmulSpec
from ..runtime.cuda_code import CudaCode
from ..runtime.cuda_info import PREPARE, CudaFunction, CudaInfo, Launch, chosen
from ..runtime.kernel import Kernel
from ..schedules.arguments import arguments, rows_of_x
from ..schedules.cuda import prepare, strategies
from ..schedules.cuda.plan import CudaPlan, plan_for
from ..schedules.cuda.program import CudaTile
from ..schedules.cuda.strategies import STRATEGIES, CudaVariant
from ..schedules.plan import x_sign
from ..schedules.records import Record, Tuned
from ..targets.cuda import CudaTarget
from ..targets.instructions.cuda_steps import STEPS
from ..versions import cuda_versions
from . import nvrtc
from .cuda_code import generate
from .expr import cuda_frontend as frontend
from .rewrite.arrays import read_rows
from .rewrite.rounding import fuse_group_sums
from .rewrite.stores import store_gpu_tiles
from .rewrite.units import over_gpu_units
from .side_by_side import side_by_side


def build(
    spec: MatmulSpec,
    target: CudaTarget,
    record: Record | None = None,
    *,
    function: str | None = None,
) -> Kernel:
    """What `compile` returns for a GPU, built now whatever the cache holds.

    With the name of a `function` the kernel has no other.

    Raises
    ------
    ToolError
        NVRTC is not there.
    UnsupportedError
        See `plan_for` and `variant_named`.
    """
    plan = plan_for(spec, target)
    variants = (variant_named(plan, function),) if function else choose_variants(plan, record)
    return kernel_of(plan, variants, record)


def kernel_of(
    plan: CudaPlan, variants: tuple[CudaVariant, ...], record: Record | None = None
) -> Kernel:
    """A kernel of these functions; see `build`."""
    code, launches = source(plan, variants)
    arch = plan.target.arch
    forms: tuple[nvrtc.Form, ...] = ("cubin", "ptx")
    cubin, ptx = side_by_side(lambda form: nvrtc.compile_cuda(code, arch, form=form), forms)
    info = info_of(plan, variants, launches, len(cubin), record)
    return Kernel(info, CudaCode.of(cubin, ptx, info), source=code)


def info_of(
    plan: CudaPlan,
    variants: tuple[CudaVariant, ...],
    launches: dict[str, Launch],
    cubin_bytes: int,
    record: Record | None = None,
) -> CudaInfo:
    """What a kernel of these functions is, apart from its code."""
    target = plan.target
    return CudaInfo(
        spec=plan.spec,
        target=target.name,
        instruction=target.instruction.name,
        capability=target.capability,
        multiprocessors=target.multiprocessors,
        layout=plan.layout,
        x_dtype=x_sign(plan.spec),
        prepared=frontend.prepared(plan),
        arguments=arguments(plan),
        launches=launches,
        variants=functions_of(plan, variants, record),
        cubin_bytes=cubin_bytes,
        versions=cuda_versions(),
    )


def variant_named(plan: CudaPlan, name: str) -> CudaVariant:
    """The function of a kernel that is called so.

    Raises
    ------
    UnsupportedError
        There is none.
    """
    every = {variant.name: variant for variant in strategies.variants(plan)}
    if name not in every:
        raise UnsupportedError(f"no function {name!r}; there are {', '.join(every)}")
    return every[name]


def choose_variants(plan: CudaPlan, record: Record | None = None) -> tuple[CudaVariant, ...]:
    """Every kernel, or for a spec with a fixed M the one that M uses."""
    tuned = [tuned_variant(plan, each) for each in record.tuned] if record else []
    every, m = (*strategies.variants(plan), *tuned), plan.spec.m
    if m is None:
        return every
    functions = functions_of(plan, every, record)
    each, live = plan.spec.rows_of_each(m), min(m, plan.spec.experts or 1)
    best = chosen(functions, each, plan.target.multiprocessors, live)
    return (every[functions.index(best)],)


def tuned_variant(plan: CudaPlan, tuned: Tuned) -> CudaVariant:
    """The kernel of a part of a record."""
    assert isinstance(tuned.parameters, CudaTile)
    return strategies.variant_with(plan, tuned.strategy, tuned.parameters, f"_m{tuned.m}")


def functions_of(
    plan: CudaPlan, variants: Sequence[CudaVariant], record: Record | None = None
) -> tuple[CudaFunction, ...]:
    """What a kernel says of variants, some of which may be a record's."""
    tuned = {tuned_variant(plan, each).name: each for each in record.tuned} if record else {}

    def function(variant: CudaVariant) -> CudaFunction:
        cost, strategy, product = variant.cost(plan.layout), variant.strategy, variant.instruction
        found = CudaFunction(variant.name, strategy, product.name, cost)
        if record is None or variant.name not in tuned:
            return found
        rows = tuned[variant.name]
        return dataclasses.replace(
            found, first_m=rows.first_m, last_m=rows.last_m, record=record.name
        )

    return tuple(map(function, variants))


def lower(plan: CudaPlan, variant: CudaVariant) -> tirx.PrimFunc:
    """One variant as a scheduled function over the caller's arrays."""
    program = frontend.multiply(plan, variant.instruction, variant.tile)
    func = STRATEGIES[variant.strategy].schedule(program)
    if plan.layout.groups > 1:
        func = fuse_group_sums(func, plan.target)
    func = store_gpu_tiles(func, plan.spec.n, variant.tile.rows)
    if plan.spec.experts is None:
        return func
    named = rows_of_x(plan.spec) | set(frontend.prepared(plan)) - {"xq"}
    blocks, rows = plan.layout.n_blocks, variant.tile.rows
    return over_gpu_units(func, blocks, rows, plan.spec.experts, named)


def source(
    plan: CudaPlan, variants: tuple[CudaVariant, ...] | None = None
) -> tuple[str, dict[str, Launch]]:
    """CUDA C++ of all kernels for a plan, and their launches by name; `PREPARE` is one of them."""
    funcs = {PREPARE: read_rows(prepare.schedule(frontend.prepare(plan)))}
    variants = variants or choose_variants(plan)
    for variant in variants:
        funcs[variant.name] = lower(plan, variant)
    code, launches = generate(funcs, plan.target)
    for variant in variants:
        if variant.tile.stages:
            code = with_registers_of_one_block(code, launches[variant.name])
    return STEPS + code, launches


def with_registers_of_one_block(code: str, launch: Launch) -> str:
    """CUDA C++ in which a kernel may take all registers that one thread block can have.

    A pipeline hides latency by itself: its registers are worth more than another thread block, for
    which the compiler would spill some.
    """
    threads = math.prod(launch.block)
    before = f"__launch_bounds__({threads}) {launch.name}("
    assert before in code, launch.name
    return code.replace(before, f"__launch_bounds__({threads}, 1) {launch.name}(")


def emit_code(spec: MatmulSpec, target: CudaTarget, m: int, form: str) -> str:
    """The code that computes `m` rows of `spec`, as text.

    Parameters
    ----------
    form : "te" for the unscheduled TensorExpression, "tir" for the schedule, "cuda" or "ptx".
    """
    plan = plan_for(dataclasses.replace(spec, m=m), target)
    (variant,) = choose_variants(plan)
    if form == "te":
        return str(frontend.multiply(plan, variant.instruction, variant.tile).func.script())
    if form == "tir":
        return str(lower(plan, variant).script())
    code, _ = source(plan)
    return code if form == "cuda" else nvrtc.compile_cuda(code, target.arch, form="ptx").decode()
