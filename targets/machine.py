"""What is this machine: its CPU features, its cores, and whether a target runs here."""

from __future__ import annotations

import functools
import os
import platform

from .target import Target


@functools.cache
def cpu_features() -> frozenset[str]:
    """Features of this CPU under Linux's /proc/cpuinfo names."""
    from archspec.cpu.detect import detected_info

    # Not `archspec.cpu.host()`: of a CPU newer than archspec that knows only the nearest level.
    return frozenset(detected_info().features)


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
    return platform.processor() or platform.machine()


@functools.cache
def physical_cores() -> int:
    """Physical cores that this process may run on (its affinity mask, without SMT siblings)."""
    import psutil

    logical = psutil.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or logical
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    return max(1, allowed * physical // logical)


def why_not_here(target: Target) -> str | None:
    """Why this machine cannot execute `target`'s code; None when it can."""
    machine = platform.machine()
    if target.architecture is not None and machine != target.architecture:
        return f"needs {target.architecture}, this machine is {machine}"
    missing = sorted(target.features - cpu_features())
    if missing:
        return f"this CPU lacks {', '.join(missing)}"
    return None
