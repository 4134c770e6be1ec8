from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator

import platformdirs
import pytest
import quantmm as qmm
import when_called
from hypothesis import HealthCheck, settings
from quantmm.cli import main as cli_main
from quantmm.compiler.compile import compile
from quantmm.runtime import threads

# Kernels are compiled inside examples, which takes longer than hypothesis' deadline. The profile
# "deep" has all examples of the tests that compile, see `problems.examples`.
for name in ("quantmm", "deep"):
    settings.register_profile(
        name,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        print_blob=True,
    )
settings.load_profile("quantmm")


@pytest.fixture(scope="session", autouse=True)
def no_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing comes from a cache unless a test says `cache=True`, and the user's is out of reach.

    Processes that tests start have a cache of their own.
    """
    with pytest.MonkeyPatch.context() as patch:
        # zig, which links in some tests, keeps what takes it seconds.
        zig = os.environ.get("ZIG_GLOBAL_CACHE_DIR") or str(platformdirs.user_cache_path("zig"))
        patch.setenv("ZIG_GLOBAL_CACHE_DIR", zig)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setitem(compile.__kwdefaults__, "cache", False)
        # One process imports scikit-learn for one test and torch for another.
        patch.setattr(threads._process, "warned", {"several"})
        yield


@pytest.fixture(scope="session", autouse=True)
def functions_when_called() -> Iterator[None]:
    """Functions of a kernel are compiled when a test calls them, or saves the kernel.

    In the profile "deep" all are, as anywhere else.
    """
    if settings.get_current_profile_name() == "deep":
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        when_called.install(patch)
        yield


#: Rooms whose kernels child processes compile too: what one of them compiled, others find.
CACHED = ("bench",)


@pytest.fixture(autouse=True)
def shared_cache(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Kernels come from a cache of all workers in the rooms that are CACHED."""
    if request.path.parent.name not in CACHED:
        yield
        return
    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        folder = folder.parent  # below that of the run lies one for each worker
    place = folder / "kernels-of-all-workers"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place))
        patch.setitem(compile.__kwdefaults__, "cache", True)
        yield


@pytest.fixture
def torch():
    """Tests that ask for torch skip without it."""
    return pytest.importorskip("torch", reason="torch is not installed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-m torch` runs what needs torch, and nothing else."""
    for item in items:
        if "torch" in item.fixturenames or hasattr(item.module, "torch"):
            item.add_marker("torch")


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
