"""Candidates: what may be tried for a spec, and its way to the bytes of a kernel file.

Building runs in a child process: the compiler of a candidate may abort, and never come back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..formats.spec import MatmulSpec
from ..runtime.kernel import Kernel
from ..runtime.tvm_runtime import without_torch
from ..schedules.cpu import validation
from ..schedules.cpu.plan import CpuPlan, plan_for, with_k_block
from ..schedules.cpu.program import Parameters
from ..schedules.cpu.strategies import STRATEGIES, instruction_for, name_now
from ..schedules.cpu.variants import Variant, variant_with, variants
from ..schedules.records import Record
from ..targets import Target


@dataclass(frozen=True)
class Choice:
    """A strategy, its parameters, and the layout of the weight that it reads."""

    strategy: str
    k_block: int
    parameters: Parameters

    def decisions(self) -> dict[str, Any]:
        """As a trace notes them."""
        fields = dataclasses.asdict(self.parameters)
        return {"strategy": self.strategy, **fields, "k_block": self.k_block}

    @classmethod
    def of(cls, decisions: Mapping[str, Any]) -> Choice:
        """The inverse of `decisions`."""
        fields = dict(decisions)
        strategy = name_now(fields.pop("strategy"))
        return cls(strategy, fields.pop("k_block"), Parameters(**fields))

    @property
    def name(self) -> str:
        """All of it, in short."""
        p = self.parameters
        across = f"x{p.panels}" if p.panels > 1 else ""
        more = f"few_tiles {p.few_tiles} block_rows {p.block_rows} k_block {self.k_block}"
        if p.k_passes > 1:
            more += f" k_passes {p.k_passes}"
        if p.rows_inner:
            more += " rows_inner"
        return (
            f"{self.strategy} {p.rows}x{p.blocks}{across} ahead {p.ahead} unroll {p.unroll} {more}"
        )


def default_choice(plan: CpuPlan, m: int) -> Choice:
    """What a kernel without a record computes `m` rows with."""
    layout = plan.layout
    fit = (variant for variant in variants(plan) if variant.serves(m))
    best = min(fit, key=lambda v: v.cost_of(m, layout.n_blocks))
    return Choice(best.strategy.name, layout.k_block, best.parameters)


def variant_of(plan: CpuPlan, choice: Choice) -> Variant:
    """The function that a choice stands for, of a plan with its block of K."""
    strategy = STRATEGIES[choice.strategy]
    instruction = instruction_for(plan, strategy, choice.parameters.rows)
    assert instruction is not None, "what `refusal` names"
    return variant_with(plan, instruction, strategy, choice.parameters)


def refusal(plan: CpuPlan, choice: Choice) -> str | None:
    """Why a choice has no code; None when it has."""
    with_its_block = with_k_block(plan, choice.k_block)
    return validation.refusal(with_its_block, choice.strategy, choice.parameters)


class Builder:
    """Builds in the process that it lives in; see `processes`."""

    def __init__(self) -> None:
        with without_torch():
            from ..compiler import cpu

        self._cpu = cpu

    def candidate(self, spec: MatmulSpec, row: Target, choice: Choice) -> bytes:
        """A kernel file with the one function of `choice`, for every M."""
        plan = plan_for(spec, row, choice.k_block)
        variant = variant_of(plan, choice)
        function = self._cpu.function_of(variant, plan.layout)
        return content_of(self._cpu.kernel_of(plan, [(variant, function)]))

    def kernel(self, spec: MatmulSpec, row: Target, record: Record | None) -> bytes:
        """A kernel file with all functions that `compile` would give it."""
        return content_of(self._cpu.build(spec, row, record=record))


def content_of(kernel: Kernel) -> bytes:
    """The kernel file of one kernel."""
    from ..runtime.kernel_file import packed

    return packed([kernel])
