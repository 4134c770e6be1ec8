"""Time with default threads over the time with one: does a call ever lose by having more?

    python benchmarks/threads.py --output docs/threads.svg [--format w8a8-dynamic]

M in 1, 4, 16, 64, N and K in 64 to 4096: draws the ratio over the predicted work of a call, with
how many threads each used, and prints the largest. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import itertools
import statistics

import quantmm as qmm
from matplotlib.figure import Figure
from quantmm.bench import timing
from quantmm.bench.contenders.ours import kernel_calls
from quantmm.formats.named import fields_of

ROWS = (1, 4, 16, 64)
SIZES = (64, 128, 256, 512, 1024, 2048, 4096)


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", default="w8a8-dynamic")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", required=True, help="the SVG file to write")
    arguments = parser.parse_args()
    figure = Figure(figsize=(8, 4))
    axes = figure.subplots()
    ratios: dict[tuple[int, int, int], tuple[float, float, int]] = {}
    for n, k in itertools.product(arguments.sizes, arguments.sizes):
        kernel = qmm.compile(qmm.MatmulSpec(n=n, k=k, **fields_of(arguments.format)))
        for m in ROWS:
            counts = {"one": 1, "default": kernel.num_threads}
            calls = {name: kernel_calls(kernel, m, 1, count) for name, count in counts.items()}
            times = timing.interleaved(calls, arguments.rounds)
            # Within a round, so that a slow moment of the machine counts on both sides.
            pairs = zip(times["default"].samples, times["one"].samples, strict=True)
            ratio = statistics.median(default / one for default, one in pairs)
            threads = kernel.report((m,))[0]["threads"]
            ratios[m, n, k] = ratio, times["one"].median, threads
    for count in sorted({threads for *_, threads in ratios.values()}):
        points = [(one * 1e6, ratio) for ratio, one, used in ratios.values() if used == count]
        axes.plot(*zip(*points, strict=True), ".", label=f"{count} of {kernel.num_threads} threads")
    axes.set(
        xlabel="time on one thread, us",
        ylabel="time with default threads / on one",
        title=f"M x N x K, {arguments.format}, {qmm.targets.cpu_name()}",
        xscale="log",
        ylim=0,
    )
    axes.axhline(1, color="gray", linewidth=1)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(arguments.output, metadata={"Date": None})
    slowest = sorted(ratios.items(), key=lambda each: -each[1][0])[:5]
    for (m, n, k), (ratio, one, threads) in slowest:
        print(f"{m} x {n} x {k}: {ratio:.3f}, {one * 1e6:.1f} us on one thread, {threads} used")


if __name__ == "__main__":
    main()
