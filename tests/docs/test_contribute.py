"""The worked examples of docs/contribute.md, applied to a copy of the package and run there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import quantmm as qmm

ROOT = Path(qmm.__file__).parent
PAGE = (ROOT / "docs" / "contribute.md").read_text(encoding="utf-8")
BLOCK = re.compile(r'^```(diff|python) title="(.*?)"\n(.*?)^```$', re.DOTALL | re.MULTILINE)

#: What is no part of the package.
BESIDE = (".*", "tests", "docs", "build", "benchmarks", "examples", "*.egg-info", "__pycache__")


def changed(text, diff):
    """`text` with the lines of `diff` that begin with + added, and those with - taken out.

    The others, and those taken out, must stand in `text` once.
    """
    lines = diff.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] in " -")
    assert before
    assert text.count(before) == 1, f"stands in the file {text.count(before)} times:\n{before}"
    return text.replace(before, "".join(line[1:] for line in lines if line[0] in " +"))


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The package with every example in it, and the checks as one program."""
    folder = tmp_path_factory.mktemp("copy")
    package = folder / "quantmm"
    shutil.copytree(ROOT, package, ignore=shutil.ignore_patterns(*BESIDE))
    checks = []
    for kind, title, code in BLOCK.findall(PAGE):
        path = package / title
        if title == "check":
            checks.append(code)
        elif kind == "diff":
            path.write_text(changed(path.read_text(encoding="utf-8"), code), encoding="utf-8")
        else:
            assert not path.exists()
            path.write_text(code, encoding="utf-8")
    return folder, checks


def test_examples_run(copy):
    folder, checks = copy
    assert len(checks) == len(re.findall(r"^## An? ", PAGE, re.MULTILINE)) - 1
    program = "\n".join(["import quantmm; print(quantmm.__file__)", *checks])
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert Path(done.stdout.splitlines()[0]).is_relative_to(folder)


def test_examples_have_slopes(copy):
    text = (copy[0] / "quantmm" / "nn" / "gradient.py").read_text(encoding="utf-8")
    assert text.count('"relu6"') == 2


@pytest.mark.parametrize(
    ("text", "diff", "expected"),
    [("a\nb\n", " a\n+c\n", "a\nc\nb\n"), ("a\nb\n", "-a\n+c\n b\n", "c\nb\n")],
)
def test_lines_are_added_and_taken_out(text, diff, expected):
    assert changed(text, diff) == expected


@pytest.mark.parametrize("text", ["b\n", "a\na\n"])
def test_an_example_must_have_one_place(text):
    with pytest.raises(AssertionError, match="stands in the file"):
        changed(text, " a\n+c\n")
