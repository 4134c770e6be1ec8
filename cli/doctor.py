"""`quantmm doctor`: what quantmm finds on this machine, to be read or put into a bug report."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Callable
from pathlib import Path

import click

from .. import targets
from ..compiler import cache, linker
from ..errors import QuantmmError
from ..extras import EXTRAS, Extra, install
from ..runtime import driver
from ..runtime.threads import default_threads, pool_name
from ..schedules import records
from ..targets import machine
from ..tuning import keeping
from ..versions import VERSION, cuda_versions, installed, versions
from .cache import counted

#: Distributions whose versions matter, beside quantmm itself: those it needs, and those it works
#: with where they are installed.
NEEDED = ("apache-tvm", "apache-tvm-ffi", "numpy", "ml_dtypes", "safetensors", "threadpoolctl")
OPTIONAL = ("torch", "transformers", "onnx", "cuda-bindings", "ziglang")

#: Where Linux says whether it uses large pages of memory by itself: "always [madvise] never".
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@click.command("doctor")
def doctor_command() -> None:
    """Say what quantmm finds here: versions, CPU, threads, linkers, cache, logs, GPUs.

    At the end stands what is not installed, and which commands need it. Paste all of it into a bug
    report.
    """
    for name, found in CHECKS.items():
        try:
            text = found()
        except QuantmmError as error:
            text = str(error)
        click.echo(f"{name:<12}{text}")
    if missing := [extra for extra in EXTRAS if not is_installed(extra)]:
        click.echo("\nnot installed, and what needs it:")
        for extra in missing:
            click.echo(f"  {install(extra.name):<38}{extra.serves}")


def program() -> str:
    """Quantmm and Python."""
    return f"{VERSION}, schedules {versions()['schedule']} and {cuda_versions()['schedule']}"


def python() -> str:
    """Python, and the system under it."""
    libc = " ".join(platform.libc_ver()).strip()
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return f"{platform.python_version()} on {system}" + (f", {libc}" if libc else "")


def packages() -> str:
    """What is installed of what quantmm works with."""
    found = {name: installed(name) for name in (*NEEDED, *OPTIONAL)}
    shown = {name: found[name] for name in found if name in NEEDED or found[name] != "missing"}
    return ", ".join(f"{name} {version}" for name, version in shown.items())


def cpu() -> str:
    """The CPU and its cores."""
    return (
        f"{machine.cpu_model()}; {targets.physical_cores()} cores to use, "
        f"{os.cpu_count()} hardware threads"
    )


def features() -> str:
    """Those features of the CPU that some target needs."""
    of_targets = {name for row in targets.TARGETS for name in row.features}
    return " ".join(sorted(of_targets & targets.cpu_features())) or "none that a target needs"


def target() -> str:
    """What "host" is."""
    row = targets.host()
    return f"{row.name} ({row.instruction.name})"


def threads() -> str:
    """How many, and whose."""
    return f"up to {default_threads()}: {pool_name()}"


def huge_pages() -> str:
    """Whether the system uses large pages."""
    try:
        return HUGE_PAGES.read_text().strip()
    except OSError:
        return "this system does not say"


def linkers() -> str:
    """What links for this machine, and for others."""
    here = machine.architecture()
    others = sorted({row.architecture or here for row in targets.TARGETS} - {here})
    return "; ".join(f"{name}: {linker_for(name)}" for name in (here, *others))


def linker_for(architecture: str) -> str:
    """The command that links for an architecture, or what to install."""
    try:
        return " ".join(linker.command(architecture))
    except QuantmmError as error:
        return str(error)


def kernels() -> str:
    """The kernel cache."""
    return f"{cache.folder()}: {counted(cache.entries())}"


def logs() -> str:
    """The user's own log, and those that come with quantmm."""
    own = records.default_folder()
    return "; ".join(
        f"{where}: {len(keeping.kernels(where)) if records.databases(where) else 0} records"
        for where in (own, records.SHIPPED)
    )


def gpu() -> str:
    """What the CUDA driver knows."""
    found = [
        f"{each.name} ({each.capability[0]}.{each.capability[1]})"
        for each in driver.driver().devices()
    ]
    return ", ".join(found) or "none: the CUDA driver knows no device"


#: What is looked at, by what it is called.
CHECKS: dict[str, Callable[[], str]] = {
    "quantmm": program,
    "python": python,
    "packages": packages,
    "cpu": cpu,
    "features": features,
    "target": target,
    "threads": threads,
    "huge pages": huge_pages,
    "linker": linkers,
    "cache": kernels,
    "logs": logs,
    "gpu": gpu,
}


def is_installed(extra: Extra) -> bool:
    """Whether all modules of an extra can be imported."""
    try:
        return all(importlib.util.find_spec(name) for name in extra.modules)
    except ModuleNotFoundError:  # of a package around one of them
        return False
