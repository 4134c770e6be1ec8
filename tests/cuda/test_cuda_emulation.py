"""The emulation of CUDA C++: its primitives against NumPy, and every error that it promises."""

from __future__ import annotations

import importlib.util
import sys

import cuda_fragments
import numpy as np
import pytest
from quantmm.compiler.emulation import toolchain
from quantmm.compiler.emulation.program import Address, Emulated, Memory
from quantmm.errors import EmulationError

SIGNS = {"s8": np.int8, "u8": np.uint8}
PAIRS = [(x, w) for x in SIGNS for w in SIGNS]
LANE = np.arange(32)


def kernel(name: str, parameters: str, body: str, threads: int = 32) -> str:
    """The source of one kernel, as TVM prints them."""
    start = f'extern "C" __global__ void __launch_bounds__({threads}) {name}({parameters})'
    return f"{start};\n{start} {{\n{body}\n}}\n"


# Primitives.

PRODUCTS = "".join(
    kernel(
        f"{shape}_{x}{w}",
        "unsigned* __restrict__ a, unsigned* __restrict__ b, int* __restrict__ c",
        f"""
        int lane = threadIdx.x, sums[{n_c}];
        unsigned x[{n_a}], w[{n_b}];
        for (int i = 0; i < {n_a}; ++i) x[i] = a[lane * {n_a} + i];
        for (int i = 0; i < {n_b}; ++i) w[i] = b[lane * {n_b} + i];
        for (int i = 0; i < {n_c}; ++i) sums[i] = c[lane * {n_c} + i];
        qmm_mma_{shape}_{x}{w}(sums, x, w);
        for (int i = 0; i < {n_c}; ++i) c[lane * {n_c} + i] = sums[i];""",
    )
    for shape, n_a, n_b, n_c in (("m16n8k32", 4, 2, 4), ("m8n8k16", 1, 1, 2))
    for x, w in PAIRS
)
DOTS = "".join(
    kernel(
        f"dp4a_{x}{w}",
        "unsigned* a, unsigned* b, int* c",
        f"c[threadIdx.x] = qmm_dp4a_{x}{w}(a[threadIdx.x], b[threadIdx.x], c[threadIdx.x]);",
    )
    for x, w in PAIRS
)
LOADS = "".join(
    kernel(
        f"ldmatrix_x{n}",
        "uint4* rows, int* order, unsigned* d",
        f"""
        __shared__ alignas(16) uint4 tile[32];
        unsigned registers[{n}];
        tile[order[threadIdx.x]] = rows[threadIdx.x];
        __syncwarp();
        qmm_ldmatrix_x{n}(registers, tile + order[threadIdx.x % {8 * n}]);
        for (int i = 0; i < {n}; ++i) d[threadIdx.x * {n} + i] = registers[i];""",
    )
    for n in (2, 4)
)


@pytest.fixture(scope="module")
def primitives():
    return Emulated(PRODUCTS + DOTS + LOADS)


def random(rng, dtype, shape):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return rng.integers(low, high, shape, dtype, endpoint=True)


@pytest.mark.parametrize(("x_type", "w_type"), PAIRS)
@pytest.mark.parametrize(("rows", "depth"), [(16, 32), (8, 16)])
def test_mma(primitives, rows, depth, x_type, w_type):
    rng = np.random.default_rng(rows)
    x = random(rng, SIGNS[x_type], (rows, depth))
    w = random(rng, SIGNS[w_type], (8, depth))
    start = random(rng, np.int32, (rows, 8))
    expected = cuda_fragments.c_fragment(start + x.astype(np.int32) @ w.astype(np.int32).T)
    name = f"m{rows}n8k{depth}_{x_type}{w_type}"
    a, b = cuda_fragments.a_fragment(x), cuda_fragments.b_fragment(w)

    def product(a, b):
        c = cuda_fragments.c_fragment(start)
        primitives.launch(name, grid=(1,), block=(32,), arguments=[a, b, c])
        return c

    assert np.array_equal(product(a, b), expected)
    # Every lane counts: exchanging two of them is noticed, in either operand.
    for lane in range(1, 32):
        order = LANE.copy()
        order[[0, lane]] = lane, 0
        assert not np.array_equal(product(a[order], b), expected)
        assert not np.array_equal(product(a, b[order]), expected)


