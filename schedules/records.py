"""Tuned records: what tuning chose for a spec, and when `compile` may use it.

A log is a folder with a database in each of its folders. A database belongs to one machine:

    header.json                      what its records depend on, see `header`
    database_workload.json           MetaSchedule's two tables: the problems, and every trial
    database_tuning_record.json
    database_failure.json            why a trial failed
    database_kernel.json             what came out: a line for each spec that was tuned

The last one is all that compiling reads, and a line of it is all that a kernel depends on. A log
holds numbers and no code; what its numbers say is checked before it is used.

Nothing here imports `tvm`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from platformdirs import user_data_path

from ..errors import RecordError
from ..files import as_path, users_folder
from ..formats.reference import SMOOTH
from ..formats.spec import MatmulSpec
from ..targets import CudaTarget, Instruction, Target, machine
from ..targets.forms import PAIRED
from ..versions import PACKAGE, SMOOTH_VERSION, installed, tvm_library, versions
from .cpu.plan import CpuPlan, instructions_of, k_block_sizes, plan_for, with_k_block
from .cpu.program import Parameters
from .cpu.strategies import name_now
from .cpu.validation import refusal
from .cuda.program import CudaTile

HEADER = "header.json"
WORKLOADS = "database_workload.json"
TRIALS = "database_tuning_record.json"
FAILURES = "database_failure.json"
KERNELS = "database_kernel.json"

#: Of the files above.
FORMAT_VERSION = 2

R = TypeVar("R")

#: Names of fields, intrinsics and forms in digests that logs of before hold.
BEFORE = {"paired_rows": "winograd_rows", "paired": "winograd", PAIRED.name: "sums"}
SEVEN_BITS = ((-64, 64), (0, 127))  # weights, for which rows said before that they have 4 bits

#: What reading a line raises that is no record.
DAMAGE = (
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    OverflowError,
    RecursionError,
)

#: The logs that come with quantmm.
SHIPPED = PACKAGE / "schedules" / "tuned"


@dataclass(frozen=True)
class Tuned:
    """Parameters that were faster than the default ones.

    Attributes
    ----------
    m : for which they were chosen.
    ratio : their time over that of the default.
    first_m, last_m : where they were not slower than the default either.
    """

    m: int
    strategy: str
    parameters: Parameters | CudaTile
    ratio: float
    first_m: int
    last_m: int


@dataclass(frozen=True)
class Record:
    """What tuning chose for a spec.

    Attributes
    ----------
    name : where it stands, for reports.
    k_block : the layout of the weight that all functions of the kernel share; GPUs have one.
    """

    name: str
    k_block: int | None
    tuned: tuple[Tuned, ...]


def default_folder() -> Path:
    """The user's own log, which tuning writes to and `compile` reads unless they are told else.

    Raises
    ------
    RecordError
        This user has no place for data.
    """
    return users_folder(user_data_path, "tuned", "log folder", RecordError)


def header(row: Target, threads: int) -> dict[str, Any]:
    """What a record that is made here now depends on, as JSON types.

    The size of libtvm_compiler.so stands for LLVM, which is in it and would have to be loaded to
    say its version.
    """
    compiler = tvm_library("libtvm_compiler.so")
    return {
        "format": FORMAT_VERSION,
        **versions(),
        "tvm_ffi": installed("apache-tvm-ffi"),
        "tvm_compiler": compiler and compiler.stat().st_size,
        "target": row.name,
        "target_digest": digest_of(row),
        "cpu": machine.cpu_model(),
        "threads": threads,
    }


def digest_of(row: Target) -> str:
    """What tells rows of the same name apart: a row of the user's own may be called as one here.

    Its instructions count in every record by themselves, see `instructions_digest`.
    """
    return digest(changed(row, ("description", "instructions")))


def instructions_digest(plan: CpuPlan) -> str:
    """What a record depends on of the target's instructions: those for the plan's operands.

    And of the code of a smooth activation function, if the spec has one.
    """
    found = [changed(each, ()) for each in instructions_of(plan)]
    if plan.spec.activation_fn in SMOOTH:
        found.append({"smooth": SMOOTH_VERSION})
    return digest(found)


def changed(row: Target | CudaTarget | Instruction, without: Collection[str]) -> dict[str, Any]:
    """The fields of a row that are not at their defaults: a field that is added changes nothing.

    What was renamed has the name of before, which digests in logs were made of.
    """
    found = {
        BEFORE.get(field.name, field.name): getattr(row, field.name)
        for field in dataclasses.fields(row)
        if field.name not in without and getattr(row, field.name) != field.default
    }
    if "form" in found:
        found["form"] = BEFORE.get(found["form"].name, found["form"].name)
    if "intrinsic" in found:
        found["intrinsic"] = BEFORE.get(found["intrinsic"], found["intrinsic"])
    if found.get("weights") in SEVEN_BITS:
        del found["weights"]
        found["weight_bits"] = (4,)
    return found


def digest(value: Any) -> str:
    """A short digest of what JSON can say, and of sets."""
    text = json.dumps(value, sort_keys=True, default=sorted)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


#: Fields of a header without which a record means nothing.
ALWAYS = ("format", "target")


def mismatch(
    found: dict[str, Any], here: dict[str, Any], *, any_record: bool = False
) -> str | None:
    """Why records under the header `found` are not for `here`; None when they are.

    Parameters
    ----------
    any_record : let other versions, machines and numbers of threads pass.
    """
    wrong = [
        f"{name} is {found.get(name)!r}, here {value!r}"
        for name, value in here.items()
        if found.get(name) != value and (name in ALWAYS or not any_record)
    ]
    return "; ".join(wrong) or None


def databases(log: Path) -> list[Path]:
    """The databases of a log."""
    if (log / HEADER).is_file():
        return [log]
    return sorted(path.parent for path in log.glob(f"*/{HEADER}"))


def read_header(database: Path) -> dict[str, Any]:
    """The header of a database.

    Raises
    ------
    RecordError
        It cannot be read, or is none.
    """
    path = database / HEADER
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("target"), str):
        raise RecordError(f"{path} is damaged; expected a JSON object that names a target")
    return content


def find(
    spec: MatmulSpec,
    row: Target,
    threads: int,
    log: str | os.PathLike[str] | None = None,
    *,
    any_record: bool = False,
) -> Record | None:
    """The record for `spec` on `row`, if a log has one.

    Parameters
    ----------
    log : where to look first; None is the user's own log. Those that come with quantmm are next.
    any_record : see `mismatch`.

    Raises
    ------
    RecordError
        There is no `log`.
    """
    any_m, here = dataclasses.replace(spec, m=None), header(row, threads)
    read = functools.partial(parsed, spec=any_m, row=row)
    record = latest(any_m, here, log, read, any_record=any_record)
    return record if record and record.tuned else None


def latest(
    spec: MatmulSpec,
    here: dict[str, Any],
    log: str | os.PathLike[str] | None,
    read: Callable[[str, str], R],
    *,
    any_record: bool = False,
) -> R | None:
    """The last record for `spec` that is whole, in the first database for `here` that has one.

    Parameters
    ----------
    read : makes a record of the name of a line and of the line; see `parsed`.
    """
    for database in databases_in(log):
        try:
            if mismatch(read_header(database), here, any_record=any_record):
                continue
            lines = list(kernel_lines(database, spec))
        except (RecordError, OSError) as error:
            warnings.warn(f"tuned record not used: {error}", RuntimeWarning, stacklevel=4)
            continue
        for number, line in reversed(lines):
            try:
                return read(f"{database}:{number}", line)
            except RecordError as error:
                warnings.warn(f"tuned record not used: {error}", RuntimeWarning, stacklevel=4)
    return None


def databases_in(log: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Where to look for records: in `log`, or the user's own log, and in those of quantmm.

    Raises
    ------
    RecordError
        There is no `log`.
    """
    if log is not None and not as_path(log, RecordError).is_dir():
        raise RecordError(f"no log at {log}; expected a folder that tuning wrote")
    try:
        first = Path(log) if log is not None else default_folder()
    except RecordError:
        first = None
    for folder in (first, SHIPPED):
        yield from databases(folder) if folder else ()


