"""CUDA kernels of every target: instructions, 16-byte accesses and no spills in machine code."""

from __future__ import annotations

import functools

import pytest
import quantmm as qmm
from quantmm.bench import sass
from quantmm.compiler import cuda, nvrtc
from quantmm.schedules.cuda.plan import layout_for, plan_for
from quantmm.targets.cuda import CUDA_TARGETS

FORMATS = {
    "w8": {},
    "w8-unsigned": {"activation": "uint8", "weight": "uint8"},
    "w4": {"weight": "int4", "out": "int8"},
    "w4-g128": {"weight": "int4", "group_size": 128, "input": "float16", "dynamic": True},
    "w4-g32": {"weight": "int4", "group_size": 32, "weight_zero_point": True},
    "w4-g128-zero": {"weight": "uint4", "group_size": 128, "weight_zero_point": True},
    "w8-g64": {"group_size": 64, "residual": True, "bias": True, "activation_fn": "silu"},
}
STRATEGIES = ("gemv", "splitk", "dp4a", "mma")
#: What the tensor core's instruction is called in SASS, by the oldest generation that has it.
MATRIX = {(7, 5): ("IMMA", "8816"), (8, 0): ("IMMA", "16832")}

#: The rows of dp4a and of sm80 have all formats. Others, which differ from one of them in the
#: size of shared memory or share its instructions, have those with most registers.
FEW = {"cuda-sm75": ("w8", "w4-g32", "w4-g128-zero"), "cuda-sm86": ("w8", "w4-g128")}
FEW["cuda-sm89"] = FEW["cuda-sm86"]
FEW["cuda-sm90"] = ("w8", "w4-g32", "w4-g128-zero")
FEW["cuda-sm100"] = FEW["cuda-sm120"] = ("w8",)
#: Of the version of NVRTC that knows a generation, where it is newer than what tests install.
NEWER = {"cuda-sm100": (12, 8), "cuda-sm120": (12, 8)}
CASES = [
    pytest.param(target, FORMATS[name], id=f"{target.name}-{name}")
    for target in CUDA_TARGETS
    for name in FEW.get(target.name, FORMATS)
]


@functools.cache
def built(target_name, fields):
    """Variants, launches and machine code by the name of a variant.

    All variants for int8; the first gemv, and the first and the last of each other strategy for
    other formats.
    """
    (target,) = (target for target in CUDA_TARGETS if target.name == target_name)
    plan = plan_for(qmm.MatmulSpec(n=1024, k=1024, **dict(fields)), target)
    variants = cuda.choose_variants(plan)
    if fields:
        of = {strategy: [v for v in variants if v.strategy == strategy] for strategy in STRATEGIES}
        ends = [v for found in of.values() for v in (*found[:1], *found[-1:])]
        ends.remove(of["gemv"][-1])
        variants = tuple(dict.fromkeys(ends))
    source, launches = cuda.source(plan, variants)
    code = sass.read(nvrtc.compile_cuda(source, target.arch, form="cubin"))
    named = {variant.name: variant for variant in variants}
    return named, launches, {n: code[launch.name] for n, launch in launches.items()}


def nvrtc_version():
    return tuple(map(int, nvrtc.version().removeprefix("nvrtc ").split(".")))


def of(target, fields):
    if nvrtc_version() < NEWER.get(target.name, (0, 0)):
        pytest.skip(f"{nvrtc.version()} does not know {target.arch}")
    return built(target.name, tuple(fields.items()))


@pytest.mark.parametrize(("target", "fields"), CASES)
def test_nothing_is_spilled_and_registers_let_a_block_run(target, fields):
    _, launches, code = of(target, fields)
    for name, machine in code.items():
        assert machine.stack_bytes == 0, name
        assert machine.count("LDL") == machine.count("STL") == 0, name
        x, y, z = launches[name].block
        assert machine.registers * x * y * z <= 65536, name
        assert launches[name].shared_bytes <= target.shared_bytes, name


@pytest.mark.parametrize(("target", "fields"), CASES)
def test_products_are_the_instruction(target, fields):
    variants, _, code = of(target, fields)
    strategies = {variant.strategy for variant in variants.values()}
    assert strategies == ({"gemv", "splitk", "mma"} if target.matrix else {"gemv", "dp4a"})
    for name, variant in variants.items():
        on_threads = variant.strategy in ("gemv", "dp4a")
        newest = max(since for since in MATRIX if since <= target.capability)
        instruction = ("IDP", "4A") if on_threads else MATRIX[newest]
        assert code[name].count(*instruction), name


