"""Which kernel a GPU computes a number of rows with: a card that is full before a large tile."""

from __future__ import annotations

import dataclasses
import math

import pytest
import quantmm as qmm
from quantmm.compiler import cuda, nvrtc
from quantmm.schedules.cuda import strategies
from quantmm.schedules.cuda.cost import CudaCost
from quantmm.schedules.cuda.plan import plan_for
from quantmm.schedules.cuda.steps import band_panels
from quantmm.targets.cuda import CUDA_TARGETS

ROWS = {row.name: row for row in CUDA_TARGETS}


def chosen(target, m, n, k=4096, **fields):
    """The kernel, its thread blocks, and the most that any has."""
    spec = qmm.MatmulSpec(n=n, k=k, m=m, **fields)
    layout = plan_for(spec, target).layout

    def blocks(variant):
        return -(-m // variant.tile.rows) * variant.cost(layout).panels

    (variant,) = cuda.choose_variants(plan_for(spec, target))
    return (
        variant.name,
        blocks(variant),
        max(map(blocks, strategies.variants(plan_for(spec, target)))),
    )


@pytest.mark.parametrize("n", [2048, 4096, 8192, 28672])
@pytest.mark.parametrize("m", [64, 128, 256, 512, 1024])
@pytest.mark.parametrize("target", ["cuda-sm80", "cuda-sm90"])
def test_every_multiprocessor_has_a_block(target, m, n):
    for k in (1024, 4096, 14336):
        name, blocks, most = chosen(ROWS[target], m, n, k)
        assert name.startswith(("splitk", "mma"))
        # 128 of 132 are all but 3 %, which a tile of half the size would not win back.
        assert blocks >= 0.95 * min(most, ROWS[target].multiprocessors), name


@pytest.mark.parametrize("target", CUDA_TARGETS, ids=lambda target: target.name)
def test_no_grid_leaves_half_of_a_card_empty(target):
    for fields in ({}, {"weight": "int4", "group_size": 128}):
        for n in (1024, 2048, 3072, 5120, 6144, 11008, 14336):
            for m in (64, 96, 128, 200, 384, 768, 1536, 4096):
                name, blocks, most = chosen(target, m, n, **fields)
                assert blocks >= 0.5 * min(most, target.multiprocessors), (name, m, n)


@pytest.mark.parametrize(
    ("m", "n", "name"),
    [
        (1, 4096, "gemv_1x8"),
        (4, 4096, "gemv_4x8"),
        (16, 4096, "splitk_16x32"),
        (32, 4096, "splitk_32x32"),
        (64, 4096, "splitk_64x32"),
        (128, 4096, "mma_64x64"),
        (128, 28672, "mma_128x128"),
        (512, 4096, "mma_128x128"),
        (1024, 4096, "mma_128x256"),
        (8192, 8192, "mma_128x256"),
    ],
)
def test_what_an_h100_uses(m, n, name):
    assert chosen(ROWS["cuda-sm90"], m, n)[0] == name


def test_bands_share_panels_out_evenly():
    for panels in range(1, 300):
        for columns in (8, 32, 64, 128, 256):
            width = band_panels(panels, columns)
            assert panels % width == 0
            assert width == panels or 1024 < width * columns <= 2048
    assert [band_panels(32, 256), band_panels(64, 128), band_panels(20, 256)] == [8, 16, 5]


def test_products_take_whole_waves_and_bytes_are_shared():
    cost = CudaCost(rows=64, panels=10, products=3.0, traffic=5.0)
    assert cost.time(1, 20) == cost.time(128, 20) == 3 + 5
    assert cost.time(129, 20) == 2 * 3 + 1.5 * 5
    assert cost.time(64, 20) == cost.time(64, 10)
    large = dataclasses.replace(cost, first_m=1024)
    assert (large.time(1023, 20), large.time(1024, 20)) == (math.inf, cost.time(1024, 20))


def test_a_kernel_of_every_m_and_one_of_a_fixed_m_choose_alike(monkeypatch):
    monkeypatch.setattr(nvrtc, "compile_cuda", lambda source, arch, form: form.encode())
    target = ROWS["cuda-sm90"]
    kernel = qmm.compile(qmm.MatmulSpec(n=4096, k=4096), target, cache=False)
    for row in kernel.report([1, 16, 128, 2048]):
        name, blocks, _ = chosen(target, row["m"], 4096)
        assert (row["function"], row["thread_blocks"]) == (name, blocks)
