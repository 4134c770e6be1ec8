"""Choices: what may be tried for a spec, as logs and traces note it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..schedules.cpu.program import Parameters
from ..schedules.cpu.strategies import name_now
from ..schedules.cuda.program import CudaTile

#: What the decisions of a CPU have, and those of a GPU, whose weights have one layout, have not.
K_BLOCK = "k_block"


@dataclass(frozen=True)
class Choice:
    """A strategy, its parameters, and the layout of the weight that it reads; GPUs have one."""

    strategy: str
    k_block: int | None
    parameters: Parameters | CudaTile

    def decisions(self) -> dict[str, Any]:
        """As a trace notes them."""
        if isinstance(self.parameters, CudaTile):
            return {"strategy": self.strategy, **self.parameters.numbers()}
        fields = dataclasses.asdict(self.parameters)
        return {"strategy": self.strategy, **fields, K_BLOCK: self.k_block}

    @classmethod
    def of(cls, decisions: Mapping[str, Any]) -> Choice:
        """The inverse of `decisions`."""
        fields = dict(decisions)
        strategy = name_now(fields.pop("strategy"))
        if K_BLOCK not in fields:
            return cls(strategy, None, CudaTile.of(fields))
        return cls(strategy, fields.pop(K_BLOCK), Parameters(**fields))

    @property
    def name(self) -> str:
        """All of it, in short."""
        p = self.parameters
        if isinstance(p, CudaTile):
            warps = "x".join(map(str, p.warps))
            more = f"warps {warps} steps {p.steps} stages {p.stages} band {p.band}"
            return f"{self.strategy} {p.rows}x{p.blocks} {more}"
        across = f"x{p.panels}" if p.panels > 1 else ""
        more = f"few_tiles {p.few_tiles} block_rows {p.block_rows} k_block {self.k_block}"
        if p.k_passes > 1:
            more += f" k_passes {p.k_passes}"
        if p.rows_inner:
            more += " rows_inner"
        return (
            f"{self.strategy} {p.rows}x{p.blocks}{across} ahead {p.ahead} unroll {p.unroll} {more}"
        )
