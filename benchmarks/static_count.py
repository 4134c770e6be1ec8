"""Cycles of inner loops on chips that are not at hand, as LLVM's model of the chip counts them.

    python benchmarks/static_count.py [--llvm-mca llvm-mca-19]

The innermost loop of the int8 gemm for large M goes through llvm-mca (Debian's llvm-19), and so do
as many dot products alone (with the additions that belong to them). Share is their cycles over
the loop's: how much of the instruction's throughput it reaches. The model knows ports, latencies
and the window, and no caches: every load hits L1.
"""

from __future__ import annotations

import argparse
import re
import subprocess

import quantmm as qmm
from quantmm import targets
from quantmm.bench.assembly import inner_loop
from quantmm.compiler.cpu import choose_variants, machine_code
from quantmm.schedules.cpu.plan import plan_for
from quantmm.schedules.cpu.variants import Variant

ITERATIONS = 200

#: Sums of activations and weights, multiplied and added to accumulator {i}.
PAIRED = """\
vpaddw %{register}{x}, %{register}{w[0]}, %{register}{sums[0]}
vpaddw %{register}{x}, %{register}{w[1]}, %{register}{sums[1]}
vpmaddwd %{register}{sums[0]}, %{register}{sums[1]}, %{register}{sums[0]}
vpaddd %{register}{sums[0]}, %{register}{{i}}, %{register}{{i}}"""
#: The dot product of a row on accumulator {i}, independent of others; and how many there are.
ALONE = {
    "x86-avx2": (PAIRED.format(register="ymm", sums=(11, 12), x=13, w=(14, 15)), 8),
    "x86-avxvnni": ("{{vex}} vpdpbusd %ymm14, %ymm15, %ymm{i}", 12),
    "x86-avxvnniint8": ("vpdpbssd %ymm14, %ymm15, %ymm{i}", 12),
    "x86-avx512": (PAIRED.format(register="zmm", sums=(27, 28), x=29, w=(30, 31)), 18),
    "x86-avx512vnni": ("vpdpbusd %zmm30, %zmm31, %zmm{i}", 27),
    "x86-amx": ("tdpbusd %tmm7, %tmm6, %tmm{i}", 4),
    "arm-dotprod": ("sdot v{i}.4s, v30.16b, v31.4b[0]", 24),
    "arm-i8mm": ("smmla v{i}.4s, v30.16b, v31.16b", 24),
}
#: Rows, and CPUs of llvm-mca that have their instructions.
CHIPS = (
    ("x86-avx2", "haswell"),
    ("x86-avx2", "skylake"),
    ("x86-avx2", "znver3"),
    ("x86-avxvnni", "alderlake"),
    ("x86-avxvnniint8", "lunarlake"),
    ("x86-avx512", "skylake-avx512"),
    ("x86-avx512vnni", "icelake-server"),
    ("x86-avx512vnni", "znver4"),
    ("x86-amx", "sapphirerapids"),
    ("arm-dotprod", "neoverse-n1"),
    ("arm-dotprod", "cortex-a76"),
    ("arm-dotprod", "neoverse-v1"),
    ("arm-i8mm", "neoverse-v1"),
    ("arm-i8mm", "neoverse-n2"),
    ("arm-i8mm", "neoverse-v2"),
)


def instructions(loop: list[str]) -> list[str]:
    """A loop without labels, directives and jumps."""
    return [line for line in loop if not re.match(r"\s*(?:\.|j\w+\s|b\.)|\S+:$", line)]


def cycles(lines: list[str], architecture: str, cpu: str, command: str) -> float:
    """Cycles that one pass over `lines` takes when it is repeated."""
    done = subprocess.run(
        [
            command,
            f"-mtriple={architecture}-linux-gnu",
            f"-mcpu={cpu}",
            f"-iterations={ITERATIONS}",
        ],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    total = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    assert total, done.stdout
    return int(total[1]) / ITERATIONS


def widest_gemm(row: targets.Target) -> tuple[Variant, str]:
    """The variant that large M use, and its assembly."""
    spec = qmm.MatmulSpec(n=4096, k=4096, m=4096)
    plan = plan_for(spec, row)
    (variant,) = choose_variants(plan)
    return variant, str(machine_code(plan, variant).mod.inspect_source("asm"))


def main() -> None:
    """Count for every chip."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llvm-mca", default="llvm-mca-19")
    command = parser.parse_args().llvm_mca
    print("| target | chip | function | dot products | their cycles | loop's cycles | share |")
    print("|---|---|---|---|---|---|---|")
    for name, cpu in CHIPS:
        row = targets.find_cpu(name)
        variant, code = widest_gemm(row)
        mnemonic = str(variant.instruction.mnemonic)
        loop = instructions(inner_loop(code, mnemonic))
        dots = sum(mnemonic in line for line in loop)
        text, count = ALONE[name]
        lines = "\n".join(text.format(i=i) for i in range(count)).splitlines()
        per_dot = cycles(lines, str(row.architecture), cpu, command)
        alone = per_dot / sum(mnemonic in line for line in lines) * dots
        whole = cycles(loop, str(row.architecture), cpu, command)
        print(
            f"| {name} | {cpu} | {variant.name} | {dots} {mnemonic} "
            f"| {alone:.1f} | {whole:.1f} | {alone / whole:.0%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
