"""The code of kernels: shared libraries, each of which a process loads once, whatever uses it."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable
from tempfile import NamedTemporaryFile
from typing import Any, Protocol

from ..errors import KernelFileError
from . import launcher
from .forks import ForkLock


class Content(Protocol):
    """The code of a kernel, for whatever device."""

    def content(self) -> bytes:
        """Its bytes, as a kernel file has them."""


class Code(Content, Protocol):
    """What a kernel for CPUs runs: a shared library."""

    def function(self, name: str) -> Callable[..., Any]:
        """One of its functions, ready to be called; it keeps the code loaded."""


class Library:
    """A shared library, which is loaded when it is first used."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._module: Any = None

    def content(self) -> bytes:
        """Its bytes."""
        return self._content

    def function(self, name: str) -> Callable[..., Any]:
        """One of its functions, which keeps it loaded."""
        return self.load()[name]

    def load(self) -> Any:
        """The module with its functions.

        Raises
        ------
        KernelFileError
            Temporary files cannot be written, or not executed.
        """
        with _loading:
            if self._module is None:
                self._module = load_library(self._content)
        return self._module


#: By the digests of their contents; those that some kernel uses.
_libraries: weakref.WeakValueDictionary[bytes, Library] = weakref.WeakValueDictionary()
_loading = ForkLock()


def library_of(content: bytes) -> Library:
    """The library with this content, which all kernels with the same code share."""
    digest = hashlib.sha256(content).digest()
    with _loading:
        shared = _libraries.get(digest)
        if shared is None:
            shared = _libraries[digest] = Library(content)
        return shared


def load_library(content: bytes) -> Any:
    """A shared library in memory as a module with the kernel's functions.

    Raises
    ------
    KernelFileError
        Temporary files cannot be written, or not executed.
    """
    try:
        with NamedTemporaryFile(suffix=".so") as file:
            file.write(content)
            file.flush()
            return launcher.load(file.name)
    except (OSError, RuntimeError) as error:
        raise KernelFileError(
            f"cannot load a kernel through a temporary file, see TMPDIR: {error}"
        ) from None
