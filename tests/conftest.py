from __future__ import annotations

import functools
import sys

import pytest
import quantmm as qmm
from hypothesis import HealthCheck, settings
from quantmm.cli import main as cli_main

# Kernels are compiled inside examples, which takes longer than hypothesis' deadline.
settings.register_profile(
    "quantmm",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    print_blob=True,
)
settings.load_profile("quantmm")


def skip_unless_runs_here(target: qmm.targets.Target) -> None:
    if reason := qmm.targets.why_not_here(target):
        pytest.skip(f"{target.name}: {reason}")


@pytest.fixture(params=qmm.targets.TARGETS, ids=lambda target: target.name)
def target(request: pytest.FixtureRequest) -> qmm.targets.Target:
    """Each row of the table that this machine can execute."""
    skip_unless_runs_here(request.param)
    return request.param


@pytest.fixture(params=qmm.targets.TARGETS, ids=lambda target: target.name)
def row(request: pytest.FixtureRequest) -> qmm.targets.Target:
    """Each row of the table."""
    return request.param


@pytest.fixture(scope="session")
def host_kernel():
    """Compile for this machine, the same spec once."""
    return functools.cache(qmm.compile)


@pytest.fixture
def quantmm(monkeypatch, capsys):
    """Run the command in this process: status, stdout, stderr."""

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["quantmm", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli_main.run()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return command
