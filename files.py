"""Writing files: whole, or not at all, and one process after the other; the user's folders."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import QuantmmError


def check_writable(path: Path, error: type[QuantmmError]) -> None:
    """Raise `error` where `write_whole` cannot succeed: to ask before work that takes long."""
    target = destination(path, error)
    if target.is_dir() or not os.access(target.parent, os.W_OK):
        raise error(f"cannot write {path}: not a writable file in an existing folder")


def destination(path: Path, error: type[QuantmmError]) -> Path:
    """The file that a caller means by `path`: what links lead to.

    Raises
    ------
    error
        A device, pipe or socket is there, which a file would replace, or links that end nowhere.
    """
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise error(f"cannot write {path}: a link that leads to itself")
    try:
        mode = target.stat().st_mode  # once: others may remove it meanwhile
    except OSError:
        return target
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise error(f"cannot write {path}: a device, pipe or socket; expected a file or a new name")
    return target


def users_folder(
    find: Callable[..., Path], name: str, what: str, error: type[QuantmmError]
) -> Path:
    """The folder `name` of ours in one of the user's own, whether it exists or not.

    Parameters
    ----------
    find : platformdirs' function for the user's folder.
    what : what it is called in messages.

    Raises
    ------
    error
        This user has no such place.
    """
    try:
        path = find("quantmm", appauthor=False) / name
    except RuntimeError as reason:  # a user whom the system does not know
        raise error(f"this user has no {what}: {reason}") from None
    if not path.is_absolute():  # a user without a home folder
        raise error(f"the {what} would be {path}; expected an absolute path")
    return path


def write_whole(
    path: Path,
    content: bytes,
    error: type[QuantmmError],
    *,
    mode: int = 0o666,
    in_place: bool = False,
) -> None:
    """Write `content` to `path` so that a reader never sees a part of it.

    Parameters
    ----------
    mode : the file's permissions, less those that the process's umask takes.
    in_place : put a file where the name is, whatever is there, and not where it leads.

    Raises
    ------
    error
        `path` cannot be written.
    """
    with writing(path, error, mode=mode, in_place=in_place) as file:
        file.write(content)


@contextlib.contextmanager
def writing(
    path: Path, error: type[QuantmmError], *, mode: int = 0o666, in_place: bool = False
) -> Iterator[BinaryIO]:
    """A file that is at `path` when all of it is written, and nowhere where that fails.

    Parameters are those of `write_whole`.

    Raises
    ------
    error
        `path` cannot be written.
    """
    if not in_place:
        path = destination(path, error)
    # Not `tempfile`, whose files nobody else may read.
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        with open(part, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as problem:  # Ctrl-C too leaves nothing behind
        with contextlib.suppress(OSError):
            os.unlink(part)
        if isinstance(problem, OSError) and not isinstance(problem, QuantmmError):
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
