"""What was measured of one shape, and what follows from it."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..formats.named import changed, name_of, weight_bytes
from .contenders import OURS, Job
from .roofline import Limits
from .timing import Time, median_range


@dataclass(frozen=True)
class Ratio:
    """One time over another; a contender's over quantmm's is above 1 where quantmm is faster.

    Attributes
    ----------
    value : the ratio of the medians.
    low, high : the true median of the ratios lies between them with a probability of at least 90 %,
        by the ratios within each round.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, time: Time, other: Time) -> Ratio:
        """The ratio of two that have a sample of every round."""
        within = [t / o for t, o in zip(time.samples, other.samples, strict=True)]
        return cls(time.median / other.median, *median_range(within))

    @property
    def certain(self) -> bool:
        """Whether one of the two is faster beyond what the rounds differ."""
        return self.low > 1 or self.high < 1

    @property
    def slower(self) -> bool:
        """Whether a contender is faster than quantmm, beyond what the rounds differ."""
        return self.high < 1


class Measured(Protocol):
    """What rows of every kind say of themselves."""

    @property
    def format(self) -> str:
        """What was computed."""

    @property
    def title(self) -> str:
        """At which shape."""

    @property
    def absent(self) -> Mapping[str, str]:
        """Why some took no part."""

    @property
    def busy_cores(self) -> float:
        """How many cores other programs used meanwhile."""

    @property
    def stolen_cores(self) -> float:
        """And other virtual machines."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types: what was measured, and beside it what follows."""


class Compared:
    """What follows for a job from the times of those who took part in it."""

    job: Job
    target: str
    baselines: tuple[str, ...]

    @property
    def compared(self) -> Mapping[str, Time]:
        """The times by which they are compared."""
        raise NotImplementedError

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
        """The times of quantmm; None where it took no part."""
        return self.compared.get(OURS.name)

    @property
    def peers(self) -> list[str]:
        """Who competes, the fastest first."""
        names = [name for name in self.compared if name not in (OURS.name, *self.baselines)]
        return sorted(names, key=lambda name: self.compared[name].median)

    @property
    def best_peer(self) -> str | None:
        """The fastest peer."""
        return next(iter(self.peers), None)

    @property
    def names(self) -> list[str]:
        """Everyone who took part, in the order of tables."""
        return [*([OURS.name] if self.ours else []), *self.peers, *self.baselines]

    def ratio(self, name: str | None) -> Ratio | None:
        """A contender's time over quantmm's; None where one of them took no part."""
        if name is None or not self.ours or name not in self.compared:
            return None
        return Ratio.of(self.compared[name], self.ours)

    def ratios(self) -> dict[str, Ratio | None]:
        """Those of all others who took part."""
        return {name: self.ratio(name) for name in self.compared if name != OURS.name}


@dataclass(frozen=True)
class Row(Compared):
    """One shape of one format. Times in seconds for one product.

    Attributes
    ----------
    target : the row of targets that `job.target` is on the machine that was measured.
    times : of every contender that took part, by name; all have a sample of every round.
    baselines : those of them that are no peers.
    absent : why others took no part, by contender or by the word that asked for it.
    about : what is worth saying of contenders: versions, quantmm's function.
    busy_cores, stolen_cores : how many cores other programs used meanwhile, and other virtual
        machines, as far as the system knows.
    """

    job: Job
    target: str
    limits: Limits
    times: Mapping[str, Time]
    baselines: tuple[str, ...]
    absent: Mapping[str, str]
    about: Mapping[str, str]
    busy_cores: float
    stolen_cores: float

    @property
    def compared(self) -> Mapping[str, Time]:
        """All times."""
        return self.times

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight and its scales."""
        return weight_bytes(self.job.spec)

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.job.m * self.job.n * self.job.k

    @property
    def floor(self) -> float:
        """The time that the measured limits leave."""
        job = self.job
        return self.limits.floor(job.m, job.n, job.k, self.weight_bytes, job.cold)

    @property
    def share(self) -> float | None:
        """The share of the limit that quantmm reached: floor / median."""
        return self.floor / self.ours.median if self.ours else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types: what was measured, and beside it what follows."""
        return {
            "format": self.format,
            "spec": {"n": self.job.n, "k": self.job.k, **changed(self.job.spec)},
            "floor": self.floor,
            "share": self.share,
            "best_peer": self.best_peer,
            "medians": {name: each.median for name, each in self.times.items()},
            "ratios": as_json(self.ratios()),
            "measured": dataclasses.asdict(self),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Row:
        """The row that `to_dict` wrote."""
        measured = fields["measured"]
        times = {name: Time(tuple(each["samples"])) for name, each in measured["times"].items()}
        made = {
            "job": Job.from_dict(measured["job"]),
            "limits": Limits(**measured["limits"]),
            "times": times,
            "baselines": tuple(measured["baselines"]),
        }
        return cls(**{**measured, **made})


def as_json(ratios: Mapping[str, Ratio | None]) -> dict[str, Any]:
    """The ratios that are there, as JSON types."""
    return {name: dataclasses.asdict(ratio) for name, ratio in ratios.items() if ratio}


def geometric_mean(ratios: Iterable[Ratio | None]) -> float | None:
    """The geometric mean of the ratios that are there; None if there are none."""
    values = [ratio.value for ratio in ratios if ratio]
    return math.exp(statistics.fmean(map(math.log, values))) if values else None
