"""The table of targets. Adding a chip is adding a row; see `target.Target` for what a row says."""

from __future__ import annotations

import dataclasses
import difflib

from ..cores import physical_cores
from ..errors import TargetError
from .arm import ARM_TARGETS
from .cuda import CUDA_TARGETS, CudaTarget
from .generic import GENERIC
from .layout import WeightLayout, weight_layout
from .machine import cpu_features, cpu_name, why_not_here
from .target import Chip, Instruction, Target
from .x86 import X86_TARGETS

#: Every target, best first within an architecture; the last one runs anywhere.
TARGETS: tuple[Target, ...] = (*X86_TARGETS, *ARM_TARGETS, GENERIC)

__all__ = [
    "CUDA_TARGETS",
    "TARGETS",
    "Chip",
    "CudaTarget",
    "Instruction",
    "Target",
    "WeightLayout",
    "cpu_features",
    "cpu_name",
    "emulated",
    "find",
    "find_cpu",
    "host",
    "physical_cores",
    "weight_layout",
    "why_not_here",
]


def host() -> Target:
    """The best target that this machine can execute."""
    return next(target for target in TARGETS if why_not_here(target) is None)


def find_cpu(name: str | Target | CudaTarget) -> Target:
    """The row of a CPU called `name`, for what GPUs have no part in.

    Raises
    ------
    TargetError
        See `find`; or it is a GPU's, as "cuda" is.
    """
    row = None if name == "cuda" else find(name)
    if row is not None and row.device == "cpu":
        return row
    raise TargetError(f"target {row.name if row else name} is a GPU's; expected one of a CPU")


def emulated(target: Target) -> Target:
    """`target` with its instruction replaced by the loop that it means: runs on any machine.

    Layout, tiles and schedule stay those of the chip.
    """
    plain = tuple(
        dataclasses.replace(instruction, intrinsic=None, mnemonic=None, llvm_feature=None)
        for instruction in target.instructions
    )
    return dataclasses.replace(
        target,
        name=f"{target.name} (emulated)",
        architecture=None,
        llvm={},
        features=frozenset(),
        instructions=plain,
    )


def find(name: str | Target | CudaTarget) -> Target | CudaTarget:
    """The row called `name`.

    "host" is the best row for this machine's CPU. What "cuda" stands for only a kernel's runtime
    knows: see `quantmm.compile`.

    Raises
    ------
    TargetError
        `name` is in neither table.
    """
    if isinstance(name, (Target, CudaTarget)):
        return name
    if name == "host":
        return host()
    if name == "cuda":
        raise TargetError(
            "target 'cuda' is the row for a machine's GPU, which compiling looks for; expected one "
            f"of {', '.join(row.name for row in CUDA_TARGETS)}"
        )
    rows: tuple[Target | CudaTarget, ...] = (*TARGETS, *CUDA_TARGETS)
    for row in rows:
        if row.name == name:
            return row
    known = ["host", "cuda", *(row.name for row in rows)]
    close = difflib.get_close_matches(name, known, 2) if isinstance(name, str) else []
    if close:
        meant = " or ".join(map(repr, close))
        raise TargetError(f"no target {name!r}; did you mean {meant}? `quantmm targets` lists all")
    raise TargetError(f"no target {name!r}; the targets are {', '.join(known)}")
