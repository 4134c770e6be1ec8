"""One shape inside a host: everyone on the host's threads takes turns in one process."""

from __future__ import annotations

from collections.abc import Collection

from ... import targets
from ...targets import machine
from ..compare import ROUNDS, load_by_others
from ..contenders import OURS, Contender, Job
from ..timing import Time
from .company import measured
from .hosts import find_host, require, taking_part
from .row import InsideRow

BUILDER = f"{__package__}.calls:ready"


def compare(
    job: Job, host: str, against: Collection[str] | None = None, rounds: int = ROUNDS
) -> InsideRow:
    """Measure one shape of one format inside a host: quantmm, and whom `against` names.

    Parameters
    ----------
    host : a name of `hosts.HOSTS`.
    against : words for contenders on the host's threads, None for all. Who cannot do the shape or
        computes something else is left out, and the row says why.

    Raises
    ------
    BenchError
        No such host, a word that stands for no contender on its threads, or a process that ended.
    TargetError
        No such target, or one that this machine cannot execute.
    ToolError
        The host is not installed.
    """
    place = find_host(host)
    words = place.groups if against is None else against
    require(place, words)
    row = targets.find_cpu(job.target)
    machine.require(row.name, row.architecture, row.features)
    taken, absent = taking_part(place, job, words)
    everyone = [each.to_dict() for each in (OURS, *taken)]
    company = Contender(f"inside {host}", BUILDER, options={"host": host, "contenders": everyone})
    load: dict[str, float] = {}
    with load_by_others(load):
        facts, samples = measured(company, job, rounds)
    alone, inside = (
        {name: Time(tuple(each[place] for each in taken)) for name, taken in samples.items()}
        for place in ("alone", "inside")
    )
    return InsideRow(
        job=job,
        host=host,
        target=row.name,
        alone=alone,
        inside=inside,
        baselines=tuple(each.name for each in taken if each.baseline and each.name in samples),
        absent=absent | facts.absent,
        about={name: text for name, text in facts.about.items() if text},
        pool=facts.pool,
        **load,
    )
