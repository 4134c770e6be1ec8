"""The README's code runs as written, and its commands exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from quantmm.cli.main import cli

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
SHELL = [code for language, code in BLOCKS if language in ("sh", "bash", "console")]


def block(code):
    """A parameter; some blocks need torch."""
    missing = importlib.util.find_spec("torch") is None
    needed = [pytest.mark.torch, pytest.mark.skipif(missing, reason="torch is not installed")]
    return pytest.param(code, marks=needed if "import torch" in code else [])


@pytest.mark.parametrize("code", [*map(block, PYTHON)])
def test_python_blocks_run(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_there_is_an_example():
    assert PYTHON
    assert len(PYTHON[0].strip().splitlines()) <= 20


def commands():
    """What follows `quantmm` in every line of the shell blocks."""
    for line in "\n".join(SHELL).splitlines():
        for command in line.split("&&"):
            match shlex.split(command, comments=True):
                case [program, *words] if program.endswith("quantmm"):
                    yield words


def leaves(group):
    """Its commands, those of groups within it among them."""
    for command in group.commands.values():
        if isinstance(command, click.Group):
            yield from leaves(command)
        else:
            yield command


@pytest.mark.parametrize("words", [*commands()], ids=" ".join)
def test_every_word_of_a_command_is_known(words, monkeypatch):
    called = []
    for command in leaves(cli):
        monkeypatch.setattr(command, "callback", lambda **values: called.append(values))
    cli.main(words, "quantmm", standalone_mode=False)
    assert len(called) == 1


def test_the_demo_is_shown():
    assert ["demo"] in [*commands()]
