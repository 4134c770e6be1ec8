"""What was measured of one shape inside a host, and what follows from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...formats.named import name_of
from ..contenders import OURS, Job
from ..row import Ratio
from ..timing import Time


@dataclass(frozen=True)
class InsideRow:
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
    def format(self) -> str:
        """The format's name, or what is not as usual in it."""
        return name_of(self.job.spec)

    @property
    def title(self) -> str:
        """The shape."""
        return self.job.title

    @property
    def ours(self) -> Time | None:
        """The times of quantmm inside; None where it took no part."""
        return self.inside.get(OURS.name)

    @property
    def peers(self) -> list[str]:
        """Who competes, the fastest inside first."""
        names = [name for name in self.inside if name not in (OURS.name, *self.baselines)]
        return sorted(names, key=lambda name: self.inside[name].median)

    @property
    def best_peer(self) -> str | None:
        """The fastest peer inside."""
        return next(iter(self.peers), None)

    @property
    def names(self) -> list[str]:
        """Everyone who took part, in the order of tables."""
        return [*([OURS.name] if self.ours else []), *self.peers, *self.baselines]

    def slowdown(self, name: str) -> Ratio:
        """What company costs a contender: its time inside over its time alone."""
        return Ratio.of(self.inside[name], self.alone[name])

    def ratio(self, name: str | None) -> Ratio | None:
        """A contender's time over quantmm's, both inside; None where one of them took no part."""
        if name is None or self.ours is None:
            return None
        return Ratio.of(self.inside[name], self.ours)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types: what was measured, and beside it what follows."""
        ratios = {name: self.ratio(name) for name in self.names if name != OURS.name}
        return {
            "format": self.format,
            "best_peer": self.best_peer,
            "alone": {name: self.alone[name].median for name in self.names},
            "inside": {name: self.inside[name].median for name in self.names},
            "slowdowns": {name: dataclasses.asdict(self.slowdown(name)) for name in self.names},
            "ratios": {name: dataclasses.asdict(each) for name, each in ratios.items() if each},
            "measured": dataclasses.asdict(self),
        }
