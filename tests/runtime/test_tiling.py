"""How the rows of a call are cut: into tiles, and these into blocks for threads."""

from __future__ import annotations

import problems
import pytest
import quantmm as qmm
from quantmm.runtime import info, threads


@pytest.mark.parametrize(
    ("tiles", "count", "blocks"),
    [
        (64, 2, 2),
        (64, 16, 16),
        (43, 2, 2),  # 44 tiles are hardly more
        (3, 2, 1),  # 4 tiles would be
        (2, 2, 1),  # each of one tile
        (16, 16, 8),
        (1, 8, 1),
        (9, 4, 3),
    ],
)
def test_rows_are_cut_into_blocks_of_equal_size(tiles, count, blocks):
    assert info.blocks_of(tiles, count) == blocks


@pytest.mark.parametrize(("n", "blocks"), [(384, 2), (8192, 1)])
def test_each_thread_has_a_block_of_rows_where_a_core_keeps_the_weight(monkeypatch, n, blocks):
    monkeypatch.setattr(threads, "own_limit", lambda: 2)
    kernel = problems.compiled(qmm.MatmulSpec(n=n, k=384), "x86-avx2", rows=(512,))
    assert kernel.plan(512).mo == blocks
