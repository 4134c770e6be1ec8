"""The report: one HTML file that needs nothing beside it. Needs jinja2 and matplotlib."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import ToolError
from ..extras import install
from .columns import REPORT, Beside, cells
from .contenders import OURS
from .export import absences, counted, flat, parts, summaries
from .row import Measured, Row

TEMPLATE = Path(__file__).parent / "report.html"
NEEDS = ("jinja2", "matplotlib")
#: Cores that others may use, or that are stolen, before the report says so.
BUSY_CORES = 0.1


def require_libraries() -> None:
    """Find the libraries before anything is measured.

    Raises
    ------
    ToolError
        One is not installed.
    """
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise ToolError(f"an HTML report needs {' and '.join(missing)}: {install('bench')}")


def to_html(rows: Sequence[Row], environment: dict[str, Any]) -> str:
    """The page: what came of it, figures, every number, who is missing, and where it was."""
    import jinja2
    from markupsafe import Markup

    from . import plots

    machines: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        machines.setdefault((row.target, row.job.threads), []).append(row)
    rooflines = [
        (f"{target}, {counted(threads, 'thread')}", Markup(plots.roofline(part, str(i))))
        for i, ((target, threads), part) in enumerate(machines.items())
    ]
    speed_ups = [
        (
            f"{format_name}, {target}, {counted(threads, 'thread')}",
            Markup(plots.speed_up(part, str(i))),
        )
        for i, ((format_name, target, threads), part) in enumerate(parts(rows).items())
        if any(row.ratio(name) for row in part for name in row.times if name != OURS.name)
    ]
    page = jinja2.Environment(
        autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    ).from_string(TEMPLATE.read_text(encoding="utf-8"))
    return page.render(
        environment=environment,
        summaries=[summary.text() for summary in summaries(rows)],
        warnings=warnings(rows),
        rooflines=rooflines,
        speed_ups=speed_ups,
        columns=REPORT,
        lines=[line for row in rows for line in lines(row)],
        absences=absences(rows),
        facts=flat(environment),
    )


def warnings(rows: Sequence[Measured]) -> list[str]:
    """What makes figures doubtful."""
    busy = [row for row in rows if row.busy_cores > BUSY_CORES]
    stolen = [row for row in rows if row.stolen_cores > BUSY_CORES]
    found = {"other programs": busy, "other virtual machines": stolen}
    return [
        f"During {len(some)} of {len(rows)} shapes {who} used more than {BUSY_CORES:.0%} of a core."
        for who, some in found.items()
        if some
    ]


def lines(row: Row) -> Iterator[dict[str, Any]]:
    """Lines of the table: quantmm, its peers from the fastest on, what is no peer."""
    for i, name in enumerate(row.names):
        entry = Beside(row, name)
        yield {
            "cells": zip(REPORT.values(), cells(REPORT, entry, first=i == 0), strict=True),
            "kind": entry.kind,
            "slower": bool(entry.ratio and entry.ratio.slower),
        }
