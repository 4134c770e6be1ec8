"""The assembly of every target's kernels: its instruction is there, and registers suffice."""

from __future__ import annotations

import platform
import re

import pytest
import quantmm as qmm
from quantmm import schedules
from quantmm.compiler.build import emit_code, machine_code
from quantmm.compiler.operands import layout_for, operands

SPECIAL = [target for target in qmm.targets.TARGETS if target.instruction.mnemonic]
FORMATS = {
    "w8": {},
    "w4": {"weight": "int4"},
    "w4-g128": {"weight": "int4", "group_size": 128},
    "w4-dynamic": {"weight": "int4", "input": "float32", "dynamic": True},
}
CASES = [
    pytest.param(target, fields, rows, id=f"{target.name}-{name}-{rows}")
    for target in SPECIAL
    for name, fields in FORMATS.items()
    for rows in range(1, schedules.MAX_ROWS + 1)
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


@pytest.mark.parametrize(("target", "fields", "rows"), CASES)
def test_inner_loop(target, fields, rows):
    if target.architecture != platform.machine():
        pytest.skip(f"{target.name} is for {target.architecture}")
    spec = qmm.MatmulSpec(n=target.instruction.lanes * 60, k=1024, bias=True, **fields)
    layout = layout_for(spec, operands(spec, target))
    blocks = schedules.variant(target, layout, rows).tile.blocks
    loop = inner_loop(code_for(spec, target, rows), target.instruction.mnemonic)
    dots = sum(target.instruction.mnemonic in line for line in loop)
    assert dots
    assert dots % (rows * blocks) == 0
    assert [line for line in loop if "(%rsp" in line and "mm" in line] == []
    # Accumulators stay where they are: no vector is stored.
    assert [line for line in loop if re.search(r"%[xyz]mm\d+, -?\d*\(", line)] == []


def code_for(spec, target, rows):
    """The assembly of the variant with `rows` rows."""
    layout = layout_for(spec, operands(spec, target))
    variant = schedules.variant(target, layout, rows)
    return str(machine_code(spec, target, (variant,)).mod.inspect_source("asm"))


@pytest.mark.parametrize("fields", FORMATS.values(), ids=FORMATS)
def test_ragged_columns_neither_spill_nor_lose_vector_stores(fields):
    target = SPECIAL[0]
    if target.architecture != platform.machine():
        pytest.skip(f"{target.name} is for {target.architecture}")
    spec = qmm.MatmulSpec(n=target.instruction.lanes * 3 + 1, k=333, **fields)
    assembly = code_for(spec, target, 8)
    loop = inner_loop(assembly, target.instruction.mnemonic)
    assert [line for line in loop if "(%rsp" in line and "mm" in line] == []
    assert len(re.findall(r"vmovups\s+%zmm\d+, \S*\(", assembly)) >= 8


@pytest.mark.parametrize(
    ("form", "text"),
    [("te", "acc"), ("tir", "T.parallel"), ("ll", "define"), ("asm", ".text")],
)
def test_every_form_is_shown(form, text):
    assert text in emit_code(qmm.MatmulSpec(n=16, k=64), "host", 4, form)
