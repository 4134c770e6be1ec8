"""The kernel cache: what was built once is there for the next process, without a compiler.

    ~/.cache/quantmm/kernels/0123...cdef.qmm

An entry is a kernel file with one kernel, under the SHA-256 of everything that decides its code:
spec, target, versions, tuned record. It is written whole or not at all, so processes need no locks;
one that is damaged, or that another user could have written, is as good as none and is replaced.

Nothing here imports `tvm`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from ..errors import CacheError, QuantmmError
from ..files import flags, users_folder, why_not, write_whole
from ..formats.spec import MatmulSpec
from ..runtime import kernel_file
from ..runtime.code import library_of
from ..runtime.kernel import Kernel
from ..runtime.kernel_file import Stored
from ..runtime.load import loaded
from ..schedules.records import Record
from ..targets import CudaTarget, Target
from ..versions import cuda_versions, versions
from . import linker, nvrtc
from .environment import SOURCE, environment, source_digest

#: Bytes of all entries, beyond which the least recently used ones go.
LIMIT = 512 << 20
#: Entries, and what a process leaves that is ended while it writes one; other files are not ours.
ENTRY = re.compile(r"[0-9a-f]{64}\.qmm")
PART = re.compile(ENTRY.pattern + r"\.[0-9a-f]{16}\.part")
#: Seconds after which nobody writes to a part any more.
PART_AGE = 3600

#: Permissions of folder and entries, and those that would let others put code there.
FOLDER_MODE, ENTRY_MODE, OTHERS_WRITE = 0o700, 0o600, 0o022


@dataclass(frozen=True)
class Entry:
    """One entry as the file system knows it.

    Attributes
    ----------
    size : in bytes.
    used : when it was last written or loaded, in seconds since 1970.
    """

    path: Path
    size: int
    used: float


def folder() -> Path:
    """Where the entries are, whether it exists or not.

    Raises
    ------
    CacheError
        This user has no place for caches.
    """
    return users_folder(user_cache_path, "kernels", "cache folder", CacheError)


def key(spec: MatmulSpec, row: Target | CudaTarget, record: Record | None = None) -> str:
    """The name of the entry for `spec` on `row`, compiled by a tuned record or without.

    All fields of the row count, so a target of the user's own has entries of its own.

    Raises
    ------
    CacheError
        The row holds what JSON has no word for.
    """
    parts = {
        "format": kernel_file.FORMAT_VERSION,
        "spec": dataclasses.asdict(spec),
        "target": dataclasses.asdict(row),
        "record": record and dataclasses.asdict(record),
        "environment": environment(),
        "cuda": nvrtc.version() if row.device == "cuda" else None,
    }
    try:
        text = json.dumps(parts, sort_keys=True, default=listed)
    except (TypeError, ValueError) as error:
        raise CacheError(f"target {row.name} cannot be a key: {error}") from None
    return hashlib.sha256(text.encode()).hexdigest()


def listed(value: object) -> list[Any]:
    """A set as JSON writes it: as a list that does not depend on the order of insertion."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{value!r} is not JSON")


def entry_path(spec: MatmulSpec, row: Target | CudaTarget, record: Record | None = None) -> Path:
    """Where the kernel for `spec` on `row` is kept."""
    return folder() / f"{key(spec, row, record)}.qmm"


def find(
    spec: MatmulSpec,
    row: Target | CudaTarget,
    num_threads: int | None = None,
    record: Record | None = None,
) -> Kernel | None:
    """The kernel for `spec` on `row`, if it is in the cache.

    One for another machine can be saved, like any other.
    """
    try:
        path = entry_path(spec, row, record)
        (stored,) = stored_in(path)
        info = stored.info
        here = cuda_versions() if info.device == "cuda" else versions()
        if (info.spec, info.target, info.versions) != (spec, row.name, here):
            return None
        kernel = loaded(stored, num_threads)
        kernel.origin = "cache"
        with contextlib.suppress(OSError):  # a folder that can only be read
            os.utime(path, follow_symlinks=False)
    except Exception:
        # Whatever is wrong with an entry, the kernel is built anew and takes its place.
        return None
    return kernel


