"""What kernels for NVIDIA GPUs call beyond CUDA C++ itself: the instructions, as functions.

`PRELUDE` is put before every source that `compiler.nvrtc` compiles. Generated code calls these
functions by name; without a GPU, `emulation/emulate.h` has functions of the same
names and meaning in plain C++. X is the left operand (activations), W the right one (weights).

- qmm_dp4a_{x}{w}(x, w, c): c + the dot product of four bytes of each; {x}, {w} are s8 or u8.
- qmm_mma_m16n8k32_{x}{w}(c, a, b), from sm_80, and qmm_mma_m8n8k16_{x}{w}(c, a, b): a warp adds the
  product of fragments to c; four and two, four and one, two and one registers for c, a, b.
- qmm_ldmatrix_x{2,4}(d, shared): a warp loads 8 x 8 matrices of 16-bit elements; lane 8 i + r
  gives the address of row r of matrix i, 16 bytes of shared memory.
- qmm_cp_async_16(shared, global), qmm_cp_async_commit(), qmm_cp_async_wait_{0..4}(): copies of 16
  bytes that have happened when all groups but the last 0..4 that were committed are waited for.
  _16_or_zero(..., valid) writes zeros, and reads nothing, where `valid` is 0. Before sm_80 they
  happen at once.
- qmm_lo4(v), qmm_hi4(v): the low and high nibbles of four bytes, each times 16, as the upper half
  of a byte; qmm_lo4u, qmm_hi4u: the nibbles as 0 to 15.
- qmm_own(v): v in a register of its own, for operands that an instruction wants side by side.
- qmm_load_16(global): 16 bytes that are read once and never written during the kernel.
- int8_t to uint64_t, and uchar, ushort, uint, which generated code uses as names of types.

Fragments and operands are those of NVIDIA's "Parallel Thread Execution ISA": "dp4a", "Warp Level
Matrix Multiply-Accumulate Instructions", "ldmatrix", "cp.async", "ld.global.nc".
"""

from __future__ import annotations

START = "static __device__ __forceinline__"


def dp4a(x: str, w: str) -> str:
    """qmm_dp4a for one pairing of types."""
    return f"""\
{START} int qmm_dp4a_{x}{w}(unsigned x, unsigned w, int c) {{
  int d;
  asm("dp4a.{x[0]}32.{w[0]}32 %0, %1, %2, %3;" : "=r"(d) : "r"(x), "r"(w), "r"(c));
  return d;
}}
"""


def mma(shape: str, x: str, w: str) -> str:
    """qmm_mma for one shape and pairing of types."""
    n_c, n_a, n_b = {"m16n8k32": (4, 4, 2), "m8n8k16": (2, 1, 1)}[shape]
    names = iter(f"%{i}" for i in range(n_c + n_a + n_b))

    def group(count: int) -> str:
        return f"{{{', '.join(next(names) for _ in range(count))}}}"

    c, a, b = group(n_c), group(n_a), group(n_b)
    outputs = ", ".join(f'"+r"(c[{i}])' for i in range(n_c))
    inputs = ", ".join(
        f'"r"({array}[{i}])' for array, count in (("a", n_a), ("b", n_b)) for i in range(count)
    )
    return f"""\
{START} void qmm_mma_{shape}_{x}{w}(int* c, const unsigned* a, const unsigned* b) {{
  asm volatile("mma.sync.aligned.{shape}.row.col.s32.{x}.{w}.s32 {c}, {a}, {b}, {c};"
               : {outputs} : {inputs});
}}
"""


def ldmatrix(count: int) -> str:
    """qmm_ldmatrix for one number of matrices.

    It is volatile, which keeps it between barriers, but says nothing of memory: other loads need
    not be made again behind it.
    """
    registers = ", ".join(f"%{i}" for i in range(count))
    outputs = ", ".join(f'"=r"(d[{i}])' for i in range(count))
    return f"""\
{START} void qmm_ldmatrix_x{count}(unsigned* d, const void* shared) {{
  asm volatile("ldmatrix.sync.aligned.m8n8.x{count}.shared.b16 {{{registers}}}, [%{count}];"
               : {outputs} : "r"((unsigned)__cvta_generic_to_shared(shared)));
}}
"""


