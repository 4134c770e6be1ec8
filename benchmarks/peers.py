"""The README's picture: other libraries' times over quantmm's, as docs/performance.md has them.

    python benchmarks/peers.py --output docs/peers.svg

It draws the tables of that page, which `quantmm bench` measures, and measures nothing. Needs
matplotlib.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

from quantmm.bench.plots import Part, picture

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
TITLE = "AMD EPYC, Zen 4, two threads; tables of 2026-11-26 and 2026-12-01"
THREADS = "2"

#: The shapes that are drawn, of those of each table.
SHAPES = {
    "int8": [
        "1 x 4096 x 4096 cold",
        "16 x 4096 x 4096 cold",
        "128 x 4096 x 4096",
        "512 x 4096 x 4096",
        "1024 x 1024 x 1024",
        "33 x 4095 x 1111",
    ],
    "int4, groups of 128": [
        "1 x 4096 x 4096 cold",
        "16 x 4096 x 4096 cold",
        "128 x 4096 x 4096",
        "512 x 4096 x 4096",
    ],
}
BEST, FLOAT32, BFLOAT16 = "the best peer", "float32 of torch", "bfloat16 of torch"
INT8 = "dynamic int8 of torch"


def cells(text: str) -> Iterator[list[str]]:
    """The rows of the tables in a text."""
    for line in text.splitlines():
        if line.startswith("| ") or line.startswith("|  "):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def products(section: str, shapes: list[str]) -> dict[str, dict[str, float]]:
    """Ratios by shape, of a table that `quantmm bench --check` wrote."""
    found: dict[str, dict[str, float]] = {}
    current: dict[str, float] = {}
    for row in cells(section):
        if len(row) != 8 or not re.fullmatch(r"~?\d+\.\d+", row[7]):
            continue
        if row[0]:
            current = {}
            if row[1] == THREADS and row[0] in shapes:
                found[row[0]] = current
        name = {"float32": FLOAT32, "bfloat16": BFLOAT16}.get(row[6].split()[0], BEST)
        current[name] = float(row[7].lstrip("~"))
    return found


def middle(cell: str) -> float:
    """Of a cell that has one time, or two of them with "to" between."""
    return statistics.mean(float(time) for time in cell.split(" to "))


def encoder(section: str) -> dict[str, dict[str, float]]:
    """Ratios by tokens, of the table of the transformer."""
    return {
        f"{tokens} tokens": {
            INT8: middle(int8) / middle(ours),
            FLOAT32: middle(floats) / middle(ours),
        }
        for tokens, threads, floats, int8, ours, _ in (r for r in cells(section) if len(r) == 6)
        if threads == THREADS
    }


def parts(text: str) -> list[Part]:
    """What is drawn, of the text of the page."""
    _, _, text = text.partition("\n## int8\n")
    int8, _, text = text.partition("\n## Four bits")
    four, _, text = text.partition("\n## In company")
    _, _, text = text.partition("\n### A transformer\n")
    model, _, _ = text.partition("\n###")
    wanted = zip(SHAPES.items(), (int8, four), strict=True)
    drawn = [Part(name, products(section, shapes)) for (name, shapes), section in wanted]
    return [*drawn, Part("encoder, W8A8", encoder(model))]


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True, help="the SVG file to write")
    arguments = parser.parse_args()
    drawn = picture(parts(PAGE.read_text(encoding="utf-8")), TITLE)
    Path(arguments.output).write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
