"""How many cores this process may keep busy."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Collection, Iterator
from pathlib import Path

#: Where Linux describes CPUs, says which control groups a process is in, and has those mounted.
CPUS = Path("/sys/devices/system/cpu")
OWN_GROUPS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")

#: Files with a control group's CPU time and the period in which it may be spent, in microseconds:
#: of version 2, one with both, and of version 1.
QUOTA_FILES = (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
UNLIMITED = ("max", "-1")


@functools.cache
def physical_cores() -> int:
    """Cores that this process may use, without SMT siblings.

    Those of its affinity mask, and no more than its control group has time for.
    """
    cores = cores_of(allowed_cpus()) or share_of_cores()
    return max(1, math.ceil(min([cores, *map(quota_of, own_groups())])))


def allowed_cpus() -> set[int]:
    """Numbers of the CPUs that may run this process; all where the system does not restrict it."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def cores_of(cpus: Collection[int]) -> int:
    """How many cores the CPUs belong to; 0 where Linux does not say."""
    try:
        return len({(CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text() for cpu in cpus})
    except OSError:
        return 0


def share_of_cores() -> int:
    """As `cores_of` the allowed CPUs, where all that is known is how many the machine has."""
    import psutil

    logical = psutil.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or logical
    return len(allowed_cpus()) * physical // logical


def quota_of(group: Path) -> float:
    """CPUs that a control group has the time of; infinity without a limit, or a group."""
    for names in QUOTA_FILES:
        try:
            time, period = " ".join((group / name).read_text() for name in names).split()
        except OSError:
            continue
        if time not in UNLIMITED:
            return int(time) / int(period)
    return math.inf


def own_groups() -> Iterator[Path]:
    """Folders of the control groups whose limits this process has: its own and those around it.

    A container may see its own as the root, and still be told the path that its host has for it:
    folders need not exist.
    """
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Only version 1 names controllers, and has a tree for each.
        root = GROUPS / "cpu" if controllers else GROUPS
        folder = root / path.lstrip("/")
        while folder != root:
            yield folder
            folder = folder.parent
        yield root
