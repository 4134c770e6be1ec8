"""A machine as a whole: what it is, its limits, and comparisons on it.

It is asked in this process where it is this machine, and through a server of TVM's RPC where it is
another one (see `tuning.rpc`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .. import targets
from ..runtime.threads import default_threads
from ..runtime.tvm_runtime import without_torch
from ..schedules import records
from ..targets import Target, machine
from .compare import compare
from .contenders import Job
from .environment import describe
from .roofline import Limits
from .row import Row


class Machine:
    """The machine that this process runs on."""

    def default_threads(self) -> int:
        """Threads of a call that does not say."""
        return default_threads()

    def describe(self) -> dict[str, Any]:
        """What machine this is, the software on it, and how busy it is, as JSON types."""
        return describe()

    def why_not(self, target: str) -> str | None:
        """Why it cannot execute a target's code; None when it can."""
        return targets.why_not_here(targets.find_cpu(target))

    def header(self, target: str | Target, threads: int | None) -> dict[str, Any]:
        """What a record that is made on it now depends on.

        Raises
        ------
        TargetError
            No such target, or one that it cannot execute.
        """
        row = targets.find_cpu(target)
        machine.require(row.name, row.architecture, row.features)
        return records.header(row, threads or default_threads())

    def limits(self, row: Target, threads: int) -> Limits:
        """Its limits, measured; takes some seconds."""
        with without_torch():
            from . import limits
        return limits.measure(row, threads)

    def compare(self, job: Job, against: Collection[str], rounds: int) -> Row:
        """Measure one shape of one format on it; see `compare.compare`."""
        return compare(job, against, rounds)
