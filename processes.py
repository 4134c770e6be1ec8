"""Child processes that do what may crash or hang: one object each, whose methods the parent calls.

A call that crashes the child, or takes too long, is an error of that call; the next one gets a new
child. A child ends with its parent, however that ends. What it prints goes to a file.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from .errors import QuantmmError

#: Seconds for a child to start: Python, NumPy and, to build, TVM.
START_SECONDS = 60.0
#: Seconds for a child to end once it has closed its side.
EXIT_SECONDS = 5.0
#: PR_SET_PDEATHSIG of Linux' prctl: the signal that a process gets when its parent ends.
PR_SET_PDEATHSIG = 1
#: The current folder is no place of modules, as it would be for `python -m`: it may hold a numpy.py
#: of the user's own. (`python -P` is for Python 3.11 and later.)
CHILD = (
    "import sys; sys.path = [path for path in sys.path if path]; "
    "from quantmm.processes import serve; serve(int(sys.argv[1]), sys.argv[2])"
)


class WorkerError(QuantmmError, RuntimeError):
    """A call that failed; the message is why."""


class Worker:
    """A child process with an object of the class `place`, "module:name".

    Attributes
    ----------
    starts : how many children there were.
    """

    def __init__(self, place: str, environment: Mapping[str, str] | None = None) -> None:
        self.place, self.environment = place, environment or {}
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._messages: Any = None
        self._greeted = False

    @property
    def alive(self) -> bool:
        """Whether the child that was called last is still there."""
        return self._process is not None

    @property
    def pid(self) -> int | None:
        """The child's number; None without one."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start a child without waiting for it."""
        if self._process is not None:
            return
        here, there = multiprocessing.Pipe()
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115  closed with the child
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(there.fileno()), self.place],
            stdin=subprocess.DEVNULL,
            stdout=self._messages,
            stderr=self._messages,
            pass_fds=[there.fileno()],
            env={**os.environ, **self.environment},
        )
        there.close()
        self._connection = here
        self._greeted = False
        self.starts += 1

    def call(self, method: str, *arguments: Any, seconds: float) -> Any:
        """What the object's method returns, within a time.

        Raises
        ------
        WorkerError
            The method raised an error, the child ended, or the time was over.
        """
        self.start()
        if not self._greeted:
            self._answer("started", START_SECONDS)
            self._greeted = True
        assert self._connection is not None
        try:
            self._connection.send((method, arguments))
        except OSError:
            raise WorkerError(self._last_words()) from None
        return self._answer("done", seconds)

    def _answer(self, what: str, seconds: float) -> Any:
        """What the child says within a time."""
        assert self._connection is not None
        try:
            if not self._connection.poll(seconds):
                self.close()
                raise WorkerError(f"not {what} after {seconds:g} s")
            fine, answer = self._connection.recv()
        except (EOFError, OSError):
            raise WorkerError(self._last_words()) from None
        if not fine:
            raise WorkerError(answer)
        return answer

    def _last_words(self) -> str:
        """Why the child ended; there is none from now on."""
        process = self._process
        if process is None:
            return "it was stopped"
        try:
            code = process.wait(EXIT_SECONDS)
            end = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            # A library's threads or its cleaning up may be stuck.
            end = f"closed its side and did not end in {EXIT_SECONDS:g} s"
        self._messages.seek(0)
        text = self._messages.read().decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        self.close()
        return ": ".join([end, *lines[-1:]])[:500]

    def close(self) -> None:
        """End the child."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._messages is not None:
            self._messages.close()
            self._messages = None


def serve(number: int, place: str) -> None:
    """Answer calls on an inherited connection until the parent is gone."""
    # Ctrl-C goes to every process of a terminal; the parent says what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One that hangs would never notice that nobody listens.
    end_with_parent()
    connection = Connection(number)
    served = pkgutil.resolve_name(place)()
    with contextlib.suppress(EOFError, OSError):
        connection.send((True, None))
        while True:
            method, arguments = connection.recv()
            try:
                answer = True, getattr(served, method)(*arguments)
            except WorkerError as error:
                answer = False, str(error)
            except Exception as error:
                lines = str(error).strip().splitlines() or [""]
                answer = False, f"{type(error).__name__}: {lines[-1]}"[:500]
            connection.send(answer)
    os._exit(0)


def end_with_parent() -> None:
    """Let the system end this process with the thread that started it, however that ends.

    Only Linux does. Elsewhere a child ends when it finds that nobody listens.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
