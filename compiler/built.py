"""The code of a kernel that was built in this process: run by TVM's JIT, or linked for a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

import tvm

from ..errors import KernelFileError
from ..runtime import launcher
from .launcher_code import launcher_module
from .linker import link


class Built:
    """Functions that TVM compiled for a CPU."""

    def __init__(self, executable: tvm.runtime.Executable, architecture: str) -> None:
        self._executable = executable
        self._architecture = architecture
        self._content: bytes | None = None

    def function(self, name: str) -> Callable[..., Any]:
        """One of them; TVM's JIT compiles all at the first one."""
        module = self._executable
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
            module = self._executable.mod
            code = [machine_code(module), machine_code(launcher_module(module))]
            self._content = linked(code, self._architecture)
        return self._content


def machine_code(module: Any) -> bytes:
    """The object file of a module that was built here."""
    # LLVM ends the process where it cannot write all of a file, so it is given memory.
    in_memory = sys.platform == "linux"
    with open(os.memfd_create("kernel"), "rb") if in_memory else NamedTemporaryFile() as file:
        module.write_to_file(f"/proc/self/fd/{file.fileno()}" if in_memory else file.name, "o")
        return file.read()


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
