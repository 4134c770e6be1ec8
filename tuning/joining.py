"""Joining records of one spec: runs that knew nothing of each other may tune for different M.

The last line for a spec is the one that counts, so it has to say what the lines before it do of
those M that it lacks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import RecordError
from ..formats.spec import MatmulSpec
from ..schedules import cuda_records, records
from ..schedules.plan import MAX_ELEMENTS
from ..schedules.records import DAMAGE
from ..targets import CudaTarget, Target

Fields = Mapping[str, Any]


def joined(newer: Fields, older: Fields, row: Target | CudaTarget) -> dict[str, Any]:
    """The fields of a record, with what an older one has for other M.

    What cannot be used of the older one, or not together with the newer one, is left out.
    """
    spec = MatmulSpec.from_json(newer["spec"])
    try:
        if newer.get("instructions") != older.get("instructions"):
            return dict(newer)
        fields = carried(newer, older)
        if row.device == "cuda":
            cuda_records.parsed("", json.dumps(fields), spec, row)
        else:
            records.parsed("", json.dumps(fields), spec, row)
    except (RecordError, *DAMAGE):
        return dict(newer)
    return fields


def carried(newer: Fields, older: Fields) -> dict[str, Any]:
    """`joined`, unchecked."""
    known = {each["m"] for name in ("tuned", "measured") for each in newer.get(name, ())}
    tuned = [each for each in older["tuned"] if each["m"] not in known]
    measured = [
        each for each in older.get("measured", ()) if is_measured(each) and each["m"] not in known
    ]
    if older.get("k_block") != newer.get("k_block"):
        # A kernel has one layout, so the defaults do what was tuned for another one. The M stay
        # noted: the next run speaks for them again.
        tuned, measured = [], [{**each, "tuned": each["default"]} for each in measured]
    if not tuned and not measured:
        return dict(newer)
    every = [*newer["tuned"], *tuned]
    rows = sorted(known | {each["m"] for each in (*tuned, *measured)})
    return {
        **newer,
        "tuned": sorted((apart(each, rows) for each in every), key=by_m),
        "measured": sorted([*newer.get("measured", ()), *measured], key=by_m),
    }


def by_m(entry: Fields) -> int:
    """The order of entries."""
    return int(entry["m"])


def apart(entry: Fields, rows: Sequence[int]) -> dict[str, Any]:
    """An entry that is used for none of the other M in `rows`: each has been decided by itself."""
    below = max((m for m in rows if m < entry["m"]), default=0)
    above = min((m for m in rows if m > entry["m"]), default=entry["last_m"] + 1)
    return {
        **entry,
        "first_m": max(entry["first_m"], below + 1),
        "last_m": min(entry["last_m"], above - 1),
    }


def is_measured(entry: Any) -> bool:
    """Whether an entry of a record has the figures of an M."""
    return (
        isinstance(entry, dict)
        and type(entry.get("m")) is int
        and 1 <= entry["m"] <= MAX_ELEMENTS
        and all(isinstance(entry.get(name), (int, float)) for name in ("default", "tuned"))
    )
