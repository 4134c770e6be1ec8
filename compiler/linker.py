"""Linking an object file to a shared library, with whatever linker the machine has."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence

from ..errors import ToolError
from ..extras import install
from ..targets import machine

#: C compilers that can drive a linker, in the order in which they are tried.
DRIVERS = ("cc", "gcc", "clang")


def command(architecture: str | None = None) -> list[str]:
    """The start of a command line that links for `architecture`; None is this machine's.

    What is linked are kernels for Linux, whatever system this is.

    Raises
    ------
    ToolError
        Neither a C compiler for it nor the package `ziglang` is there.
    """
    if architecture in (None, machine.architecture()) and sys.platform == "linux":
        found, wanted = native(), f"a linker: install a C compiler ({', '.join(DRIVERS)})"
    else:
        architecture = architecture or machine.architecture()
        found = foreign(architecture)
        wanted = (
            f"a linker for {architecture}: install {architecture}-linux-gnu-gcc, or clang with lld"
        )
    if found is None:
        raise ToolError(f"saving a kernel needs {wanted}, or {install('link')}")
    return found


def native() -> list[str] | None:
    """A command that links for this machine."""
    for driver in DRIVERS:
        if path := shutil.which(driver):
            return [path]
    return zig()


def foreign(architecture: str) -> list[str] | None:
    """A command that links for another architecture's Linux."""
    triple = f"{architecture}-linux-gnu"
    if path := shutil.which(f"{triple}-gcc"):
        return [path]
    clang = shutil.which("clang")
    if clang and shutil.which("ld.lld"):
        # Without that system's libraries: a kernel calls only what its process has anyway.
        return [clang, f"--target={triple}", "-fuse-ld=lld", "-nostdlib"]
    return zig("-target", triple)


def zig(*options: str) -> list[str] | None:
    """The C compiler of the package `ziglang`, which links for every architecture."""
    if importlib.util.find_spec("ziglang") is None:
        return None
    # Without -O2 zig adds 4 MB of its debugging runtime.
    return [sys.executable, "-m", "ziglang", "cc", "-O2", *options]


def link(output: str, code: Sequence[str], architecture: str | None = None) -> None:
    """Link the object files `code` to the shared library `output`.

    Raises
    ------
    ToolError
        See `command`; or linking failed.
    """
    done = subprocess.run(
        [*command(architecture), "-shared", "-fPIC", "-o", output, *code],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ToolError(f"linking failed: {(done.stderr or done.stdout).strip()[-500:]}")
