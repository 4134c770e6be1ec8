"""What is tried."""

from __future__ import annotations

import itertools

import numpy as np
import quantmm as qmm
from quantmm import targets
from quantmm.bench import check
from quantmm.bench.models import MODELS
from quantmm.formats.named import FORMATS
from quantmm.schedules.cpu.plan import plan_for
from quantmm.schedules.cpu.space import of_trace
from quantmm.tuning import on_cpu
from quantmm.tuning.model import Model
from quantmm.tuning.on_cpu import default_choice
from quantmm.tuning.search import Search


def test_there_is_a_default_for_every_benchmark_shape(row):
    layers = {(each.n, each.k) for layers in MODELS.values() for each in layers}
    specs = {
        qmm.MatmulSpec(n=n, k=k, **fields)
        for (n, k), fields in itertools.product([*layers, (7, 3)], FORMATS.values())
    }
    shapes = {*itertools.product(specs, (1, 2, 7, 16, 512, 2048))}
    shapes |= {(job.spec, job.m) for section in check.SECTIONS for job in section.jobs(1)}
    for spec, m in shapes:
        default = default_choice(plan_for(spec, row), m)
        assert on_cpu.refusal(plan_for(spec, row), default) is None
        assert default.k_block == plan_for(spec, row).layout.k_block


def test_every_space_has_the_default(row):
    for fields, m in itertools.product(FORMATS.values(), (1, 4, 16, 512)):
        spec = qmm.MatmulSpec(n=768, k=768, **fields)
        search = Search(spec, row, m, 0, 4)
        default = default_choice(plan_for(spec, row), m)
        assert of_trace(search.trace(default)) == default.decisions()


def test_the_search_learns():
    def seconds(each):
        p = each.parameters
        return 1 + abs(p.rows - 6) + abs(p.blocks - 3) + (p.unroll != 2) + (each.k_block != 32)

    spec = qmm.MatmulSpec(n=4096, k=4096)
    found = []
    for _ in range(2):
        search = Search(spec, targets.find("x86-avx512vnni"), 512, 3, 8)
        batches = []
        for _ in range(6):
            batches.append([each for each, _ in search.propose()])
            for each in batches[-1]:
                assert on_cpu.refusal(search.plan, each) is None
                search.tell(each, [seconds(each)])
        found.append(batches)
    assert found[0] == found[1]
    tried = [each for batch in found[0] for each in batch]
    assert len(set(tried)) == len(tried)
    first, last = (np.mean([seconds(each) for each in batch]) for batch in found[0][::5])
    assert last < first
    assert min(map(seconds, tried)) <= 2


def test_the_model_predicts_what_it_has_seen():
    rng = np.random.default_rng(0)
    points = rng.uniform(-2, 2, (60, 4))
    logs = points[:, 0] + np.sin(points[:, 1])
    model = Model()
    model.fit(points, logs)
    mean, deviation = model.predict(points)
    assert np.abs(mean - logs).max() < 0.4
    assert np.corrcoef(mean, logs)[0, 1] > 0.98
    far, unsure = model.predict(points[:1] + np.array([0, 50, 0, 0]))
    assert unsure[0] > 2 * deviation.mean()
    assert np.isfinite(far).all()
