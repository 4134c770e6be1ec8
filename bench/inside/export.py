"""Rows that were measured inside a host, as Markdown and in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..columns import (
    CONTENDER,
    FORMAT,
    MEDIAN,
    RATIO,
    SHAPE,
    THREADS,
    Column,
    Entry,
    cells,
    milliseconds,
    page_header,
    page_line,
    shown,
)
from ..contenders import OURS
from ..export import absences, counted, parts
from ..report import warnings
from ..row import Measured, Ratio, geometric_mean
from ..timing import Time
from .encoder import OUR_VARIANTS, VARIANTS
from .encoders import EncoderRow
from .row import InsideRow


@dataclass(frozen=True)
class Inside(Entry):
    """A contender in a row that was measured inside a host."""

    row: InsideRow

    @property
    def alone(self) -> Time | None:
        """Its times alone."""
        return self.row.alone.get(self.name or "")

    @property
    def slowdown(self) -> Ratio | None:
        """What company costs it."""
        return self.row.slowdown(self.name) if self.name and self.time else None


#: The tables, by the headings of their columns: of the row, of each contender, of a peer.
SHAPE_TABLE = {"M x N x K": SHAPE, "format": FORMAT, "threads": THREADS}
SHAPE_PAGE = {"M x N x K": SHAPE, "threads": THREADS}
TIMES = {
    "alone ms": Column("alone.median", milliseconds),
    "inside ms": MEDIAN,
    "inside / alone": Column("slowdown", shown),
}
PEER_PAGE = {"best peer": CONTENDER, **TIMES, "ratio": RATIO}
TABLE = {**SHAPE_TABLE, "contender": CONTENDER, **TIMES, "ratio": RATIO}

_, *ALSO = TIMES
HEADER = page_header(*SHAPE_PAGE, "quantmm alone ms", *ALSO, *PEER_PAGE)
ENCODER_HEADER = page_header(
    *("batch x tokens", "threads"),
    *(f"{name} ms" for name in VARIANTS),
    *(f"{name} ratio" for name in OUR_VARIANTS),
)


def markdown(row: InsideRow) -> str:
    """Lines of docs/performance.md: quantmm beside its best peer, then what is no peer."""
    first = {**SHAPE_PAGE, **TIMES}
    lines = [cells(first, Inside(row, OURS.name)) + cells(PEER_PAGE, Inside(row, row.best_peer))]
    lines += [[""] * len(first) + cells(PEER_PAGE, Inside(row, name)) for name in row.baselines]
    return "\n".join(map(page_line, lines))


def encoder_markdown(row: EncoderRow) -> str:
    """A line of docs/performance.md; the ratios are the fastest of torch's over quantmm's."""
    medians = [
        milliseconds(row.times[name].median) if name in row.times else "" for name in VARIANTS
    ]
    ratios = [shown(ratio) if (ratio := row.ratio(name)) else "" for name in OUR_VARIANTS]
    return page_line([row.title, str(row.threads), *medians, *ratios])


def closing(rows: Sequence[InsideRow]) -> list[str]:
    """What is said below a table of calls."""
    return [*summaries(rows), *remarks(rows)]


def summaries(rows: Sequence[InsideRow]) -> list[str]:
    """In words, for every format, target and number of threads, what came of it."""
    return [summary(*each) for each in parts([row for row in rows if row.ours]).items()]


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
