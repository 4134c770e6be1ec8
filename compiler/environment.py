"""What a kernel's code depends on beside its spec and target: versions, and quantmm's source."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

from ..targets import machine
from ..versions import PACKAGE, VERSION, installed, tvm_library, versions

#: Where the source lies that decides what a kernel is.
SOURCE_FOLDERS = ("compiler", "formats", "runtime", "schedules", "targets")
SOURCE_SUFFIXES = (".py", ".ll")


def environment() -> dict[str, Any]:
    """Everything beside spec and target that decides a kernel's code, as JSON types."""
    compiler = tvm_library("libtvm_compiler.so")
    return {
        **versions(),
        "quantmm": VERSION,
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
