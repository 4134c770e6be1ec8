"""Verify rows for chips that are not here, and record it for `quantmm targets`.

    python tests/verify_elsewhere.py [--problems 200] [--targets arm-i8mm x86-amx ...]

Arm's kernels run under qemu-aarch64 (see `.ci/arm-root`); of x86-64's the instructions that this
CPU lacks are executed in software, the others by the CPU. `quantmm verify --record` does the same
on the chip itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "emulators"))

import arm
import quantmm as qmm
from illegal_instructions import EMULATED, emulating
from quantmm.cli.verify import random_problem
from quantmm.compiler.cpu import versions
from quantmm.formats.problem import Problem, check
from quantmm.targets import machine, verified
from rich.progress import track

#: Kernel files that one emulated process checks.
BATCH = 50


def compiled(problem: Problem, target: str) -> qmm.Kernel:
    """A kernel for the one M of the problem."""
    return qmm.compile(dataclasses.replace(problem.spec, m=problem.m), target, cache=False)


def under_qemu(target: str, problems: list[Problem]) -> tuple[str, list[str | None]]:
    """How the problems went on an aarch64 machine in software."""
    answers: list[str | None] = []
    for start in track(range(0, len(problems), BATCH), target):
        with tempfile.TemporaryDirectory() as folder:
            pairs = []
            for number, problem in enumerate(problems[start : start + BATCH]):
                path = Path(folder, f"{number}.qmm")
                kernel = compiled(problem, target)
                kernel.save(path)
                pairs.append((path, dataclasses.replace(problem, spec=kernel.spec)))
            answers += arm.check(pairs)
    version = subprocess.run([arm.QEMU, "--version"], capture_output=True, text=True, check=True)
    return f"qemu-aarch64 {version.stdout.split()[2]} -cpu max", answers


def with_instructions_in_software(
    target: str, problems: list[Problem]
) -> tuple[str, list[str | None]]:
    """How the problems went on this CPU, which lacks some of the instructions."""
    row = qmm.targets.find_cpu(target)
    if reason := machine.why_not(row.architecture, row.features - EMULATED):
        raise SystemExit(f"{target}: {reason}, which is not emulated")
    here = machine.cpu_features()
    machine.cpu_features = lambda: here | row.features  # type: ignore[assignment]
    machine.tiles_refused = lambda: None
    answers = []
    try:
        for problem in track(problems, target):
            kernel = compiled(problem, target)
            with emulating():
                answers.append(check(problem, kernel))
    finally:
        machine.cpu_features = lambda: here  # type: ignore[assignment]
    return verified.INSTRUCTION, answers


def main() -> None:
    """Verify and record."""
    lacking = [row for row in qmm.targets.TARGETS if qmm.targets.why_not_here(row)]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--targets", nargs="+", default=[row.name for row in lacking])
    arguments = parser.parse_args()
    for name in arguments.targets:
        row = qmm.targets.find(name)
        problems = [random_problem(row, seed) for seed in range(arguments.problems)]
        foreign = row.architecture == "aarch64"
        way = under_qemu if foreign else with_instructions_in_software
        how, answers = way(name, problems)
        for problem, wrong in zip(problems, answers, strict=True):
            if wrong:
                raise SystemExit(f"{problem.line(name)}\n{wrong}")
        cpu = machine.cpu_name()
        today = datetime.date.today().isoformat()
        verified.write(verified.Record(name, how, cpu, len(problems), today, versions()))


if __name__ == "__main__":
    main()
