r"""Kernel files: one file with compiled code for one target or more, and what must hold to run it.

    8 bytes   b"quantmm\0"
    4 bytes   format version, little endian
    4 bytes   length of the header
    32 bytes  SHA-256 of the length and of everything after this field
    header    JSON {"kernels": [{"info": KernelInfo, "start": bytes, "length": bytes}, ...]}
    the rest  shared libraries, one per kernel; starts count from here

All kernels of a file have the same spec. Loading takes the best one that the machine can execute:
one for its GPU if there is one, the newest first, then in the order of `targets.TARGETS`. What lies
there for a GPU is machine code with compressed PTX behind it.

A kernel file holds machine code and is as trustworthy as where it comes from: the checksum finds
damage, not malice.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import KernelFileError
from ..files import as_path, check_writable, write_whole
from ..targets import CUDA_TARGETS, TARGETS
from .code import Content
from .cuda_info import CudaInfo
from .info import KernelInfo

MAGIC = b"quantmm\0"
FORMAT_VERSION = 6
HEADER = struct.Struct("<8sII32s")
#: Names that files of before have for arguments.
NAMES_BEFORE = {"w_own": "w_extra"}


class Saved(Protocol):
    """A kernel, as far as a file has to know it."""

    @property
    def info(self) -> KernelInfo | CudaInfo:
        """What the kernel is, apart from its code."""

    @property
    def code(self) -> Content:
        """The kernel's code."""


@dataclass(frozen=True)
class Stored:
    """One kernel of a file: what it is, and its code."""

    info: KernelInfo | CudaInfo
    content: bytes


def save(path: str | os.PathLike[str], kernels: Sequence[Saved]) -> None:
    """Write kernels of one spec, each for a target of its own: whole, or not at all.

    Raises
    ------
    KernelFileError
        `path` cannot be written, or the kernels do not belong in one file.
    ToolError
        No linker was found.
    """
    target = as_path(path, KernelFileError)
    check_writable(target, KernelFileError)
    write_whole(target, packed(kernels), KernelFileError)


def packed(kernels: Sequence[Saved]) -> bytes:
    """The content of a kernel file.

    Raises
    ------
    KernelFileError, ToolError
        See `save`.
    """
    check_together(kernels)
    entries, libraries = [], b""
    for kernel in kernels:
        library = kernel.code.content()
        where = {"start": len(libraries), "length": len(library)}
        entries.append({"info": kernel.info.to_dict(), **where})
        libraries += library
    header = json.dumps({"kernels": entries}).encode()
    payload = header + libraries
    head = HEADER.pack(MAGIC, FORMAT_VERSION, len(header), checksum(len(header), payload))
    return head + payload


def check_together(kernels: Sequence[Saved]) -> None:
    """Refuse kernels of several specs, or several for one target."""
    first = kernels[0].info
    for info in (kernel.info for kernel in kernels[1:]):
        if info.spec != first.spec:
            raise KernelFileError(
                f"the kernels of a file have one spec; the one for {first.target} has "
                f"{first.spec.to_json()}, the one for {info.target} {info.spec.to_json()}"
            )
    names = [kernel.info.target for kernel in kernels]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise KernelFileError(f"a file has one kernel per target; given twice: {', '.join(twice)}")


def contents(path: str | os.PathLike[str]) -> list[Stored]:
    """What a kernel file holds, best first, for this machine or others.

    Raises
    ------
    KernelFileError
        See `load`.
    """
    try:
        content = as_path(path, KernelFileError).read_bytes()
    except KernelFileError:
        raise
    except OSError as error:
        raise KernelFileError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # a name with a null character
        raise KernelFileError(f"cannot read {str(path)!r}: {error}") from None
    return parsed(path, content)


def parsed(path: str | os.PathLike[str], content: bytes) -> list[Stored]:
    """What `content` of the kernel file `path` holds; see `contents`."""
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
    try:
        kernels = kernels_of(json.loads(payload[:length])["kernels"], payload[length:])
    except Exception as error:  # whatever a header lacks, or has too much
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise KernelFileError(f"{path} has a header that does not fit: {what}") from None
    order = [*(row.name for row in reversed(CUDA_TARGETS)), *(row.name for row in TARGETS)]

    def rank(stored: Stored) -> int:
        name = stored.info.target
        return order.index(name) if name in order else len(order)

    return sorted(kernels, key=rank)


def kernels_of(entries: list[dict[str, Any]], libraries: bytes) -> list[Stored]:
    """The kernels of a header, with their code.

    Raises
    ------
    ValueError
        There is none; or code is left over or missing, with which the system's loader would end
        the process.
    """
    kernels, end = [], 0
    for entry in entries:
        start, end = end, end + entry["length"]
        if entry["start"] != start or not start < end <= len(libraries):
            raise ValueError(
                f"a library lies at {entry['start']} and has {entry['length']} bytes; expected it "
                f"at {start}, and to end by {len(libraries)}"
            )
        kernels.append(Stored(info_from(entry["info"]), libraries[start:end]))
    if not kernels or end != len(libraries):
        raise ValueError(f"{len(libraries)} bytes of libraries, of which {end} are some kernel's")
    return kernels


def info_from(fields: dict[str, Any]) -> KernelInfo | CudaInfo:
    """What a kernel is, from a header's JSON."""
    names = [NAMES_BEFORE.get(name, name) for name in fields["arguments"]]
    fields = {**fields, "arguments": names}
    on_gpu = fields["architecture"] == CudaInfo.architecture
    return CudaInfo.from_dict(fields) if on_gpu else KernelInfo.from_dict(fields)


def checksum(length: int, payload: bytes) -> bytes:
    """The digest that a kernel file carries."""
    return hashlib.sha256(struct.pack("<I", length) + payload).digest()
