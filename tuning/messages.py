"""What goes over a connection with a server: text, JSON with a few types more.

Nothing that is received is executed.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable
from typing import Any

from .. import targets
from ..bench.contenders import Job
from ..bench.roofline import Limits
from ..bench.row import Row
from ..formats.spec import MatmulSpec
from ..targets import CudaTarget, Target
from ..versions import VERSION, versions

#: Types that JSON has not: their names, and how they are written and read.
SENT: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "bytes": (bytes, lambda value: base64.b64encode(value).decode(), base64.b64decode),
    "spec": (MatmulSpec, MatmulSpec.to_json, MatmulSpec.from_json),
    "target": (Target, lambda row: row.name, targets.find_cpu),
    "gpu": (CudaTarget, lambda row: row.name, targets.find),
    "job": (Job, Job.to_dict, Job.from_dict),
    "row": (Row, Row.to_dict, Row.from_dict),
    "limits": (Limits, dataclasses.asdict, lambda fields: Limits(**fields)),
}
PREFIX = "quantmm."


def packed(value: Any) -> str:
    """A value as text."""

    def written(each: Any) -> dict[str, Any]:
        for name, (kind, write, _) in SENT.items():
            if isinstance(each, kind):
                return {PREFIX + name: write(each)}
        raise TypeError(f"a {type(each).__name__} cannot be sent")

    return json.dumps(value, default=written)


def unpacked(text: str) -> Any:
    """The inverse of `packed`."""

    def read(fields: dict[str, Any]) -> Any:
        name = next(iter(fields), "").removeprefix(PREFIX)
        if len(fields) == 1 and PREFIX + name in fields and name in SENT:
            return SENT[name][2](fields[PREFIX + name])
        return fields

    return json.loads(text, object_hook=read)


def identity() -> dict[str, str]:
    """What must be the same at both ends."""
    return {"quantmm": VERSION, **versions()}
