"""Kernel files for Arm, written here and run under qemu-aarch64."""

from __future__ import annotations

import arm
import numpy as np
import pytest
import quantmm as qmm
from quantmm.compiler import linker
from quantmm.errors import ToolError
from quantmm.formats.problem import Problem, random_spec

ROWS = [target.name for target in qmm.targets.TARGETS if target.architecture == "aarch64"]
SPECS = 7
#: A chip with dot products but no matrix multiply, and one with neither.
DOT_PRODUCTS_ONLY, NEITHER = "neoverse-n1", "cortex-a72"


@pytest.fixture(autouse=True)
def qemu():
    if reason := arm.why_not():
        pytest.skip(reason)
    try:
        linker.command("aarch64")
    except ToolError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("target", ROWS)
def test_random_problems_agree(target, tmp_path):
    rng = np.random.default_rng(0)
    pairs = []
    for number in range(SPECS):
        n, k = (int(size) for size in rng.integers(1, (120, 250)))
        spec = random_spec(lambda choices: choices[rng.integers(len(choices))], n, k)
        path = tmp_path / f"{number}.qmm"
        qmm.compile(spec, target).save(path)
        pairs += [(path, Problem(spec, int(m), number)) for m in rng.integers(1, 40, 3)]
    answers = arm.check(pairs, num_threads=2)
    assert len(answers) == len(pairs)
    wrong = [
        (problem.line(target), answer)
        for (_, problem), answer in zip(pairs, answers, strict=True)
        if answer
    ]
    assert wrong == []


def test_a_file_for_many_chips_takes_what_the_chip_has(tmp_path):
    path = tmp_path / "fat.qmm"
    spec = qmm.MatmulSpec(n=40, k=70)
    first, *others = (qmm.compile(spec, name) for name in ("x86-avx2", *ROWS))
    first.save(path, *others)
    code = f"import quantmm as qmm; print(qmm.load({str(path)!r}).info.target)"
    assert arm.run("-c", code).strip() == "arm-i8mm"
    assert arm.run("-c", code, cpu=DOT_PRODUCTS_ONLY).strip() == "arm-dotprod"
    with pytest.raises(RuntimeError, match=r"TargetError.*lacks asimddp"):
        arm.run("-c", code, cpu=NEITHER)


def test_what_the_chip_lacks_is_refused_before_it_runs(tmp_path):
    path = tmp_path / "k.qmm"
    spec = qmm.MatmulSpec(n=40, k=70)
    qmm.compile(spec, "arm-i8mm").save(path)
    (answer,) = arm.check([(path, Problem(spec, 3))], cpu=DOT_PRODUCTS_ONLY)
    assert answer is not None
    assert answer.startswith("TargetError")
    assert "this CPU lacks i8mm" in answer


def test_the_check_sees_a_wrong_kernel(tmp_path):
    path = tmp_path / "k.qmm"
    qmm.compile(qmm.MatmulSpec(n=40, k=70), "arm-dotprod").save(path)
    (answer,) = arm.check([(path, Problem(qmm.MatmulSpec(n=40, k=71), 3))])
    assert answer