@pytest.mark.parametrize(("x_type", "w_type"), PAIRS)
def test_dp4a(primitives, x_type, w_type):
    rng = np.random.default_rng(4)
    x = random(rng, SIGNS[x_type], (32, 4))
    w = random(rng, SIGNS[w_type], (32, 4))
    c = random(rng, np.int32, 32)
    expected = c + (x.astype(np.int32) * w.astype(np.int32)).sum(1, dtype=np.int32)
    arguments = [x.view(np.uint32), w.view(np.uint32), c]
    primitives.launch(f"dp4a_{x_type}{w_type}", grid=(1,), block=(32,), arguments=arguments)
    assert np.array_equal(c, expected)


@pytest.mark.parametrize("n", [2, 4])
def test_ldmatrix(primitives, n):
    rng = np.random.default_rng(n)
    rows = random(rng, np.uint16, (32, 8))
    order = rng.permutation(32).astype(np.int32)  # the rows' places in shared memory
    d = np.zeros((32, n), np.uint32)
    name = f"ldmatrix_x{n}"
    primitives.launch(name, grid=(1,), block=(32,), arguments=[rows, order, d])
    assert np.array_equal(d, cuda_fragments.loaded(rows[: 8 * n].reshape(n, 8, 8)))
    rows = np.roll(rows, 1, axis=0)
    assert not np.array_equal(d, cuda_fragments.loaded(rows[: 8 * n].reshape(n, 8, 8)))


SMALL = (
    kernel(
        "indices",
        "int* out",
        """
        int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
        int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
        out[block * (blockDim.x * blockDim.y * blockDim.z) + thread] += 1 + thread + 1000 * block;
        """,
        128,
    )
    + kernel(
        "nibbles",
        "unsigned* v, uint4* out",
        "unsigned x = v[threadIdx.x];"
        "out[threadIdx.x] = make_uint4(qmm_lo4(x), qmm_hi4(x), qmm_lo4u(x), qmm_hi4u(x));",
    )
    + kernel("load", "uint4* v, uint4* out", "out[threadIdx.x] = qmm_load_16(v + threadIdx.x);")
    + "".join(
        kernel(
            f"{name}_{width}_{kind}",
            f"{kind}* x, {kind}* out",
            f"out[threadIdx.x] = __shfl_{name}sync(0xffffffff, x[threadIdx.x], 3, {width});",
        )
        for name in ("", "up_", "down_", "xor_")
        for width in (8, 32)
        for kind in ("int", "float")
    )
    + kernel("half_warp", "int* out", "out[threadIdx.x] = __ballot_sync(0xffff, threadIdx.x % 2);")
    + kernel("votes", "int* out", "out[threadIdx.x] = __ballot_sync(~0u, threadIdx.x % 3 == 0);")
    + kernel("count", "int* sum, float* total", "atomicAdd(sum, 2); atomicAdd(total, 0.5f);", 64)
    + kernel(
        "floats",
        "float* x, int* integers, float* out",
        """
        int i = threadIdx.x;
        integers[i] = __float2int_rn(x[i]);
        out[4 * i] = max(0.0f, x[i]);
        out[4 * i + 1] = __fmaf_rn(x[i], x[i], -1.0f);
        out[4 * i + 2] = x[i] * x[i] - 1.0f;
        out[4 * i + 3] = *(float*)(&(integers[i]));""",
    )
    + kernel(
        "copies",
        "uint4* x, uint4* out, int valid, int waited",
        """
        extern __shared__ __align__(128) unsigned char memory[];
        uint4* tile = (uint4*)memory;
        qmm_cp_async_16(tile + threadIdx.x, x + threadIdx.x);
        qmm_cp_async_commit();
        qmm_cp_async_16_or_zero(tile + 32 + threadIdx.x, x + 32 + threadIdx.x, threadIdx.x < valid);
        qmm_cp_async_commit();
        if (waited == 1) qmm_cp_async_wait_1();
        if (waited == 2) qmm_cp_async_wait_0();
        __syncthreads();
        out[threadIdx.x] = tile[31 - threadIdx.x];
        out[32 + threadIdx.x] = tile[63 - threadIdx.x];""",
    )
    + kernel(
        "reversed",
        "int* x, int* out, int synchronized",
        """
        __shared__ int tile[96];
        tile[threadIdx.x] = x[threadIdx.x];
        if (synchronized) __syncthreads();
        out[threadIdx.x] = tile[95 - threadIdx.x];""",
        96,
    )
)


