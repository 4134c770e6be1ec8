"""Writing files: whole, or not at all, and one process after the other; the user's folders."""

from __future__ import annotations

import contextlib
import errno
import functools
import operator
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import QuantmmError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


def check_writable(path: Path, error: type[QuantmmError]) -> None:
    """Raise `error` where `write_whole` cannot succeed: to ask before work that takes long."""
    target = destination(path, error)
    reason = None
    if target.is_dir():
        reason = "a folder; expected a file or a new name"
    elif not target.parent.is_dir():
        reason = f"there is no folder {target.parent}"
    elif not os.access(target.parent, os.W_OK):
        reason = read_only(target.parent)
    if reason:
        raise error(f"cannot write {path}: {reason}")


def why_not(problem: OSError, path: Path) -> str:
    """Why `path`, a file or a folder that is to be made, was not written."""
    if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return read_only(next(each for each in path.absolute().parents if each.is_dir()))
    if problem.errno == errno.ENOENT and not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    return problem.strerror or str(problem)


def read_only(folder: Path) -> str:
    """What is said of a folder that this user may not change."""
    return f"the folder {folder} is read-only for this user"


def as_path(path: object, error: type[QuantmmError]) -> Path:
    """A path that a caller gave.

    Raises
    ------
    error
        It is neither a string nor a path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise error(f"the path is {path!r}; expected the name of a file or folder")
    return Path(path)


def flags(*names: str) -> int:
    """Those of these flags of `os.open` that the system has."""
    return functools.reduce(operator.or_, (getattr(os, name, 0) for name in names), 0)


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
            raise error(f"cannot write {path}: {why_not(problem, path)}") from None
        raise


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes that write records to `folder` waiting, where the system can do so."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
