"""The part of TVM that a kernel needs when it runs: tvm_ffi and libtvm_runtime.so.

Nothing here imports `tvm`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import math
import mmap
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ToolError

ALIGNMENT = 64
HUGE_PAGE = 2 << 20


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


def tvm_library(name: str) -> Path | None:
    """Where a library of the installed apache-tvm is."""
    spec = importlib.util.find_spec("tvm")
    places = list(spec.submodule_search_locations or []) if spec else []
    paths = (Path(place) / "lib" / name for place in places)
    return next((path for path in paths if path.exists()), None)


def aligned_empty(shape: tuple[int, ...], dtype: Any, *, huge_pages: bool = True) -> np.ndarray:
    """An array at a multiple of 64 bytes.

    From 2 MB on it is a mapping of its own at a multiple of 2 MB, on huge pages where
    `huge_pages` asks for them and the system gives them, and on 4 KB pages otherwise.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory: Any
    if size >= HUGE_PAGE:
        alignment = HUGE_PAGE
        # Private: Linux gives shared mappings, which are Python's default, no huge pages.
        memory = mmap.mmap(-1, size + alignment, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without transparent huge pages
                memory.madvise(mmap.MADV_HUGEPAGE if huge_pages else mmap.MADV_NOHUGEPAGE)
    else:
        alignment = ALIGNMENT
        memory = bytearray(size + alignment)
    # A fifth of the time of `ndarray.ctypes.data`, which counts where a call brings its scale.
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return np.ndarray(shape, dtype, memory, -address % alignment)


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy of `array` that a kernel may read with aligned loads."""
    copy = aligned_empty(array.shape, array.dtype)
    copy[...] = array
    return copy
