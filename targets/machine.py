"""What is this machine: its architecture and CPU features, and which code runs here."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from collections.abc import Collection

import archspec.cpu
from archspec.cpu.detect import detected_info
from archspec.vendor.cpuid.cpuid import CPUID

from ..errors import TargetError
from .target import Target

#: How systems and LLVM's triples spell an architecture, where it is not as Linux does.
SPELLINGS = {"amd64": "x86_64", "arm64": "aarch64"}

#: Bits of register edx of CPUID's leaf 7, subleaf 1 (Intel SDM vol. 2, "CPUID"), of which Linux
#: tells virtual machines only.
LEAF_7_1_EDX = {"avx_vnni_int8": 4}

#: Entries of the auxiliary vector (AT_HWCAP, AT_HWCAP2) and their bits for features of Arm (Linux,
#: arch/arm64/include/uapi/asm/hwcap.h).
HWCAPS = {"asimd": (16, 1), "asimdhp": (16, 10), "asimddp": (16, 20), "i8mm": (26, 13)}

#: Lines of /proc/cpuinfo that name a CPU's design, on x86 and on Arm, and what to call them.
MODEL_NUMBERS = {
    "cpu family": "family",
    "model": "model",
    "CPU implementer": "implementer",
    "CPU part": "part",
    "CPU variant": "variant",
}

#: The system call arch_prctl on x86_64, its code to ask for registers, and the number of AMX's tile
#: registers (Linux, Documentation/arch/x86/xstate.rst).
ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18


def normalized(architecture: str) -> str:
    """An architecture under the name that Linux has for it."""
    return SPELLINGS.get(architecture.lower(), architecture)


def architecture() -> str:
    """The architecture of this machine under Linux's name, such as "x86_64" or "aarch64"."""
    return normalized(platform.machine())


@functools.cache
def cpu_features() -> frozenset[str]:
    """Features of this CPU under Linux's /proc/cpuinfo names."""
    # Not `archspec.cpu.host()`: of a CPU newer than archspec that knows only the nearest level.
    features = frozenset(detected_info().features)
    if architecture() == "x86_64" and "avx" in features:
        # Where AVX is listed, the system keeps the registers that these need too.
        return features | cpuid_features()
    if architecture() == "aarch64" and platform.system() == "Linux":
        return features - HWCAPS.keys() | hwcap_features()
    return features


def cpuid_features() -> frozenset[str]:
    """Features of an x86 CPU for which Linux has a name but does not list it."""
    try:
        ask = CPUID()
        known = ask(0)[0] >= 7 and ask(7)[0] >= 1
        bits = ask(7, 1)[3] if known else 0
    except OSError:  # memory that is both written and executed may be forbidden
        return frozenset()
    return frozenset(name for name, bit in LEAF_7_1_EDX.items() if bits >> bit & 1)


def hwcap_features() -> frozenset[str]:
    """Features that Linux tells a process on Arm; /proc/cpuinfo is the host's under an emulator."""
    value = ctypes.CDLL(None).getauxval
    value.restype = ctypes.c_ulong
    value.argtypes = [ctypes.c_ulong]
    return frozenset(name for name, (entry, bit) in HWCAPS.items() if value(entry) >> bit & 1)


@functools.cache
def cpu_name() -> str:
    """The CPU's marketing name, for reports."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith(("model name", "Model")):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    # Arm's /proc/cpuinfo has numbers only; archspec knows what they stand for.
    return platform.processor() or archspec.cpu.host().name


@functools.cache
def cpu_model() -> str:
    """The CPU's name and the numbers that tell its generations apart, which share names."""
    numbers = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                name, _, value = line.partition(":")
                if not line.strip():
                    break  # the first processor stands for all
                if name.strip() in MODEL_NUMBERS:
                    numbers[name.strip()] = value.strip()
    except OSError:
        pass
    described = [
        f"{word} {numbers[name]}" for name, word in MODEL_NUMBERS.items() if name in numbers
    ]
    return ", ".join([cpu_name(), *described])


def why_not(architecture_needed: str | None, features: Collection[str]) -> str | None:
    """Why this machine cannot execute code for an architecture and features.

    None when it can; AMX's tile registers are then permitted to this process.
    """
    here = architecture()
    if architecture_needed not in (None, here):
        return f"needs {architecture_needed}, this machine is {here}"
    if missing := sorted(set(features) - cpu_features()):
        return f"this CPU lacks {', '.join(missing)}"
    # The CPU may have what the system keeps from this process, in a container for one.
    return tiles_refused() if "amx_tile" in features else None


def why_not_here(target: Target) -> str | None:
    """Why this machine cannot execute `target`'s code; None when it can."""
    return why_not(target.architecture, target.features)


def require(name: str, architecture_needed: str | None, features: Collection[str]) -> None:
    """Refuse code that this machine cannot execute.

    Raises
    ------
    TargetError
        It cannot; `name` is what the message calls the code.
    """
    if reason := why_not(architecture_needed, features):
        raise TargetError(f"{name} cannot run here: {reason}")


def tiles_refused() -> str | None:
    """Ask the system for AMX's tile registers, which a process may not use before.

    Why it refuses; None when they may be used from now on.
    """
    if platform.system() != "Linux":
        return "Linux alone is known to permit AMX's tiles"
    system = ctypes.CDLL(None, use_errno=True)
    if system.syscall(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0:
        return None
    return f"the system refuses AMX's tiles ({os.strerror(ctypes.get_errno())})"
