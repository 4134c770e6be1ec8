"""The comparisons that docs/performance.md quotes, so that anyone can repeat them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..formats.named import fields_of
from ..formats.spec import MatmulSpec
from .contenders import GROUPS, Job
from .rotation import COLD_ROWS

#: All but NumPy's floats, which are no match for torch's.
AGAINST = tuple(group for group in GROUPS if group != "numpy")


@dataclass(frozen=True)
class Shape:
    """M, N, K, and whether the weights are the same in every call though M is small."""

    m: int
    n: int
    k: int
    hot: bool = False


@dataclass(frozen=True)
class Section:
    """A table of the page."""

    title: str
    format: str
    shapes: tuple[Shape, ...]
    target: str = "host"

    def jobs(self, threads: int) -> Iterator[Job]:
        """What is measured for the table."""
        for shape in self.shapes:
            spec = MatmulSpec(n=shape.n, k=shape.k, **fields_of(self.format))
            cold = not shape.hot and (shape.m <= COLD_ROWS or self.target == "cuda")
            yield Job(spec, shape.m, threads, cold, self.target)


LARGE = (Shape(512, 4096, 4096), Shape(128, 4096, 4096))
SQUARE, SMALL = Shape(1024, 1024, 1024), Shape(384, 768, 768)
FEW_HOT = (Shape(4, 4096, 4096, hot=True), Shape(16, 4096, 4096, hot=True))
FEW, ONE = (Shape(4, 4096, 4096), Shape(16, 4096, 4096)), Shape(1, 4096, 4096)
WIDE = Shape(1, 11008, 4096)
RAGGED = (Shape(7, 1000, 333, hot=True), Shape(33, 4095, 1111))
INT8 = (
    *LARGE,
    Shape(2048, 4096, 4096),
    SQUARE,
    Shape(384, 3072, 768),
    SMALL,
    *FEW_HOT,
    *FEW,
    ONE,
    WIDE,
    Shape(1, 4096, 11008),
    Shape(1, 32000, 4096),
    *RAGGED,
)
OTHER_TARGET = (*LARGE, SQUARE, SMALL, Shape(16, 4096, 4096, hot=True), ONE)

SECTIONS = (
    Section("int8", "int8", INT8),
    Section("int4, groups of 128", "w4a8-g128", (*LARGE, *FEW_HOT, *FEW, ONE, WIDE, *RAGGED)),
    Section("int4, groups of 32", "w4a8-g32", (*LARGE, *FEW, ONE, RAGGED[1])),
    Section("int4, one scale per row", "w4a8", (*LARGE, ONE)),
    Section(
        "int8, one scale per row, X quantized in the call",
        "w8a8-dynamic",
        (LARGE[0], Shape(16, 4096, 4096), ONE),
    ),
    *(
        Section(f"Other instruction sets: {target}", "int8", OTHER_TARGET, target)
        for target in ("x86-avxvnni", "x86-avx2", "x86-avx512")
    ),
)

#: For docs/gpu.md: large multiplications, and few rows of layers' sizes.
SQUARES = (Shape(4096, 4096, 4096), Shape(8192, 8192, 8192))
FEW_ROWS = tuple(
    Shape(m, n, k)
    for n, k in ((4096, 14336), (28672, 8192))
    for m in (1, 2, 4, 8, 16, 32, 64, 1024)
)
CUDA_SECTIONS = (
    Section("GPU: int8", "int8", (*SQUARES, *FEW_ROWS), "cuda"),
    Section("GPU: int4, groups of 128", "w4a8-g128", (*SQUARES, *FEW_ROWS), "cuda"),
    Section("GPU: int8, X quantized in the call", "w8a8-dynamic", (*SQUARES, *FEW_ROWS), "cuda"),
)


def sections(
    why_not: Callable[[str], str | None], every: Sequence[Section] = SECTIONS
) -> tuple[list[Section], dict[str, str]]:
    """The tables that a machine can fill, and why it cannot fill others, by their title.

    `why_not` says for a target why the machine cannot execute it.
    """
    reasons = {section.title: why_not(section.target) for section in every}
    able = [section for section in every if reasons[section.title] is None]
    return able, {title: reason for title, reason in reasons.items() if reason}
