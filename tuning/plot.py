"""The tuning curve: every trial of a run, and the best one so far."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ToolError, TuningError
from ..extras import install
from .state import Outcome, Tuning

#: Inches of one M's curve.
WIDTH, HEIGHT = 7.0, 3.2


def require_matplotlib() -> None:
    """Find it before anything is measured.

    Raises
    ------
    ToolError
        It is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ToolError(f"a plot needs matplotlib: {install('tune')}")


def check_suffix(path: Path) -> None:
    """Refuse a format that matplotlib does not write, before anything is measured.

    Raises
    ------
    TuningError
        `path` has the suffix of none. Without a suffix it is PNG.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.filetypes)
    if path.suffix and path.suffix[1:].lower() not in known:
        raise TuningError(f"cannot write {path}: expected a suffix of {', '.join(known)}")


def plot(tunings: Sequence[Tuning], path: Path) -> None:
    """Draw a curve for each M of each run into one file; its suffix says the format.

    Raises
    ------
    ToolError
        matplotlib is not installed.
    TuningError
        The file cannot be written, or there was no run.
    """
    if not tunings:
        raise TuningError(f"there is nothing to draw into {path}: no run began within its time")
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = [(tuning, outcome) for tuning in tunings for outcome in tuning.outcomes]
    figure = Figure(figsize=(WIDTH, HEIGHT * len(curves)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(curves), squeeze=False)[:, 0]
    for axis, (tuning, outcome) in zip(axes, curves, strict=True):
        draw(axis, tuning, outcome)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise TuningError(f"cannot write {path}: {error}") from None


def draw(axis: Any, tuning: Tuning, outcome: Outcome) -> None:
    """One curve."""
    numbers = range(1, len(outcome.times) + 1)
    ran = [(number, time) for number, time in zip(numbers, outcome.times, strict=True) if time]
    failed = [number for number, time in zip(numbers, outcome.times, strict=True) if not time]
    best = itertools.accumulate((time for _, time in ran), min)
    default = ran[0][1] if ran else outcome.default
    axis.axhline(default * 1e3, color="0.6", linewidth=1, label="default")
    axis.axhline(outcome.floor * 1e3, color="0.6", linewidth=1, linestyle=":", label="limit")
    axis.plot([n for n, _ in ran], [t * 1e3 for _, t in ran], ".", color="C0", label="trial")
    axis.step([n for n, _ in ran], [t * 1e3 for t in best], where="post", color="C3", label="best")
    if failed:
        axis.plot(failed, [default * 1e3] * len(failed), "x", color="0.4", label="failed")
    axis.set_title(f"{outcome.m} x {tuning.spec.n} x {tuning.spec.k}, {tuning.threads} threads")
    axis.set_xlabel("trial")
    axis.set_ylabel("ms")
    axis.xaxis.get_major_locator().set_params(integer=True)
    # One slow trial would hide what matters.
    axis.set_ylim(top=2 * default * 1e3, bottom=0)
    axis.legend(fontsize="small", ncols=5)
