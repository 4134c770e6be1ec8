"""The table of kinds of devices: what of a tuning run depends on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..schedules import cuda_records, records
from ..schedules.cpu import plan as cpu_plan
from ..schedules.cuda import plan as cuda_plan
from ..targets import CudaTarget, Target
from . import on_cpu, on_cuda
from .choice import Choice

Row: TypeAlias = Target | CudaTarget


@dataclass(frozen=True)
class Device:
    """One kind of device. Plans and rows are those of its kind.

    Attributes
    ----------
    plan_for : the plan of a spec on a row.
    default_choice : of a plan and an M.
    refusal : why a choice of a plan has no code; None when it has.
    space : what may be chosen for a plan and an M, by strategy and decision.
    features : numbers that the cost model learns from, of a plan, an M and a choice.
    digest_of : what tells rows of the same name apart.
    as_line : a record of a plan as a line of a log.
    tools : asks for what building for a row needs, and says what a log says of it.
    many_layouts : whether the layout of the weight is chosen as well, which a kernel's functions
        then share.
    """

    plan_for: Callable[..., Any]
    default_choice: Callable[[Any, int], Choice]
    refusal: Callable[[Any, Choice], str | None]
    space: Callable[[Any, int], Mapping[str, Mapping[str, Sequence[int]]]]
    features: Callable[[Any, int, Choice], list[float]]
    digest_of: Callable[[Any], str]
    as_line: Callable[..., str]
    tools: Callable[[Any], dict[str, Any]]
    many_layouts: bool


DEVICES = {
    "cpu": Device(
        cpu_plan.plan_for,
        on_cpu.default_choice,
        on_cpu.refusal,
        on_cpu.space,
        on_cpu.features,
        records.digest_of,
        records.as_line,
        on_cpu.tools,
        many_layouts=True,
    ),
    "cuda": Device(
        cuda_plan.plan_for,
        on_cuda.default_choice,
        on_cuda.refusal,
        on_cuda.space,
        on_cuda.features,
        cuda_records.digest_of,
        cuda_records.as_line,
        on_cuda.tools,
        many_layouts=False,
    ),
}


def device_of(row: Row) -> Device:
    """The kind of a row's device."""
    return DEVICES[row.device]
