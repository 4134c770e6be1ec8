"""How long a kernel for GPUs takes, as far as its tile and its grid say it: what it is chosen by.

Nothing here imports `tvm`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Products of a multiprocessor in the time in which its share of L2's bandwidth brings a byte. By
#: published figures the tensor cores of T4, A100, L4 and H100 do 50 to 110 of them, mma.sync on
#: H100 not much more than half of its core's; dp4a does 8 to 16, less what loads of X take.
MATRIX_PRODUCTS, DOT_PRODUCTS = 64, 8


@dataclass(frozen=True)
class CudaCost:
    """What a thread block does for every k, in the time that a byte takes to arrive.

    Attributes
    ----------
    rows : of its tile.
    panels : thread blocks side by side, which have all columns together.
    products : time of its products.
    traffic : bytes of X and W that it reads from L2 or memory.
    first_m : it is not chosen for fewer rows.
    """

    rows: int
    panels: int
    products: float
    traffic: float
    first_m: int = 1

    def time(self, m: int, multiprocessors: int, experts: int = 1) -> float:
        """Relative time of `m` rows of each expert; infinite where it is not to be chosen.

        Products are a multiprocessor's own, so they take whole waves: one more block than there are
        multiprocessors takes as long as twice as many. Bandwidth is shared by all, so bytes take
        the time of all blocks together, but at least that of one, which has no more of them under
        way than bring its multiprocessor its share. The two are added, as neither hides all of
        the other. Large tiles read fewer bytes for a product, and have fewer blocks to fill the
        card with: this is where a kernel is chosen between the two.
        """
        if m < self.first_m:
            return math.inf
        waves = experts * -(-m // self.rows) * self.panels / multiprocessors
        return math.ceil(waves) * self.products + max(1.0, waves) * self.traffic
