from __future__ import annotations

import pytest
from quantmm.schedules import records
from quantmm.tuning.search import Search
from quantmm.tuning.stage import Session
from tuning_runs import CHILDREN, M, measured_machine, tune


@pytest.fixture(scope="session")
def children():
    """Builders that all tests share."""
    with CHILDREN:
        yield


@pytest.fixture(autouse=True, scope="module")
def quick(children):
    """Runs of these tests, and of no others, find the machine measured."""
    with measured_machine():
        yield


@pytest.fixture
def propose(monkeypatch):
    """Let the search propose these choices, one batch after the other."""

    def these(*batches):
        class Fixed(Search):
            def __init__(self, *arguments):
                super().__init__(*arguments)
                self.batches = iter(batches)

            def propose(self):
                return iter([(choice, None) for choice in next(self.batches, [])])

        def search(session, p, batch):
            return Fixed(p.spec, p.row, p.m, p.seed, batch)

        monkeypatch.setattr(Session, "search", search)

    return these


@pytest.fixture(scope="session")
def log(children, tmp_path_factory):
    """A log in which a choice was faster than the default for M, and one for 40."""
    folder = tmp_path_factory.mktemp("log")
    with measured_machine():
        tune(folder, "SlowDefault", m=[M, 40], trials=4)
    return folder


@pytest.fixture
def copy(log, tmp_path):
    """The same to be damaged."""
    (database,) = records.databases(log)
    folder = tmp_path / "log" / database.name
    folder.mkdir(parents=True)
    for path in database.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder.parent