@pytest.mark.parametrize(("target", "fields"), CASES)
def test_memory_is_moved_16_bytes_at_a_time(target, fields):
    variants, _, code = of(target, fields)
    for name, variant in variants.items():
        machine = code[name]
        if fields.get("out") != "int8" or variant.tile.blocks > 1:  # 8 columns are 8 bytes there
            assert machine.count("STG", "128"), name
        if variant.strategy == "gemv" and fields.get("group_size") != 32:
            assert machine.count("LDG", "128"), name
        elif variant.strategy != "gemv":
            copies = ("LDGSTS", "128") if target.capability >= (8, 0) else ("LDG", "128")
            assert machine.count(*copies), name
            assert machine.count("LDS", "128") or variant.instruction.rows == 1, name


# For Blackwell NVRTC 12.9 makes longer loops of the same code (docs/gpu.md).
@pytest.mark.parametrize(
    "target",
    [t for t in CUDA_TARGETS if t.matrix and t.name not in NEWER],
    ids=lambda t: t.name,
)
def test_the_inner_loop_of_a_large_multiplication_is_products(target):
    _, _, code = of(target, FORMATS["w8"])
    mnemonic = MATRIX[max(since for since in MATRIX if since <= target.capability)]
    largest = {name: machine for name, machine in code.items() if name.startswith("mma_128")}
    assert ("mma_128x256" in largest) == (target.shared_bytes > 132 << 10)
    for name, machine in largest.items():
        loop = machine.inner_loop(*mnemonic)
        products = sum(instruction.has(*mnemonic) for instruction in loop)
        loads = sum(instruction.has("LDS") for instruction in loop)
        # A warp's 64 x 64 sums take 4 + 4 and 8 loads of fragments for 64 products of 16 x 8 x 32.
        assert products >= 3 * loads, name
        # Eight lanes read 128 consecutive bytes at a time: no narrower load, no bank twice.
        wide = sum(instruction.has("LDS", "128") for instruction in loop)
        assert wide == loads or target.capability < (8, 0), name
        # What is left is addresses, and one move for every word of X that two loads brought.
        assert products >= 0.45 * len(loop), name


@pytest.mark.parametrize(
    "target",
    [t for t in CUDA_TARGETS if t.matrix and "w4-g32" in FEW.get(t.name, FORMATS)],
    ids=lambda t: t.name,
)
def test_rows_of_16_bytes_are_loaded_as_matrices(target):
    variants, _, code = of(target, FORMATS["w4-g32"])
    for name, variant in variants.items():
        if variant.strategy != "gemv":
            # 16 rows in one load, for all of a warp's columns.
            columns = variant.tile.blocks // variant.tile.warps[1]
            matrices = code[name].count("LDSM", "4")
            assert 1 <= matrices <= code[name].count("IMMA") / columns, name


def test_int4_sums_that_could_leave_int32_are_refused():
    for activation, weight, most in (
        ("int8", "int4", 131071),
        ("uint8", "uint4", 35089),
        ("int4", "int4", 2097151),
    ):
        fields = {"n": 8, "activation": activation, "weight": weight}
        if most < 10**6:  # beyond, the spec itself is refused
            with pytest.raises(qmm.QuantmmError, match=f"has at most {most} k"):
                layout_for(qmm.MatmulSpec(k=most + 1, **fields))
        for group_size in (None, 64):
            assert layout_for(qmm.MatmulSpec(k=most, group_size=group_size, **fields))


@pytest.mark.parametrize("target", CUDA_TARGETS, ids=lambda target: target.name)
def test_every_group_size_has_tiles_that_fit(target):
    sizes = [None, *range(8, 700, 8), 1024, 4096]
    for group_size in sizes:
        for weight in ("int8", "uint4"):
            for k in (16, 300, 4096):
                spec = qmm.MatmulSpec(n=64, k=k, weight=weight, group_size=group_size)
                layout = layout_for(spec)
                for variant in cuda.choose_variants(plan_for(spec, target)):
                    tile = variant.tile
                    if variant.strategy == "gemv":
                        continue
                    x_bytes = tile.rows * layout.depth * tile.steps
                    w_bytes = tile.blocks * 8 * layout.piece * tile.steps
                    assert tile.stages >= 2, (spec, variant)
                    assert tile.stages * (x_bytes + w_bytes) <= target.shared_bytes
