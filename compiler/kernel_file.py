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
import sys
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

from ..errors import KernelFileError, TargetError
from ..files import check_writable, write_whole
from ..targets import CUDA_TARGETS, TARGETS
from . import launcher, threads
from .cuda_kernel import CudaInfo, CudaKernel
from .kernel import Kernel, KernelInfo
from .versions import installed

MAGIC = b"quantmm\0"
FORMAT_VERSION = 6
HEADER = struct.Struct("<8sII32s")


class Library:
    """A shared library that this process has loaded."""

    def __init__(self, content: bytes, module: Any) -> None:
        self.content = content
        self._module = module

    def __getitem__(self, name: str) -> Any:
        """One of its functions, which keeps it loaded."""
        return self._module[name]


#: By the digests of their contents; those that some kernel uses.
_libraries: weakref.WeakValueDictionary[bytes, Library] = weakref.WeakValueDictionary()
_loading = threading.Lock()


def _after_fork() -> None:
    """Another thread of the parent may have held the lock."""
    global _loading
    _loading = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True)
class Stored:
    """One kernel of a file: what it is, and its code."""

    info: KernelInfo | CudaInfo
    library: bytes


def save(path: str | os.PathLike[str], kernels: Sequence[Kernel | CudaKernel]) -> None:
    """Write kernels of one spec, each for a target of its own: whole, or not at all.

    Raises
    ------
    KernelFileError
        `path` cannot be written, or the kernels do not belong in one file.
    ToolError
        No linker was found.
    """
    target = Path(path)
    check_writable(target, KernelFileError)
    write_whole(target, packed(kernels), KernelFileError)


def packed(kernels: Sequence[Kernel | CudaKernel]) -> bytes:
    """The content of a kernel file.

    Raises
    ------
    KernelFileError, ToolError
        See `save`.
    """
    check_together(kernels)
    entries, libraries = [], b""
    for kernel in kernels:
        library = shared_library(kernel)
        where = {"start": len(libraries), "length": len(library)}
        entries.append({"info": kernel.info.to_dict(), **where})
        libraries += library
    header = json.dumps({"kernels": entries}).encode()
    payload = header + libraries
    head = HEADER.pack(MAGIC, FORMAT_VERSION, len(header), checksum(len(header), payload))
    return head + payload


def check_together(kernels: Sequence[Kernel | CudaKernel]) -> None:
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


def load(
    path: str | os.PathLike[str], *, num_threads: int | None = None, device: str | None = None
) -> Kernel | CudaKernel:
    """A kernel that `Kernel.save` wrote, the best for this machine; needs no compiler.

    Parameters
    ----------
    num_threads : as for `compile`.
    device : "cpu" or "cuda" for a kernel of that kind; the best one of any when None.

    Raises
    ------
    KernelFileError
        The file cannot be read, is not a kernel file, is damaged, or comes from another version.
    TargetError
        This machine can execute none of its kernels.
    ArrayError
        `num_threads` is no whole number, less than 1 or too large.
    """
    if num_threads is not None:
        threads.check_threads(num_threads)
    if device not in (None, "cpu", "cuda"):
        raise TargetError(f"device={device!r}; expected 'cpu', 'cuda' or None")
    chosen = best(path, contents(path), device)
    check_runtime(str(path), chosen.info)
    return loaded(chosen, num_threads)


def unpickled(content: bytes, num_threads: int | None = None) -> Kernel | CudaKernel:
    """The kernel whose file has this content, as `Kernel.__reduce__` hands it on.

    One for GPUs is there without any, as it was where it was compiled: only its calls need one.

    Raises
    ------
    KernelFileError, TargetError
        See `load`.
    """
    name = "what was pickled"
    kernels = parsed(name, content)
    chosen = kernels[0] if isinstance(kernels[0].info, CudaInfo) else best(name, kernels)
    check_runtime(name, chosen.info)
    return loaded(chosen, num_threads)


