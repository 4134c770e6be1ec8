"""The command in processes of its own, for tests that end it from outside."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from quantmm.schedules import records


def start(*words):
    """Start `quantmm` with these words."""
    # A shell lets what it starts in the background, and all of its children, ignore SIGINT.
    code = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from quantmm.cli.main import run
run()
"""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_trials(log, count):
    """Wait until a log has so many trials."""
    for _ in range(1200):
        if records.databases(log):
            (database,) = records.databases(log)
            path = database / records.TRIALS
            if path.exists() and len(path.read_bytes().splitlines()) >= count:
                return
        time.sleep(0.05)
    pytest.fail("nothing was measured")
