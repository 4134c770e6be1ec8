"""Small tuning runs in these tests' processes, with faults where they are wanted."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
import quantmm as qmm
from quantmm import targets
from quantmm.bench import limits
from quantmm.schedules import records
from quantmm.schedules.cpu.program import Parameters
from quantmm.tuning import stage
from quantmm.tuning.choice import Choice
from quantmm.tuning.stage import Session

SPEC = qmm.MatmulSpec(n=64, k=64)
#: The best row here that accumulates in vectors: what random trials find should not depend on AMX.
ROW = next(
    row
    for row in targets.TARGETS
    if targets.why_not_here(row) is None and row.instruction.registers is None
)
M = 6

#: Builders are started once for all tests: each imports TVM.
CHILDREN = Session("tuning_faults:Builder", build_seconds=20)


@contextlib.contextmanager
def measured_machine():
    """The machine is `ROW` and measured before, and children find these tests' modules."""
    measured = limits.Limits(1, 1000.0, 10.0, 10.0)
    here = str(Path(__file__).parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "measure", lambda *_: measured)
        patch.setattr(targets, "host", lambda: ROW)
        patch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
        yield


def tune(log, bench="Bench", **options):
    return tune_on([stage.this_machine(f"tuning_faults:{bench}")], log, **options)


def tune_on(boards, log, **options):
    CHILDREN.boards = list(boards)
    try:
        options = {"m": [M], "trials": 5, "threads": 1, **options}
        return qmm.tune(SPEC, log=log, session=CHILDREN, **options)
    finally:
        for board in boards:
            board.bench.close()


def lines(log, name=records.TRIALS):
    (database,) = records.databases(Path(log))
    return (database / name).read_text().splitlines()


def choice(**other):
    parameters = {"rows": 3, "blocks": 2, "panels": 1, "ahead": 0, "unroll": 1, "few_tiles": 2}
    return Choice("gemm", 64, Parameters(**{**parameters, "block_rows": 1 << 17, **other}))