@pytest.fixture(scope="module")
def small():
    return Emulated(SMALL)


@pytest.mark.parametrize("seed", [None, 7])
def test_every_thread_of_every_block_runs_once(small, seed):
    out = np.zeros((24, 24), np.int32)
    small.launch("indices", grid=(2, 3, 4), block=(4, 3, 2), arguments=[out], seed=seed)
    assert np.array_equal(out, 1 + np.arange(24) + 1000 * np.arange(24)[:, None])


def test_nibbles(small):
    v = random(np.random.default_rng(0), np.uint32, 32)
    out = np.zeros((32, 4), np.uint32)
    small.launch("nibbles", grid=(1,), block=(32,), arguments=[v, out])
    low, high = v.view(np.uint8) & 15, v.view(np.uint8) >> 4
    expected = [part.astype(np.uint8).view(np.uint32) for part in (low * 16, high * 16, low, high)]
    assert np.array_equal(out, np.stack(expected, 1))


def test_load(small):
    v = random(np.random.default_rng(0), np.uint32, (32, 4))
    out = np.zeros_like(v)
    small.launch("load", grid=(1,), block=(32,), arguments=[v, out])
    assert np.array_equal(out, v)


@pytest.mark.parametrize("kind", ["int", "float"])
@pytest.mark.parametrize("width", [8, 32])
@pytest.mark.parametrize("name", ["", "up_", "down_", "xor_"])
def test_shuffle(small, name, width, kind):
    x = (LANE * 5 + 1).astype(np.int32 if kind == "int" else np.float32)
    out = np.zeros_like(x)
    small.launch(f"{name}_{width}_{kind}", grid=(1,), block=(32,), arguments=[x, out])
    within = LANE % width
    source = {
        "": LANE - within + 3,
        "up_": np.where(within >= 3, LANE - 3, LANE),
        "down_": np.where(within + 3 < width, LANE + 3, LANE),
        "xor_": LANE ^ 3,
    }
    assert np.array_equal(out, x[source[name]])


def test_ballot(small):
    out = np.zeros(32, np.uint32)
    small.launch("votes", grid=(1,), block=(32,), arguments=[out.view(np.int32)])
    assert np.array_equal(out, np.full(32, sum(1 << i for i in range(0, 32, 3))))
    out = np.zeros(16, np.int32)
    small.launch("half_warp", grid=(1,), block=(16,), arguments=[out])
    assert np.array_equal(out, np.full(16, 0xAAAA))


@pytest.mark.parametrize("seed", [None, 1])
def test_atomic_add(small, seed):
    total, half = np.zeros(1, np.int32), np.zeros(1, np.float32)
    small.launch("count", grid=(5,), block=(64,), arguments=[total, half], seed=seed)
    assert (total[0], half[0]) == (640, 160)


