"""Weights that come from memory, as a decoder meets them: more of them than the caches hold."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from .. import cores

#: Up to this M a decoder meets weights that come from memory; they are rotated past the caches.
COLD_ROWS = 16
#: Bytes of weights to rotate through, at least this and twice the last-level caches.
ROTATED_BYTES = 128 << 20
#: Copies at the most: those of a smaller weight than a few KB would take minutes to make, and what
#: a call costs beside them does not come from memory.
MOST_COPIES = 1 << 14


def copies_for(weight_bytes: int) -> int:
    """How many weights to rotate through so that none is still in a cache."""
    enough = -(-max(ROTATED_BYTES, 2 * last_level_cache()) // weight_bytes) + 1
    return min(enough, MOST_COPIES)


@functools.cache
def last_level_cache() -> int:
    """Bytes of the largest caches of the CPUs that this process may use; 0 where Linux names none.

    A chip may have several, each for some of its cores.
    """
    largest = (max(caches(cpu), default=(0, "")) for cpu in cores.allowed_cpus())
    return sum(size for size, _ in set(largest))


def caches(cpu: int) -> Iterator[tuple[int, str]]:
    """Bytes of a CPU's caches, and which CPUs share them."""
    for folder in (cores.CPUS / f"cpu{cpu}" / "cache").glob("index*"):
        try:
            size, shared = (
                (folder / name).read_text().strip() for name in ("size", "shared_cpu_list")
            )
        except OSError:  # no size, as on some of Arm
            continue
        if size.endswith("K"):
            yield int(size[:-1]) << 10, shared
