"""Locks of a process that may be forked while another of its threads holds them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import TracebackType


def in_forked_children(function: Callable[[], None]) -> None:
    """Call it at the start of every forked child, where the system forks processes."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


class ForkLock:
    """A lock that a thread can take again, which a fork waits for.

    So what it guards is whole in a forked child, which has none of the parent's other threads to
    finish it. A process makes only few of them: they stay registered for ever.
    """

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self.__enter__, after_in_parent=self.__exit__, after_in_child=self._renew
            )

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self._lock.release()