def test_floats_are_rounded_as_the_device_does(small):
    x = np.array([0.5, 1.5, 2.5, -0.5, 3e9, -3e9, np.nan, 1 + 2.0**-12], np.float32)
    integers, out = np.zeros(8, np.int32), np.zeros((8, 4), np.float32)
    small.launch("floats", grid=(1,), block=(8,), arguments=[x, integers, out])
    assert integers.tolist() == [0, 2, 2, 0, 2**31 - 1, -(2**31), 0, 1]
    assert out[:, 0].tolist() == [0.5, 1.5, 2.5, 0, np.float32(3e9), 0, 0, x[7]]
    assert out[7, 1] == 2.0**-11 + 2.0**-24  # one rounding
    assert out[7, 2] == 2.0**-11  # two
    assert np.array_equal(out[:, 3].view(np.int32), integers)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_copies_are_late(small, seed):
    x = random(np.random.default_rng(0), np.uint8, (64, 16))
    poison = np.full((32, 16), 0xCD)

    def copied(waited):
        out = np.zeros_like(x)
        arguments = [x, out, 20, waited]
        how = {"grid": (1,), "block": (32,), "shared_bytes": 1024, "seed": seed}
        small.launch("copies", arguments=arguments, **how)
        return out[:32][::-1], out[32:][::-1]

    zeroed = np.where(LANE[:, None] < 20, x[32:], 0)
    assert np.array_equal(copied(2), (x[:32], zeroed))
    assert np.array_equal(copied(1), (x[:32], poison))
    assert np.array_equal(copied(0), (poison, poison))


def test_a_missing_barrier_shows(small):
    x = np.arange(96, dtype=np.int32)
    out = np.zeros_like(x)
    for seed in (None, 0, 1, 2):
        how = {"grid": (1,), "block": (96,), "seed": seed}
        small.launch("reversed", arguments=[x, out, 1], **how)
        assert np.array_equal(out, x[::-1])
        small.launch("reversed", arguments=[x, out, 0], **how)
        assert not np.array_equal(out, x[::-1])


# Errors.

