"""The code of a kernel that was built in this process: run by TVM's JIT, or linked for a file.

Each function is a module of its own, so that all cores compile them, and that the JIT compiles only
those which are called.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tvm

from ..errors import KernelFileError
from ..runtime import launcher
from .launcher_code import launcher_module
from .linker import link
from .side_by_side import side_by_side


class Built:
    """Functions that TVM compiled for a CPU, by name."""

    def __init__(
        self, executables: Mapping[str, tvm.runtime.Executable], architecture: str
    ) -> None:
        self._executables = executables
        self._architecture = architecture
        self._content: bytes | None = None

    def function(self, name: str) -> Callable[..., Any]:
        """One of them, which TVM's JIT compiles."""
        module = self._executables[name]
        return launcher.function(module, name, lambda: launcher_module(module.mod))

    def content(self) -> bytes:
        """A shared library of them and of the launcher.

        Raises
        ------
        KernelFileError
            Temporary files cannot be written.
        ToolError
            No linker was found, or linking failed.
        """
        if self._content is None:
            modules = [each.mod for each in self._executables.values()]
            code = side_by_side(machine_code, [*modules, launcher_module(modules[0])])
            self._content = linked(code, self._architecture)
        return self._content


def machine_code(module: Any) -> bytes:
    """The object file of a module that was built here."""
    if hasattr(os, "memfd_create"):
        # LLVM ends the process where it cannot write all of a file, so it is given memory.
        with open(os.memfd_create("kernel"), "rb") as file:
            module.write_to_file(f"/proc/self/fd/{file.fileno()}", "o")
            return file.read()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.o"
        module.write_to_file(str(path), "o")
        return path.read_bytes()


def linked(code: Sequence[bytes], architecture: str) -> bytes:
    """The shared library of object files."""
    try:
        with TemporaryDirectory() as folder:
            library = Path(folder) / "kernel.so"
            sources = [Path(folder) / f"{i}.o" for i in range(len(code))]
            for source, content in zip(sources, code, strict=True):
                source.write_bytes(content)
            link(str(library), [str(source) for source in sources], architecture)
            return library.read_bytes()
    except OSError as error:
        raise KernelFileError(
            f"cannot link a kernel through temporary files, see TMPDIR: {error}"
        ) from None
