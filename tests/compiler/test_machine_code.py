"""The assembly of every target's kernels: its instruction is there, and registers suffice."""

from __future__ import annotations

import re

import pytest
import quantmm as qmm
from quantmm.bench.assembly import inner_loop
from quantmm.compiler.cpu import emit_code, machine_code
from quantmm.schedules.cpu.plan import plan_for
from quantmm.schedules.cpu.program import fitted
from quantmm.schedules.cpu.strategies import GEMM, GEMV, PAIRED, instruction_for
from quantmm.schedules.cpu.variants import variant

SPECIAL = [target for target in qmm.targets.TARGETS if target.instruction.mnemonic]
FORMATS = {
    "w8": {},
    "w8-unsigned": {"activation": "uint8", "weight": "uint8"},
    "w4": {"weight": "int4"},
    "w4-g128": {"weight": "int4", "group_size": 128},
    "w4-dynamic": {"weight": "int4", "input": "float32", "dynamic": True},
}
#: A vector on its way between memory and a register of x86-64 or aarch64.
ON_THE_STACK = re.compile(r"\(%rsp.*mm|mm.*\(%rsp|[qd]\d+, .*\[sp\b|\}, \[sp\b")
STORED = re.compile(r"%[xyz]mm\d+, -?\w*\(|^\s+st\w+\s+(?:\{ )?[qvd]\d")


def cases():
    """Every strategy and number of rows for int8; few, several and many for the other formats.

    Rows with one register file have the same tiles: the first of them stands for its heights, and
    others have few and many.
    """
    files = set()
    for target in SPECIAL:
        registers = target.vector_bytes, target.vector_registers, target.instruction.registers
        first = registers not in files
        files.add(registers)
        for name, fields in FORMATS.items():
            low, high = target.tile_rows[0], target.tile_rows[-2 if first else -1 :]
            tiles = [(each, rows) for each in (GEMV, GEMM) for rows in each.heights(target)]
            if name != "w8" or not first:
                tiles = [each for each in tiles if each == (GEMV, low) or each[1] in high]
            if name.startswith("w8"):
                tiles += [(PAIRED, rows) for rows in PAIRED.heights(target)]
            for strategy, rows in tiles:
                label = f"{target.name}-{name}-{strategy.name}-{rows}"
                yield pytest.param(target, fields, strategy, rows, id=label)


def variant_for(spec, target, strategy, rows):
    """The variant for tiles of `rows` rows, and the instruction in the shape that it uses."""
    plan = plan_for(spec, target)
    instruction = instruction_for(plan, strategy, rows)
    chosen = variant(plan, strategy, instruction, rows)
    return chosen, fitted(instruction, plan.layout, chosen.tile), plan.layout


@pytest.mark.parametrize(("target", "fields", "strategy", "rows"), [*cases()])
def test_inner_loop(target, fields, strategy, rows):
    spec = qmm.MatmulSpec(n=target.instruction.block_columns * 60, k=1024, bias=True, **fields)
    variant, instruction, layout = variant_for(spec, target, strategy, rows)
    loop = inner_loop(code_for(spec, target, variant), instruction.mnemonic)
    dots = sum(instruction.mnemonic in line for line in loop)
    fragments = rows // instruction.rows * variant.tile.blocks * layout.lanes // instruction.lanes
    assert dots
    assert dots % fragments == 0
    if instruction.registers is None or layout.bits == 8:
        # Weights of 4 bits go through memory on their way to a matrix tile, and nothing else does.
        assert [line for line in loop if ON_THE_STACK.search(line)] == []
        # Accumulators stay where they are: no vector is stored.
        assert [line for line in loop if STORED.search(line)] == []
    assert not any("tilestored" in line for line in loop)


def code_for(spec, target, variant):
    """The assembly of one variant."""
    return str(machine_code(plan_for(spec, target), variant).mod.inspect_source("asm"))


def test_the_checks_see_spills_and_stores():
    for line in (
        "	vmovups	%zmm3, -64(%rsp)",
        "	vmovdqa	32(%rsp), %ymm1",
        "	str	q8, [sp, #16]",
        "	ldp	q1, q2, [sp]",
        "	st1	{ v0.4s }, [sp]",
    ):
        assert ON_THE_STACK.search(line), line
    for line in (
        "	vmovdqu	%ymm1, 8(%rax)",
        "	stp	q1, q2, [x0]",
        "	st1	{ v0.4s }, [x1]",
    ):
        assert STORED.search(line), line
    assert not STORED.search("	vmovups	8(%rax), %zmm1")
    assert not ON_THE_STACK.search("	movq	8(%rsp), %rax")


@pytest.mark.parametrize("fields", FORMATS.values(), ids=FORMATS)
def test_ragged_columns_neither_spill_nor_lose_vector_stores(fields):
    target = qmm.targets.find("x86-avx512vnni")
    spec = qmm.MatmulSpec(n=target.instruction.lanes * 3 + 1, k=333, **fields)
    variant, instruction, _ = variant_for(spec, target, GEMM, 8)
    assembly = code_for(spec, target, variant)
    loop = inner_loop(assembly, instruction.mnemonic)
    assert [line for line in loop if ON_THE_STACK.search(line)] == []
    assert len(re.findall(r"vmovups\s+%zmm\d+, \S*\(", assembly)) >= 8


@pytest.mark.parametrize("name", ["w8", "w4-g128"])
def test_what_a_tile_is_moved_through_lies_in_whole_cache_lines(name):
    target = qmm.targets.find("x86-amx")
    spec = qmm.MatmulSpec(n=64, k=256, **FORMATS[name])
    code = emit_code(spec, target, 32, "ll")
    moved = re.findall(r"%(?:sums|wu|tile_config)\d* = alloca .*align (\d+)", code)
    assert moved
    assert {*moved} == {"64"}


@pytest.mark.parametrize(
    ("form", "text"),
    [("te", "acc"), ("tir", "T.parallel"), ("ll", "define"), ("asm", ".text")],
)
def test_every_form_is_shown(form, text):
    assert text in emit_code(qmm.MatmulSpec(n=16, k=64), "host", 4, form)
