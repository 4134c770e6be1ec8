"""`quantmm demo`: the whole way on a small example, and where to go from there."""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import numpy as np

from ..compiler.compile import compile
from ..errors import QuantmmError
from ..formats.quantize import quantize
from ..formats.reference import reference
from ..formats.spec import MatmulSpec
from .reports import working

M, N, K = 16, 1024, 1024
#: Calls that are timed, of which the fastest is shown.
CALLS = 50

NEXT = """
What next:
  quantmm quantize weights.npy                       what each format costs on a matrix of yours
  quantmm compile --n 4096 --k 1024 -o linear.qmm    a kernel that needs no compiler to run
  quantmm --help                                     everything else, by task\
"""


@click.command("demo")
def demo_command() -> None:
    """Quantize, compile, multiply and compare: the whole way on a small example."""
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((M, K)), rng.standard_normal((N, K))
    click.echo(f"Y = X Wᵀ with X {M} x {K} and W {N} x {K}, both quantized to int8")
    w, qx = quantize(weights), quantize(x)
    spec = MatmulSpec(n=N, k=K)
    # Not from the cache: this shows that everything is there that compiling needs.
    with working("compiling"):
        kernel = compile(spec, "host", cache=False)
    info = kernel.info
    click.echo(
        f"compiled for {info.target}, this machine's CPU, whose instruction is {info.instruction}"
    )
    linear = kernel.bind(w)
    y = linear(qx)
    exact = bool(np.array_equal(y, reference(spec, qx, w)))
    error = np.abs(y - x @ weights.T).max() / np.abs(x @ weights.T).max()
    click.echo(f"equal to the reference: {exact}; error of the quantization: {error:.2%}")
    if not exact:
        raise QuantmmError("the kernel differs from the reference")
    (used,) = kernel.report([M])
    x32, w32 = x.astype(np.float32), weights.astype(np.float32)
    # First ours: NumPy's threads keep the cores busy for a while after a product.
    mine, numpys = milliseconds(lambda: linear(qx)), milliseconds(lambda: x32 @ w32.T)
    click.echo(
        f"a call takes {mine:.3f} ms on up to {used['threads']} threads ({used['pool']}); NumPy's "
        f"float32 product takes {numpys:.3f} ms"
    )
    click.echo(NEXT)


def milliseconds(call: Callable[[], object]) -> float:
    """The least time of a call."""
    times = []
    for _ in range(CALLS):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times) * 1e3