def stored_in(path: Path) -> list[Stored]:
    """What an entry holds, if nobody but this user can have written it.

    Raises
    ------
    CacheError, OSError, KernelFileError
        There is none, it may be another's, or it is damaged.
    """
    check_own(path.parent, path.parent.stat())
    with open(path, "rb", opener=open_at_once) as file:
        status = os.fstat(file.fileno())
        check_own(path, status)
        if not stat.S_ISREG(status.st_mode):
            raise CacheError(f"{path} is not a file")
        return kernel_file.parsed(path, file.read())


def open_at_once(path: str, how: int) -> int:
    """Open what is there under this name: no link, and no pipe to wait for."""
    return os.open(path, how | flags("O_NOFOLLOW", "O_NONBLOCK"))


def check_own(path: Path, status: os.stat_result) -> None:
    """Refuse a file or folder that another user owns or can write to: entries are executed."""
    if not hasattr(os, "getuid"):
        return  # Windows has no modes; a user's folder there is closed to others by its lists
    if status.st_uid != os.getuid():
        raise CacheError(f"{path} belongs to user {status.st_uid}, not to {os.getuid()}")
    if status.st_mode & OTHERS_WRITE:
        mode = stat.S_IMODE(status.st_mode)
        raise CacheError(f"other users can write to {path} (mode {mode:o}); expected 700 or less")


def keep(kernel: Kernel, row: Target | CudaTarget, record: Record | None = None) -> None:
    """Put a kernel that was just built into the cache.

    From then on it runs from its linked library, as it will in other processes. That takes no
    longer: TVM's JIT would have to generate the same machine code before the first call.

    Raises
    ------
    CacheError
        It is not kept, for want of a linker or of a folder to write to.
    """
    # Modules are imported when they are needed: what was imported last may be newer than the key.
    if source_digest() != SOURCE:
        raise CacheError("the source of quantmm has changed since this process imported it")
    try:
        path = entry_path(kernel.spec, row, record)
        make_room(path)
        on_cpu = kernel.info.device == "cpu"
        if on_cpu:
            # Asked first, because without one the code is not generated here, but at the first
            # call.
            linker.command(kernel.info.architecture)
        content = kernel_file.packed([kernel])
        if on_cpu and kernel.info.why_not_here() is None:
            library = library_of(kernel.code.content())
            library.load()
            kernel.code = library
    except QuantmmError as error:
        raise CacheError(str(error)) from None
    except OSError as error:
        raise CacheError(f"cannot write {path}: {why_not(error, path)}") from None
    except RuntimeError as error:
        raise CacheError(str(error)) from None
    write_whole(path, content, CacheError, mode=ENTRY_MODE, in_place=True)
    evict(but=path)


def make_room(path: Path) -> None:
    """Have a folder for an entry, and nothing in its place that a file cannot replace."""
    for each in (path.parent.parent, path.parent):
        each.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    check_own(path.parent, path.parent.stat())
    if path.is_dir() and not path.is_symlink():
        path.rmdir()  # one that is not empty is not ours to remove


def entries(pattern: re.Pattern[str] = ENTRY) -> list[Entry]:
    """The files in the cache whose name is like `pattern`, the last used one first.

    Raises
    ------
    CacheError
        The folder cannot be read.
    """
    where = folder()
    try:
        paths = [path for path in where.iterdir() if pattern.fullmatch(path.name)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CacheError(f"cannot read {where}: {error.strerror}") from None
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            status = path.lstat()
            if not stat.S_ISDIR(status.st_mode):
                found.append(Entry(path, status.st_size, status.st_mtime))
    return sorted(found, key=lambda entry: entry.used, reverse=True)


def evict(but: Path) -> None:
    """Remove the least recently used entries beyond LIMIT, and parts that nobody writes to."""
    total = 0
    with contextlib.suppress(OSError):  # the next write tries again
        for entry in entries():
            total += entry.size
            if total > LIMIT and entry.path != but:
                entry.path.unlink(missing_ok=True)
        for part in entries(PART):
            if part.used < time.time() - PART_AGE:
                part.path.unlink(missing_ok=True)


def clear() -> list[Entry]:
    """Remove every entry and nothing else; what was removed.

    Raises
    ------
    CacheError
        An entry cannot be removed.
    """
    removed = entries()
    try:
        for entry in (*removed, *entries(PART)):
            entry.path.unlink(missing_ok=True)
    except OSError as error:
        raise CacheError(f"cannot remove {error.filename}: {error.strerror}") from None
    return removed
