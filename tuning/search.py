"""The search: MetaSchedule's evolutionary strategy over the strategies' spaces.

MetaSchedule samples, mutates and replays traces and keeps those that the cost model finds best;
which of them have code, how a decision changes, and the cost model are ours.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tvm
from tvm import te
from tvm.ir.utils import derived_object
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule import _ffi_api as ffi
from tvm.s_tir.meta_schedule.logging import get_logging_func
from tvm.s_tir.schedule import Trace

from ..compiler.llvm import llvm_target
from ..formats.spec import MatmulSpec, stored_as
from ..schedules.cpu.space import of_trace, sample
from ..targets import CudaTarget, Target
from .choice import Choice
from .devices import device_of
from .log import FAILED_SECONDS
from .model import CURIOSITY, Model

#: Candidates that a generation keeps, generations, and the chance that one is mutated.
POPULATION, GENERATIONS, MUTATE = 96, 3, 0.85
#: The share of candidates that are random.
RANDOM = 0.15
#: How often the strategy may propose nothing that is new before the space counts as searched.
PATIENCE = 8


def workload(spec: MatmulSpec, m: int) -> tvm.IRModule:
    """The problem as MetaSchedule's tables name it: a plain matrix multiplication.

    Its attribute "quantmm" holds the spec; shapes are those of X, W and the sums.
    """
    integers = stored_as(spec.activation)
    x = te.placeholder((m, spec.k), "uint8" if integers == "uint8" else "int8", "x")
    w = te.placeholder((spec.n, spec.k), "uint8" if spec.weight.startswith("u") else "int8", "w")
    k = te.reduce_axis((0, spec.k), "k")
    sums = te.compute(
        (m, spec.n),
        lambda i, j: te.sum(x[i, k].astype("int32") * w[j, k].astype("int32"), axis=k),
        "acc",
    )
    func = te.create_prim_func([x, w, sums]).with_attr("quantmm", text_of(spec))
    return tvm.IRModule({"main": func})


def text_of(spec: MatmulSpec) -> str:
    """The spec's JSON without an activation_scale of "tensor".

    Logs of the time when that was the default do not name it, and a problem is found by its text.
    """
    fields = json.loads(spec.to_json())
    if spec.activation_scale == "tensor":
        del fields["activation_scale"]
    return json.dumps(fields)


def target_of(row: Target | CudaTarget) -> tvm.target.Target:
    """The target that MetaSchedule's records name."""
    if row.device == "cuda":
        return tvm.target.Target({"kind": "cuda", "arch": row.arch}, host="llvm")
    return llvm_target(row)


class Search:
    """Proposes choices for `m` rows of a spec, and learns from what is said of them."""

    def __init__(
        self, spec: MatmulSpec, row: Target | CudaTarget, m: int, seed: int, batch: int
    ) -> None:
        self.device = device_of(row)
        self.plan, self.m = self.device.plan_for(spec, row), m
        self.space = self.device.space(self.plan, m)
        self.default = self.device.default_choice(self.plan, m).decisions()
        self.module = workload(spec, m)
        self.target = target_of(row)
        self.model = Model()
        self._random = np.random.default_rng([seed, spec.n, spec.k, m])
        self._known: dict[Choice, float | None] = {}
        self._features: dict[Choice, list[float]] = {}
        self._table = ms.database.MemoryDatabase()
        self._workload = self._table.commit_workload(self.module)
        self._context = self._start(seed, batch)

    def _start(self, seed: int, batch: int) -> ms.TuneContext:
        """A context with the evolutionary strategy."""
        space = ms.space_generator.ScheduleFn(
            lambda sch: [self.schedule(strategy, None) for strategy in self.space],
            sch_rules=[],
            postprocs=[HasCode(self.allows)],
            mutator_probs={AnotherValue(self._random): 1.0},
        )
        strategy = ms.search_strategy.EvolutionarySearch(
            population_size=POPULATION,
            init_measured_ratio=0.3,
            init_min_unmeasured=batch,
            max_fail_count=20,
            genetic_num_iters=GENERATIONS,
            genetic_mutate_prob=MUTATE,
            eps_greedy=RANDOM,
        )
        context = tune_context(self.module, self.target, space, strategy, seed)
        context.pre_tuning(
            max_trials=2**31 - 1 - batch,
            num_trials_per_iter=batch,
            design_spaces=context.generate_design_space(),
            database=self._table,
            cost_model=Cost(self.scores),
        )
        return context

    def schedule(self, strategy: str, chosen: Mapping[str, int] | None) -> Schedule:
        """The plain multiplication with a strategy's decisions, sampled or chosen."""
        sch = Schedule(self.module, seed=int(self._random.integers(1, 2**31 - 1)))
        sample(sch, self.default, strategy, self.space[strategy], chosen)
        return sch

    def trace(self, choice: Choice) -> Trace:
        """A choice as a trace.

        Raises
        ------
        ValueError
            The space does not have it.
        """
        decisions = choice.decisions()
        strategy = decisions.pop("strategy")
        if strategy not in self.space:
            raise ValueError(f"no strategy {strategy!r} for m={self.m}")
        return self.schedule(strategy, decisions).trace

    def allows(self, choice: Choice) -> bool:
        """Whether a choice has code."""
        return self.device.refusal(self.plan, choice) is None

    def propose(self) -> Iterator[tuple[Choice, ms.MeasureCandidate]]:
        """Choices that nothing is known of, a batch at most; none when the space is searched."""
        for _ in range(PATIENCE):
            with interrupts_later():
                candidates = self._context.generate_measure_candidates()
            if candidates is None:
                return
            found = {Choice.of(of_trace(each.sch.trace)): each for each in candidates}
            new = [(choice, each) for choice, each in found.items() if choice not in self._known]
            if new:
                yield from new
                return

    def tell(self, choice: Choice, seconds: list[float] | None) -> ms.database.TuningRecord | None:
        """Learn the times of a choice, or that it failed (None). Returns MetaSchedule's record.

        None where the choice is not in the space, as one of an older log may not be.
        """
        self._known[choice] = float(np.median(seconds)) if seconds else None
        try:
            trace = self.trace(choice)
        except ValueError:
            return None
        record = ms.database.TuningRecord(
            trace,
            self._workload,
            seconds or [FAILED_SECONDS],
            self.target,
            ms.arg_info.ArgInfo.from_prim_func(self.module["main"]),
        )
        self._table.commit_tuning_record(record)
        measured = {each: time for each, time in self._known.items() if time}
        if measured:
            self.model.fit(
                [self._features_of(each) for each in measured],
                [math.log(time) for time in measured.values()],
            )
        return record

    def workload_json(self) -> Any:
        """The line of MetaSchedule's table of workloads."""
        return self._workload.as_json()

    def scores(self, choices: list[Choice]) -> np.ndarray:
        """How promising choices are, greater than 0, greater is better."""
        mean, deviation = self.model.predict([self._features_of(each) for each in choices])
        hopeful = mean - CURIOSITY * deviation
        return np.exp(hopeful.min() - hopeful)

    def _features_of(self, choice: Choice) -> list[float]:
        if choice not in self._features:
            self._features[choice] = self.device.features(self.plan, self.m, choice)
        return self._features[choice]


