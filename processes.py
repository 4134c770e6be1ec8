"""Processes that this one starts."""

from __future__ import annotations

import ctypes
import signal
import sys

#: PR_SET_PDEATHSIG of Linux' prctl: the signal that a process gets when its parent ends.
PR_SET_PDEATHSIG = 1


def python_module(name: str, *words: str) -> list[str]:
    """The command that runs a module as `python -m` does, but for the current folder.

    That would come first among the places of modules, and may hold a numpy.py of the user's own
    (`python -P` is for Python 3.11 and later).
    """
    code = (
        "import runpy, sys; sys.path = [path for path in sys.path if path]; "
        f"runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    )
    return [sys.executable, "-c", code, *words]


def end_with_parent() -> None:
    """Let the system end this process with the thread that started it, however that ends.

    Only Linux does. Elsewhere a child ends when it finds that nobody listens.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
