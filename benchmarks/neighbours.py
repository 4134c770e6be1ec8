"""Time of every M from 1 to 64 at one N x K: is there a jump between neighbours?

    python benchmarks/neighbours.py --output docs/neighbours.svg [--n 4096] [--k 4096]

Draws the times for 1 and 2 threads and prints the largest time(M + 1) / time(M). Needs matplotlib.
"""

from __future__ import annotations

import argparse
import functools
import itertools

import numpy as np
import quantmm as qmm
from matplotlib.figure import Figure
from quantmm.bench import timing
from quantmm.formats.problem import Problem

LAST = 64


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--k", type=int, default=4096)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", required=True, help="the SVG file to write")
    arguments = parser.parse_args()
    spec = qmm.MatmulSpec(n=arguments.n, k=arguments.k, activation_scale="tensor")
    problem = Problem(spec, LAST + 1)
    linear = qmm.compile(spec).bind(problem.weight(), x_scale=1.0)
    x, out = problem.activation(), np.empty((LAST + 1, arguments.n), np.float32)
    figure = Figure(figsize=(8, 4))
    axes = figure.subplots()
    for threads in sorted(arguments.threads, reverse=True):
        call = functools.partial(linear, num_threads=threads)
        calls = {str(m): [functools.partial(call, x[:m], out[:m])] for m in range(1, LAST + 2)}
        times = timing.interleaved(calls, rounds=arguments.rounds)
        medians = [times[str(m)].median * 1e3 for m in range(1, LAST + 2)]
        pairs = enumerate(itertools.pairwise(medians), start=1)
        ratio, m = max((after / before, m) for m, (before, after) in pairs)
        print(f"{threads} threads: largest ratio {ratio:.2f}, from M = {m} to {m + 1}")
        axes.plot(range(1, LAST + 2), medians, marker=".", label=f"{threads} threads")
    axes.set(
        xlabel="M",
        ylabel="ms, median",
        title=f"M x {arguments.n} x {arguments.k}, int8, {qmm.targets.cpu_name()}",
        ylim=0,
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(arguments.output, metadata={"Date": None})


if __name__ == "__main__":
    main()
