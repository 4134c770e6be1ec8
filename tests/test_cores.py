"""How many cores a process may use, on made-up machines."""

from __future__ import annotations

import os

import chips
import psutil
import pytest
from quantmm import cores

#: 8 cores of two threads, numbered as Linux numbers them: siblings are 8 apart.
EIGHT = {cpu: f"{cpu % 8},{cpu % 8 + 8}" for cpu in range(16)}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Where `cores` looks; the function says which CPUs this process may use."""
    monkeypatch.setattr(cores, "CPUS", tmp_path / "cpu")
    monkeypatch.setattr(cores, "OWN_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cores, "GROUPS", tmp_path / "groups")
    chips.describe(tmp_path / "cpu", EIGHT)

    def allow(*cpus):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(cpus), raising=False)

    allow(*range(16))
    return allow


def counted():
    """The number now, and not what was found before."""
    return cores.physical_cores.__wrapped__()


@pytest.mark.parametrize(
    ("cpus", "expected"),
    [(range(16), 8), ((0, 1, 2, 3), 4), ((0, 8), 1), ((0, 8, 1), 2), ((5,), 1)],
)
def test_cores_are_counted_by_their_siblings(machine, cpus, expected):
    machine(*cpus)
    assert counted() == expected


def test_where_siblings_are_not_named_cores_are_shared_out(machine, monkeypatch):
    machine(0, 1, 2, 99)  # of which the last is not described
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 16 if logical else 8)
    assert counted() == 2
    machine(99)
    assert counted() == 1


def test_where_there_is_no_affinity_all_cores_count(machine, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert counted() == 8


@pytest.mark.parametrize(
    ("maxima", "expected"),
    [
        ({}, 8),
        ({"jobs/mine": "max 100000"}, 8),
        ({"jobs/mine": "300000 100000"}, 3),
        ({"jobs/mine": "250000 100000"}, 3),  # two cores and a half keep three busy
        ({"jobs/mine": "20000 100000"}, 1),
        ({"jobs/mine": "max 100000", "jobs": "200000 100000"}, 2),
        ({"": "400000 100000"}, 4),  # as a container sees its own
        ({"jobs/other": "100000 100000"}, 8),
    ],
)
def test_a_control_group_has_time_for_so_many(machine, tmp_path, maxima, expected):
    (tmp_path / "cgroup").write_text("0::/jobs/mine\n")
    for group, text in maxima.items():
        chips.write(tmp_path / "groups" / group, **{"cpu.max": text})
    assert counted() == expected


@pytest.mark.parametrize(
    ("group", "quota", "expected"),
    [("jobs", "-1", 8), ("jobs", "500000", 5), ("", "150000", 2), ("../jobs", "100000", 8)],
)
def test_control_groups_of_version_1(machine, tmp_path, group, quota, expected):
    (tmp_path / "cgroup").write_text("5:memory:/jobs\n4:cpu,cpuacct:/jobs\n0::/\n")
    folder = tmp_path / "groups" / "cpu" / group
    chips.write(folder, **{"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": "100000"})
    chips.write(tmp_path / "groups" / "memory" / "jobs", **{"cpu.max": "100000 100000"})
    assert counted() == expected