@contextlib.contextmanager
def interrupts_later() -> Iterator[None]:
    """Hold back Ctrl-C: raised in a callback from C++, it would come out as another error."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if seen:
        signal.raise_signal(signal.SIGINT)


def tune_context(
    module: tvm.IRModule,
    target: tvm.target.Target,
    space: ms.SpaceGenerator,
    strategy: ms.SearchStrategy,
    seed: int,
) -> ms.TuneContext:
    """What `TuneContext(...)` makes, without its import of every CUDA intrinsic (20 to 35 s)."""
    logger = logging.getLogger(__name__)
    context = ms.TuneContext.__new__(ms.TuneContext)
    context.__init_handle_by_constructor__(
        ffi.TuneContext,
        module,
        target,
        space,
        strategy,
        "main",
        1,  # thread: the callbacks are Python
        1 + seed % (2**31 - 2),
        get_logging_func(logger),
    )
    ffi.TuneContextInitialize(context)
    return context


@derived_object
class HasCode(ms.postproc.PyPostproc):  # type: ignore[misc]
    """Drops choices that have no code: too many registers, or a tile that no dot product fits."""

    def __init__(self, allows: Any) -> None:
        super().__init__()
        self.allows = allows

    def _initialize_with_tune_context(self, context: ms.TuneContext) -> None:
        pass

    def apply(self, sch: Schedule) -> bool:
        """Whether the schedule's decisions have code."""
        return bool(self.allows(Choice.of(of_trace(sch.trace))))

    def clone(self) -> HasCode:
        """Another one."""
        return HasCode(self.allows)


@derived_object
class AnotherValue(ms.mutator.PyMutator):  # type: ignore[misc]
    """Changes one decision, as often to a neighbour as to any other value."""

    def __init__(self, random: np.random.Generator) -> None:
        super().__init__()
        self.random = random

    def _initialize_with_tune_context(self, context: ms.TuneContext) -> None:
        pass

    def apply(self, trace: Trace, _state: int) -> Trace | None:
        """The trace with another decision."""
        open_ones = [
            (inst, int(decision), list(map(int, inst.attrs[0])))
            for inst, decision in trace.decisions.items()
            if len(inst.attrs[0]) > 1
        ]
        inst, now, values = open_ones[self.random.integers(len(open_ones))]
        others = [i for i in range(len(values)) if i != now]
        if self.random.random() < 0.5:
            distance = {i: abs(values[i] - values[now]) for i in others}
            others = sorted(others, key=lambda i: distance[i])[:2]
        return trace.with_decision(inst, int(self.random.choice(others)), remove_postproc=True)

    def clone(self) -> AnotherValue:
        """Another one."""
        return AnotherValue(self.random)


@derived_object
class Cost(ms.cost_model.PyCostModel):  # type: ignore[misc]
    """The cost model as MetaSchedule asks it."""

    def __init__(self, scores: Any) -> None:
        super().__init__()
        self.scores = scores

    def load(self, path: str) -> None:
        """Nothing: it learns from the log."""

    def save(self, path: str) -> None:
        """Nothing: the log has what it knows."""

    def update(self, context: Any, candidates: Any, results: Any) -> None:
        """Nothing: `Search.tell` does."""

    def predict(self, context: Any, candidates: list[ms.MeasureCandidate]) -> np.ndarray:
        """Scores, the greater the better."""
        return self.scores([Choice.of(of_trace(each.sch.trace)) for each in candidates])
