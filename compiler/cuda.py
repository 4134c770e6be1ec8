"""From a spec and a GPU's target to CUDA C++: TensorExpression, schedule, code."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings

from tvm import tirx

from ..errors import UnsupportedError
from ..formats.spec import INTEGER_RANGE, MatmulSpec
from ..runtime.arrays import MAX_ELEMENTS
from ..runtime.cuda_info import CudaFunction, CudaInfo, Launch
from ..runtime.cuda_kernel import CudaCode, CudaKernel
from ..runtime.cuda_linear import PREPARE
from ..schedules.cuda import dp4a, gemv, mma, prepare, splitk, strategies
from ..schedules.cuda.strategies import CudaVariant
from ..schedules.cuda_records import CudaRecord, function_for
from ..schedules.operands import Operands
from ..targets.cuda import CudaTarget
from ..targets.cuda_layout import CudaLayout, cuda_layout
from ..targets.instructions.cuda_steps import STEPS
from ..versions import cuda_versions
from . import nvrtc
from .cuda_code import generate
from .expr import cuda_frontend as frontend
from .expr import frontend as cpu_frontend
from .rewrite.cuda_stores import read_rows, store_within
from .rewrite.rounding import fuse_group_sums

#: Threads of kernels whose operands come through shared memory, as TVM writes them.
PIPELINED = re.compile(r"__launch_bounds__\((\d+)\)(?= (?:splitk|mma|dp4a)_)")
RECIPES = {
    "gemv": gemv.schedule,
    "splitk": splitk.schedule,
    "mma": mma.schedule,
    "dp4a": dp4a.schedule,
}


def build(spec: MatmulSpec, target: CudaTarget, record: CudaRecord | None = None) -> CudaKernel:
    """What `compile` returns for a GPU, built now whatever the cache holds.

    A record whose functions there are not is not used, and a RuntimeWarning says so.

    Raises
    ------
    ToolError
        Neither NVRTC nor nvcc is there.
    UnsupportedError
        See `layout_for`; or a weight whose last offset is beyond int32.
    """
    layout = layout_for(spec)
    if math.prod(layout.shape) - 1 > MAX_ELEMENTS:
        raise UnsupportedError(
            f"a weight of n={spec.n}, k={spec.k} is {math.prod(layout.shape)} bytes with its "
            f"padding; expected at most {MAX_ELEMENTS + 1}"
        )
    record = usable(record, spec, target)
    variants = choose_variants(spec, target, record)
    code, launches = source(spec, target, variants)
    cubin, ptx = (nvrtc.compile_cuda(code, target.arch, form=form) for form in ("cubin", "ptx"))
    operands = Operands(target.instruction, 0, 0)
    info = CudaInfo(
        spec=spec,
        target=target.name,
        instruction=target.instruction.name,
        capability=target.capability,
        multiprocessors=target.multiprocessors,
        layout=layout,
        x_dtype=x_dtype(spec),
        prepared=frontend.prepared(spec),
        arguments=cpu_frontend.arguments(spec, operands),
        launches=launches,
        variants=tuple(
            CudaFunction(v.name, v.strategy, v.instruction.name, v.cost(layout)) for v in variants
        ),
        cubin_bytes=len(cubin),
        versions=cuda_versions(),
        record=record.name if record else None,
        tuned=record.functions if record else (),
    )
    return CudaKernel(info, CudaCode.of(cubin, ptx), source=code)


def layout_for(spec: MatmulSpec) -> CudaLayout:
    """The private layout of the spec's weight.

    Raises
    ------
    UnsupportedError
        K is so long that the sums of 4-bit weights, which count 16 times, leave int32.
    """
    group_size = spec.group_size if isinstance(spec.group_size, int) else None
    layout = cuda_layout(
        spec.n,
        spec.k,
        group_size=group_size,
        bits=4 if spec.four_bit_weight else 8,
        dtype="uint8" if spec.weight.startswith("u") else "int8",
    )
    # Eight-bit sums may leave int32 on the way, since what is subtracted brings them back; where
    # products count several times, a shift follows, and nothing may be lost before it.
    largest = (max(map(abs, INTEGER_RANGE[each])) for each in (spec.activation, spec.weight))
    most = (2**31 - 1) // (math.prod(largest) * layout.factor)
    if layout.factor > 1 and (layout.group_size or spec.k) > most:
        raise UnsupportedError(
            f"k={spec.k} with {spec.activation} x {spec.weight}, group_size={spec.group_size}: "
            f"on a GPU a group of these has at most {most} k"
        )
    return layout


def x_dtype(spec: MatmulSpec) -> str:
    """In which kernels read activations."""
    return "uint8" if spec.activation == "uint8" else "int8"


def every_variant(spec: MatmulSpec, target: CudaTarget) -> tuple[CudaVariant, ...]:
    """The kernels of which one may serve a number of rows."""
    return strategies.variants(target, layout_for(spec), x_dtype(spec), spec.weight_zero_point)


def choose_variants(
    spec: MatmulSpec, target: CudaTarget, record: CudaRecord | None = None
) -> tuple[CudaVariant, ...]:
    """Every kernel, or for a spec with a fixed M the one that M uses."""
    every = every_variant(spec, target)
    if spec.m is None:
        return every
    m, tuned = spec.m, function_for(record.functions if record else (), spec.m)
    layout, multiprocessors = layout_for(spec), target.multiprocessors
    return (min(every, key=lambda v: (v.name != tuned, v.cost(layout).time(m, multiprocessors))),)


def usable(record: CudaRecord | None, spec: MatmulSpec, target: CudaTarget) -> CudaRecord | None:
    """`record`, if all its functions are there."""
    known = {variant.name for variant in every_variant(spec, target)}
    unknown = [name for _, name in record.functions if name not in known] if record else []
    if record and unknown:
        reason = f"{record.name}: no function {unknown[0]}; there are {', '.join(sorted(known))}"
        warnings.warn(f"tuned record not used: {reason}", RuntimeWarning, stacklevel=4)
        return None
    return record


def lower(spec: MatmulSpec, target: CudaTarget, variant: CudaVariant) -> tirx.PrimFunc:
    """One variant as a scheduled function over the caller's arrays."""
    layout = layout_for(spec)
    program = frontend.multiply(spec, layout, target, variant.instruction, variant.tile)
    func = RECIPES[variant.strategy](program)
    if layout.groups > 1:
        func = fuse_group_sums(func, target)
    return store_within(func, spec.n, variant.tile.rows)


