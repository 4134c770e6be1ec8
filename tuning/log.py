"""Writing logs: appended line by line under a lock, so that nothing measured is ever lost.

See `schedules.records` for what a log is. A line is written at once, and a line that was cut off by
the end of its process is closed by the next one, so damage never spreads; lines that are damaged
are reported and skipped. Nothing here imports `tvm`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RecordError
from ..files import alone, why_not, write_whole
from ..schedules import records
from ..schedules.records import DAMAGE, FAILURES, HEADER, TRIALS, WORKLOADS
from .choice import Choice

#: The seconds that MetaSchedule's table has for a trial that failed.
FAILED_SECONDS = 1e10


@dataclass(frozen=True)
class Trial:
    """A choice that was tried.

    Attributes
    ----------
    workload : the number of its problem among the workloads.
    seconds : of a call, one per round; None where it failed.
    reason : why it failed, where that is known.
    """

    workload: int
    choice: Choice
    seconds: tuple[float, ...] | None
    reason: str | None = None


@dataclass(frozen=True)
class Damage:
    """A line that is no record."""

    path: Path
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}, line {self.number}: {self.reason}"


class Database:
    """The records of one machine in a log.

    Attributes
    ----------
    damage : what was found when it was read last.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage: list[Damage] = []

    def read(self, name: str, parse: Callable[[Any], Any]) -> list[tuple[int, Any]]:
        """Line numbers, counted from 1, and what `parse` makes of the JSON in each line."""
        path = self.path / name
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RecordError(f"cannot read {path}: {error.strerror}") from None
        found = []
        for number, line in enumerate(content.splitlines(), 1):
            try:
                found.append((number, parse(json.loads(line))))
            except DAMAGE as error:
                reason = f"{type(error).__name__}: {error}"[:120]
                self.damage.append(Damage(path, number, f"is damaged ({reason})"))
        return found

    def trials(self) -> list[Trial]:
        """Every trial, in the order in which they were made."""
        self.damage.clear()
        reasons = {
            (workload, choice): reason
            for _, (workload, choice, reason) in self.read(FAILURES, parse_failure)
        }
        found = []
        for _, (workload, choice, seconds) in self.read(TRIALS, parse_trial):
            failed = FAILED_SECONDS in seconds
            reason = reasons.get((workload, choice)) if failed else None
            found.append(Trial(workload, choice, None if failed else seconds, reason))
        return found

    def workload(self, content: Any) -> int:
        """The number of a workload, which is put into the table if it is not there."""
        line = json.dumps(content)
        with alone(self.path):
            path = self.path / WORKLOADS
            # Bytes, because a damaged line need not be text.
            known = path.read_bytes().splitlines() if path.exists() else []
            if line.encode() not in known:
                self._append(WORKLOADS, [line])
                known.append(line.encode())
        return known.index(line.encode())

    def add(self, name: str, contents: Iterable[Any]) -> int:
        """Append records: JSON, or lines that are ready. Returns the number of the last line."""
        lines = list(contents)
        return self.extend(name, lambda: lines)[1] if lines else 0

    def extend(self, name: str, make: Callable[[], Iterable[Any]]) -> tuple[int, int]:
        """`add` what `make` returns, which may read what others wrote: none write meanwhile.

        Returns how many lines these are, and the number of the last line.
        """
        with alone(self.path):
            lines = [each if isinstance(each, str) else json.dumps(each) for each in make()]
            if not lines:
                return 0, 0
            self._append(name, lines)
            return len(lines), len((self.path / name).read_bytes().splitlines())

    def _append(self, name: str, lines: list[str]) -> None:
        path = self.path / name
        try:
            with open(path, "ab+", buffering=0) as file:
                content = "".join(line + "\n" for line in lines).encode()
                if file.tell() and not ends_with_newline(file):
                    content = b"\n" + content  # a process that was ended while it wrote
                while content:  # a disk that fills up takes a part first
                    content = content[file.write(content) :]
                os.fsync(file.fileno())
        except OSError as error:
            raise RecordError(f"cannot write {path}: {why_not(error, path)}") from None


def ends_with_newline(file: Any) -> bool:
    """Whether the last line of an open file is whole."""
    file.seek(-1, 2)
    return bool(file.read(1) == b"\n")


def parse_trial(line: Any) -> tuple[int, Choice, tuple[float, ...]]:
    """A line of MetaSchedule's table of records."""
    workload, (trace, seconds, _, _) = line
    if not isinstance(workload, int) or not seconds:
        raise ValueError("no workload or no times")
    times = tuple(map(float, seconds))
    if not all(0 < each < math.inf for each in times):
        raise ValueError("a time is not more than 0 and finite")
    return workload, choice_of(decisions_of(trace)), times


def choice_of(decisions: dict[str, Any]) -> Choice:
    """The choice that a line names, if its decisions are of the types of one."""
    numbers = [value for name, value in decisions.items() if name != "strategy"]
    if not isinstance(decisions["strategy"], str) or any(type(each) is not int for each in numbers):
        raise TypeError("a decision is no whole number")
    return Choice.of(decisions)


def decisions_of(trace: Any) -> dict[str, Any]:
    """The decisions that a trace notes, from its JSON; see `schedules.cpu.space`."""
    instructions, decisions = trace
    chosen = {at: index for at, index, *_ in decisions}
    values: dict[str, int] = {}
    found: dict[str, Any] = {}
    for at, (kind, inputs, attributes, outputs) in enumerate(instructions):
        if kind == "SampleCategorical":
            values[outputs[0]] = attributes[0][chosen[at]]
        elif kind == "Annotate" and attributes[0].startswith("quantmm."):
            value = inputs[1]
            found[attributes[0].removeprefix("quantmm.")] = values.get(value, value)
    if isinstance(found.get("strategy"), str):
        found["strategy"] = found["strategy"].strip('"')
    return found


def parse_failure(line: Any) -> tuple[int, Choice, str]:
    """A line of the table of failures."""
    if not isinstance(line["workload"], int):
        raise TypeError("no workload")
    return line["workload"], choice_of(line["choice"]), str(line["reason"])


def failure_line(workload: int, choice: Choice, reason: str) -> dict[str, Any]:
    """The inverse of `parse_failure`."""
    return {"workload": workload, "choice": choice.decisions(), "reason": reason}


def is_name(name: Any) -> bool:
    """Whether a file may be called so, with a number behind it."""
    return isinstance(name, str) and name != "" and name.isprintable() and "/" not in name


def database_for(log: Path, header: dict[str, Any]) -> Database:
    """The database of a log under this header, made if need be.

    Raises
    ------
    RecordError
        The log cannot be written, it is a database of a log, or the target's name is none for a
        folder.
    """
    if (log / HEADER).is_file():
        parent = log.absolute().parent
        raise RecordError(f"{log} is a database of the log {parent}; expected the log")
    target = header["target"]
    if not is_name(target):  # a log of somebody else's must not write elsewhere
        raise RecordError(f"target {target!r} is no name for a folder of the log {log}")
    try:
        log.mkdir(parents=True, exist_ok=True)
        with alone(log):
            for path in records.databases(log):
                if records.read_header(path) == header:
                    return Database(path)
            names = (f"{target}-{number}" for number in range(1, 10**6))
            path = next(log / name for name in names if not (log / name).exists())
            path.mkdir()
            content = json.dumps(header, indent=1) + "\n"
            write_whole(path / HEADER, content.encode(), RecordError)
    except OSError as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"cannot write the log {log}: {why_not(error, log)}") from None
    return Database(path)
