"""Memory of packed weights and the numbers beside them, where kernels may use aligned loads."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
from typing import Any

import numpy as np

ALIGNMENT = 64
HUGE_PAGE = 2 << 20


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
