"""Rows that were measured inside a host, as Markdown, JSON and words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..contenders import OURS
from ..export import absences, counted, milliseconds, shown
from ..report import warnings
from ..row import Measured, geometric_mean
from .encoder import OUR_VARIANTS, VARIANTS
from .encoders import EncoderRow
from .row import InsideRow

#: What the columns of a contender hold, and what follows from them.
COLUMNS = ("alone ms", "inside ms", "inside / alone")
HEADER = f"""\
| M x N x K | threads | quantmm {" | ".join(COLUMNS)} | best peer | {" | ".join(COLUMNS)} | ratio |
|{"---|" * (4 + 2 * len(COLUMNS))}"""
ENCODER_COLUMNS = (
    *("batch x tokens", "threads"),
    *(f"{name} ms" for name in VARIANTS),
    *(f"{name} ratio" for name in OUR_VARIANTS),
)
ENCODER_HEADER = f"""\
| {" | ".join(ENCODER_COLUMNS)} |
|{"---|" * len(ENCODER_COLUMNS)}"""


def line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def markdown(row: InsideRow) -> str:
    """Lines of docs/performance.md: quantmm beside its best peer, then what is no peer."""
    ours = times(row, OURS.name) if row.ours else [""] * len(COLUMNS)
    first = [row.title, str(row.job.threads), *ours]
    lines = [first + beside(row, row.best_peer)]
    lines += [[""] * len(first) + beside(row, name) for name in row.baselines]
    return "\n".join(map(line, lines))


def times(row: InsideRow, name: str) -> list[str]:
    """The cells of `COLUMNS`."""
    medians = [milliseconds(each[name].median) for each in (row.alone, row.inside)]
    return [*medians, shown(row.slowdown(name))]


def beside(row: InsideRow, name: str | None) -> list[str]:
    """A contender, its times, and the ratio to quantmm's; nothing where there is none."""
    if name is None:
        return [""] * (2 + len(COLUMNS))
    ratio = "" if name == OURS.name else shown(row.ratio(name))
    return [name, *times(row, name), ratio]


def encoder_markdown(row: EncoderRow) -> str:
    """A line of docs/performance.md; the ratios are the fastest of torch's over quantmm's."""
    medians = [
        milliseconds(row.times[name].median) if name in row.times else "" for name in VARIANTS
    ]
    ratios = [shown(row.ratio(name)) for name in OUR_VARIANTS]
    return line([row.title, str(row.threads), *medians, *ratios])


def closing(rows: Sequence[InsideRow]) -> list[str]:
    """What is said below a table of calls."""
    return [*summaries(rows), *remarks(rows)]


def summaries(rows: Sequence[InsideRow]) -> list[str]:
    """In words, for every format, target and number of threads, what came of it."""
    parts: dict[tuple[str, str, int], list[InsideRow]] = {}
    for row in rows:
        if row.ours:
            parts.setdefault((row.format, row.target, row.job.threads), []).append(row)
    return [summary(key, part) for key, part in parts.items()]


def summary(key: tuple[str, str, int], part: Sequence[InsideRow]) -> str:
    """A sentence on the rows of one format, target and number of threads."""
    format_name, target, threads = key
    host = part[0].host
    cost = geometric_mean(row.slowdown(OURS.name) for row in part)
    peers = [ratio for row in part if (ratio := row.ratio(row.best_peer))]
    mean = geometric_mean(peers)
    beside = (
        "no peer"
        if mean is None
        else f"{mean:.2f} times as fast there as the best peer of {counted(len(peers), 'shape')}"
    )
    return (
        f"{format_name}, {target}, {counted(threads, 'thread')}: a call inside {host} takes "
        f"{cost:.2f} times what it takes alone; {beside} (geometric means)"
    )


def remarks(rows: Sequence[InsideRow | EncoderRow]) -> list[str]:
    """On whose threads kernels ran, what makes figures doubtful, and who was left out."""
    pools = dict.fromkeys(row.pool for row in rows)
    measured: Sequence[Measured] = rows
    return [
        *(f"quantmm's kernels ran on these threads: {pool}" for pool in pools),
        *warnings(measured),
        *absences(measured),
    ]


def to_json(
    rows: Sequence[InsideRow], encoders: Sequence[EncoderRow], environment: dict[str, Any]
) -> str:
    """Everything that was measured."""
    content = {
        "environment": environment,
        "rows": [row.to_dict() for row in rows],
        "encoders": [row.to_dict() for row in encoders],
    }
    return json.dumps(content, indent=1)
