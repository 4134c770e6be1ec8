"""`quantmm bench` on an emulated card: the same tables as for CPUs. No test asserts a time."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import bench_gpu
import emulated_card
import numpy as np
import pytest
import quantmm as qmm
from quantmm.bench import check, compare, contenders, cuda_limits, export
from quantmm.bench.contenders import Job, torch_gpu
from quantmm.cli import bench as cli_bench
from quantmm.errors import ReportError, TargetError

TESTS = Path(__file__).parent.parent


@pytest.fixture
def card(monkeypatch):
    """The card, here and in children."""
    paths = [str(TESTS), str(TESTS / "emulators"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    ours, limits = (
        dataclasses.replace(each, builder=f"bench_gpu:{each.builder.rpartition(':')[2]}")
        for each in (contenders.OURS, contenders.LIMITS)
    )
    monkeypatch.setattr(compare, "OURS", ours)
    monkeypatch.setattr(compare, "LIMITS", limits)
    on_gpu = [
        dataclasses.replace(each, builder=f"bench_gpu:{each.builder.rpartition(':')[2]}", needs=())
        for each in contenders.CONTENDERS
        if each.device == "cuda"
    ]
    monkeypatch.setattr(contenders, "CONTENDERS", tuple(on_gpu))
    return emulated_card.install(monkeypatch, "cuda-sm80")


def test_a_table_and_going_on(quantmm, card, tmp_path):
    path = tmp_path / "rows.json"
    words = ["bench", "--target", "cuda", "--n", 32, "--k", 256, "--rounds", 2, "--json", path]
    status, out, err = quantmm(*words, "--m", "3", "--time-limit", 1000)
    assert status == 0, err
    first, _, line, *_ = out.splitlines()
    assert first == "cuda-sm80 on emulated"
    assert line.split()[:5] == ["3", "x", "32", "x", "256"]
    (row,) = export.rows_of(str(path), json.loads(path.read_text())["environment"])
    assert {"quantmm", "bfloat16", "float16"} <= row.times.keys(), row.absent
    assert row.baselines == ("bfloat16", "float16")
    assert row.limits.gbps_l2 > 0
    assert row.job.cold
    # The same again measures nothing again, and what the time ends is said.
    before = row.times["quantmm"]
    times = iter([0.0, 9.0])
    clock = type("clock", (), {"monotonic": staticmethod(lambda: next(times))})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli_bench, "time", clock)
        status, out, _ = quantmm(*words, "--m", "3,5", "--time-limit", 5)
    assert status == 0
    assert "the time was over; 1 shapes are left" in out
    (row,) = export.rows_of(str(path), json.loads(path.read_text())["environment"])
    assert row.times["quantmm"] == before


def test_the_page_of_gpus(quantmm, card, monkeypatch):
    section = dataclasses.replace(check.CUDA_SECTIONS[1], shapes=(check.Shape(2, 32, 256),))
    monkeypatch.setattr(check, "CUDA_SECTIONS", (section,))
    words = ["bench", "--check", "--target", "cuda", "--rounds", 1, "--against", "int_mm"]
    status, out, err = quantmm(*words)
    assert status == 0, err
    assert "GPU: int4, groups of 128:" in out
    assert "2 x 32 x 256" in out
    assert "without int_mm: has nothing for this format" in out


def test_limits_are_counted_right(monkeypatch):
    """On an emulated card whose every launch takes a second."""
    card = emulated_card.install(monkeypatch, "cuda-sm80")
    bench_gpu.small(monkeypatch)
    monkeypatch.setattr(card, "seconds", lambda device, stream, work: work() or 1.0)
    for name in ("cuda-sm80", "cuda-sm75", "cuda-sm75-dp4a"):
        row = qmm.targets.find(name)
        found = cuda_limits.measure(row, cuda_limits.image(row))
        # 4 multiprocessors, a block of 8 warps on each; 8 sums, 2 products of each.
        products = {"cuda-sm80": 16 * 8 * 32, "cuda-sm75": 8 * 8 * 16, "cuda-sm75-dp4a": 32 * 4}
        assert found.gops == pytest.approx(2 * products[name] * 32 * 8 * 2 / 1e9)
        assert found.gbps == pytest.approx((1 << 14) / 1e9)
        assert found.gbps_l2 == pytest.approx((1 << 12) / 1e9)


def test_torch_packs_what_quantmm_packs(monkeypatch):
    """(q - 8) scale + zero is the weight."""
    seen = {}

    class Tensor(np.ndarray):
        def cuda(self):
            return self

        def to(self, kind):
            return self

    fake = type(sys)("torch")
    fake.from_numpy = lambda array: array.view(Tensor)
    fake.bfloat16 = "bfloat16"
    fake._convert_weight_to_int4pack = lambda pairs, tiles: seen.setdefault("pairs", pairs)
    monkeypatch.setitem(sys.modules, "torch", fake)
    for fields in ({"weight": "int4"}, {"weight": "uint4", "weight_offset": True}):
        seen.clear()
        spec = qmm.MatmulSpec(n=8, k=64, group_size=32, input="float32", dynamic=True, **fields)
        weight = Job(spec, 1, 1, False, "cuda-sm80").weight()
        packed, scales = torch_gpu.int4_packed(weight)
        q = np.stack([packed >> 4, packed & 15], axis=-1).reshape(8, 64).astype(np.float32)
        scale, zero = (np.repeat(scales[:, :, i].T, 32, axis=1) for i in (0, 1))
        assert np.array_equal((q - 8) * scale + zero, weight.floats())


def test_what_cannot_be_measured(quantmm, card, tmp_path):
    for words, message in [
        (["--threads", 2], "--threads: a GPU has none"),
        (["--time-limit", 0], "--time-limit is 0.0; expected more than 0 seconds"),
        (["--inside", "torch"], "target cuda is a GPU's; expected one of a CPU"),
    ]:
        assert message in quantmm("bench", "--target", "cuda", "--n", 32, "--k", 64, *words)[2]
    with pytest.raises(TargetError, match="cuda-sm90 cannot run here: needs compute capability 9"):
        compare.compare(Job(qmm.MatmulSpec(n=8, k=8), 1, 1, True, "cuda-sm90"), ())
    path = tmp_path / "rows.json"
    path.write_text("[]")
    with pytest.raises(ReportError, match="has no rows of quantmm bench to go on with"):
        export.rows_of(str(path), {})
    path.write_text('{"rows": [], "environment": {"gpu": "A100"}}')
    with pytest.raises(ReportError, match="has rows of another gpu: A100; here is H100"):
        export.rows_of(str(path), {"gpu": "H100"})
