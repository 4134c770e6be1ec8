"""What machine code says of kernels for a GPU before one runs them.

    python benchmarks/gpu_static.py [--target cuda-sm90] [--multiprocessors N]

For every kernel at the shapes of docs/gpu.md: registers, shared memory, how many thread blocks a
multiprocessor holds (65,536 registers, 2,048 threads), the grid for one tile of rows; of the inner
loop its instructions and products; and KB of weights that a multiprocessor may have under way: what
a pipeline is filled ahead, or every load of a gemv's loop (an upper limit: the compiler may place
some behind the first use).
"""

from __future__ import annotations

import argparse

import quantmm as qmm
from quantmm import targets
from quantmm.bench import sass
from quantmm.compiler import cuda, nvrtc
from quantmm.schedules.cuda.plan import plan_for
from quantmm.schedules.cuda.strategies import CudaVariant

SHAPES: tuple[tuple[str, dict[str, object]], ...] = (
    ("w8", {"n": 4096, "k": 14336, "out": "bfloat16"}),
    ("w4 g128", {"n": 4096, "k": 14336, "weight": "int4", "group_size": 128, "out": "bfloat16"}),
    ("w8 int32", {"n": 8192, "k": 8192, "out": "int32"}),
)
REGISTERS, THREADS, REGISTERS_AT_ONCE = 65536, 2048, 8


def blocks_at_once(
    target: targets.CudaTarget, threads: int, registers: int, shared_bytes: int
) -> int:
    """Thread blocks that a multiprocessor holds."""
    each = -(-registers // REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE * threads
    by_memory = (target.shared_bytes + 1024) // (shared_bytes + 1024)
    return min(THREADS // threads, REGISTERS // each, by_memory)


def loop_of(machine: sass.MachineCode, *product: str) -> tuple[sass.Instruction, ...]:
    """The inner loop with products; all of the kernel where it is unrolled."""
    try:
        return machine.inner_loop(*product)
    except ValueError:
        return machine.instructions


def bytes_under_way(variant: CudaVariant, loop: tuple[sass.Instruction, ...], piece: int) -> int:
    """Bytes of weights on their way to a thread block."""
    tile = variant.tile
    if tile.stages:
        return (tile.stages - 1) * tile.steps * tile.blocks * 8 * piece
    loads = sum(each.has("LDG", "NA") for each in loop)
    return loads * 16 * 32 * tile.warps_in_all


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="cuda-sm90")
    parser.add_argument("--multiprocessors", type=int, help="default: the target's")
    arguments = parser.parse_args()
    target = targets.find(arguments.target)
    assert isinstance(target, targets.CudaTarget)
    multiprocessors = arguments.multiprocessors or target.multiprocessors
    print("| | kernel | registers | shared KB | blocks held | grid / held | loop | products | KB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, fields in SHAPES:
        spec = qmm.MatmulSpec(**fields)  # type: ignore[arg-type]
        plan = plan_for(spec, target)
        layout = plan.layout
        source, launches = cuda.source(plan)
        code = sass.read(nvrtc.compile_cuda(source, target.arch))
        for variant in cuda.choose_variants(plan):
            launch = launches[variant.name]
            machine = code[launch.name]
            product = ("IDP", "4A") if variant.instruction.rows == 1 else ("IMMA",)
            loop = loop_of(machine, *product)
            count = sum(each.has(*product) for each in loop)
            threads = 32 * variant.tile.warps_in_all
            held = blocks_at_once(target, threads, machine.registers, launch.shared_bytes)
            panels = -(-layout.n_blocks // variant.tile.blocks)
            at_once = min(held, -(-panels // multiprocessors))
            under_way = at_once * bytes_under_way(variant, loop, layout.piece)
            shared = launch.shared_bytes / 1024
            print(
                f"| {name} | {variant.name} | {machine.registers} | {shared:.0f} "
                f"| {held} | {panels / held / multiprocessors:.2f} | {len(loop)} "
                f"| {count} | {under_way / 1024:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