def kernel_lines(database: Path, spec: MatmulSpec) -> Iterator[tuple[int, str]]:
    """The numbers and lines for a spec, the latest last; of others at most their spec is parsed."""
    start = line_start(spec.n, spec.k)
    path = database / KERNELS
    if path.exists():
        with open(path, encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                if line.startswith(start) and spec_of_line(line) == spec:
                    yield number, line


def line_start(n: int, k: int) -> str:
    """How a line for a spec with this N and K begins; K may be the start of a larger number."""
    return json.dumps({"spec": json.dumps({"n": n, "k": k})[:-1]})[:-2]


def spec_of_line(line: str) -> MatmulSpec | None:
    """The spec that a line is for; None where it is damaged."""
    try:
        text, _ = json.JSONDecoder().raw_decode(line, len('{"spec": '))
        return MatmulSpec.from_json(text)
    except DAMAGE:
        return None


def parsed(name: str, line: str, spec: MatmulSpec, row: Target) -> Record:
    """The record in a line.

    Raises
    ------
    RecordError
        The line is damaged, or its parameters do not fit the spec or the target.
    """
    try:
        fields = json.loads(line)
        record = Record(
            name,
            fields["k_block"],
            tuple(
                Tuned(
                    **{
                        **each,
                        "strategy": name_now(each["strategy"]),
                        "parameters": Parameters(**each["parameters"]),
                    }
                )
                for each in fields["tuned"]
            ),
        )
        plan = plan_for(spec, row)
        reason = other_instructions(fields, plan) or misfit(record, plan)
    except DAMAGE:
        reason = "it is damaged"
    if reason:
        raise RecordError(f"{name}: {reason}")
    return record


def other_instructions(fields: dict[str, Any], plan: CpuPlan) -> str | None:
    """Why the fields of a record were measured with other instructions than the target's."""
    found, here = fields["instructions"], instructions_digest(plan)
    if found == here:
        return None
    return f"it is for other instructions of {plan.target.name} ({found!r}, here {here!r})"


def misfit(record: Record, plan: CpuPlan) -> str | None:
    """Why a record cannot be compiled; None when it can."""
    sizes = k_block_sizes(plan)
    if record.k_block not in sizes:
        return f"k_block={record.k_block!r}; expected one of {sizes}"
    plan = with_k_block(plan, record.k_block)
    for each in record.tuned:
        assert isinstance(each.parameters, Parameters)
        if reason := out_of_range(each):
            return reason
        reason = refusal(plan, each.strategy, each.parameters)
        if reason:
            return f"m={each.m}: {reason}"
    return None


def out_of_range(tuned: Tuned) -> str | None:
    """Which of a record's numbers cannot be, whatever the parameters are."""
    numbers = (tuned.m, tuned.first_m, tuned.last_m)
    if not all(isinstance(number, int) for number in numbers):
        return f"m, first_m and last_m are {numbers}; expected whole numbers"
    if not 1 <= tuned.first_m <= tuned.m <= tuned.last_m:
        return f"m={tuned.m} of {tuned.first_m} to {tuned.last_m}; expected one of them"
    if not 0 < tuned.ratio < 1:
        return f"ratio={tuned.ratio}; expected one between 0 and 1"
    return None


def as_line(plan: CpuPlan, record: Record, **more: Any) -> str:
    """A record as a line of a database, with what else is to be known."""
    fields = {
        "spec": dataclasses.replace(plan.spec, m=None).to_json(),
        "instructions": instructions_digest(plan),
        "k_block": record.k_block,
        "tuned": [dataclasses.asdict(each) for each in record.tuned],
        **more,
    }
    return json.dumps(fields)