WRONG = {
    # name: body, block, message
    "reads_behind": ("y[0] = x[64 + threadIdx.x];", 32, r"read at .*byte 256 of argument 0"),
    "reads_before": ("y[0] = x[-1024 * 1024];", 1, r"byte -4194304 of argument 0, outside of 256"),
    "reads_far": ("y[0] = ((int4*)x)[-268435455].x;", 1, "read at .*argument"),
    "writes_behind": ("y[n] = 1;", 1, r"write at .*byte 256 of argument 1"),
    "writes_before": ("y[-1] = 1;", 1, r"write to byte -\d of argument 1"),
    "writes_input": ("x[0] = 1;", 1, "write at .*byte 0 of argument 0, 256 bytes"),
    "misaligned": (
        "*(int4*)(y + 4 * threadIdx.x + 1) = *(int4*)x;",
        8,
        r"line \d+: misaligned access to '(struct |const )*int4' at .* no multiple of 16",
    ),
    "misaligned_load": (
        "y[0] = qmm_load_16(x + 2).x;",
        1,
        r"line \d+: misaligned access to 'const ",
    ),
    "static_shared": (
        "__shared__ int s[8]; s[n % 64 + threadIdx.x] = 1; y[0] = s[0];",
        32,
        r"line \d+: index 8 of 'int ?\[8\]' is outside",
    ),
    "local": ("int a[4] = {}; a[n % 64 + threadIdx.x] = 1; y[0] = a[0];", 8, r"'int ?\[4\]'"),
    "dynamic_shared": (
        "extern __shared__ int s[]; s[n + threadIdx.x] = 1;",
        32,
        r"write to byte \d+ of 100 bytes of shared memory|write",
    ),
    "dynamic_shared_far": ("extern __shared__ int s[]; s[-4096] = 1;", 1, "write at"),
    "early_return": (
        "if (threadIdx.x >= 48) return; __syncthreads(); y[0] = 1;",
        64,
        r"deadlock: 48 threads wait at __syncthreads\(\), 16 have returned",
    ),
    "lane_missing": (
        "if (threadIdx.x != 5) __shfl_sync(0xffffffff, 1, 0);",
        32,
        r"__shfl_sync with the mask 0xffffffff waits for lane 5, which has returned",
    ),
    "barrier_and_collective": (
        "if (threadIdx.x == 9) __syncthreads(); else __syncwarp();",
        32,
        r"__syncwarp .*waits for lane 9, which waits at __syncthreads\(\)",
    ),
    "mixed": (
        "if (threadIdx.x < 16) __shfl_down_sync(~0u, 1, 1); else __shfl_xor_sync(~0u, 1, 1);",
        32,
        "__shfl_down_sync .*waits for lane 16, which is in __shfl_xor_sync",
    ),
    "mask": ("__syncwarp(0xff);", 32, "the mask 0x000000ff, which lacks lane 8"),
    "width": ("__shfl_sync(~0u, 1, 0, 12);", 32, "width 12; expected a power of 2"),
    "part_of_a_warp": (
        "unsigned r[2]; extern __shared__ int s[]; qmm_ldmatrix_x2(r, s);",
        16,
        "qmm_ldmatrix_x2 in a warp of fewer than 32 threads",
    ),
    "ldmatrix_misaligned": (
        "unsigned r[2]; extern __shared__ int s[]; qmm_ldmatrix_x2(r, s + threadIdx.x % 8);",
        32,
        r"no multiple of 16 \(lane 1\)",
    ),
    "ldmatrix_global": (
        "unsigned r[2]; qmm_ldmatrix_x2(r, x);",
        32,
        "outside of the shared memory",
    ),
    "copy_misaligned": (
        "extern __shared__ int s[]; qmm_cp_async_16(s, x + 1);",
        1,
        "no multiples of 16",
    ),
    "copy_to_global": ("qmm_cp_async_16(y, x);", 1, "outside of the shared memory"),
    "copy_behind": ("extern __shared__ int s[]; qmm_cp_async_16(s, x + n);", 1, "byte 256"),
    "endless": ("while (((volatile int*)x)[0] == 0) {}", 1, "out of time"),
    "recursive": (
        "struct F { static int f(volatile int* x, int n) { volatile int a[4096]; a[n] = n;"
        " return n ? f(x, n - 1) + a[n] : x[0]; } }; y[0] = F::f(x, n);",
        1,
        "stack overflow",
    ),
    "misaligned_pair": ("*(int2*)(y + 1) = *(int2*)x;", 1, "misaligned access to .*int2"),
    "misaligned_copy": ("int2 v = *(int2*)(x + 1); y[0] = v.y;", 1, "misaligned access to .*int2"),
    "divides": ("y[0] = n / (n - 64);", 1, "division by zero"),
}
ERRORS = "".join(
    kernel(name, "int* __restrict__ x, int* __restrict__ y, int n", body, threads)
    for name, (body, threads, _) in WRONG.items()
) + kernel("right", "int* x, int* y, int n", "y[threadIdx.x] = x[threadIdx.x] + n;", 64)


@pytest.fixture(scope="module")
def wrong():
    return Emulated(ERRORS)


def check(program, name):
    """The kernel's error is raised, and the next launch is as if nothing had happened."""
    _, threads, message = WRONG[name]
    x, y = np.zeros(64, np.int32), np.zeros(64, np.int32)
    x.setflags(write=False)
    how = {"grid": (2,), "block": (threads,), "shared_bytes": 100, "arguments": [x, y, 64]}
    with pytest.raises(EmulationError, match=message) as caught:
        program.launch(name, seconds=0.2, **how)
    assert str(caught.value).startswith(name)
    assert not y.any()
    program.launch("right", grid=(1,), block=(64,), arguments=[x, y, 64])
    assert np.array_equal(y, np.full(64, 64))


@pytest.mark.parametrize("name", WRONG)
def test_error(wrong, name):
    check(wrong, name)


