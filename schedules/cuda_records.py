"""Tuned records for GPUs: which of a kernel's functions is the fastest for how many rows.

A kernel for GPUs holds every function that may serve a number of rows, so all that tuning has to
find out is which one does it fastest; `benchmarks/gpu_check.py run` measures that. A log of it is
one of `records`, whose databases for GPUs have a header and KERNELS, and belong to a type of GPU.

Nothing here imports `tvm`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RecordError
from ..formats.spec import MatmulSpec
from ..targets.cuda import CudaTarget
from ..versions import cuda_versions
from . import records
from .records import KERNELS as KERNELS


@dataclass(frozen=True)
class Measured:
    """The fastest function for `m` rows.

    Attributes
    ----------
    default, tuned : seconds of a call, of the function that is chosen without a record and of this.
    """

    m: int
    name: str
    default: float
    tuned: float


@dataclass(frozen=True)
class CudaRecord:
    """What tuning chose for a spec.

    Attributes
    ----------
    name : where it stands, for reports.
    functions : for numbers of rows, in order, the function that serves them.
    """

    name: str
    functions: tuple[tuple[int, str], ...]


def header(target: str, versions: dict[str, str], gpu: str | None) -> dict[str, Any]:
    """What records depend on, as JSON types; `gpu` is the device that they were measured on."""
    return {"format": records.FORMAT_VERSION, **versions, "target": target, "gpu": gpu}


def as_line(spec: MatmulSpec, measured: Iterable[Measured]) -> str:
    """A record as a line of a database: of every number of rows the latest figures."""
    latest = {each.m: dataclasses.asdict(each) for each in measured}
    tuned = [latest[m] for m in sorted(latest)]
    return json.dumps({"spec": dataclasses.replace(spec, m=None).to_json(), "tuned": tuned})


def latest(database: Path, spec: MatmulSpec) -> tuple[Measured, ...]:
    """What the last line for a spec says; nothing if there is none.

    Raises
    ------
    RecordError
        The line is damaged.
    """
    lines = list(records.kernel_lines(database, dataclasses.replace(spec, m=None)))
    return parsed(f"{database}:{lines[-1][0]}", lines[-1][1]) if lines else ()


def parsed(name: str, line: str) -> tuple[Measured, ...]:
    """What a line says.

    Raises
    ------
    RecordError
        It is damaged.
    """
    try:
        found = tuple(Measured(**each) for each in json.loads(line)["tuned"])
        numbers = all(isinstance(each.m, int) and each.m > 0 for each in found)
        if numbers and all(0 < each.tuned <= each.default for each in found):
            return found
    except records.DAMAGE:
        pass
    raise RecordError(f"{name}: it is damaged")


def find(
    spec: MatmulSpec,
    row: CudaTarget,
    log: str | os.PathLike[str] | None = None,
    *,
    any_record: bool = False,
) -> CudaRecord | None:
    """The record for `spec` on `row`, if a log has one; as `records.find`."""
    here = header(row.name, cuda_versions(), None)
    del here["gpu"]  # which is not known where a kernel is compiled for another machine

    def read(name: str, line: str) -> CudaRecord:
        functions = sorted((each.m, each.name) for each in parsed(name, line))
        return CudaRecord(name.rpartition(":")[0], tuple(functions))

    any_m = dataclasses.replace(spec, m=None)
    record = records.latest(any_m, here, log, read, any_record=any_record)
    return record if record and record.functions else None


def function_for(functions: Iterable[tuple[int, str]], m: int) -> str | None:
    """The function that serves `m` rows by a record; None where the record says nothing of it.

    That of the next larger number of rows that was measured, whose tiles hold `m` as well, unless
    it is more than twice as large.
    """
    return next((name for rows, name in functions if m <= rows < 2 * m), None)
