"""Tuned records for GPUs: tiles that were faster than the default ones, and for how many rows.

A log of them is one of `records`; a database for GPUs belongs to a type of GPU.

Nothing here imports `tvm`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from typing import Any

from ..errors import RecordError
from ..formats.spec import MatmulSpec
from ..targets.cuda import CudaTarget
from ..versions import cuda_versions
from . import records
from .cuda.plan import CudaPlan, plan_for
from .cuda.program import CudaTile
from .cuda.spaces import refusal
from .cuda.strategies import STRATEGIES
from .records import Record, Tuned


def header(row: CudaTarget, gpu: str | None) -> dict[str, Any]:
    """What records depend on, as JSON types; `gpu` is the device that they were measured on."""
    return {
        "format": records.FORMAT_VERSION,
        **cuda_versions(),
        "target": row.name,
        "target_digest": digest_of(row),
        "gpu": gpu,
    }


def digest_of(row: CudaTarget) -> str:
    """What tells rows of the same name apart."""
    return records.digest(records.changed(row, ("description", "matrix", "dots")))


def find(
    spec: MatmulSpec,
    row: CudaTarget,
    log: str | os.PathLike[str] | None = None,
    *,
    any_record: bool = False,
) -> Record | None:
    """The record for `spec` on `row`, if a log has one; as `records.find`."""
    here = header(row, None)
    del here["gpu"]  # which is not known where a kernel is compiled for another machine
    any_m = dataclasses.replace(spec, m=None)
    read = functools.partial(parsed, spec=any_m, row=row)
    record = records.latest(any_m, here, log, read, any_record=any_record)
    return record if record and record.tuned else None


def parsed(name: str, line: str, spec: MatmulSpec, row: CudaTarget) -> Record:
    """The record in a line.

    Raises
    ------
    RecordError
        The line is damaged, or its tiles do not fit the spec or the target.
    """
    try:
        tuned = tuple(
            Tuned(**{**each, "parameters": CudaTile.of(each["parameters"])})
            for each in json.loads(line)["tuned"]
        )
        record = Record(name, None, tuned)
        reason = misfit(record, plan_for(spec, row))
    except records.DAMAGE:
        reason = "it is damaged"
    if reason:
        raise RecordError(f"{name}: {reason}")
    return record


def misfit(record: Record, plan: CudaPlan) -> str | None:
    """Why a record cannot be compiled; None when it can."""
    for each in record.tuned:
        assert isinstance(each.parameters, CudaTile)
        if reason := records.out_of_range(each):
            return reason
        strategy = STRATEGIES.get(each.strategy)
        if strategy is None or not strategy.products(plan.target):
            return f"strategy={each.strategy!r}; {plan.target.name} has no such strategy"
        if reason := refusal(plan, each.strategy, each.parameters):
            return f"m={each.m}: {reason}"
    return None


def as_line(plan: CudaPlan, record: Record, **more: Any) -> str:
    """A record as a line of a database, with what else is to be known."""
    tuned = [
        {**vars(each), "parameters": each.parameters.numbers()}
        for each in record.tuned
        if isinstance(each.parameters, CudaTile)
    ]
    spec = dataclasses.replace(plan.spec, m=None).to_json()
    return json.dumps({"spec": spec, "tuned": tuned, **more})