def wait(groups: int, statement: str) -> str:
    """qmm_cp_async_wait for one number of groups that may be pending."""
    return f"{START} void qmm_cp_async_wait_{groups}() {{{statement.format(groups)}}}\n"


PAIRS = [(x, w) for x in ("s8", "u8") for w in ("s8", "u8")]
PENDING = range(5)

ASYNCHRONOUS = f"""\
{START} void qmm_cp_async_16_or_zero(void* shared, const void* global, int valid) {{
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"((unsigned)__cvta_generic_to_shared(shared)), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}}
{START} void qmm_cp_async_16(void* shared, const void* global) {{
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
               :: "r"((unsigned)__cvta_generic_to_shared(shared)), "l"(global) : "memory");
}}
{START} void qmm_cp_async_commit() {{ asm volatile("cp.async.commit_group;" ::: "memory"); }}
""" + "".join(wait(n, ' asm volatile("cp.async.wait_group {};" ::: "memory"); ') for n in PENDING)

SYNCHRONOUS = f"""\
{START} void qmm_cp_async_16_or_zero(void* shared, const void* global, int valid) {{
  *(uint4*)shared = valid ? *(const uint4*)global : make_uint4(0, 0, 0, 0);
}}
{START} void qmm_cp_async_16(void* shared, const void* global) {{
  *(uint4*)shared = *(const uint4*)global;
}}
{START} void qmm_cp_async_commit() {{}}
""" + "".join(wait(n, "") for n in PENDING)

BYTES = f"""\
{START} unsigned qmm_lo4(unsigned v) {{ return (v << 4) & 0xF0F0F0F0u; }}
{START} unsigned qmm_hi4(unsigned v) {{ return v & 0xF0F0F0F0u; }}
{START} unsigned qmm_lo4u(unsigned v) {{ return v & 0x0F0F0F0Fu; }}
{START} unsigned qmm_hi4u(unsigned v) {{ return (v >> 4) & 0x0F0F0F0Fu; }}
{START} unsigned qmm_own(unsigned v) {{
  unsigned d;  // no mov, which the compiler would see through
  asm("prmt.b32 %0, %1, 0, 0x3210;" : "=r"(d) : "r"(v));
  return d;
}}
{START} uint4 qmm_load_16(const void* global) {{
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {{%0, %1, %2, %3}}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(global));
  return v;
}}
"""

#: Names of types: of <cstdint>, a header that NVRTC lacks; and those that only TVM's code uses.
INTEGERS = {
    "int8_t": "signed char",
    "int16_t": "short",
    "int32_t": "int",
    "int64_t": "long long",
    "uint8_t": "unsigned char",
    "uint16_t": "unsigned short",
    "uint32_t": "unsigned int",
    "uint64_t": "unsigned long long",
}
SHORT_NAMES = {"uchar": "unsigned char", "ushort": "unsigned short", "uint": "unsigned int"}


def typedefs(names: dict[str, str]) -> str:
    """Names for types."""
    return "".join(f"typedef {meaning} {name};\n" for name, meaning in names.items())


NAMES = f"""\
#ifdef __CUDACC_RTC__
{typedefs(INTEGERS)}#else
#include <cstdint>
#endif
{typedefs(SHORT_NAMES)}"""

PRELUDE = "".join(
    (
        NAMES,
        BYTES,
        *(dp4a(x, w) for x, w in PAIRS),
        *(mma("m8n8k16", x, w) for x, w in PAIRS),
        *(ldmatrix(count) for count in (2, 4)),
        "#if __CUDA_ARCH__ >= 800\n",
        *(mma("m16n8k32", x, w) for x, w in PAIRS),
        ASYNCHRONOUS,
        "#else\n",
        SYNCHRONOUS,
        "#endif\n",
    )
)
