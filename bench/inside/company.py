"""Contenders that share a process: their turns there, and the samples here.

What each computes was checked before. One that raises when it is made ready is left out; one that
ends the process ends the measurement of them all.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import BenchError
from ...processes import WorkerError
from ..compare import PAUSE_SECONDS
from ..contenders import Contender, Job
from ..process import processes, ready, started, turn


@dataclass(frozen=True)
class Facts:
    """What there is to say before the first turn.

    Attributes
    ----------
    about : what is worth saying of everyone who takes part, or nothing, by name.
    absent : why others do not.
    pool : on whose threads quantmm's kernels run.
    """

    about: dict[str, str]
    absent: dict[str, str]
    pool: str


@dataclass(frozen=True)
class Company:
    """Contenders that are ready, in the process that measures.

    Attributes
    ----------
    samples : by name, what takes a sample of a contender, as JSON types.
    """

    samples: Mapping[str, Callable[[], Any]]
    facts: Facts
    order: Iterator[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", shuffled([*self.samples]))

    @property
    def about(self) -> str:
        """The facts as text, which is what a process says when it is ready."""
        return json.dumps(dataclasses.asdict(self.facts))

    def turn(self) -> dict[str, Any]:
        """The next contender's name and sample."""
        name = next(self.order)
        return {"contender": name, "sample": self.samples[name]()}


def shuffled(names: list[str]) -> Iterator[str]:
    """Rounds without end, in which everyone comes once, after others than in the last round."""
    order = random.Random(0)
    return itertools.chain.from_iterable(
        order.sample(names, len(names)) for _ in itertools.repeat(None)
    )


def measured(contender: Contender, job: Job, rounds: int) -> tuple[Facts, dict[str, list[Any]]]:
    """Have a `Company` take turns in a process of its own: its facts, and samples by name.

    Parameters
    ----------
    contender : whose builder makes a `Company`.

    Raises
    ------
    BenchError
        Its process ended, or gave no answer.
    """
    with processes() as running:
        worker = running[contender.name] = started(contender, job)
        try:
            facts = Facts(**json.loads(ready(worker, contender, job)))
            samples: dict[str, list[Any]] = {name: [] for name in facts.about}
            for _ in range(rounds * len(samples)):
                taken = turn(worker)
                samples[taken["contender"]].append(taken["sample"])
                time.sleep(PAUSE_SECONDS)
        except WorkerError as failure:
            raise BenchError(
                f"{contender.name}, {job.title}, could not be measured: {failure}"
            ) from None
    return facts, samples
