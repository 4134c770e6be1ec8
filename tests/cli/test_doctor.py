"""The command `quantmm doctor`."""

from __future__ import annotations

import pytest
import quantmm as qmm
from quantmm import extras
from quantmm.cli import doctor
from quantmm.compiler import cache, linker
from quantmm.errors import CacheError
from quantmm.extras import Extra
from quantmm.versions import VERSION, installed


def test_says_what_there_is(quantmm, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    status, out, err = quantmm("doctor")
    assert (status, err) == (0, "")
    found = {line[:12].strip(): line[12:] for line in out.partition("\n\n")[0].splitlines()}
    assert [*found] == [*doctor.CHECKS]
    assert found["quantmm"].startswith(VERSION)
    assert f"apache-tvm {installed('apache-tvm')}" in found["packages"]
    assert targets_of(found["target"]) == qmm.targets.host().name
    assert str(cache.folder()) in found["cache"]
    assert f"{tmp_path}/quantmm/tuned: 0 records" in found["logs"]


def targets_of(text):
    return text.split()[0]


def test_what_fails_is_a_line_like_any_other(quantmm, monkeypatch):
    def fail():
        raise CacheError("this user has no cache folder")

    monkeypatch.setattr(cache, "folder", fail)
    monkeypatch.setattr(linker, "native", lambda: None)
    monkeypatch.setattr(doctor, "HUGE_PAGES", doctor.HUGE_PAGES / "nowhere")
    status, out, _ = quantmm("doctor")
    assert status == 0
    assert "cache       this user has no cache folder\n" in out
    assert "saving a kernel needs a linker: install a C compiler" in out
    assert "huge pages  this system does not say\n" in out


def test_what_is_missing_says_who_needs_it(quantmm, monkeypatch):
    rows = (
        Extra("link", ("no_such_module",), "saving"),
        Extra("rpc", ("no_such_package.module",), "trackers"),
        Extra("tune", ("numpy.linalg",), "plots"),
    )
    monkeypatch.setattr(doctor, "EXTRAS", rows)
    _, _, missing = quantmm("doctor")[1].partition("not installed, and what needs it:\n")
    assert [line.split() for line in missing.splitlines()] == [
        ["pip", "install", "'quantmm[link]'", "saving"],
        ["pip", "install", "'quantmm[rpc]'", "trackers"],
    ]
    monkeypatch.setattr(doctor, "EXTRAS", rows[2:])
    assert "not installed" not in quantmm("doctor")[1]


@pytest.mark.parametrize("extra", extras.EXTRAS, ids=lambda extra: extra.name)
def test_every_extra_is_looked_for(extra):
    assert doctor.is_installed(extra) in (True, False)
