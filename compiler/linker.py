"""Linking an object file to a shared library, with whatever linker the machine has."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from typing import Any

from ..errors import ToolError

#: C compilers that can drive a linker, in the order in which they are tried.
DRIVERS = ("cc", "gcc", "clang")


def command() -> list[str]:
    """The start of a command line that links.

    Raises
    ------
    ToolError
        Neither a C compiler nor the package `ziglang` is there.
    """
    for driver in DRIVERS:
        if path := shutil.which(driver):
            return [path]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    raise ToolError(
        f"saving a kernel needs a linker: install a C compiler ({', '.join(DRIVERS)}), "
        "or the extra quantmm[link]"
    )


def link(output: str, objects: list[str] | str, options: Any = None, **_: Any) -> None:
    """Link `objects` to the shared library `output`; the signature is TVM's `fcompile`."""
    files = [objects] if isinstance(objects, str) else list(objects)
    done = subprocess.run(
        [*command(), "-shared", "-fPIC", "-o", output, *files, *(options or [])],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ToolError(f"linking failed: {(done.stderr or done.stdout).strip()[-500:]}")
