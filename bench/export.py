"""Rows as Markdown, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .contenders import OURS
from .row import Measured, Ratio, Row, geometric_mean

HEADER = """\
| M x N x K | threads | floor ms | quantmm ms | least ms | share | best peer ms | ratio |
|---|---|---|---|---|---|---|---|"""


def markdown(row: Row) -> str:
    """Lines of docs/performance.md: quantmm beside its best peer, then what is no peer.

    A ratio with a ~ is within what the rounds differ.
    """
    ours = row.ours
    cells = [
        row.job.title,
        str(row.job.threads),
        milliseconds(row.floor),
        milliseconds(ours.median) if ours else "",
        milliseconds(ours.least) if ours else "",
        f"{row.share:.0%}" if row.share else "",
    ]
    empty = [""] * len(cells)
    table = [cells + beside(row, row.best_peer)]
    table += [empty + beside(row, name) for name in row.baselines]
    return "\n".join("| " + " | ".join(each) + " |" for each in table)


def beside(row: Row, name: str | None) -> list[str]:
    """A contender's time and its ratio to quantmm's."""
    if name is None:
        return ["", ""]
    return [f"{name} {milliseconds(row.times[name].median)}", ratio_text(row, name)]


def milliseconds(seconds: float) -> str:
    """With the four places of docs/performance.md."""
    return f"{seconds * 1e3:.4f}"


def ratio_text(row: Row, name: str | None) -> str:
    """A contender's ratio to quantmm's time, or nothing."""
    return shown(row.ratio(name))


def shown(ratio: Ratio | None) -> str:
    """A ratio, with a ~ where it is within the spread."""
    return "" if ratio is None else f"{'' if ratio.certain else '~'}{ratio.value:.2f}"


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


def parts(rows: Sequence[Row]) -> dict[tuple[str, str, int], list[Row]]:
    """Rows by format, target and number of threads."""
    found: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row.format, row.target, row.job.threads), []).append(row)
    return found


def counted(count: int, noun: str) -> str:
    """Such as "1 thread" and "2 threads"."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def to_json(rows: Sequence[Row], environment: dict[str, Any]) -> str:
    """Everything that was measured."""
    return json.dumps(
        {"environment": environment, "rows": [row.to_dict() for row in rows]}, indent=1
    )


#: Columns of the CSV; times in seconds.
COLUMNS = (
    "format",
    "target",
    "layer",
    "m",
    "n",
    "k",
    "weights",
    "threads",
    "floor",
    "share",
    "contender",
    "kind",
    "median",
    "least",
    "quartile_1",
    "quartile_3",
    "ratio",
    "ratio_low",
    "ratio_high",
    "absent",
    "busy_cores",
    "stolen_cores",
)


def to_csv(rows: Sequence[Row], environment: dict[str, Any]) -> str:
    """A line for each contender of each row, below the environment in lines that start with #."""
    file = io.StringIO()
    for name, value in flat(environment):
        file.write(f"# {name}: {value}\n")
    writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        job = row.job
        shape: dict[str, Any] = {
            "format": row.format,
            "target": row.target,
            "layer": job.layer,
            "m": job.m,
            "n": job.n,
            "k": job.k,
            "weights": "cold" if job.cold else "hot",
            "threads": job.threads,
            "floor": row.floor,
            "busy_cores": round(row.busy_cores, 3),
            "stolen_cores": round(row.stolen_cores, 3),
        }
        for name, time in row.times.items():
            ratio = None if name == OURS.name else row.ratio(name)
            compared = (
                {"ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high}
                if ratio
                else {}
            )
            low, high = time.quartiles
            share = row.floor / time.median
            measured = {"share": share, "median": time.median, "least": time.least}
            quartiles = {"quartile_1": low, "quartile_3": high}
            who = {"contender": name, "kind": kind(row, name)}
            writer.writerow(shape | who | measured | quartiles | compared)
        for name, reason in row.absent.items():
            writer.writerow(shape | {"contender": name, "kind": "absent", "absent": reason})
    return file.getvalue()


def kind(row: Row, name: str) -> str:
    """What a contender is to quantmm."""
    if name == OURS.name:
        return "quantmm"
    return "baseline" if name in row.baselines else "peer"


def flat(environment: dict[str, Any]) -> list[tuple[str, Any]]:
    """Facts of an environment line by line, versions like the others."""
    facts = {name: value for name, value in environment.items() if name != "versions"}
    return [*facts.items(), *environment["versions"].items()]
