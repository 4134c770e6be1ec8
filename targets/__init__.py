"""The table of targets. Adding a chip is adding a row; see `target.Target` for what a row says."""

from __future__ import annotations

import dataclasses

from ..errors import TargetError
from .arm import ARM_TARGETS
from .generic import GENERIC
from .layout import WeightLayout, weight_layout
from .machine import cpu_features, cpu_name, physical_cores, why_not_here
from .target import Chip, Instruction, Target
from .x86 import X86_TARGETS

#: Every target, best first within an architecture; the last one runs anywhere.
TARGETS: tuple[Target, ...] = (*X86_TARGETS, *ARM_TARGETS, GENERIC)

__all__ = [
    "TARGETS",
    "Chip",
    "Instruction",
    "Target",
    "WeightLayout",
    "cpu_features",
    "cpu_name",
    "emulated",
    "find",
    "host",
    "physical_cores",
    "weight_layout",
    "why_not_here",
]


def host() -> Target:
    """The best target that this machine can execute."""
    return next(target for target in TARGETS if why_not_here(target) is None)


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


def find(name: str | Target) -> Target:
    """The row called `name`; "host" is the best row for this machine.

    Raises
    ------
    TargetError
        `name` is not in the table.
    """
    if isinstance(name, Target):
        return name
    if name == "host":
        return host()
    for target in TARGETS:
        if target.name == name:
            return target
    known = ", ".join(["host", *(target.name for target in TARGETS)])
    raise TargetError(f"no target {name!r}; the targets are {known}")
