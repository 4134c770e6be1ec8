"""The machine's limits, as a contender: they see the same slow and fast moments as the others."""

from __future__ import annotations

import dataclasses

from ...targets import CudaTarget, Target
from ..machine_limits import measure
from .job import Job


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a target reaches with a number of threads."""

    target: Target | CudaTarget
    threads: int
    about: str = ""

    def turn(self) -> dict[str, float]:
        """The fields of `roofline.Limits`, now."""
        return dataclasses.asdict(measure(self.target, self.threads))


def measured(job: Job) -> Limits:
    """The limits of a job's target."""
    return Limits(job.row, job.threads)
