"""A target of one's own: a row like another with other sizes, checked without the chip.

A row that should stay belongs into targets/; docs/contribute.md has the steps. This one lives in a
program, which is enough to try it.

    python examples/add_target.py
"""

from __future__ import annotations

import dataclasses

import quantmm as qmm
from quantmm.formats.problem import Problem, check

#: Like Zen 4, but with a last-level cache that gives a core 2 MB.
ROW = dataclasses.replace(
    qmm.targets.find_cpu("x86-avx512vnni"), name="x86-mychip", cache_bytes=2 << 20
)


def main() -> None:
    """Compile for the row with loops in the place of its instruction, and compare."""
    spec = qmm.MatmulSpec(n=40, k=100, m=7, input="float32", dynamic=True)
    kernel = qmm.compile(spec, qmm.targets.emulated(ROW), cache=False)
    wrong = check(Problem(spec, m=7), kernel)
    print(wrong or f"{ROW.name}: equal to the reference")


if __name__ == "__main__":
    main()
