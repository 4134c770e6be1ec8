"""Looking after logs: what is in them, whether it is whole, and what of it is worth keeping."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import targets
from ..errors import QuantmmError, RecordError
from ..files import alone, write_whole
from ..formats.spec import MatmulSpec
from ..runtime.threads import default_threads
from ..schedules import cuda_records, records
from ..schedules.records import FAILURES, KERNELS, TRIALS, WORKLOADS
from ..targets import machine
from .joining import is_measured, joined
from .log import Damage, Database, database_for, parse_failure, parse_trial

#: Trials of a problem that `prune` keeps: the first, which is the default, and the fastest.
FASTEST = 1


@dataclass(frozen=True)
class Kernel:
    """The latest record for a spec in a database.

    Attributes
    ----------
    header : of the database.
    fields : of the line.
    """

    database: Path
    number: int
    header: dict[str, Any]
    fields: dict[str, Any]

    @property
    def spec(self) -> MatmulSpec:
        """The spec that was tuned."""
        return MatmulSpec.from_json(self.fields["spec"])

    @property
    def measured(self) -> list[dict[str, Any]]:
        """Seconds without and with the record, for each M; what is damaged is left out."""
        found = self.fields.get("measured")
        return list(filter(is_measured, found)) if isinstance(found, list) else []

    def with_threads(self) -> int | None:
        """The number of threads that has to be asked for; None where it is what `compile` takes."""
        threads: int | None = self.header.get("threads")
        return None if threads == default_threads() else threads

    def why_not_here(self) -> str | None:
        """Why `compile` would not use it on this machine; None when it would."""
        try:
            row = targets.find(self.header["target"])
        except QuantmmError as error:
            return str(error)
        field = "gpu" if row.device == "cuda" else "threads"
        if field not in self.header:
            return f"its header has no {field}"
        if row.device == "cuda":
            here = cuda_records.header(row, self.header["gpu"])
        else:
            here = records.header(row, self.header["threads"])
        return records.mismatch(self.header, here)


def log_databases(log: Path) -> list[Path]:
    """The databases of a log.

    Raises
    ------
    RecordError
        It has none.
    """
    found = records.databases(log)
    if not found:
        raise RecordError(f"no log at {log}; expected a folder that tuning wrote")
    return found


def kernels(log: Path) -> list[Kernel]:
    """The latest record of every spec in a log.

    Raises
    ------
    RecordError
        There is no log, or a header is damaged.
    """
    found: list[Kernel] = []
    for path in log_databases(log):
        header = records.read_header(path)
        latest = {
            fields["spec"]: Kernel(path, number, header, fields)
            for number, fields in Database(path).read(KERNELS, kernel_fields)
        }
        found += latest.values()
    return found


def kernel_fields(line: Any) -> dict[str, Any]:
    """A line of the table of kernels, with its spec as it is written today."""
    return {**line, "spec": MatmulSpec.from_json(line["spec"]).to_json()}


def check(log: Path) -> list[str]:
    """What is wrong in a log: damaged lines, and records that do not fit their spec or target.

    Raises
    ------
    RecordError
        There is no log.
    """
    found: list[str] = []
    for path in log_databases(log):
        database = Database(path)
        try:
            header = records.read_header(path)
            row = targets.find(header.get("target", ""))
        except QuantmmError as error:
            found.append(str(error))
            continue
        if reason := why_none_applies(header, row):
            found.append(f"{path}: none of its records applies: {reason}")
        workloads = {line - 1 for line, _ in database.read(WORKLOADS, workload_fields)}
        for number, (workload, _, _) in database.read(TRIALS, parse_trial):
            if workload not in workloads:
                reason = f"is for workload {workload}, which is not there"
                database.damage.append(Damage(path / TRIALS, number, reason))
        database.read(FAILURES, parse_failure)
        for number, fields in database.read(KERNELS, kernel_fields):
            spec = MatmulSpec.from_json(fields["spec"])
            name, line = f"{path / KERNELS}, line {number}", json.dumps(fields)
            try:
                if row.device == "cuda":
                    cuda_records.parsed(name, line, spec, row)
                else:
                    records.parsed(name, line, spec, row)
            except QuantmmError as error:
                found.append(str(error))
        found += map(str, database.damage)
    return found


def why_none_applies(
    header: dict[str, Any], row: targets.Target | targets.CudaTarget
) -> str | None:
    """Why no machine would use a database with this header; None when the one that it names may."""
    if row.device == "cuda":
        here = cuda_records.header(row, header.get("gpu"))
    else:
        here = records.header(row, header.get("threads", 0)) | {"cpu": header.get("cpu")}
        if row.architecture not in (None, machine.architecture()):
            # What stands for LLVM has another size there.
            here["tvm_compiler"] = header.get("tvm_compiler")
    return records.mismatch(header, here)


def workload_fields(line: Any) -> tuple[str, str]:
    """A line of MetaSchedule's table of workloads: hash and module."""
    digest, module = line
    return str(digest), str(module)


