"""Digests of the code of some kernels on every target: what SCHEDULE_VERSION stands for.

Records and kernel files name the version of the schedules. `python tests/schedule_code.py` writes
the digests of today's code to schedule_code.json, once the version was raised because it changed.
Where fields of a CPU's row changed, its records name other digests already, and need no version.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import quantmm as qmm
import tvm_ffi
from quantmm import versions
from quantmm.compiler import cpu, cuda
from quantmm.compiler.expr.smooth import SMOOTH, activation
from quantmm.schedules import records
from quantmm.schedules.cpu.plan import plan_for
from quantmm.targets import CUDA_TARGETS, TARGETS, CudaTarget, Target
from tvm import tirx

PATH = Path(__file__).with_suffix(".json")

#: Formats with every kind of block and of correction in them.
FLOATS: dict[str, Any] = {"input": "float32", "dynamic": True}
SPECS = (
    qmm.MatmulSpec(n=384, k=1024, **FLOATS),
    qmm.MatmulSpec(n=100, k=1056, weight="int4", group_size=32, bias=True, **FLOATS),
    qmm.MatmulSpec(
        n=64, k=333, weight="uint8", weight_zero_point=True, activation_zero_point=True, out="int8"
    ),
)
ROWS = (1, 70)


def cpu_digests() -> dict[str, str]:
    """The version, and by target the digest of all kernels' code."""
    # The row without an architecture has the code of this machine's.
    cpus = {row.name: f"{fields_of(row)} {code_of(row)}" for row in TARGETS if row.architecture}
    return {"version": str(versions.SCHEDULE_VERSION), **cpus}


def cuda_digests() -> dict[str, str]:
    """The same for GPUs."""
    gpus = {
        row.name: digest(cuda.emit_code(spec, row, m, "cuda") for spec in SPECS for m in ROWS)
        for row in CUDA_TARGETS
    }
    return {"version": str(versions.CUDA_SCHEDULE_VERSION), **gpus}


def smooth_digests() -> dict[str, str]:
    """By target, the digest of its smooth activation functions."""
    rows = {row.name: smooth_code(row) for row in (*TARGETS, *CUDA_TARGETS)}
    return {"version": str(versions.SMOOTH_VERSION), **rows}


#: By kind of device, and of the smooth activation functions.
DIGESTS = {"cpu": cpu_digests, "cuda": cuda_digests, "smooth": smooth_digests}


def code_of(row: Target) -> str:
    """A digest of a row's kernels."""
    return digest(structure(spec, row, m) for spec in SPECS for m in ROWS)


def smooth_code(row: Target | CudaTarget) -> str:
    """A digest of a row's smooth activation functions."""
    value = tirx.Var("v", "float32")
    return digest(
        str(tvm_ffi.structural_hash(activation(name, value, row), map_free_vars=True))
        for name in SMOOTH
    )


def fields_of(row: Target) -> str:
    """What records name of a row and its instructions."""
    plans = (plan_for(spec, row) for spec in SPECS)
    return digest([records.digest_of(row), *map(records.instructions_digest, plans)])


def structure(spec: qmm.MatmulSpec, row: Target, m: int) -> str:
    """What tells the scheduled function for `m` rows from others, whatever its variables' names."""
    plan = plan_for(dataclasses.replace(spec, m=m), row)
    (variant,) = cpu.choose_variants(plan)
    func = cpu.lower(plan, variant).without_attr("global_symbol")
    return str(tvm_ffi.structural_hash(func))


def digest(texts: Any) -> str:
    """One digest of several texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def changed(known: str | None, found: str) -> bool:
    """Whether code changed that records do not tell apart by themselves."""
    *row, _ = found.split()
    return known is not None and known != found and row == known.split()[:-1]


def main() -> int:
    """Write the file, unless code changed and its version did not."""
    found = {kind: digests() for kind, digests in DIGESTS.items()}
    if PATH.exists():
        known = json.loads(PATH.read_text())
        for kind, rows in found.items():
            same = rows["version"] == known[kind]["version"]
            if same and any(changed(known[kind].get(name), rows[name]) for name in rows):
                print(f"code for {kind} has changed: raise its version in versions.py first")
                return 1
    PATH.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
