"""What a kernel's code depends on beside its spec and target: versions, and the compiler's source.

Nothing here imports `tvm`.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..schedules import CUDA_SCHEDULE_VERSION, SCHEDULE_VERSION
from ..targets import machine
from . import runtime

PACKAGE = Path(__file__).parent.parent
#: Where the source lies that decides what a kernel is.
SOURCE_FOLDERS = ("compiler", "schedules", "targets")
SOURCE_SUFFIXES = (".py", ".ll")


@functools.cache
def installed(name: str) -> str:
    """The version of an installed distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def versions() -> dict[str, str]:
    """What a kernel says about its origin, in its file and in records."""
    return {"tvm": installed("apache-tvm"), "schedule": str(SCHEDULE_VERSION)}


def cuda_versions() -> dict[str, str]:
    """As `versions`, of a kernel for GPUs."""
    return {**versions(), "schedule": f"cuda-{CUDA_SCHEDULE_VERSION}"}


def environment() -> dict[str, Any]:
    """Everything beside spec and target that decides a kernel's code, as JSON types."""
    from .. import __version__

    compiler = runtime.tvm_library("libtvm_compiler.so")
    return {
        **versions(),
        "quantmm": __version__,
        "source": SOURCE,
        "tvm_ffi": installed("apache-tvm-ffi"),
        # LLVM is linked into this file; a build of one's own with another LLVM has another size.
        "tvm_compiler": compiler and compiler.stat().st_size,
        "system": sys.platform,
        "architecture": machine.architecture(),
    }


def source_digest() -> str:
    """The digest of the source as it is now: in a checkout it changes without a version."""
    digest = hashlib.sha256()
    for folder in SOURCE_FOLDERS:
        for path in sorted((PACKAGE / folder).rglob("*.*")):
            if path.suffix not in SOURCE_SUFFIXES:
                continue
            try:
                content = path.read_bytes()
            except OSError:  # gone since it was listed, or an editor's link to nothing
                content = b""
            digest.update(f"{path.relative_to(PACKAGE)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


#: Taken when quantmm is imported, because that is what this process runs: files that are edited
#: later have no effect here.
SOURCE = source_digest()
