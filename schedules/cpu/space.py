"""How a strategy's space becomes decisions of a MetaSchedule trace.

A kernel is decided before its loops exist: tiles and layout shape the TensorExpression. So a space
samples its decisions on the plain matrix multiplication and notes them on its block "acc";
`of_trace` reads them again, and the recipe is run with them as its parameters. The trace is a usual
one, which MetaSchedule mutates, replays and stores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import Trace

from ...targets import Target, WeightLayout

#: What notes of decisions are called, before their name.
NOTE = "quantmm."
STRATEGY = "strategy"

#: A share of the samples of a decision takes its first value, the usual one.
USUAL = 0.5


@dataclass(frozen=True)
class Scope:
    """What a space depends on.

    Attributes
    ----------
    layout : the default one.
    m : rows of x that are tuned for.
    rows : heights of a tile that the target's dot products can compute.
    k_blocks : sizes of a block of K, the default first.
    """

    target: Target
    layout: WeightLayout
    m: int
    rows: tuple[int, ...]
    k_blocks: tuple[int, ...]


def sample(
    schedule: Schedule,
    default: Mapping[str, Any],
    strategy: str,
    options: Mapping[str, Sequence[int]],
    chosen: Mapping[str, int] | None = None,
) -> None:
    """Sample one of the `options` of a strategy's decisions, or take what was `chosen`.

    What the decisions of the `default` have is an option in any case, and the usual one.
    """
    block = schedule.get_sblock("acc")
    schedule.annotate(block, NOTE + STRATEGY, strategy)
    usual = default if default[STRATEGY] == strategy else {}
    for name, values in options.items():
        candidates = list(dict.fromkeys([usual.get(name, values[0]), *values]))
        others = len(candidates) - 1
        shares = [USUAL if others else 1.0, *[(1 - USUAL) / max(1, others)] * others]
        decision = None if chosen is None else candidates.index(chosen[name])
        value = schedule.sample_categorical(candidates, shares, decision)
        schedule.annotate(block, NOTE + name, value)


def of_trace(trace: Trace) -> dict[str, Any]:
    """The decisions that a trace notes, and its strategy."""
    values: dict[Any, int] = {}
    found: dict[str, Any] = {}
    for inst in trace.insts:
        if inst.kind.name == "SampleCategorical":
            candidates, _ = inst.attrs
            values[inst.outputs[0]] = int(candidates[int(trace.decisions[inst])])
        elif inst.kind.name == "Annotate" and str(inst.attrs[0]).startswith(NOTE):
            value = inst.inputs[1]
            name = str(inst.attrs[0]).removeprefix(NOTE)
            found[name] = values[value] if value in values else str(value)
    return found
