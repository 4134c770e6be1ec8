"""paired: a gemm by paired products, those of sums of activations and weights.

For chips without dot products of bytes, see `targets.instructions.paired`.

    parallel over tiles of x: pack          even and odd k apart; and the sum of products within it
    parallel over (mo, panel):
      wu = the panel of w, widened          once for all tiles: beside additions and products, which
                                            use every port, it would take a tenth of the time
      for mi, beside, kb, ks:               as `gemm`, reading wu
        for r, block: acc += (xp + wu') * (xp' + wu)
        y = epilogue(acc)                   subtracts the sums of products within x and within w
"""

from __future__ import annotations

from . import gemm

#: Packing, tiles and prefetches are those of a gemm, but for `Program.w_components_first`.
schedule = gemm.schedule
space = gemm.space
