"""The README's code runs as written, and its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from quantmm.cli.main import cli

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
SHELL = [code for language, code in BLOCKS if language in ("sh", "bash", "console")]


@pytest.mark.parametrize("code", PYTHON)
def test_python_blocks_run(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_there_is_an_example():
    assert PYTHON
    assert len(PYTHON[0].strip().splitlines()) <= 20


def test_commands_exist():
    commands = re.findall(r"^\S*quantmm (\w+)|&& \S*quantmm (\w+)", "\n".join(SHELL), re.MULTILINE)
    names = {a or b for a, b in commands}
    assert "demo" in names
    assert names <= set(cli.commands)
