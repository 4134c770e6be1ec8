"""The part of TVM that a kernel needs when it runs: tvm_ffi and libtvm_runtime.so.

Nothing here imports `tvm`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from ..errors import ToolError
from ..versions import tvm_library


class _NoTorch:
    """A finder by which the thread that made it finds no torch, whatever other threads import."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Refuse torch, and leave everything else to the finders that follow.

        Its parts too: another thread may be importing torch, and where that is half done Python
        would import a part of it here as well.
        """
        if name.partition(".")[0] == "torch" and threading.get_ident() == self._thread:
            raise ModuleNotFoundError("torch is not imported here", name=name)


@contextlib.contextmanager
def without_torch() -> Iterator[None]:
    """Imports within do not load torch, as tvm and tvm_ffi would, which takes a second.

    Where torch is imported already it stays visible. And tvm can be imported by a user without a
    home folder.
    """
    finder = _NoTorch()
    with a_place_for_caches():
        sys.meta_path.insert(0, finder)
        try:
            yield
        finally:
            sys.meta_path.remove(finder)


@contextlib.contextmanager
def a_place_for_caches() -> Iterator[None]:
    """TVM asks at its import where the user's caches are; nothing that is used here writes there.

    It would raise an error for a user without a home folder, such as a container's.
    """
    if "tvm" in sys.modules or "XDG_CACHE_HOME" in os.environ or has_home():
        yield
        return
    os.environ["XDG_CACHE_HOME"] = os.devnull
    try:
        yield
    finally:
        os.environ.pop("XDG_CACHE_HOME", None)


def has_home() -> bool:
    """Whether this process knows the home folder of its user."""
    try:
        Path.home()
    except RuntimeError:
        return False
    return True


with without_torch():
    import tvm_ffi as tvm_ffi


@functools.cache
def library() -> ctypes.CDLL:
    """libtvm_runtime.so of the installed apache-tvm, loaded for the kernels' symbols.

    Raises
    ------
    ToolError
        apache-tvm is not installed.
    """
    if path := tvm_library("libtvm_runtime.so"):
        return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    raise ToolError("libtvm_runtime.so not found; install apache-tvm, whose wheel brings it")
