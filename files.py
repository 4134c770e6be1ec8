"""Writing files: whole, or not at all, and one process after the other."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from .errors import QuantmmError


def check_writable(path: Path, error: type[QuantmmError]) -> None:
    """Raise `error` where `write_whole` cannot succeed: to ask before work that takes long."""
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise error(f"cannot write {path}: not a writable file in an existing folder")


def write_whole(
    path: Path, content: bytes, error: type[QuantmmError], *, mode: int = 0o666
) -> None:
    """Write `content` to `path` so that a reader never sees a part of it.

    Parameters
    ----------
    mode : the file's permissions, less those that the process's umask takes.

    Raises
    ------
    error
        `path` cannot be written.
    """
    # Not `tempfile`, whose files nobody else may read.
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        with open(part, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as problem:  # Ctrl-C too leaves nothing behind
        with contextlib.suppress(OSError):
            os.unlink(part)
        if isinstance(problem, OSError):
            raise error(f"cannot write {path}: {problem.strerror}") from None
        raise


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes that write records to `folder` waiting."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
