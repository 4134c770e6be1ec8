"""`quantmm bench`: kernels against the machine's limits and NumPy's float32 in the same run."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import targets
from ..compiler.arrays import numpy_dtype
from ..compiler.compile import compile
from ..compiler.kernel import Kernel
from ..compiler.problem import Problem
from ..compiler.spec import MatmulSpec
from . import limits
from .timing import Time, interleaved

#: Up to this M a decoder meets weights that come from memory; they are rotated past the caches.
COLD_ROWS = 16
#: Bytes of weights to rotate through, at least this and twice the last-level cache.
ROTATED_BYTES = 128 << 20


@dataclass(frozen=True)
class Row:
    """One measured shape. Times in seconds, medians unless they say otherwise.

    Attributes
    ----------
    cold : whether the weights came from memory.
    floor : the time that the measured limits allow, see `Limits.floor`.
    share : floor / median: the share of the limit that was reached.
    numpy_ratio : NumPy's time over the kernel's for the same shape in float32.
    """

    m: int
    n: int
    k: int
    threads: int
    cold: bool
    function: str
    median: float
    least: float
    gops: float
    gbps: float
    floor: float
    share: float
    numpy: float
    numpy_ratio: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def bench(
    shapes: list[tuple[int, int, int]], spec_fields: dict[str, Any], target: str, threads: int
) -> Iterator[Row]:
    """Time each (m, n, k) of `shapes`; the limits are measured anew beside every shape."""
    row = targets.find_cpu(target)
    kernels: dict[tuple[int, int], Kernel] = {}
    for m, n, k in shapes:
        if (n, k) not in kernels:
            kernels = {(n, k): compile(MatmulSpec(n=n, k=k, **spec_fields), row)}
        kernel = kernels[n, k]
        limit = limits.measure(row, threads)
        cold = m <= COLD_ROWS
        weight_bytes = math.prod(kernel.info.layout.shape) + scale_bytes(kernel)
        copies = copies_for(weight_bytes) if cold else 1
        with numpy_threads(threads):
            times = interleaved(
                {
                    "quantmm": kernel_calls(kernel, m, copies, threads),
                    "numpy": numpy_calls(m, n, k, copies_for(4 * n * k) if cold else 1),
                }
            )
        yield make_row(kernel, (m, n, k), weight_bytes, limit, cold, times)


def scale_bytes(kernel: Kernel) -> int:
    """Bytes that a call reads beside the packed weight: a float32 per scale."""
    layout = kernel.info.layout
    return 4 * layout.n_blocks * layout.lanes * layout.groups


def make_row(
    kernel: Kernel,
    shape: tuple[int, int, int],
    weight_bytes: int,
    limit: limits.Limits,
    cold: bool,
    times: dict[str, Time],
) -> Row:
    """Put one shape's times beside its limits."""
    m, n, k = shape
    ours = times["quantmm"]
    floor = limit.floor(m, n, k, weight_bytes, cold)
    return Row(
        m=m,
        n=n,
        k=k,
        threads=limit.threads,
        cold=cold,
        function=kernel.plan(m).name,
        median=ours.median,
        least=ours.least,
        gops=2 * m * n * k / ours.median / 1e9,
        gbps=weight_bytes / ours.median / 1e9,
        floor=floor,
        share=floor / ours.median,
        numpy=times["numpy"].median,
        numpy_ratio=times["numpy"].median / ours.median,
    )


def kernel_calls(kernel: Kernel, m: int, copies: int, threads: int) -> list[Callable[[], object]]:
    """Calls of `kernel` on `copies` packed weights, everything else prepared."""
    problem = Problem(kernel.spec, m)
    x, w = problem.activation(), problem.weight()
    static = {name: v for name, v in problem.call_arguments().items() if np.ndim(v) == 0}
    per_call = {name: v for name, v in problem.call_arguments().items() if np.ndim(v)}
    out = np.empty((m, kernel.spec.n), numpy_dtype(kernel.spec.out))
    calls: list[Callable[[], object]] = []
    for _ in range(copies):
        linear = kernel.bind(w, **problem.bind_arguments(), **static)
        calls.append(functools.partial(linear, x, out, num_threads=threads, **per_call))
    return calls


def numpy_calls(m: int, n: int, k: int, copies: int) -> list[Callable[[], object]]:
    """What the user leaves behind: float32 X @ W.T, on as many bytes of weights."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((m, k), np.float32)
    out = np.empty((m, n), np.float32)
    first = rng.standard_normal((n, k), np.float32)
    weights = [first, *(first.copy() for _ in range(copies - 1))]
    return [functools.partial(np.matmul, x, w.T, out=out) for w in weights]


def numpy_threads(threads: int) -> Any:
    """A context in which NumPy's BLAS uses `threads` threads."""
    import threadpoolctl

    return threadpoolctl.threadpool_limits(threads, "blas")


def copies_for(weight_bytes: int) -> int:
    """How many weights to rotate through so that none is still in a cache."""
    return -(-max(ROTATED_BYTES, 2 * last_level_cache()) // weight_bytes) + 1


def last_level_cache() -> int:
    """Bytes of the largest cache that Linux names; 0 where it does not."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K"):
            sizes.append(int(text[:-1]) << 10)
    return max(sizes)
