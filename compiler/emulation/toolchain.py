"""Compiling for the emulation: CUDA C++ as C++ for this CPU, and the run time that it needs.

Any C++ compiler does, and the clang of the package ziglang, which the extra quantmm[link] brings.
What was compiled is kept for a day in a folder of this user's among the temporary files.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import EmulationError, ToolError
from ...extras import install

#: The C++ of the emulation.
FOLDER = Path(__file__).parent
COMPILERS = ("g++", "clang++")
OPTIONS = ["-std=c++17", "-fPIC", "-w", "-U_FORTIFY_SOURCE", "-fno-exceptions", "-fno-rtti"]
#: For kernels: CUDA's signed char, wrapping int and --fmad=false; hooks at wrong accesses.
KERNEL_OPTIONS = [
    *OPTIONS,
    "-O1",
    "-g0",
    "-fsigned-char",
    "-fwrapv",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-ftrivial-auto-var-init=pattern",
    "-fsanitize=alignment,bounds,object-size,integer-divide-by-zero",
    "-fno-sanitize-recover=all",
]
#: What a source includes from a CUDA toolkit, and what it gets from the standard library.
HEADERS = {"cuda.h": "", "cstdint": "", "type_traits": ""}

#: `extern __shared__ alignas(1024) unsigned char memory[];`
DYNAMIC_SHARED = re.compile(
    r"extern\s+__shared__\s+(?:(?:alignas|__align__)\s*\(\s*\d+\s*\)\s*)?"
    r"(?P<type>[\w\s]+?)\s*\b(?P<name>\w+)\s*\[\s*\]\s*;"
)
#: C++ wants alignas first.
ALIGNED_SHARED = re.compile(r"__shared__\s+(alignas\s*\(\s*\d+\s*\))")


#: Seconds after which what was compiled and not used goes.
KEPT_SECONDS = 86400.0


@functools.cache
def compiler() -> list[str]:
    """The start of a command line that compiles C++.

    Raises
    ------
    ToolError
        There is neither a compiler nor the package `ziglang`.
    """
    for name in COMPILERS:
        if path := shutil.which(name):
            return [path]
    if importlib.util.find_spec("ziglang"):
        # Not "c++", which compiles a standard library first.
        return [sys.executable, "-m", "ziglang", "cc"]
    raise ToolError(
        f"emulating a GPU needs a C++ compiler ({', '.join(COMPILERS)}), or {install('link')}"
    )


@functools.cache
def folder() -> Path:
    """Where compiled programs are kept, of this user alone."""
    path = Path(tempfile.gettempdir()) / f"quantmm-emulation-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o022:
        raise ToolError(f"others can write to {path}; expected a folder of this user's alone")
    for each in path.glob("*.so"):
        with contextlib.suppress(OSError):  # another process removed it
            if each.stat().st_mtime < time.time() - KEPT_SECONDS:
                each.unlink()
    return path


@functools.cache
def runtime() -> ctypes.CDLL:
    """The library of fibers and guarded memory."""
    source = "".join(path.read_text() for path in sorted(FOLDER.glob("*.[ch]*")))
    with making("runtime", source, [*compiler(), *OPTIONS]) as (path, part):
        if part:
            name = f"-Wl,-soname,{path.name}"
            run([*compiler(), *OPTIONS, "-O2", "-shared", name, "-o", part, FOLDER / "emulate.cpp"])
    library = ctypes.CDLL(str(path))
    library.emulated_damage.restype = ctypes.c_ssize_t
    library.emulated_free.restype = None
    library.emulated_protect.restype = None
    return library


def built(source: str, kernels: tuple[str, ...]) -> Path:
    """The library of a program."""
    runtime_path = Path(runtime()._name)
    text = program(source, kernels)
    with making("program", text, [*compiler(), *KERNEL_OPTIONS, runtime_path]) as (path, part):
        if part:
            work = part.parent
            for name, content in HEADERS.items():
                (work / name).write_text(content)
            (work / "kernel.cpp").write_text(text)
            compile_only = [*compiler(), *KERNEL_OPTIONS, f"-I{work}", "-c"]
            run([*compile_only, work / "kernel.cpp", "-o", work / "kernel.o"])
            # UBSan's hooks are the run time's, not those of a library that the compiler adds.
            link = [
                *compiler(),
                "-O1",
                "-shared",
                "-Wl,-Bsymbolic",
                work / "kernel.o",
                runtime_path,
            ]
            run([*link, "-lm", "-o", part])
    return path


def program(source: str, kernels: tuple[str, ...]) -> str:
    """A CUDA source as C++, with its own line numbers."""
    body = DYNAMIC_SHARED.sub(r"\g<type>* \g<name> = (\g<type>*)emulated_dynamic_shared;", source)
    body = ALIGNED_SHARED.sub(r"\1 __shared__", body)
    return "\n".join(
        (
            (FOLDER / "emulate.h").read_text(),
            '#line 1 "source"',
            body,
            *(f"EMULATED_KERNEL({name})" for name in kernels),
        )
    )


@contextlib.contextmanager
def making(kind: str, text: str, command: list[Any]) -> Iterator[tuple[Path, Path | None]]:
    """The path of what is made from `text`, and where to make it first unless it is there."""
    made_from = "\0".join((text, *map(str, command))).encode()
    path = folder() / f"{kind}-{hashlib.sha256(made_from).hexdigest()[:32]}.so"
    if path.exists():
        with contextlib.suppress(OSError):
            os.utime(path)
        yield path, None
        return
    with tempfile.TemporaryDirectory(dir=folder()) as work:
        part = Path(work) / path.name
        yield path, part
        os.replace(part, path)


def run(command: list[Any]) -> None:
    """Run a compiler."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise EmulationError(f"the source cannot be compiled:\n{done.stderr[-4000:]}")