def test_errors_name_block_and_thread(wrong):
    x = np.zeros(64, np.int32)
    with pytest.raises(
        EmulationError, match=r"^lane_missing, block \(0, 0, 0\), thread \(0, 0, 0\): "
    ):
        wrong.launch("lane_missing", grid=(1,), block=(32,), arguments=[x, x, 1])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("right", {"arguments": [1]}, "1 arguments; expected 3"),
        ("right", {"arguments": [1, 2, 3]}, "argument 0 is 1; its parameter's kind is 'P'"),
        ("right", {"arguments": [Address(0), Address(0), 2**31]}, "2147483648; .*'i'"),
        ("right", {"arguments": [Address(0), Address(0), 0.5]}, "0.5; .*'i'"),
        ("right", {"block": (65,)}, r"block \(65, 1, 1\); expected at most 64"),
        ("right", {"block": (1, 1, 1, 1)}, "expected one to three sizes"),
        ("right", {"grid": (0,)}, r"grid \(0,\)"),
        ("right", {"shared_bytes": 300_000}, "300000 bytes of shared memory"),
        ("none", {}, "no kernel 'none'"),
    ],
)
def test_launches_that_cannot_be(wrong, name, options, message):
    arguments = [np.zeros(64, np.int32), np.zeros(64, np.int32), 0]
    how = {"grid": (1,), "block": (32,), "arguments": arguments, **options}
    with pytest.raises(EmulationError, match=message):
        wrong.launch(name, **how)


def test_compile_errors_are_shown():
    with pytest.raises(EmulationError, match=r"source:3:.*undeclared_thing"):
        Emulated(kernel("broken", "int* x", "x[0] = undeclared_thing;"))


def test_addresses_and_memory(wrong):
    memory = Memory(64 * 4 * 2, "the buffer")
    numbers = memory.bytes().view(np.int32)
    assert np.array_equal(memory.bytes(), np.full(512, 0xCD))
    numbers[:64] = np.arange(64)
    address = memory.address

    def launch(offset):
        arguments = [Address(address), Address(address + offset), 5]
        how = {"grid": (1,), "block": (64,), "memories": [memory]}
        wrong.launch("right", arguments=arguments, **how)

    launch(256)
    assert np.array_equal(numbers[64:], np.arange(64) + 5)
    with pytest.raises(EmulationError, match="byte 512 of the buffer, outside of 512 bytes"):
        launch(260)
    memory.free()
    with pytest.raises(EmulationError, match="read at"):
        launch(256)


# A whole kernel, and what becomes of it when something is left out.

