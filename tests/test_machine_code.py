"""The assembly of every target's kernels: its instruction is there, and registers suffice."""

from __future__ import annotations

import platform
import re

import pytest
import quantmm as qmm
from quantmm import schedules
from quantmm.compiler.build import emit_code

SPECIAL = [target for target in qmm.targets.TARGETS if target.instruction.mnemonic]
CASES = [
    pytest.param(target, variant, id=f"{target.name}-{variant.name}")
    for target in SPECIAL
    for variant in schedules.variants(target)
]


def inner_loop(assembly: str, mnemonic: str) -> list[str]:
    """The innermost loop around the instruction: from its label to the jump back."""
    lines = assembly.splitlines()
    labels = {line[:-1]: i for i, line in enumerate(lines) if re.match(r"\.?\w+:$", line)}
    loops = []
    for i, line in enumerate(lines):
        jump = re.match(r"\s+j\w+\s+(\S+)$", line)
        if jump and labels.get(jump[1], i) < i:
            body = lines[labels[jump[1]] : i + 1]
            if any(mnemonic in text for text in body):
                loops.append(body)
    assert loops, f"no loop with {mnemonic}"
    return min(loops, key=len)


@pytest.mark.parametrize(("target", "variant"), CASES)
def test_inner_loop(target, variant):
    if target.architecture != platform.machine():
        pytest.skip(f"{target.name} is for {target.architecture}")
    rows, blocks = variant.tile.rows, variant.tile.blocks
    spec = qmm.MatmulSpec(n=target.instruction.lanes * blocks * 4, k=1024, bias=True)
    assembly = emit_code(spec, target, rows, "asm")
    loop = inner_loop(assembly, target.instruction.mnemonic)
    dots = sum(target.instruction.mnemonic in line for line in loop)
    assert dots % (rows * blocks) == 0
    assert [line for line in loop if "(%rsp" in line and "mm" in line] == []
    # Accumulators stay where they are: no vector is stored.
    assert [line for line in loop if re.search(r"%[xyz]mm\d+, -?\d*\(", line)] == []


def test_ragged_columns_neither_spill_nor_lose_vector_stores():
    target = SPECIAL[0]
    if target.architecture != platform.machine():
        pytest.skip(f"{target.name} is for {target.architecture}")
    for rows, blocks in ((7, 3), (8, 3)):
        spec = qmm.MatmulSpec(n=target.instruction.lanes * blocks + 1, k=333)
        assembly = emit_code(spec, target, rows, "asm")
        loop = inner_loop(assembly, target.instruction.mnemonic)
        assert [line for line in loop if "(%rsp" in line and "mm" in line] == []
        stores = re.findall(r"vmovups\s+%zmm\d+, \S*\(", assembly)
        assert len(stores) >= 8


@pytest.mark.parametrize(
    ("form", "text"),
    [("te", "acc"), ("tir", "T.parallel"), ("ll", "define"), ("asm", ".text")],
)
def test_every_form_is_shown(form, text):
    assert text in emit_code(qmm.MatmulSpec(n=16, k=64), "host", 4, form)