def loaded(stored: Stored, num_threads: int | None = None) -> Kernel | CudaKernel:
    """A kernel of a file, ready to be called on this machine."""
    if isinstance(stored.info, CudaInfo):
        on_gpu = CudaKernel(stored.info, stored.library)
        on_gpu.origin = "file"
        return on_gpu
    kernel = Kernel(stored.info, None, num_threads)
    kernel._library = stored.library
    kernel.origin = "file"
    use_library(kernel)
    return kernel


def use_library(kernel: Kernel) -> None:
    """Let a kernel that was linked or read from a file run from its shared library.

    Kernels with the same code share it; it is unloaded with the last of them.
    """
    content = shared_library(kernel)
    digest = hashlib.sha256(content).digest()
    with _loading:
        shared = _libraries.get(digest)
        if shared is None:
            shared = _libraries[digest] = Library(content, load_library(content))
    kernel._module, kernel._library = shared, shared.content


def contents(path: str | os.PathLike[str]) -> list[Stored]:
    """What a kernel file holds, best first, for this machine or others.

    Raises
    ------
    KernelFileError
        See `load`.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise KernelFileError(f"cannot read {path}: {error.strerror}") from None
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
    on_gpu = fields["architecture"] == CudaInfo.architecture
    return CudaInfo.from_dict(fields) if on_gpu else KernelInfo.from_dict(fields)


def best(
    path: str | os.PathLike[str], kernels: Sequence[Stored], device: str | None = None
) -> Stored:
    """The first of `kernels` that this machine, or its CPU or GPU alone, can execute."""
    reasons = []
    for stored in kernels:
        info = stored.info
        if device is not None and (device == "cuda") != isinstance(info, CudaInfo):
            continue
        if (reason := info.why_not_here()) is None:
            return stored
        reasons.append(f"{info.target} cannot run here: {reason}")
    if not reasons:
        raise TargetError(f"{path} has no kernel for device={device!r}")
    raise TargetError(f"{path} has no kernel for this machine: {'; '.join(reasons)}")


def checksum(length: int, payload: bytes) -> bytes:
    """The digest that a kernel file carries."""
    return hashlib.sha256(struct.pack("<I", length) + payload).digest()


def check_runtime(path: str, info: KernelInfo | CudaInfo) -> None:
    """Refuse code that was compiled against another version of TVM's runtime."""
    if isinstance(info, CudaInfo):
        return  # which has no part in it
    here = installed("apache-tvm")
    if info.versions.get("tvm") != here:
        raise KernelFileError(
            f"{path} was built with apache-tvm {info.versions.get('tvm')}; here it is {here}"
        )


def load_library(library: bytes) -> Any:
    """A shared library in memory as a module with the kernel's functions.

    Raises
    ------
    KernelFileError
        Temporary files cannot be written, or not executed.
    """
    try:
        with NamedTemporaryFile(suffix=".so") as file:
            file.write(library)
            file.flush()
            return launcher.load(file.name)
    except (OSError, RuntimeError) as error:
        raise KernelFileError(
            f"cannot load a kernel through a temporary file, see TMPDIR: {error}"
        ) from None


def shared_library(kernel: Kernel | CudaKernel) -> bytes:
    """The kernel's code: for a CPU the bytes of a shared library.

    Raises
    ------
    KernelFileError
        Temporary files cannot be written.
    ToolError
        No linker was found, or linking failed.
    """
    if isinstance(kernel, CudaKernel):
        return kernel._library
    if kernel._library is None:
        from .launcher_code import launcher_module

        module = kernel._module.mod
        code = [machine_code(module), machine_code(launcher_module(module))]
        kernel._library = linked(code, kernel.info.architecture)
    return kernel._library


def machine_code(module: Any) -> bytes:
    """The object file of a module that was built here."""
    # LLVM ends the process where it cannot write all of a file, so it is given memory.
    in_memory = sys.platform == "linux"
    with open(os.memfd_create("kernel"), "rb") if in_memory else NamedTemporaryFile() as file:
        module.write_to_file(f"/proc/self/fd/{file.fileno()}" if in_memory else file.name, "o")
        return file.read()


def linked(code: Sequence[bytes], architecture: str) -> bytes:
    """The shared library of object files."""
    from .linker import link

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
