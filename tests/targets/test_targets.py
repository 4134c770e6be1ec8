from __future__ import annotations

import dataclasses
import itertools
import platform

import numpy as np
import pytest
import quantmm as qmm
from quantmm import targets
from quantmm.compiler.cpu import choose_variants
from quantmm.errors import TargetError, UnsupportedError
from quantmm.formats.integers import INTEGERS, Integers
from quantmm.formats.spec import CHOICES
from quantmm.schedules.cpu import registers
from quantmm.schedules.cpu.plan import plan_for
from quantmm.schedules.cpu.strategies import GEMM, GEMV, PAIRED
from quantmm.schedules.cuda import plan as gpu_plan
from quantmm.targets.target import GEMV_ROWS

SPEC = qmm.MatmulSpec(n=16, k=64, m=2, out="int32")


def on(monkeypatch, machine=None, features=None):
    """Pretend to be on another machine."""
    if machine is not None:
        monkeypatch.setattr(platform, "machine", lambda: machine)
    if features is not None:
        monkeypatch.setattr(targets.machine, "cpu_features", lambda: frozenset(features))


def test_host_is_the_first_row_that_runs():
    row = targets.host()
    assert targets.why_not_here(row) is None
    for better in targets.TARGETS[: targets.TARGETS.index(row)]:
        assert targets.why_not_here(better)


def test_a_machine_without_features_gets_the_generic_row(monkeypatch):
    on(monkeypatch, features=[])
    assert targets.host().name == "generic"
    assert ", avx2," in (targets.why_not_here(targets.TARGETS[0]) or "")


def test_another_architecture(monkeypatch):
    on(monkeypatch, machine="aarch64")
    assert targets.host().name == "generic"
    assert targets.why_not_here(targets.TARGETS[0]) == "needs x86_64, this machine is aarch64"


def test_code_for_a_missing_feature_is_compiled_but_never_run(monkeypatch):
    kernel = qmm.compile(SPEC, "x86-avx512vnni")
    on(monkeypatch, machine="x86_64", features=["sse2"])
    w = qmm.quantize(np.ones((16, 64)))
    with pytest.raises(TargetError, match="cannot run here: this CPU lacks avx"):
        kernel(np.ones((2, 64), np.int8), w)


def test_unknown_target():
    with pytest.raises(TargetError, match="no target 'z80'; the targets are host, cuda, x86-"):
        qmm.compile(SPEC, "z80")


def test_a_target_of_ones_own_without_an_instruction_for_the_weight():
    row = targets.find("x86-avx2")
    only = tuple(each for each in row.instructions if 4 not in each.weight_bits)
    row = dataclasses.replace(row, name="mine", instructions=only)
    spec = qmm.MatmulSpec(n=16, k=64, weight="int4")
    with pytest.raises(UnsupportedError, match="mine has no instruction for int4 weights"):
        qmm.compile(spec, row)


def test_host_is_the_next_row_where_the_system_refuses_tiles(monkeypatch):
    on(monkeypatch, machine="x86_64", features=targets.find("x86-amx").features)
    monkeypatch.setattr(targets.machine, "tiles_refused", lambda: None)
    assert targets.host().name == "x86-amx"
    monkeypatch.setattr(targets.machine, "tiles_refused", lambda: "the system refuses them")
    assert targets.host().name == "x86-avx512vnni"


def test_a_weight_beyond_int32_offsets():
    with pytest.raises(
        UnsupportedError, match="elements with its padding; expected at most 2147483648"
    ):
        qmm.compile(qmm.MatmulSpec(n=1 << 17, k=1 << 15))


