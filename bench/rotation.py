"""Weights that come from memory, as a decoder meets them: more of them than the caches hold."""

from __future__ import annotations

import functools
from pathlib import Path

#: Up to this M a decoder meets weights that come from memory; they are rotated past the caches.
COLD_ROWS = 16
#: Bytes of weights to rotate through, at least this and twice the last-level cache.
ROTATED_BYTES = 128 << 20


def copies_for(weight_bytes: int) -> int:
    """How many weights to rotate through so that none is still in a cache."""
    return -(-max(ROTATED_BYTES, 2 * last_level_cache()) // weight_bytes) + 1


@functools.cache
def last_level_cache() -> int:
    """Bytes of the largest cache that Linux names; 0 where it does not."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K"):
            sizes.append(int(text[:-1]) << 10)
    return max(sizes)
