"""A GPU's limits, measured by kernels of its own: products and bytes per second.

The kernels are compiled with the functions that generated code calls (`compiler.cuda_prelude`).
Their machine code can be made where no GPU is, and measured with where no compiler is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from ..compiler import nvrtc
from ..runtime import driver
from ..runtime.cuda_buffer import Buffer
from ..runtime.driver import Driver
from ..targets.cuda import WARP, CudaTarget
from .roofline import Limits

#: Bytes that are copied, beyond every L2; and bytes that stay in L2, read again and again.
COPIED, IN_L2, L2_ROUNDS = 1 << 30, 8 << 20, 16
#: Blocks of a multiprocessor and their threads; sums of a warp, and products of each.
BLOCKS, THREADS, SUMS, PRODUCTS = 4, 256, 8, 1024
ROUNDS = 5

SOURCE = """
extern "C" __global__ void __launch_bounds__({threads}) copied(
    const uint4* from, uint4* to, int count) {{
  for (int i = blockIdx.x * {threads} + threadIdx.x; i < count; i += gridDim.x * {threads})
    to[i] = from[i];
}}

extern "C" __global__ void __launch_bounds__({threads}) read_again(
    const uint4* from, unsigned* to, int count, int rounds) {{
  unsigned sum = 0;
  for (int round = 0; round < rounds; round++)
    for (int i = blockIdx.x * {threads} + threadIdx.x; i < count; i += gridDim.x * {threads}) {{
      uint4 v = from[(i + round * {threads}) % count];
      sum += v.x ^ v.y ^ v.z ^ v.w;
    }}
  to[blockIdx.x * {threads} + threadIdx.x] = sum;
}}

extern "C" __global__ void __launch_bounds__({threads}) multiplied(int* to, int products) {{
  int sums[{sums}][4];
  unsigned a[4], b[2];
  for (int i = 0; i < 4; i++) a[i] = threadIdx.x + i;
  for (int i = 0; i < 2; i++) b[i] = threadIdx.x * 3 + i;
  for (int s = 0; s < {sums}; s++)
    for (int i = 0; i < 4; i++) sums[s][i] = i;
  for (int k = 0; k < products; k++)
#pragma unroll
    for (int s = 0; s < {sums}; s++) {product};
  int all = 0;
  for (int s = 0; s < {sums}; s++)
    for (int i = 0; i < 4; i++) all += sums[s][i];
  to[blockIdx.x * {threads} + threadIdx.x] = all;
}}
"""
#: The product of a warp in C++, by the name of a row's instruction.
PRODUCT = {
    "dp4a": "sums[s][0] = qmm_dp4a_s8s8(a[0], b[0], sums[s][0])",
    "mma.sync m8n8k16": "qmm_mma_m8n8k16_s8s8(sums[s], a, b)",
    "mma.sync m16n8k32": "qmm_mma_m16n8k32_s8s8(sums[s], a, b)",
}


def source(row: CudaTarget) -> str:
    """CUDA C++ of the kernels."""
    product = PRODUCT[row.instruction.name]
    return SOURCE.format(threads=THREADS, sums=SUMS, product=product)


def image(row: CudaTarget) -> bytes:
    """Their machine code.

    Raises
    ------
    ToolError
        NVRTC is not there.
    """
    return nvrtc.compile_cuda(source(row), row.arch)


def measure(row: CudaTarget, code: bytes, gpu: Driver | None = None) -> Limits:
    """The limits of the first GPU, best of several rounds.

    Raises
    ------
    TargetError
        No driver, or no GPU, or one that cannot execute the code.
    """
    gpu = gpu or driver.driver()
    stream, module = gpu.new_stream(0), gpu.load(0, code)
    device, block = gpu.devices()[0], (THREADS, 1, 1)
    grid = (BLOCKS * device.multiprocessors, 1, 1)
    results = buffer_of(gpu, 4 * grid[0] * THREADS, stream)

    def best(work: Callable[[], None]) -> float:
        work()
        return min(gpu.seconds(0, stream, work) for _ in range(ROUNDS))

    whole, halves = buffer_of(gpu, COPIED, stream), COPIED // 32
    copy = functools.partial(module.function("copied", "PPi", block), grid, stream)
    to = whole.address + 16 * halves
    copying = best(lambda: copy(whole.address, to, halves))
    again = functools.partial(module.function("read_again", "PPii", block), grid, stream)
    reading = best(lambda: again(whole.address, results.address, IN_L2 // 16, L2_ROUNDS))
    multiply = functools.partial(module.function("multiplied", "Pi", block), grid, stream)
    multiplying = best(lambda: multiply(results.address, PRODUCTS))
    warps = grid[0] * THREADS // WARP
    return Limits(
        threads=1,
        gops=2 * operations(row) * warps * SUMS * PRODUCTS / multiplying / 1e9,
        gbps_small=COPIED / copying / 1e9,
        gbps_huge=COPIED / copying / 1e9,
        gbps_l2=IN_L2 * L2_ROUNDS / reading / 1e9,
    )


def operations(row: CudaTarget) -> int:
    """Multiplications of one product of a warp."""
    product = row.instruction
    lanes = WARP if product.rows == 1 else product.rows * product.lanes
    return lanes * product.depth


def buffer_of(gpu: Driver, size: int, stream: int) -> Buffer:
    """So many bytes on the first GPU."""
    return Buffer(gpu, np.zeros(size, np.uint8), stream=stream)
