"""What was measured of one shape inside a host, and what follows from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..contenders import Job
from ..row import Compared, Ratio, as_json
from ..timing import Time


@dataclass(frozen=True)
class InsideRow(Compared):
    """One shape of one format. Times in seconds for one call.

    Attributes
    ----------
    host : whose operations stand between the calls.
    target : the row of targets that `job.target` is.
    alone, inside : of everyone who took part, by name: the times after an operation that had one
        thread, and as many as the call; all have a sample of every round.
    baselines : those of them that are no peers.
    absent : why others took no part, by contender or by the word that asked for it.
    about : what is worth saying of contenders: versions, quantmm's function.
    pool : on whose threads quantmm's kernels ran.
    busy_cores, stolen_cores : as those of `bench.row.Row`.
    """

    job: Job
    host: str
    target: str
    alone: Mapping[str, Time]
    inside: Mapping[str, Time]
    baselines: tuple[str, ...]
    absent: Mapping[str, str]
    about: Mapping[str, str]
    pool: str
    busy_cores: float
    stolen_cores: float

    @property
    def compared(self) -> Mapping[str, Time]:
        """The times inside."""
        return self.inside

    def slowdown(self, name: str) -> Ratio:
        """What company costs a contender: its time inside over its time alone."""
        return Ratio.of(self.inside[name], self.alone[name])

    def to_dict(self) -> dict[str, Any]:
        """As JSON types: what was measured, and beside it what follows."""
        return {
            "format": self.format,
            "best_peer": self.best_peer,
            "alone": {name: self.alone[name].median for name in self.names},
            "inside": {name: self.inside[name].median for name in self.names},
            "slowdowns": {name: dataclasses.asdict(self.slowdown(name)) for name in self.names},
            "ratios": as_json(self.ratios()),
            "measured": dataclasses.asdict(self),
        }
