"""Rows as Markdown, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ReportError
from .columns import CSV, OURS_PAGE, PEER_PAGE, Beside, cells, page_header, page_line
from .contenders import OURS
from .row import Compared, Measured, Row, geometric_mean

AnyRow = TypeVar("AnyRow", bound=Compared)

HEADER = page_header(*OURS_PAGE, *PEER_PAGE)


def markdown(row: Row) -> str:
    """Lines of docs/performance.md: quantmm beside its best peer, then what is no peer.

    A ratio with a ~ is within what the rounds differ.
    """
    table = [
        cells(OURS_PAGE, Beside(row, OURS.name)) + cells(PEER_PAGE, Beside(row, row.best_peer))
    ]
    empty = [""] * len(OURS_PAGE)
    table += [empty + cells(PEER_PAGE, Beside(row, name)) for name in row.baselines]
    return "\n".join(map(page_line, table))


def absences(rows: Sequence[Measured]) -> list[str]:
    """Who was left out, at which shapes unless at all of a format, and why."""
    every: dict[str, list[str]] = {}
    places: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        every.setdefault(row.format, []).append(row.title)
        for name, reason in row.absent.items():
            places.setdefault((name, row.format, reason), []).append(row.title)
    lines = []
    for (name, format_name, reason), where in places.items():
        whole = where == every[format_name]
        at = "" if whole else " at " + ", ".join(dict.fromkeys(where))
        lines.append(f"{format_name}: without {name}{at}: {reason}")
    return lines


@dataclass(frozen=True)
class Summary:
    """Rows of one format, target and number of threads, beside the best peer of each.

    Attributes
    ----------
    rows : how many have a peer.
    mean : the geometric mean of the ratios to the best peer; None without peers.
    faster, slower : in how many quantmm is so beyond what the rounds differ.
    """

    format: str
    target: str
    threads: int
    rows: int
    mean: float | None
    faster: int
    slower: int

    def text(self) -> str:
        """In words."""
        where = f"{self.format}, {self.target}, {counted(self.threads, 'thread')}"
        if self.mean is None:
            return f"{where}: no peer"
        alike = self.rows - self.faster - self.slower
        return (
            f"{where}: {self.mean:.2f} times as fast as the best peer, in the geometric mean of "
            f"{counted(self.rows, 'shape')}; faster in {self.faster}, slower in {self.slower}, "
            f"within the spread in {alike}"
        )


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """One for every format, target and number of threads."""
    found = []
    for key, part in parts(rows).items():
        ratios = [ratio for row in part if (ratio := row.ratio(row.best_peer))]
        certain = [ratio for ratio in ratios if ratio.certain]
        slower = sum(ratio.slower for ratio in ratios)
        mean = geometric_mean(ratios)
        found.append(Summary(*key, len(ratios), mean, len(certain) - slower, slower))
    return found


def parts(rows: Sequence[AnyRow]) -> dict[tuple[str, str, int], list[AnyRow]]:
    """Rows by format, target and number of threads."""
    found: dict[tuple[str, str, int], list[AnyRow]] = {}
    for row in rows:
        found.setdefault((row.format, row.target, row.job.threads), []).append(row)
    return found


def counted(count: int, noun: str) -> str:
    """Such as "1 thread" and "2 threads"."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def to_json(
    rows: Sequence[Measured], environment: dict[str, Any], **others: Sequence[Measured]
) -> str:
    """Everything that was measured: rows, and those of other kinds by their name."""
    kinds = {"rows": rows, **others}
    content = {name: [row.to_dict() for row in found] for name, found in kinds.items()}
    return json.dumps({"environment": environment, **content}, indent=1)


def rows_of(name: str | None, environment: dict[str, Any]) -> list[Row]:
    """The rows of a file of `to_json`, if there is one, to go on with.

    Raises
    ------
    ReportError
        The file has something else, or rows of another machine or version.
    """
    if name is None or not Path(name).is_file():
        return []
    try:
        content = json.loads(Path(name).read_text(encoding="utf-8"))
        found = [Row.from_dict(each) for each in content["rows"]]
        there = content["environment"]
    except (ValueError, KeyError, TypeError):
        raise ReportError(f"{name} has no rows of quantmm bench to go on with") from None
    for field in ("cpu", "gpu", "versions"):
        if there.get(field) != environment.get(field):
            here, other = environment.get(field), there.get(field)
            raise ReportError(f"{name} has rows of another {field}: {other}; here is {here}")
    return found


def to_csv(rows: Sequence[Row], environment: dict[str, Any]) -> str:
    """A line for each contender of each row, below the environment in lines that start with #."""
    file = io.StringIO()
    for name, value in flat(environment):
        file.write(f"# {name}: {value}\n")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV)
    for row in rows:
        writer.writerows(cells(CSV, Beside(row, name)) for name in (*row.times, *row.absent))
    return file.getvalue()


def flat(environment: dict[str, Any]) -> list[tuple[str, Any]]:
    """Facts of an environment line by line, versions like the others."""
    facts = {name: value for name, value in environment.items() if name != "versions"}
    return [*facts.items(), *environment["versions"].items()]
