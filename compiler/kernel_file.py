r"""Kernel files: one file with the compiled code and what must hold before it runs.

    8 bytes   b"quantmm\0"
    4 bytes   format version, little endian
    4 bytes   length of the header
    32 bytes  SHA-256 of the length and of everything after this field
    header    KernelInfo as JSON
    the rest  a shared library

A kernel file holds machine code and is as trustworthy as where it comes from: the checksum finds
damage, not malice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import KernelFileError
from . import runtime
from .kernel import Kernel, KernelInfo, check_machine
from .runtime import tvm_ffi

MAGIC = b"quantmm\0"
FORMAT_VERSION = 2
HEADER = struct.Struct("<8sII32s")


def save(kernel: Kernel, path: str | os.PathLike[str]) -> None:
    """Write `kernel` to `path`: whole, or not at all.

    Raises
    ------
    KernelFileError
        `path` cannot be written.
    ToolError
        No linker was found.
    """
    target = Path(path)
    if target.is_dir() or not os.access(target.parent, os.W_OK):
        raise KernelFileError(f"cannot write {target}: not a writable file in an existing folder")
    header = json.dumps(kernel.info.to_dict()).encode()
    payload = header + shared_library(kernel)
    start = HEADER.pack(MAGIC, FORMAT_VERSION, len(header), checksum(len(header), payload))
    write_whole(target, start + payload)


def load(path: str | os.PathLike[str], *, num_threads: int | None = None) -> Kernel:
    """The kernel that `Kernel.save` wrote; needs no compiler.

    Raises
    ------
    KernelFileError
        The file cannot be read, is not a kernel file, is damaged, or comes from another version.
    TargetError
        This machine cannot execute it.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise KernelFileError(f"cannot read {path}: {error.strerror}") from None
    if len(content) < HEADER.size or not content.startswith(MAGIC):
        raise KernelFileError(f"{path} is not a quantmm kernel file")
    _, format_version, length, digest = HEADER.unpack_from(content)
    if format_version != FORMAT_VERSION:
        raise KernelFileError(
            f"{path} has format version {format_version}; this quantmm reads {FORMAT_VERSION}"
        )
    payload = content[HEADER.size :]
    if checksum(length, payload) != digest:
        raise KernelFileError(f"{path} is damaged: its checksum does not match its content")
    info = KernelInfo.from_dict(json.loads(payload[:length]))
    check_machine(str(path), info)
    check_runtime(str(path), info)
    runtime.library()
    kernel = Kernel(info, load_library(payload[length:]), num_threads)
    kernel._library = payload[length:]
    return kernel


def checksum(length: int, payload: bytes) -> bytes:
    """The digest that a kernel file carries."""
    return hashlib.sha256(struct.pack("<I", length) + payload).digest()


def check_runtime(path: str, info: KernelInfo) -> None:
    """Refuse code that was compiled against another version of TVM's runtime."""
    try:
        here = version("apache-tvm")
    except PackageNotFoundError:
        here = "missing"
    if info.versions.get("tvm") != here:
        raise KernelFileError(
            f"{path} was built with apache-tvm {info.versions.get('tvm')}; here it is {here}"
        )


def load_library(library: bytes) -> Any:
    """A shared library in memory as a module with the kernel's functions."""
    with tempfile.NamedTemporaryFile(suffix=".so", delete=False) as file:
        file.write(library)
    try:
        return tvm_ffi.load_module(file.name, keep_module_alive=True)
    finally:
        os.unlink(file.name)


def shared_library(kernel: Kernel) -> bytes:
    """The kernel's code as the bytes of a shared library."""
    if kernel._library is None:
        from .linker import link

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.so"
            kernel._module.export_library(str(path), fcompile=link)
            kernel._library = path.read_bytes()
    return kernel._library


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader never sees a part of it."""
    temporary: str | None = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=path.name, suffix=".part", delete=False
        ) as file:
            temporary = file.name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise KernelFileError(f"cannot write {path}: {error.strerror}") from None
