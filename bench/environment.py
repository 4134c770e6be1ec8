"""Where and with what figures were made: the part of a result without which it means little."""

from __future__ import annotations

import datetime
import os
import platform
from typing import Any

import numpy as np
import psutil

from .. import targets
from ..errors import TargetError
from ..runtime import driver
from ..versions import VERSION, installed, versions
from .contenders import DISTRIBUTIONS
from .rotation import last_level_cache


def describe() -> dict[str, Any]:
    """What machine this is, the software on it, and how busy it is, as JSON types.

    Lengths are bytes; `load` is the system's mean number of running processes in the last minute,
    None where the system does not say.
    """
    libraries = {name: installed(name) for name in DISTRIBUTIONS.values()}
    return {
        "date": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC",
        "cpu": targets.cpu_name(),
        "gpu": gpu_name(),
        "cores": targets.physical_cores(),
        "hardware_threads": os.cpu_count(),
        "last_level_cache": last_level_cache(),
        "memory": psutil.virtual_memory().total,
        "target": targets.host().name,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "versions": {"quantmm": VERSION, **versions(), "numpy": np.__version__, **libraries},
    }


def gpu_name() -> str | None:
    """What the driver calls the first GPU; None where there is none."""
    try:
        return driver.driver().devices()[0].name
    except (TargetError, IndexError):
        return None