def source(
    spec: MatmulSpec, target: CudaTarget, variants: tuple[CudaVariant, ...] | None = None
) -> tuple[str, dict[str, Launch]]:
    """CUDA C++ of all kernels for `spec`, and their launches by name; `PREPARE` is one of them."""
    layout = layout_for(spec)
    funcs = {PREPARE: read_rows(prepare.schedule(frontend.prepare(spec, layout, target)))}
    for variant in variants or choose_variants(spec, target):
        funcs[variant.name] = lower(spec, target, variant)
    code, launches = generate(funcs, target)
    # A pipeline hides latency by itself: its registers are worth more than another thread block,
    # for which the compiler would spill some.
    code = PIPELINED.sub(r"__launch_bounds__(\1, 1)", code)
    return STEPS + code, launches


def emit_code(spec: MatmulSpec, target: CudaTarget, m: int, form: str) -> str:
    """The code that computes `m` rows of `spec`, as text.

    Parameters
    ----------
    form : "te" for the unscheduled TensorExpression, "tir" for the schedule, "cuda" or "ptx".
    """
    spec = dataclasses.replace(spec, m=m)
    (variant,) = choose_variants(spec, target)
    if form == "te":
        layout = layout_for(spec)
        program = frontend.multiply(spec, layout, target, variant.instruction, variant.tile)
        return str(program.func.script())
    if form == "tir":
        return str(lower(spec, target, variant).script())
    code, _ = source(spec, target)
    return code if form == "cuda" else nvrtc.compile_cuda(code, target.arch, form="ptx").decode()
