"""Files that stay on the disk: arrays are read from them when somebody asks, and no earlier."""

from __future__ import annotations

import math
import os
import stat
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..errors import QuantmmError, WeightFileError
from ..files import flags

#: The most bytes that a system call is asked for: Linux gives no more than 2 GiB at once.
MOST = 1 << 30


class OpenFile:
    """A file that is read piece by piece, whatever its name leads to later.

    It is read and not mapped: a file that somebody cuts short would end a process that maps it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Without O_NONBLOCK, opening a pipe waits for somebody who writes to it.
        self._descriptor = os.open(path, flags("O_RDONLY", "O_CLOEXEC", "O_NONBLOCK", "O_BINARY"))
        weakref.finalize(self, os.close, self._descriptor)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise WeightFileError(f"cannot read {path}: expected a file, not a folder or device")
        self.size = status.st_size

    def array(
        self, what: str, offset: int, dtype: np.dtype | str, shape: tuple[int, ...]
    ) -> np.ndarray:
        """Numbers that lie one behind the other.

        Parameters
        ----------
        what : what they are, for messages.
        offset : of the first, in bytes.

        Raises
        ------
        WeightFileError
            The file ends before they do. No memory is asked for then.
        """
        dtype = np.dtype(dtype)
        count = math.prod(shape) * dtype.itemsize
        if offset < 0 or count < 0 or offset + count > self.size:
            raise WeightFileError(
                f"{self.path}: {what} would be {count:,} bytes from byte {offset:,} on; expected "
                f"them within the file's {self.size:,}"
            )
        values = np.empty(shape, dtype)
        view = values.reshape(-1).view(np.uint8).data
        done = 0
        while done < count:
            piece = view[done : min(count, done + MOST)]
            got = read_at(self._descriptor, piece, offset + done)
            if not got:
                raise WeightFileError(
                    f"{self.path}: {what} ends at byte {offset + done:,}; expected "
                    f"{offset + count:,}, as when the file was opened"
                )
            done += got
        return values


#: Held between the two calls where the system cannot read at an offset in one.
_seeking = threading.Lock()


def read_at(descriptor: int, into: memoryview, offset: int) -> int:
    """Fill `into` from an open file, from `offset` on; how many bytes there were."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [into], offset)
    with _seeking:
        os.lseek(descriptor, offset, os.SEEK_SET)
        content = os.read(descriptor, len(into))
    into[: len(content)] = content
    return len(content)


@contextmanager
def reading(file: str | os.PathLike[str], name: str | None = None) -> Iterator[None]:
    """Turn what goes wrong while a file is read into a `WeightFileError` that names it.

    Parameters
    ----------
    name : of the tensor or layer that is read.
    """
    what = f"{file}: {name}" if name is not None else f"{file}"
    try:
        yield
    except WeightFileError:
        raise
    except QuantmmError as error:
        raise WeightFileError(f"{what}: {error}") from None
    except OSError as error:
        raise WeightFileError(f"cannot read {what}: {error.strerror or error}") from None
    except MemoryError as error:
        raise WeightFileError(f"cannot read {what}: {error or 'out of memory'}") from None
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        raise WeightFileError(f"{what} is damaged: {error}") from error
