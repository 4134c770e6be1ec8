"""What is known during a run, and what comes out of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..formats.spec import MatmulSpec
from ..targets import CudaTarget, Target
from .choice import Choice
from .log import Database


@dataclass(frozen=True)
class Progress:
    """Where a run is, for those who watch it. Times in seconds per call.

    Attributes
    ----------
    done, trials : trials of this M so far, and how many there will be.
    failed : trials without a time.
    default, best : None until they are measured.
    floor : what the machine's limits allow.
    text : what was just done.
    """

    spec: MatmulSpec
    m: int
    done: int
    trials: int
    failed: int
    default: float | None
    best: float | None
    floor: float
    text: str = ""


Watch = Callable[[Progress], None]


@dataclass
class Problem:
    """One M of a spec that is being tuned, with all that is known of it.

    Attributes
    ----------
    clock : seconds per call of the default when it was first measured; other times are ratios to
        the default in the same rounds, times this.
    times : of every choice that ran; None where it failed.
    leader : what beat the default, and those before it, beyond the noise.
    shown : the time that was last shown as the best. A new leader won in turns with the one before,
        and may still have the longer time on the clock, which is no reason to show a rise.
    """

    spec: MatmulSpec
    row: Target | CudaTarget
    m: int
    seed: int
    threads: int
    database: Database
    floor: float
    default: Choice
    workload: int = -1
    clock: float | None = None
    times: dict[Choice, list[float] | None] = field(default_factory=dict)
    leader: Choice | None = None
    shown: float = math.inf

    def median(self, choice: Choice) -> float:
        """The median time of a choice that ran."""
        times = self.times[choice]
        assert times
        return statistics.median(times)

    def on_clock(self, times: Sequence[float], default: Sequence[float]) -> list[float]:
        """Times as they would have been when the clock was taken, beside the default's."""
        assert self.clock is not None
        return [self.clock * mine / its for mine, its in zip(times, default, strict=False)]

    def best(self, count: int = 1, k_block: int | None = None) -> list[Choice]:
        """The fastest choices, the default left out."""
        timed = [
            (statistics.median(times), choice.name, choice)
            for choice, times in self.times.items()
            if times and choice != self.default and k_block in (None, choice.k_block)
        ]
        return [choice for _, _, choice in sorted(timed, key=lambda each: each[:2])[:count]]

    def progress(self, trials: int, text: str = "") -> Progress:
        """Where it is."""
        best = self.clock if self.leader is None else self.median(self.leader)
        if best is not None:
            best = self.shown = min(best, self.shown)
        failed = sum(times is None for times in self.times.values())
        return Progress(
            self.spec, self.m, len(self.times), trials, failed, self.clock, best, self.floor, text
        )


@dataclass(frozen=True)
class Outcome:
    """What came out for one M. Times in seconds per call.

    Attributes
    ----------
    times : of all trials in their order; None where one failed.
    choice : what beat the default, None where nothing did.
    default, tuned : measured again in the end, in turns.
    noise : the standard error of the logarithm of their ratio.
    first_m, last_m : where the choice is used.
    """

    m: int
    times: tuple[float | None, ...]
    floor: float
    choice: Choice | None
    default: float
    tuned: float
    noise: float
    first_m: int
    last_m: int


@dataclass(frozen=True)
class Tuning:
    """What `tune` returns.

    Attributes
    ----------
    record : the name of the record that `compile` will use; None where the defaults won.
    seconds : that it took.
    """

    spec: MatmulSpec
    target: str
    threads: int
    outcomes: tuple[Outcome, ...]
    record: str | None
    seconds: float