GEMM = r"""
extern "C" __global__ void __launch_bounds__(128) gemm(
    signed char* __restrict__ x, signed char* __restrict__ w, int* __restrict__ y,
    int m, int n, int k) {
  extern __shared__ alignas(128) unsigned char memory[];
  const int STAGES = 3, ROW = 80;  // bytes of a row of 64, padded against bank conflicts
  int t = threadIdx.x, lane = t % 32, warp = t / 32;
  int row0 = blockIdx.y * 64, column0 = blockIdx.x * 64;
  int sums[2][4][4] = {};
  auto stage = [&](int s, int which) { return memory + (s * 2 + which) * 64 * ROW; };
  auto copy = [&](int step) {
    for (int i = t; i < 64 * 4; i += 128) {
      int row = i / 4, part = i % 4 * 16, at = step * 64 + part;
      qmm_cp_async_16_or_zero(stage(step % STAGES, 0) + row * ROW + part,
                              x + (row0 + row) * k + at, row0 + row < m && at < k);
      qmm_cp_async_16_or_zero(stage(step % STAGES, 1) + row * ROW + part,
                              w + (column0 + row) * k + at, column0 + row < n && at < k);
    }
  };
  int steps = (k + 63) / 64;
  for (int step = 0; step < STAGES - 1; ++step) {
    if (step < steps) copy(step);
    qmm_cp_async_commit();
  }
  for (int step = 0; step < steps; ++step) {
    qmm_cp_async_wait_1();  // waited
    __syncthreads();  // published
    if (step + STAGES - 1 < steps) copy(step + STAGES - 1);
    qmm_cp_async_commit();  // committed
    for (int part = 0; part < 64; part += 32) {
      unsigned a[2][4], b[4][2];
      for (int i = 0; i < 2; ++i)
        qmm_ldmatrix_x4(a[i], stage(step % STAGES, 0) + part + lane / 16 * 16 +
                                  (warp / 2 * 32 + i * 16 + lane % 16) * ROW);
      for (int j = 0; j < 4; ++j)
        qmm_ldmatrix_x2(b[j], stage(step % STAGES, 1) + part + lane / 8 % 2 * 16 +
                                  (warp % 2 * 32 + j * 8 + lane % 8) * ROW);
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 4; ++j) qmm_mma_m16n8k32_s8s8(sums[i][j], a[i], b[j]);
    }
  }
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 4; ++j)
      for (int e = 0; e < 4; ++e) {
        int row = row0 + warp / 2 * 32 + i * 16 + lane / 4 + e / 2 * 8;
        int column = column0 + warp % 2 * 32 + j * 8 + lane % 4 * 2 + e % 2;
        if (row < m && column < n) y[row * n + column] = sums[i][j][e];
      }
}
"""
#: What is changed, how, and the error; None where the result is wrong.
MUTATIONS = {
    "not waited": ("qmm_cp_async_wait_1();  // waited", "qmm_cp_async_wait_2();", None),
    "not published": ("__syncthreads();  // published", "", None),
    "not committed": ("qmm_cp_async_commit();  // committed", "", None),
    "too few stages": ("STAGES = 3", "STAGES = 2", None),
    "fragments exchanged": ("lane / 16 * 16 +", "(1 - lane / 16) * 16 +", None),
    "lanes exchanged": ("lane % 4 * 2 + e % 2", "(3 - lane % 4) * 2 + e % 2", None),
    "rows not guarded": ("row < m && column < n", "column < n", "write at .* of argument 2"),
    "x not guarded": ("row0 + row < m && at < k", "at < k", "read at .* of argument 0"),
    "misaligned": ("ROW = 80", "ROW = 72", "cp.async between .* no multiples of 16"),
}


def product(source, m, n, k, seed=None):
    rng = np.random.default_rng(0)
    x, w = random(rng, np.int8, (m, k)), random(rng, np.int8, (n, k))
    x.setflags(write=False)
    w.setflags(write=False)
    y = np.full((m, n), -1, np.int32)
    Emulated(source).launch(
        "gemm",
        grid=(-(-n // 64), -(-m // 64)),
        block=(128,),
        shared_bytes=3 * 2 * 64 * 80,
        arguments=[x, w, y, m, n, k],
        seed=seed,
    )
    return np.array_equal(y, x.astype(np.int32) @ w.astype(np.int32).T)


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("shape", [(64, 64, 64), (1, 1, 16), (100, 70, 336), (65, 129, 1024)])
def test_a_whole_kernel(shape, seed):
    assert product(GEMM, *shape, seed)


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_whole_kernel_that_is_wrong(name):
    before, after, message = MUTATIONS[name]
    assert before in GEMM
    wrong = GEMM.replace(before, after)
    for seed in (None, 0, 1):
        if message is None:
            assert not product(wrong, 100, 70, 336, seed)
        else:
            with pytest.raises(EmulationError, match=message):
                product(wrong, 100, 70, 336, seed)


@pytest.mark.parametrize("name", ["zig", "ucontext"])
def test_other_ways_to_compile(monkeypatch, name):
    """zig's clang, and the portable way to change stacks."""
    if name == "zig" and not importlib.util.find_spec("ziglang"):
        pytest.skip("ziglang is not installed")
    command = [sys.executable, "-m", "ziglang", "cc"]
    if name == "ucontext":
        command = [*toolchain.compiler(), "-DEMULATED_UCONTEXT"]
    monkeypatch.setattr(toolchain, "compiler", lambda: command)
    toolchain.runtime.cache_clear()
    try:
        test_a_missing_barrier_shows(Emulated(SMALL))
        program = Emulated(ERRORS)
        for wrong in WRONG:
            check(program, wrong)
    finally:
        toolchain.runtime.cache_clear()
