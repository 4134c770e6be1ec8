"""What the memory of a model's temporaries costs.

torch takes the memory of every result from malloc and frees it soon after. glibc hands memory at
the end of its heap back to the system once more of it is free than twice the largest block that it
saw come and go, and then every call of the model asks for the same pages again: 9,000 page faults,
12 of 36 ms, in an encoder on 512 tokens (docs/performance.md). A larger block raises that limit.
"""

from __future__ import annotations

import functools

import numpy as np

#: Bytes of the block; glibc learns nothing from those of 32 MiB and more (mallopt(3)).
LARGEST = 31 << 20


@functools.cache
def keep_freed_memory() -> None:
    """Let malloc keep up to twice `LARGEST` bytes that the process freed.

    Settings of the program count more: glibc's limits stay where MALLOC_TRIM_THRESHOLD_ or
    mallopt set them. Another malloc than glibc's only sees a block come and go.
    """
    np.empty(LARGEST, np.uint8)
