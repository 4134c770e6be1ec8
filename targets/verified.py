"""How each target was verified: records that `quantmm verify --record` writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import RecordError
from ..files import alone, check_writable, write_whole

#: The records that come with the package.
PATH = Path(__file__).with_name("verified.json")

#: Ways in which a target's kernels were run, best first, by how the words of a record start: on the
#: chip itself; a whole CPU in software; this CPU with the missing instructions in software; plain
#: loops with the meaning of the instructions (`targets.emulated`); the CUDA C++ of a GPU's kernels
#: on a CPU (`compiler.emulation`).
NATIVE, QEMU, INSTRUCTION, SEMANTICS, GENERATED = WAYS = (
    "native",
    "qemu",
    "emulated instruction",
    "emulated semantics",
    "generated code on a CPU",
)


@dataclass(frozen=True)
class Record:
    """Problems on which kernels for a target agreed with the reference.

    Attributes
    ----------
    target : the row's name.
    how : one of WAYS, with what else describes it, such as "qemu-aarch64 7.2 -cpu max".
    cpu : the machine's name for its CPU, or on a GPU itself the driver's for that.
    problems : how many agreed; there was no other.
    date : of the run, as 2026-11-24.
    versions : "schedule" and "tvm" of the kernels.
    """

    target: str
    how: str
    cpu: str
    problems: int
    date: str
    versions: dict[str, str]

    @property
    def rank(self) -> int:
        """The place of `how` among WAYS."""
        starts = (i for i, way in enumerate(WAYS) if self.how.startswith(way))
        return next(starts, len(WAYS))

    def is_current(self, schedule: int | str) -> bool:
        """Whether the recipes are those of this version of the schedules."""
        return self.versions.get("schedule") == str(schedule)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), ensure_ascii=False)


def read(path: Path = PATH) -> list[Record]:
    """The records of a file; none where there is no file.

    Raises
    ------
    RecordError
        The file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, list):
            return [Record(**fields) for fields in content]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from None
    except (TypeError, ValueError):
        pass
    raise RecordError(f"{path} holds no records of quantmm verify")


def write(record: Record, path: Path = PATH) -> None:
    """Put a record into a file, in the place of one for the same target, way and CPU.

    Raises
    ------
    RecordError
        The file cannot be written, or holds something else than records.
    """
    check_writable(path, RecordError)
    with alone(path.parent):
        known = {(each.target, each.how, each.cpu): each for each in read(path)}
        known[record.target, record.how, record.cpu] = record
        lines = ",\n ".join(each.to_json() for each in known.values())
        write_whole(path, f"[{lines}]\n".encode(), RecordError)


def evidence(target: str, records: Sequence[Record], schedule: int | str) -> list[Record]:
    """What speaks for a target: the best way in which the present recipes were verified.

    Better ways come before it where only recipes of another version were verified in them.
    """
    found: list[Record] = []
    mine = [record for record in records if record.target == target]
    for rank in sorted({record.rank for record in mine}):
        found += [record for record in mine if record.rank == rank]
        if any(record.is_current(schedule) for record in found):
            break
    return sorted(found, key=lambda record: (record.rank, not record.is_current(schedule)))
