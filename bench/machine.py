"""A machine as a whole: what it is, its limits, and comparisons on it.

It is asked in this process where it is this machine, and through a server of TVM's RPC where it is
another one (see `tuning.rpc`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .. import targets
from ..runtime import devices
from ..runtime.threads import default_threads
from ..schedules import cuda_records, records
from ..targets import CudaTarget, Target, machine
from .compare import compare
from .contenders import Job
from .environment import describe
from .machine_limits import measure
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
        row = devices.find(target)
        if row.device == "cuda":
            return devices.why_no_gpu(row.capability)
        return targets.why_not_here(row)

    def header(self, target: str | Target | CudaTarget, threads: int | None) -> dict[str, Any]:
        """What a record that is made on it now depends on.

        Raises
        ------
        TargetError
            No such target, or one that it cannot execute.
        """
        row = devices.find(target)
        if row.device == "cuda":
            return cuda_records.header(row, devices.gpu_for(row).name)
        machine.require(row.name, row.architecture, row.features)
        return records.header(row, threads or default_threads())

    def limits(self, row: Target | CudaTarget, threads: int) -> Limits:
        """Its limits, measured; takes some seconds."""
        return measure(row, threads)

    def compare(self, job: Job, against: Collection[str], rounds: int) -> Row:
        """Measure one shape of one format on it; see `compare.compare`."""
        return compare(job, against, rounds)