def test_a_format_that_no_instruction_multiplies_is_refused(monkeypatch):
    monkeypatch.setitem(INTEGERS, "int2", Integers("int2", 2, -2, 1))
    monkeypatch.setitem(CHOICES, "weight", (*CHOICES["weight"], "int2"))
    spec = qmm.MatmulSpec(n=64, k=64, weight="int2")
    for row in targets.TARGETS:
        with pytest.raises(UnsupportedError, match="has no instruction for int2 weights"):
            plan_for(spec, row)
    for gpu in targets.CUDA_TARGETS:
        with pytest.raises(UnsupportedError, match="no products for int2 weights of 2 bits"):
            gpu_plan.plan_for(spec, gpu)


def test_rows_that_share_the_names_of_instructions_compile_in_one_process():
    # A chip with half the vectors of another, made by replacing fields of its row.
    row = targets.find("x86-avx512vnni")
    narrow = tuple(dataclasses.replace(each, lanes=8) for each in row.instructions)
    other = dataclasses.replace(row, name="narrow", instructions=narrow, vector_bytes=32)
    spec = qmm.MatmulSpec(n=64, k=64)
    for target in (row, other, row, other):
        kernel = qmm.compile(spec, target, cache=False)
        assert kernel.info.layout.lanes == target.instruction.lanes


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("group_size", [None, 128])
@pytest.mark.parametrize("bits", [8, 4])
def test_tiles_fit_the_register_file(target, bits, group_size):
    spec = qmm.MatmulSpec(n=256, k=512, weight=f"int{bits}", group_size=group_size)
    plan = plan_for(spec, target)
    variants = choose_variants(plan)
    usual = [v for v in variants if v.strategy != PAIRED]
    assert sorted({v.tile.rows for v in usual}) == [*target.tile_rows]
    assert len(variants) == len(usual) + (len(target.paired_rows) if bits == 8 else 0)
    for m in (1, 2, 3, 4, 5, 17, 1000):
        serving = {v.strategy for v in usual if v.serves(m)}
        assert serving == {GEMV if m <= GEMV_ROWS else GEMM}
    for v in variants:
        spilled = v.strategy == GEMV or v.tile.blocks == 2
        sums = 2 if plan.layout.groups > 1 and not spilled else 1
        taken = registers.registers(plan, v.instruction, v.tile, sums)
        assert taken <= registers.budget(target, v.instruction) or v.tile.blocks == 1


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("group_size", [None, 24, 128])
@pytest.mark.parametrize("bits", [8, 4])
def test_layout_holds_every_weight_once_and_in_order(target, pairs, group_size, bits):
    instruction = next(each for each in target.instructions if each.reads(bits, group_size))
    for n, k in itertools.product([1, 16, 19], [1, 3, 4, 31, 64, 65, 333, 1111]):
        check_layout(instruction, n, k, group_size, bits, pairs)


def check_layout(instruction, n, k, group_size, bits, pairs):
    layout = targets.weight_layout(n, k, instruction, group_size=group_size, bits=bits, pairs=pairs)
    w = np.random.default_rng(k).integers(1, 1 << (bits - 1), (n, k)).astype(np.int8)
    packed = layout.pack(w)
    assert packed.shape == layout.shape
    low_then_high = [packed & 15, packed >> 4] if bits == 4 else [packed]
    steps = np.stack(low_then_high, axis=2)  # [blocks][step][half][lanes][depth]
    for nb in range(layout.n_blocks):
        for lane in range(layout.lanes):
            row = steps[nb, :, :, lane].reshape(layout.k_blocks, -1)
            if pairs:
                row = row.reshape(len(row), 2, -1).transpose(0, 2, 1)
            column = min(nb * layout.lanes, layout.last_column) + lane
            expected = w[column] if column < n else []
            np.testing.assert_array_equal(row[row > 0], expected)


@pytest.mark.parametrize(("n", "k"), [(1000, 333), (4095, 1111), (4096, 4096), (768, 3072)])
def test_packing_costs_at_most_two_percent(n, k):
    layout = targets.weight_layout(n, k, targets.host().instruction)
    assert np.prod(layout.shape) <= 1.02 * n * k
