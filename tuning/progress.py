"""Showing a run: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from .state import Progress as State
from .state import Tuning

#: Least seconds between two plain lines.
QUIET_SECONDS = 5.0
#: The last seconds, of which the time that is left is estimated: a batch may take minutes.
ESTIMATED_FROM = 3600.0


class TwoLines(Progress):
    """The trials and the time that is left, and on a line of its own what may be long."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is shown."""
        yield from super().get_renderables()
        for task in self.tasks:
            yield Text.assemble(task.fields["best"], "  ", (task.fields["step"], "dim"))


class Display:
    """Watches runs; to be used in a `with` statement.

    Parameters
    ----------
    trials : of all runs together, for the time that is left.
    """

    def __init__(self, trials: int, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._live = self.console.is_terminal
        self._progress = TwoLines(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("trials"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            speed_estimate_period=ESTIMATED_FROM,
        )
        self._task = self._progress.add_task("tuning", total=trials, best="", step="")
        self._before = 0
        self._problem: tuple[Any, int] | None = None
        self._done = 0
        self._said = 0.0

    def __enter__(self) -> Display:
        if self._live:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    @property
    def trials(self) -> int:
        """How many trials of all runs the log has now."""
        return self._before + self._done

    def __call__(self, state: State) -> None:
        """Show where a run is."""
        if self._problem != (state.spec, state.m):
            if self._problem is not None:
                self._before += self._done
            self._problem = state.spec, state.m
        self._done = state.done
        title = f"{state.m} x {state.spec.n} x {state.spec.k}"
        self._progress.update(
            self._task,
            description=title,
            completed=self._before + state.done,
            best=best_text(state),
            step=state.text,
        )
        if self._live:
            return
        now = time.monotonic()
        if now - self._said >= QUIET_SECONDS or (state.done == state.trials and not state.text):
            self._said = now
            words = [
                f"{title}: {state.done} of {state.trials} trials",
                self._left(),
                best_text(state),
                state.text,
            ]
            self.console.print("; ".join(word for word in words if word), highlight=False)

    def _left(self) -> str:
        """How long all runs together will still take, where that can be said."""
        (task,) = self._progress.tasks
        seconds = task.time_remaining
        return f"{datetime.timedelta(seconds=round(seconds))} left" if seconds else ""

    def finished(self, tuning: Tuning) -> None:
        """Say what came out."""
        for line in report(tuning):
            self.console.print(line, highlight=False)


def best_text(state: State) -> str:
    """The best so far, its share of the limit, and how it stands to the default."""
    if state.best is None or state.default is None:
        return ""
    words = [f"best {milliseconds(state.best)}", f"{state.floor / state.best:.0%} of the limit"]
    if state.best < state.default:
        words.append(f"{1 - state.best / state.default:.1%} less than the default")
    if state.failed:
        words.append(f"{state.failed} failed")
    return ", ".join(words)


def report(tuning: Tuning) -> list[str]:
    """A line for each M."""
    lines = []
    for each in tuning.outcomes:
        title = f"{each.m} x {tuning.spec.n} x {tuning.spec.k}"
        default = f"default {milliseconds(each.default)}"
        if each.choice is None:
            lines.append(f"{title}: the default stays, {default}, {each.floor / each.default:.0%}")
            continue
        lines.append(
            f"{title}: {milliseconds(each.tuned)} ({each.floor / each.tuned:.0%} of the limit), "
            f"{default}, {1 - each.tuned / each.default:.1%} less (noise {each.noise:.1%}), "
            f"for M of {each.first_m} to {each.last_m}: {each.choice.name}"
        )
    return lines


def milliseconds(seconds: float) -> str:
    """A time for people."""
    return f"{seconds * 1e3:.4f} ms"
