"""Contenders in processes of their own: one that dies or hangs costs only itself."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import psutil

from ..processes import python_module
from .contenders import Contender, Job, environment

#: How long a contender may take to get ready, and for a turn.
READY_SECONDS, TURN_SECONDS = 300.0, 120.0
#: And to end once it has closed its side.
EXIT_SECONDS = 5.0


class Failed(Exception):  # noqa: N818
    """A contender that has no answer; the message is why."""


class Process:
    """A contender that `worker.serve` runs. Library output goes to a file, not to the terminal."""

    def __init__(self, contender: Contender, job: Job) -> None:
        self.contender, self.job = contender, job
        self.messages = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        ours, theirs = socket.socketpair()
        with theirs:
            self.connection = Connection(ours.detach())
            self.process = subprocess.Popen(
                python_module("quantmm.bench.worker", str(theirs.fileno())),
                stdin=subprocess.DEVNULL,
                stdout=self.messages,
                stderr=self.messages,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **environment(job)},
            )

    def ready(self) -> str:
        """Build the contender: what there is to say of it.

        Raises
        ------
        Failed
            It cannot do the job, or said nothing in time.
        """
        request = {"contender": self.contender.to_dict(), "job": self.job.to_dict()}
        return str(self._ask(request, READY_SECONDS))

    def turn(self) -> Any:
        """A sample.

        Raises
        ------
        Failed
            As `ready`.
        """
        return self._ask({}, TURN_SECONDS)

    def _ask(self, request: dict[str, Any], seconds: float) -> Any:
        try:
            self.connection.send_bytes(json.dumps(request).encode())
            if not self.connection.poll(seconds):
                raise Failed(f"no answer in {seconds:g} s")
            answer = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise Failed(self._last_words()) from None
        if isinstance(answer, dict) and "error" in answer:
            raise Failed(answer["error"])
        return answer

    def _last_words(self) -> str:
        """Why the process ended."""
        try:
            end = f"exit code {self.process.wait(EXIT_SECONDS)}"
        except subprocess.TimeoutExpired:
            # A library's threads or its cleaning up may be stuck; `close` ends it.
            end = f"closed its side and did not end in {EXIT_SECONDS:g} s"
        self.messages.seek(0)
        lines = [line.strip() for line in self.messages if line.strip()]
        return ": ".join([end, *lines[-1:]])

    def memory(self) -> int:
        """Bytes that the process occupies."""
        try:
            return int(psutil.Process(self.process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.connection.close()
        self.messages.close()


@contextmanager
def processes() -> Iterator[dict[str, Process]]:
    """A place for processes by name; those in it are ended at the end, whatever happens."""
    running: dict[str, Process] = {}
    try:
        yield running
    finally:
        for process in running.values():
            process.close()
