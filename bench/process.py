"""Contenders in processes of their own: one that dies or hangs costs only itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from ..processes import Worker, WorkerError
from .contenders import Contender, Job, build, environment, reason
from .contenders.job import Turns

#: How long a contender may take to get ready, and for a turn.
READY_SECONDS, TURN_SECONDS = 300.0, 120.0


def started(contender: Contender, job: Job) -> Worker:
    """A process for a contender, which is not ready yet."""
    worker = Worker(f"{__name__}:Built", environment(job))
    worker.start()
    return worker


def ready(worker: Worker, contender: Contender, job: Job) -> str:
    """Build the contender: what there is to say of it.

    Raises
    ------
    WorkerError
        It cannot do the job, or said nothing in time.
    """
    return str(worker.call("build", contender, job, seconds=READY_SECONDS))


def turn(worker: Worker) -> Any:
    """A sample.

    Raises
    ------
    WorkerError
        As `ready`.
    """
    return worker.call("turn", seconds=TURN_SECONDS)


def memory(worker: Worker) -> int:
    """Bytes that the process occupies."""
    try:
        return int(psutil.Process(worker.pid).memory_info().rss) if worker.pid else 0
    except psutil.Error:
        return 0


class Built:
    """What answers in that process."""

    def __init__(self) -> None:
        self._turns: Turns | None = None

    def build(self, contender: Contender, job: Job) -> str:
        """Make a contender ready: what there is to say of it."""
        try:
            self._turns = build(contender, job)
        except Exception as error:
            raise WorkerError(reason(error)) from None
        return self._turns.about

    def turn(self) -> Any:
        """Its next sample."""
        assert self._turns is not None
        try:
            return self._turns.turn()
        except Exception as error:
            raise WorkerError(reason(error)) from None


@contextmanager
def processes() -> Iterator[dict[str, Worker]]:
    """A place for processes by name; those in it are ended at the end, whatever happens."""
    running: dict[str, Worker] = {}
    try:
        yield running
    finally:
        for worker in running.values():
            worker.close()
