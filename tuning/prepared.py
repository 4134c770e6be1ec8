"""Tuning in two places: candidates are built where a compiler is, and measured where a GPU is.

    quantmm tune --target cuda-sm90 --prepare FOLDER ...     TVM and NVRTC; no GPU
    quantmm tune --from FOLDER                               a GPU and its driver; no TVM, no NVRTC

FOLDER has the kernel files of candidates, the kernels that measure limits, and `index.json`: the
problems, and what a log says of each candidate. The search learns nothing between the two: what it
proposes are the candidates that its cost model expects most of.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..bench import cuda_limits
from ..bench.machine import Machine
from ..bench.roofline import Limits
from ..errors import TuningError
from ..files import write_whole
from ..formats.spec import MatmulSpec
from ..processes import Worker, WorkerError
from ..targets import CudaTarget, Target
from ..versions import cuda_versions
from .choice import Choice
from .devices import device_of
from .log import FAILED_SECONDS
from .stage import BENCH, Board, Session
from .state import Problem
from .verdict import STEPS

INDEX, LIMITS = "index.json", "limits.cubin"

Say = Callable[[str], None]


def prepare(
    specs: Sequence[MatmulSpec],
    row: CudaTarget,
    m: Sequence[int],
    folder: Path,
    *,
    trials: int,
    seed: int = 0,
    say: Say = lambda _: None,
) -> None:
    """Build candidates for a GPU that is elsewhere.

    Raises
    ------
    ToolError
        There is no NVRTC.
    TuningError
        The folder cannot be written, or a default kernel cannot be built.
    """
    device_of(row).tools(row)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TuningError(f"cannot write {folder}: {error.strerror}") from None
    write_whole(folder / LIMITS, cuda_limits.image(row), TuningError)
    problems = []
    with Session() as session:
        for spec in specs:
            for rows in m:
                problems.append(prepared(session, spec, row, rows, trials, seed, folder))
                count = len(problems[-1]["candidates"])
                say(f"{rows} x {spec.n} x {spec.k}: {count} candidates")
    index = {
        "target": row.name,
        "seed": seed,
        "trials": trials,
        "versions": cuda_versions(),
        "problems": problems,
    }
    write_whole(folder / INDEX, json.dumps(index, indent=1).encode(), TuningError)


def prepared(
    session: Session,
    spec: MatmulSpec,
    row: CudaTarget,
    m: int,
    trials: int,
    seed: int,
    folder: Path,
) -> dict[str, Any]:
    """The entry of one M of a spec, whose kernel files are written."""
    from .search import Search

    device = device_of(row)
    plan = device.plan_for(spec, row)
    default, search = device.default_choice(plan, m), Search(spec, row, m, seed, trials)
    records = {default: search.tell(default, None)}
    while len(records) < trials:
        found = [choice for choice, _ in search.propose()][: trials - len(records)]
        if not found:
            break
        records |= {choice: search.tell(choice, None) for choice in found}
    # What a choice is compared with at other M has no line in a log.
    others = {m // step for step in STEPS} | {m * step for step in STEPS}
    beside = {device.default_choice(plan, rows) for rows in others if rows} - records.keys()
    choices = [*records, *beside]
    contents = session.build("candidate", [(spec, row, choice) for choice in choices])
    if isinstance(contents[0], WorkerError):
        raise TuningError(f"the default kernel failed for m={m}: {contents[0]}")
    candidates = []
    for choice, content in zip(choices, contents, strict=True):
        record = records.get(choice)
        entry = {"choice": choice.decisions(), "record": record and json.loads(record_text(record))}
        if isinstance(content, bytes):
            name = f"{hashlib.sha256(content).hexdigest()[:16]}.qmm"
            write_whole(folder / name, content, TuningError)
            candidates.append({**entry, "file": name})
        else:
            candidates.append({**entry, "failed": str(content)})
    workload = search.workload_json()
    return {"spec": spec.to_json(), "m": m, "workload": list(workload), "candidates": candidates}


def record_text(record: Any) -> str:
    """MetaSchedule's record as JSON text."""
    found = record.as_json()
    return found if isinstance(found, str) else json.dumps(found, default=list)


