"""A target's row as LLVM's options, refused where LLVM would abort the process, crash or guess."""

from __future__ import annotations

import sys
from typing import Any

import tvm
from tvm.target import codegen

from ..errors import TargetError
from ..targets import Target, machine

#: LLVM's features that widen registers or add vector instructions, by how their names start.
#: Others are in every CPU that has these, or are no instructions.
X86_VECTORS = ("avx", "amx", "fma", "f16c", "gfni", "vaes", "vpclmul")
ARM_VECTORS = ("dotprod", "i8mm", "bf16", "fullfp16", "fp16fml", "sve", "sme")
#: /proc/cpuinfo's names of those where more than punctuation differs.
CPUINFO_NAMES = {"dotprod": "asimddp", "fullfp16": "asimdhp", "fp16fml": "asimdfhm"}


def llvm_target(row: Target) -> tvm.target.Target:
    """The LLVM target that code for `row` is generated for.

    Raises
    ------
    TargetError
        LLVM does not know the row's architecture, CPU or attributes, they lack a feature that an
        instruction of the row needs, or they have one that the row does not ask of a machine.
    """
    options = options_for(row)
    try:
        target = tvm.target.Target({"kind": "llvm", **options})
    except (TypeError, ValueError) as error:
        raise TargetError(
            f"target {row.name} has llvm={row.llvm!r}, which TVM refuses: {last_line(error)}"
        ) from None
    features = codegen.llvm_get_cpu_features(target)
    check_attributes(row, features)
    check_instructions(row, features)
    check_required(row, features)
    return target


def options_for(row: Target) -> dict[str, Any]:
    """The row's options, where they have no triple with that of another system's Linux.

    Kernels are for Linux, whatever system compiles them.
    """
    options = dict(row.llvm)
    here = machine.architecture()
    architecture = row.architecture or here
    if architecture != here or sys.platform != "linux":
        options.setdefault("mtriple", f"{architecture}-linux-gnu")
    triple = str(options.get("mtriple", codegen.llvm_get_system_triple()))
    named = machine.normalized(triple.partition("-")[0])
    if named != architecture:
        raise TargetError(f"target {row.name} is for {architecture}; its mtriple is {triple!r}")
    # Asked about a triple of an architecture that it lacks, LLVM crashes.
    if named not in codegen.llvm_get_targets():
        raise TargetError(f"target {row.name} is for {architecture}, which LLVM does not know")
    # LLVM itself only warns, and generates code for a CPU without features.
    cpu = options.get("mcpu", "generic")
    if not codegen.llvm_is_valid_cpu(str(cpu), triple):
        raise TargetError(
            f"target {row.name} has mcpu={cpu!r}, which LLVM does not know for {architecture}"
        )
    return options


def check_attributes(row: Target, features: set[str]) -> None:
    """Refuse attributes that LLVM ignores."""
    for attribute in row.llvm.get("mattr", ()):  # type: ignore[attr-defined]
        if not attribute.startswith(("+", "-")):
            raise TargetError(
                f"target {row.name} has mattr {attribute!r}; expected '+' or '-' before the name"
            )
        if attribute[0] == "+" and attribute[1:] not in features:
            raise TargetError(
                f"target {row.name} has mattr {attribute!r}, which has no effect: LLVM does not "
                f"know it for {options_text(row)}, or another attribute takes it back"
            )


def check_instructions(row: Target, features: set[str]) -> None:
    """Refuse an instruction that LLVM cannot select: it would abort the process."""
    for instruction in row.instructions:
        if instruction.llvm_feature not in {None, *features}:
            raise TargetError(
                f"target {row.name} uses {instruction.name}, which needs LLVM's feature "
                f"{instruction.llvm_feature!r}; {options_text(row)} lacks it"
            )


def check_required(row: Target, features: set[str]) -> None:
    """Refuse options that let LLVM use what a machine that loads the kernel may lack."""
    required = {squeezed(name) for name in row.features}
    extra = sorted(
        name
        for name in features
        if name.startswith(X86_VECTORS + ARM_VECTORS)
        and squeezed(CPUINFO_NAMES.get(name, name)) not in required
    )
    if extra:
        raise TargetError(
            f"target {row.name} lets LLVM use {', '.join(extra)} ({options_text(row)}), which its "
            f"features do not name: it would be run on CPUs without"
        )


def squeezed(name: str) -> str:
    """A feature's name without the punctuation in which Linux and LLVM differ."""
    return "".join(character for character in name if character.isalnum())


def options_text(row: Target) -> str:
    """The row's options that decide its features, for messages."""
    given = [f"{name}={row.llvm[name]!r}" for name in ("mcpu", "mattr") if name in row.llvm]
    return ", ".join(given) or f"the {row.architecture or machine.architecture()} baseline"


def last_line(error: Exception) -> str:
    """What an error of TVM says, without its stack."""
    return str(error).strip().splitlines()[-1]