def merge(sources: Sequence[Path], into: Path) -> int:
    """Add what logs have to another one, each database to the one for the same machine.

    Returns how many lines were new.

    Raises
    ------
    RecordError
        A source is no log, or `into` cannot be written.
    """
    return sum(
        merge_database(database, database_for(into, records.read_header(database)))
        for source in sources
        for database in log_databases(source)
    )


def merge_database(source: Path, into: Database) -> int:
    """Add the lines of one database that another does not have, and what its records say."""
    given = Database(source)
    # A trial names the line of its workload, whatever has become of the lines before.
    new = {
        line - 1: into.workload(list(fields))
        for line, fields in given.read(WORKLOADS, workload_fields)
    }

    def renumbered(line: Any) -> Any:
        parse_trial(line)
        return [new[line[0]], line[1]]

    def renumbered_failure(line: Any) -> Any:
        parse_failure(line)
        return {**line, "workload": new[line["workload"]]}

    count = 0
    parsers = {TRIALS: renumbered, FAILURES: renumbered_failure}
    for name, parse in parsers.items():
        known = {json.dumps(line) for _, line in into.read(name, lambda line: line)}
        lines = [json.dumps(line) for _, line in given.read(name, parse)]
        fresh = [line for line in lines if line not in known]
        into.add(name, fresh)
        count += len(fresh)
    return count + into.extend(KERNELS, lambda: merged_kernels(given, into))[0]


def merged_kernels(given: Database, into: Database) -> list[dict[str, Any]]:
    """What `into` has to have added so that its records say what both databases know.

    Of two records for a spec the newer one counts, with what the older one has for other M.
    """
    there, row = latest_kernels(into), row_of(into)
    found = []
    for spec, fields in latest_kernels(given).items():
        result, known = fields, there.get(spec)
        if known is not None:
            older, newer = sorted((known, fields), key=lambda each: str(each.get("date", "")))
            result = joined(newer, older, row) if row else newer
        if result != known:
            found.append(result)
    return found


def row_of(database: Database) -> targets.Target | targets.CudaTarget | None:
    """The target of a database; None where it is a user's own, which is not known here."""
    header = records.read_header(database.path)
    try:
        row = targets.find(header["target"])
    except QuantmmError:
        return None
    if row.device == "cpu" and records.digest_of(row) != header.get("target_digest"):
        return None
    return row


def latest_kernels(database: Database) -> dict[str, dict[str, Any]]:
    """The latest record of every spec in a database."""
    return {fields["spec"]: fields for _, fields in database.read(KERNELS, kernel_fields)}


def prune(log: Path) -> int:
    """Keep of every problem the default and the fastest trials, of every spec the latest record.

    Damaged lines go too. Returns how many lines went.

    Raises
    ------
    RecordError
        There is no log, or it cannot be written.
    """
    gone = 0
    for path in log_databases(log):
        database = Database(path)
        with alone(path):
            gone += rewrite(database, TRIALS, kept_trials(database))
            gone += rewrite(database, FAILURES, [])
            gone += rewrite(database, KERNELS, list(latest_kernels(database).values()))
    return gone


def kept_trials(database: Database) -> list[Any]:
    """The lines of trials that are worth keeping."""

    def both(line: Any) -> Any:
        workload, _, seconds = parse_trial(line)
        return workload, statistics.median(seconds), line

    problems: dict[int, list[tuple[float, Any]]] = {}
    for _, (workload, median, line) in database.read(TRIALS, both):
        problems.setdefault(workload, []).append((median, line))
    kept = []
    for trials in problems.values():
        fastest = sorted(trials[1:], key=lambda trial: trial[0])[:FASTEST]
        kept += [line for _, line in [trials[0], *fastest]]
    return kept


def rewrite(database: Database, name: str, lines: Sequence[Any]) -> int:
    """Put these lines into a table, in place of all others. Returns how many there are less."""
    path = database.path / name
    before = len(path.read_bytes().splitlines()) if path.exists() else 0
    if before:
        content = "".join(json.dumps(line) + "\n" for line in lines)
        write_whole(path, content.encode(), RecordError)
    return before - len(lines)
