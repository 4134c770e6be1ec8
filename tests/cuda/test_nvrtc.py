"""CUDA C++ to machine code without a GPU, and what the machine code consists of."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import quantmm as qmm
from quantmm.bench import sass
from quantmm.compiler import nvrtc
from quantmm.compiler.cuda_prelude import PRELUDE
from quantmm.compiler.emulation.program import Emulated

ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a"]

#: Every function of the prelude but m16n8k32, which begins with sm_80.
EVERYTHING = """
extern "C" __global__ void __launch_bounds__(32) everything(
    const uint4* __restrict__ x, uint4* __restrict__ y) {
  __shared__ uint4 tile[64];
  int t = threadIdx.x, c[2] = {0, 0}, sum = 0;
  unsigned d[6];
  qmm_cp_async_16(tile + t, x + t);
  qmm_cp_async_16_or_zero(tile + 32 + t, x + 32 + t, t < 16);
  qmm_cp_async_commit();
  qmm_cp_async_wait_4(); qmm_cp_async_wait_3(); qmm_cp_async_wait_2(); qmm_cp_async_wait_1();
  qmm_cp_async_wait_0();
  __syncthreads();
  qmm_ldmatrix_x4(d, tile + t);
  qmm_ldmatrix_x2(d + 4, tile + 32 + t);
  uint4 w = qmm_load_16(x + 64 + t);
  for (int i = 0; i < 6; ++i) {
    unsigned a[1] = {d[i]}, b[1] = {w.x};
    qmm_mma_m8n8k16_s8s8(c, a, b); qmm_mma_m8n8k16_s8u8(c, a, b);
    qmm_mma_m8n8k16_u8s8(c, a, b); qmm_mma_m8n8k16_u8u8(c, a, b);
    sum = qmm_dp4a_s8s8(d[i], w.y, qmm_dp4a_s8u8(d[i], w.z, sum));
    sum = qmm_dp4a_u8s8(d[i], w.y, qmm_dp4a_u8u8(d[i], w.z, sum));
  }
  uint v = (uint32_t)(int64_t)w.w & ~(uint)(uchar)(ushort)(int8_t)(uint8_t)(int16_t)(uint16_t)0;
  y[t] = make_uint4(c[0] ^ qmm_lo4(qmm_own(v)), c[1] ^ qmm_hi4(v), sum ^ qmm_lo4u(v), qmm_hi4u(v));
}
"""
PRODUCTS = """
extern "C" __global__ void __launch_bounds__(32) products(
    const uint4* __restrict__ x, int4* __restrict__ y) {
  int t = threadIdx.x, c[4] = {0, 0, 0, 0};
  uint4 w = x[t], v = x[32 + t];
  unsigned a[4] = {v.x, v.y, v.z, v.w}, b[2] = {w.x, w.y};
  qmm_mma_m16n8k32_s8s8(c, a, b); qmm_mma_m16n8k32_s8u8(c, a, b);
  qmm_mma_m16n8k32_u8s8(c, a, b); qmm_mma_m16n8k32_u8u8(c, a, b);
  y[t] = make_int4(c[0], c[1], c[2], c[3]);
}
"""
LOOP = """
extern "C" __global__ void __launch_bounds__(128) loop(
    const uint4* __restrict__ a, const uint4* __restrict__ b, int* __restrict__ c, int n) {
  int sum = 0;
  #pragma unroll 1
  for (int i = threadIdx.x; i < n; i += 128) {
    uint4 x = a[i], w = qmm_load_16(b + i);
    sum = qmm_dp4a_s8s8(x.x, w.x, sum);
    sum = qmm_dp4a_s8s8(x.y, w.y, sum);
    sum = qmm_dp4a_s8s8(x.z, w.z, sum);
    sum = qmm_dp4a_s8s8(x.w, w.w, sum);
  }
  c[threadIdx.x] = sum;
}
extern "C" __global__ void __launch_bounds__(128) indexed(int* __restrict__ c, int n) {
  int a[64];
  for (int i = 0; i < 64; ++i) a[i] = c[i];
  for (int i = 0; i < n; ++i) a[c[i] & 63] += i;
  for (int i = 0; i < 64; ++i) c[i] = a[i];
}
extern "C" __global__ void __launch_bounds__(128) floats(float* __restrict__ x) {
  x[0] = x[1] * x[2] + x[3];
}
extern "C" __global__ void __launch_bounds__(128) fused(float* __restrict__ x) {
  x[0] = __fmaf_rn(x[1], x[2], x[3]);
}
"""


def compiled(source, architecture):
    return sass.read(nvrtc.compile_cuda(source, architecture))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_prelude_is_instructions(architecture):
    code = compiled(EVERYTHING, architecture)["everything"]
    opcodes = Counter(instruction.opcode for instruction in code.instructions)
    for x in ("S8", "U8"):
        for w in ("S8", "U8"):
            assert opcodes[f"IMMA.8816.{x}.{w}"] == opcodes[f"IDP.4A.{x}.{w}"] == 6
    for count in (".4", ".2"):
        assert opcodes[f"LDSM.16.M88{count}"] == 1
    assert code.count("LDG", "128", "NA") == 1
    copies = 0 if architecture == "sm_75" else 2
    assert code.count("LDGSTS", "128") == copies
    assert code.count("STS", "128") == 2 - copies
    assert code.count("STG", "128") == 1
    assert code.count("LDL") == code.count("STL") == code.stack_bytes == 0
    assert 1024 <= code.shared_bytes <= 2048
    assert 16 <= code.registers <= 64


@pytest.mark.parametrize("architecture", ARCHITECTURES[1:])
def test_the_large_product_is_one_instruction(architecture):
    code = compiled(PRODUCTS, architecture)["products"]
    assert code.count("IMMA", "16832") == code.count("IMMA") == 4


def test_the_large_product_needs_sm_80():
    with pytest.raises(qmm.errors.CudaSourceError, match=r"kernel.cu\(7\): error: .*m16n8k32_s8s8"):
        nvrtc.compile_cuda(PRODUCTS, "sm_75")


def test_the_emulation_has_the_same_functions():
    declared = set(re.findall(r"\bqmm_\w+(?=\()", PRELUDE))
    called = set(re.findall(r"\bqmm_\w+(?=\()", EVERYTHING + PRODUCTS))
    assert called == declared
    x = np.random.default_rng(0).integers(0, 2**32, (96, 4), np.uint32)
    y = np.zeros((32, 4), np.uint32)
    for name in ("everything", "products"):
        how = {"grid": (1,), "block": (32,), "arguments": [x, y]}
        Emulated(EVERYTHING + PRODUCTS).launch(name, **how)
        assert y.any()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loops_stack_and_roundings_are_read(architecture):
    code = compiled(LOOP, architecture)
    loop = code["loop"].inner_loop("IDP", "4A")
    assert sum(instruction.has("IDP", "4A") for instruction in loop) == 4
    assert sum(instruction.has("LDG", "128") for instruction in loop) == 2
    assert len(loop) < 20
    with pytest.raises(ValueError, match="no loop of loop with IMMA"):
        code["loop"].inner_loop("IMMA")
    assert code["loop"].stack_bytes == code["loop"].shared_bytes == code["loop"].count("STL") == 0
    assert code["indexed"].stack_bytes == 256
    assert code["indexed"].count("STL")
    assert code["indexed"].count("LDL")
    assert (code["floats"].count("FMUL"), code["floats"].count("FFMA")) == (1, 0)
    assert (code["fused"].count("FMUL"), code["fused"].count("FFMA")) == (0, 1)


def test_ptx_is_for_the_architecture():
    text = nvrtc.compile_cuda(LOOP, "sm_80", form="ptx").decode()
    assert ".target sm_80" in text
    assert ".entry loop(" in text
    assert "dp4a.s32.s32" in text


def test_what_tvm_includes_is_there():
    tvm = pytest.importorskip("tvm")
    header = tvm.get_global_func("tirx.intrinsics.cuda.header_generator")([])
    assert "#include <cuda/std/type_traits>" in header
    source = f"{header}\n{LOOP}"
    assert nvrtc.compile_cuda(source, "sm_90")
    assert Emulated(source).parameters("loop") == "PPPi"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("\nint f( {}\n", r"^kernel.cu\(2\): error: "),
        ('extern "C" __global__ void f() { nothing(); }', r'^kernel.cu\(1\): error: .*"nothing"'),
        ('__global__ void f() { asm("wrong;"); }', "^ptxas .*(error|fatal)"),
    ],
)
def test_wrong_sources(source, message):
    with pytest.raises(qmm.errors.CudaSourceError, match=message):
        nvrtc.compile_cuda(source, "sm_80")


def test_unknown_architectures():
    with pytest.raises(
        qmm.errors.ToolError, match=r"nvrtc .* does not know the architecture 'sm_1'"
    ):
        nvrtc.compile_cuda(LOOP, "sm_1")


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(nvrtc, "bindings", lambda: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert nvrtc.version() == "none"
    with pytest.raises(qmm.errors.ToolError, match=re.escape("pip install 'quantmm[cuda]'")):
        nvrtc.compile_cuda(LOOP, "sm_80")


def test_a_broken_library_is_not_passed_over(monkeypatch):
    theirs = pytest.importorskip("cuda.bindings.nvrtc", reason="no cuda-bindings")
    pathfinder = pytest.importorskip("cuda.pathfinder")

    def fail(error):
        def version():
            raise error

        monkeypatch.setattr(theirs, "nvrtcVersion", version)

    monkeypatch.setattr(nvrtc, "bindings", nvrtc.bindings.__wrapped__)
    fail(pathfinder.DynamicLibNotFoundError("nowhere"))
    assert nvrtc.bindings() is None
    fail(RuntimeError("libnvrtc.so.12: file too short"))
    with pytest.raises(qmm.errors.ToolError, match="NVRTC does not load: libnvrtc"):
        nvrtc.compile_cuda(LOOP, "sm_80")


def test_reading_what_is_no_cubin():
    with pytest.raises(qmm.errors.ToolError, match="no cubin: it begins with b'MZ"):
        sass.read(b"MZ" + bytes(100))


def test_without_a_disassembler(monkeypatch):
    cubin = nvrtc.compile_cuda(LOOP, "sm_80")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))
    sass.disassembler.cache_clear()
    with pytest.raises(qmm.errors.ToolError, match=r"nvdisasm: pip install 'quantmm\[cuda\]'"):
        sass.read(cubin)
    sass.disassembler.cache_clear()
