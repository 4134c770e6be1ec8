"""Versions: of quantmm, its schedules, and the TVM that is installed."""

from __future__ import annotations

import functools
import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

VERSION = "0.1.0"

#: Counts changes of the recipes; a record or file of another version is not used.
SCHEDULE_VERSION = 6
#: The same of the recipes for GPUs.
CUDA_SCHEDULE_VERSION = 3
#: The same of the code of smooth activation functions, which only records of specs with one count.
SMOOTH_VERSION = 2

PACKAGE = Path(__file__).parent


@functools.cache
def installed(name: str) -> str:
    """The version of an installed distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def versions() -> dict[str, str]:
    """What a kernel says about its origin, in its file and in records."""
    return {"tvm": installed("apache-tvm"), "schedule": str(SCHEDULE_VERSION)}


def cuda_versions() -> dict[str, str]:
    """As `versions`, of a kernel for GPUs."""
    return {**versions(), "schedule": f"cuda-{CUDA_SCHEDULE_VERSION}"}


def tvm_library(name: str) -> Path | None:
    """Where a library of the installed apache-tvm is."""
    spec = importlib.util.find_spec("tvm")
    places = list(spec.submodule_search_locations or []) if spec else []
    paths = (Path(place) / "lib" / name for place in places)
    return next((path for path in paths if path.exists()), None)
