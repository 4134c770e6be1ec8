"""What a machine allows: operations and bytes per second, and the least time that they leave."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one machine can do with a number of threads; best of several rounds.

    Attributes
    ----------
    gops : 1e9 multiplications plus additions of the target's dot product per second.
    gbps : 1e9 bytes read from memory per second, with the better of 4 KB and 2 MB pages.
    gbps_small, gbps_huge : the same for each page size; on a GPU both are a copy's, what it reads
        and writes.
    gbps_l2 : of a GPU, 1e9 bytes read from its L2 per second; 0 of a CPU.
    """

    threads: int
    gops: float
    gbps_small: float
    gbps_huge: float
    gbps_l2: float = 0.0

    @property
    def gbps(self) -> float:
        """The better of the two page sizes."""
        return max(self.gbps_small, self.gbps_huge)

    def floor(self, m: int, n: int, k: int, weight_bytes: float, cold: bool) -> float:
        """Seconds below which M x N x K cannot go: operations, or bytes when read from memory."""
        compute = 2 * m * n * k / (self.gops * 1e9)
        return max(compute, weight_bytes / (self.gbps * 1e9)) if cold else compute
