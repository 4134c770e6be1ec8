"""Processes that this one starts."""

from __future__ import annotations

import ctypes
import signal
import sys

#: PR_SET_PDEATHSIG of Linux' prctl: the signal that a process gets when its parent ends.
PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Let the system end this process with the thread that started it, however that ends.

    Only Linux does. Elsewhere a child ends when it finds that nobody listens.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