@dataclasses.dataclass(frozen=True)
class Line:
    """What a log's table of trials has of a candidate."""

    fields: Any

    def as_json(self) -> Any:
        """As MetaSchedule's record says it."""
        return self.fields


class PreparedSearch:
    """As `search.Search`: proposes what was prepared, a batch at a time."""

    def __init__(self, problem: dict[str, Any], batch: int) -> None:
        self._problem, self._batch = problem, batch
        self._records = {
            Choice.of(each["choice"]): each["record"]
            for each in problem["candidates"]
            if each["record"] is not None
        }
        self._known: set[Choice] = set()

    def propose(self) -> Iterator[tuple[Choice, None]]:
        """Choices that nothing is known of."""
        left = [each for each in self._records if each not in self._known]
        return iter([(choice, None) for choice in left[: self._batch]])

    def tell(self, choice: Choice, seconds: list[float] | None) -> Line | None:
        """The line of a trial; None for a choice that was not prepared."""
        self._known.add(choice)
        if choice not in self._records:
            return None
        trace, _, *others = self._records[choice]
        return Line([trace, seconds or [FAILED_SECONDS], *others])

    def workload_json(self) -> Any:
        """The line of MetaSchedule's table of workloads."""
        return self._problem["workload"]


class PreparedMachine(Machine):
    """As `Machine`, this one, whose limits are measured by kernels that were prepared."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def limits(self, row: Target | CudaTarget, threads: int) -> Limits:
        """As `Machine`."""
        assert row.device == "cuda"
        return cuda_limits.measure(row, (self._folder / LIMITS).read_bytes())


class Prepared(Session):
    """A session without builders: what it builds is in a folder.

    Attributes
    ----------
    problems : specs and their M.

    Raises
    ------
    TuningError
        The folder was not prepared, or by other versions.
    """

    def __init__(self, folder: Path, bench: str = BENCH) -> None:
        index = read_index(folder)
        super().__init__(boards=[Board("this machine", Worker(bench), PreparedMachine(folder))])
        self._folder = folder
        self._entries = {(each["spec"], each["m"]): each for each in index["problems"]}
        self.target, self.seed, self.trials = index["target"], index["seed"], index["trials"]
        self.problems: dict[MatmulSpec, list[int]] = {}
        for text, m in self._entries:
            self.problems.setdefault(MatmulSpec.from_json(text), []).append(m)

    def tools(self, row: Target | CudaTarget) -> dict[str, Any]:
        """Nothing: all is built."""
        return {}

    def start(self) -> None:
        """Nothing: all is built."""

    def search(self, problem: Problem, batch: int) -> Any:
        """What was prepared for a problem.

        Raises
        ------
        TuningError
            Nothing was: a log that is gone on with may have another M.
        """
        return PreparedSearch(self._entry(problem.spec, problem.m), batch)

    def build(self, method: str, jobs: Sequence[tuple[Any, ...]]) -> list[bytes | WorkerError]:
        """The kernel files that were prepared."""
        return [self._built(spec, choice) for spec, _, choice in jobs]

    def _entry(self, spec: MatmulSpec, m: int) -> dict[str, Any]:
        entry = self._entries.get((spec.to_json(), m))
        if entry is None:
            raise TuningError(
                f"nothing was prepared in {self._folder} for m={m} of {spec.to_json()}"
            )
        return entry

    def _built(self, spec: MatmulSpec, choice: Choice) -> bytes | WorkerError:
        for entry in self._entries.values():
            for each in entry["candidates"]:
                if entry["spec"] == spec.to_json() and Choice.of(each["choice"]) == choice:
                    if "file" not in each:
                        return WorkerError(each["failed"])
                    return (self._folder / each["file"]).read_bytes()
        return WorkerError(f"not prepared: {choice.name}")


def read_index(folder: Path) -> dict[str, Any]:
    """What was prepared in a folder.

    Raises
    ------
    TuningError
        Nothing, or by other versions.
    """
    path = folder / INDEX
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        made_by = index["versions"]
    except OSError as error:
        raise TuningError(
            f"cannot read {path}: {error.strerror}; expected a folder of `quantmm tune --prepare`"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise TuningError(f"{path} is damaged; prepare the folder again") from None
    if made_by != cuda_versions():
        raise TuningError(f"{path} was prepared by {made_by}; here is {cuda_versions()}")
    return index
