"""The emulator of instructions against NumPy, and against this CPU for those that it has."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import operator
import os
import platform
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import illegal_instructions
import numpy as np
import pytest
from illegal_instructions import emulating
from quantmm.errors import ToolError
from quantmm.targets import cpu_features

#: dtypes of the two factors, by the letters in a mnemonic.
PAIRS = {
    "ss": ("int8", "int8"),
    "su": ("int8", "uint8"),
    "us": ("uint8", "int8"),
    "uu": ("uint8", "uint8"),
}
#: Tile numbers of the sums and the two factors.
TILES = [(0, 1, 2), (7, 6, 5), (3, 0, 7)]

# ---- The code under test: AMX and loops in C ----

C_SOURCE = """
#include <immintrin.h>

#define MULTIPLY(pair, c, a, b)                                                                 \\
    void multiply_##pair##_##c##a##b(const void *config, int *sums, long sums_stride,           \\
                                     const void *x, long x_stride, const void *w, long w_stride)\\
    {                                                                                           \\
        _tile_loadconfig(config);                                                               \\
        _tile_loadd(c, sums, sums_stride);                                                      \\
        _tile_loadd(a, x, x_stride);                                                            \\
        _tile_stream_loadd(b, w, w_stride);                                                     \\
        _tile_dpb##pair##d(c, a, b);                                                            \\
        _tile_stored(c, sums, sums_stride);                                                     \\
        _tile_release();                                                                        \\
    }
#define MULTIPLY_PAIRS(c, a, b) \\
    MULTIPLY(ss, c, a, b) MULTIPLY(su, c, a, b) MULTIPLY(us, c, a, b) MULTIPLY(uu, c, a, b)
MULTIPLY_PAIRS(0, 1, 2)
MULTIPLY_PAIRS(7, 6, 5)
MULTIPLY_PAIRS(3, 0, 7)

void configure(const void *config) { _tile_loadconfig(config); }
void store_configuration(void *config) { _tile_storeconfig(config); }
void release(void) { _tile_release(); }
void zero_tile_0(void) { _tile_zero(0); }
void load_tile_0(const void *from, long stride) { _tile_loadd(0, from, stride); }
void store_tile_0(void *to, long stride) { _tile_stored(0, to, stride); }
void multiply_012(void) { _tile_dpbssd(0, 1, 2); }
/* What no assembler takes. */
#define BYTES(name, bytes) void name(void) { __asm__(".byte 0xC4, " bytes); }
BYTES(zero_tile_8, "0x62, 0x7B, 0x49, 0xC0")
BYTES(multiply_112, "0xE2, 0x6B, 0x5E, 0xC9")
BYTES(zero_with_vvvv, "0xE2, 0x73, 0x49, 0xC0")
BYTES(zero_with_l, "0xE2, 0x7F, 0x49, 0xC0")
BYTES(zero_with_w, "0xE2, 0xFB, 0x49, 0xC0")
BYTES(zero_with_rm, "0xE2, 0x7B, 0x49, 0xC1")
BYTES(zero_of_0f, "0xE1, 0x7B, 0x49, 0xC0")
void zero_after_release(void) { _tile_release(); _tile_zero(0); }
void undefined(void) { __asm__("ud2"); }

/* sums[8] += x * w, 32 bytes at a time, as a kernel would. */
void dot_ss(const char *x, const char *w, int *sums, long steps)
{
    __m256i sum = _mm256_loadu_si256((void *)sums);
    for (long i = 0; i < steps; i++)
        sum = _mm256_dpbssd_epi32(sum, _mm256_set1_epi32(((const int *)x)[i]),
                                  _mm256_loadu_si256((void *)(w + 32 * i)));
    _mm256_storeu_si256((void *)sums, sum);
}
void dot_us(const char *x, const char *w, int *sums, long steps)
{
    __m256i sum = _mm256_loadu_si256((void *)sums);
    for (long i = 0; i < steps; i++)
        sum = _mm256_dpbusd_avx_epi32(sum, _mm256_set1_epi32(((const int *)x)[i]),
                                      _mm256_loadu_si256((void *)(w + 32 * i)));
    _mm256_storeu_si256((void *)sums, sum);
}
"""

# ---- The code under test: chosen registers and addresses, in assembly ----


@dataclass(frozen=True)
class Address:
    """An operand in memory. Registers point to the middle of `buffer`; of tiles, to a row of it."""

    base: str | None
    index: str | None = None
    scale: int = 1
    displacement: int = 0
    index_value: int = 0

    @property
    def text(self) -> str:
        inside = f"%{self.base}" if self.base else ""
        if self.base == "rip":
            return f"buffer+{self.displacement}(%rip)"
        if self.index:
            inside += f",%{self.index},{self.scale}"
        return f"{self.displacement or ''}({inside})"

    @property
    def setup(self) -> str:
        if self.base == "rip":
            return ""
        lines = [f"lea buffer+{MIDDLE}(%rip), %{self.base or self.index}"]
        if not self.base:
            lines.append(f"shr ${self.scale.bit_length() - 1}, %{self.index}")
        elif self.index:
            lines.append(f"mov ${self.index_value}, %{self.index}")
        return "\n".join(lines)


MIDDLE = 32768  # of the buffer, whose lower half is large enough for a stack
ADDRESSES = [
    *(Address(base) for base in ("rax", "rsi", "rbp", "rsp", "r8", "r12", "r13")),
    Address("rdi", displacement=127),
    Address("rdx", displacement=-128),
    Address("rbx", displacement=4096),
    Address("r15", displacement=-7777),
    Address("rsp", displacement=24),
    Address("rip", displacement=5),
    Address("rax", "rcx", 1, 32, index_value=3),
    Address("r8", "r9", 2, index_value=-77),
    Address("r13", "r14", 4, -8, index_value=1000),
    Address("rbp", "r12", 8, index_value=-200),
    Address("rsp", "rax", 4, 300, index_value=9),
    Address("r12", "rbp", 8, 70000 - MIDDLE, index_value=-1024),
    Address(None, "r10", 8, 4),
    Address(None, "rdx", 4, -4),
]
#: Destination, first factor and second factor.
VECTOR_PLACES: list[tuple[int, int, int | Address]] = [
    (0, 1, 2),
    (8, 9, 15),
    (15, 3, 12),
    (7, 14, 0),
    (5, 5, 5),
    (11, 11, 4),
    (6, 10, 6),
    *((2 + i % 14, i % 16, address) for i, address in enumerate(ADDRESSES)),
]
TILE_ADDRESSES = [
    *(Address(base, "rcx", 1, index_value=100) for base in ("rax", "rbp", "rsp", "r12", "r13")),
    Address("rsi", "r12", 2, 24, index_value=-60),
    Address("r9", "r13", 4, -128, index_value=16),
    Address("rdx", "rbp", 8, 1000, index_value=9),
    Address("rbx"),
]
VECTORS = [f"vpdpb{pair}d{s}" for pair in PAIRS for s in ("", "s")]
#: Memory that assembly and Python share: the vector registers, 64 bytes each, before and after an
#: instruction; the operand that it reads from memory; and that memory, with a stack below MIDDLE.
SHARED = {"state": 1024, "operand": 32, "buffer": 2 * MIDDLE}
SAVED = ("rbx", "rbp", "r12", "r13", "r14", "r15")


def assembly() -> str:
    """Functions without arguments: one for each instruction and place of its operands."""
    size = 64 if "avx512f" in cpu_features() else 32
    letter = "z" if size == 64 else "y"
    slots = [f"state+{64 * i}(%rip)" for i in range(16)]
    load = "\n".join(f"vmovups {slot}, %{letter}mm{i}" for i, slot in enumerate(slots))
    store = "\n".join(f"vmovups %{letter}mm{i}, {slot}" for i, slot in enumerate(slots))
    enter = "\n".join(f"push %{name}" for name in SAVED) + "\nmov %rsp, stack(%rip)"
    leave = "mov stack(%rip), %rsp\n" + "\n".join(f"pop %{name}" for name in reversed(SAVED))
    parts = [".bss", ".balign 64"]
    for name, length in SHARED.items():
        parts.append(f".globl {name}\n.protected {name}\n{name}: .zero {length}")
    parts.append("stack: .zero 8\n.text")

    def function(name: str, *lines: str) -> None:
        parts.extend([f".globl {name}", f"{name}:", enter, *lines, leave, "vzeroupper", "ret"])

    for mnemonic in VECTORS:
        for bits, register in ((128, "xmm"), (256, "ymm")):
            for i, (c, a, b) in enumerate(VECTOR_PLACES):
                setup, source = "", f"%{register}{b}"
                if isinstance(b, Address):
                    source = b.text
                    setup = f"{b.setup}\nvmovups {source}, %ymm0\nvmovups %ymm0, operand(%rip)"
                instruction = f"{{vex}} {mnemonic} {source}, %{register}{a}, %{register}{c}"
                for marker in ("", "ud2"):
                    name = f"{mnemonic}_{bits}_{i}{marker}"
                    function(name, setup, load, marker, instruction, store)
            upper = f"{{vex}} {mnemonic} %{register}1, %{register}2, %{register}3"
            function(f"{mnemonic}_{bits}_upper", load, "vzeroupper", "ud2", upper, store)
        row = [f"{{vex}} {mnemonic} %ymm{i}, %ymm{i + 1}, %ymm{i + 2}" for i in range(10)]
        function(f"{mnemonic}_row", load, "ud2", *row, store)
    for i, address in enumerate(TILE_ADDRESSES):
        function(f"load_{i}", address.setup, f"tileloaddt1 {address.text}, %tmm5")
        function(f"store_{i}", address.setup, f"tilestored %tmm5, {address.text}")
    return "\n".join(parts) + '\n.section .note.GNU-stack,"",@progbits\n'


# ---- Building and calling it ----


@pytest.fixture(scope="module")
def library_path(tmp_path_factory):
    if reason := illegal_instructions.why_impossible():
        pytest.skip(reason)
    if "avx2" not in cpu_features():
        pytest.skip("the code under test uses AVX2 beside what is emulated")
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang, which compiles the code under test, is not installed")
    folder = tmp_path_factory.mktemp("illegal")
    (folder / "loops.c").write_text(C_SOURCE)
    (folder / "places.s").write_text(assembly())
    output = folder / "code.so"
    features = ["-mavx2", "-mamx-tile", "-mamx-int8", "-mavxvnni", "-mavxvnniint8"]
    compiler = [sys.executable, "-m", "ziglang", "cc", "-march=x86_64", *features]
    sources = [str(folder / "loops.c"), str(folder / "places.s")]
    illegal_instructions.build([*compiler, "-O2", "-shared", "-fPIC", "-o", str(output), *sources])
    return output


@pytest.fixture(scope="module")
def code(library_path):
    return ctypes.CDLL(str(library_path))


@pytest.fixture
def tile_code(code):
    if "amx_tile" in cpu_features():
        pytest.skip("this CPU has AMX: tiles need arch_prctl's permission, and are not emulated")
    return code


def pointer(array):
    return ctypes.c_void_p(array.ctypes.data)


def shared(code, name):
    """Memory of the assembly as an array of bytes."""
    return np.frombuffer((ctypes.c_uint8 * SHARED[name]).in_dll(code, name), np.uint8)


def bytes_for(rng, shape, dtype="uint8"):
    """Random bytes, many of them extreme."""
    values = rng.integers(0, 256, shape, np.uint8)
    extreme = rng.choice(np.array([0, 1, 127, 128, 255], np.uint8), shape)
    return np.where(rng.random(shape) < 0.5, extreme, values).view(dtype)


def sums_for(rng, shape):
    """int32 sums, many of them next to an overflow."""
    values = rng.integers(-(2**31), 2**31, shape)
    extreme = rng.choice([-(2**31), 2**31 - 1, 0, -1], shape)
    return np.where(rng.random(shape) < 0.5, extreme, values).astype(np.int32)


# ---- Vectors ----


def expected_vector(mnemonic, sums, a, b):
    """The first bytes of the register that holds the sums."""
    a_dtype, b_dtype = PAIRS[mnemonic[5:7]]
    a = a.view(a_dtype).reshape(-1, 4).astype(np.int64)
    b = b.view(b_dtype).reshape(-1, 4).astype(np.int64)
    accumulator = np.uint32 if mnemonic == "vpdpbuuds" else np.int32
    exact = sums.view(accumulator).astype(np.int64) + (a * b).sum(axis=1)
    if mnemonic.endswith("s"):
        limits = np.iinfo(accumulator)
        exact = exact.clip(limits.min, limits.max)
    return exact.astype(np.uint32).view(np.uint8)


def is_native(mnemonic):
    feature = "avx_vnni" if mnemonic.startswith("vpdpbus") else "avx_vnni_int8"
    return feature in cpu_features()


@pytest.mark.parametrize("marker", ["", "ud2"], ids=["", "marked"])
@pytest.mark.parametrize("bits", [128, 256])
@pytest.mark.parametrize("mnemonic", VECTORS)
def test_vector_dot_products(code, mnemonic, bits, marker):
    rng = np.random.default_rng(bits)
    state, buffer = shared(code, "state").reshape(16, 64), shared(code, "buffer")
    length = bits // 8
    with emulating(marked=bool(marker)) as count:
        for i, (c, a, b) in enumerate(VECTOR_PLACES * 3):
            state[:] = bytes_for(rng, state.shape)
            state[c] = sums_for(rng, 16).view(np.uint8)
            buffer[:] = bytes_for(rng, buffer.shape)
            expected = state.copy()
            getattr(code, f"{mnemonic}_{bits}_{i % len(VECTOR_PLACES)}{marker}")()
            second = shared(code, "operand") if isinstance(b, Address) else expected[b]
            result = expected_vector(
                mnemonic,
                expected[c, :length].view(np.int32),
                expected[a, :length].copy(),
                second[:length].copy(),
            )
            expected[c, : 64 if "avx512f" in cpu_features() else 32] = 0
            expected[c, :length] = result
            np.testing.assert_array_equal(state, expected, err_msg=str((c, a, b)))
    native = is_native(mnemonic) and not marker
    assert count[mnemonic] == (0 if native else 3 * len(VECTOR_PLACES))
    assert sum(count.values()) == count[mnemonic]


@pytest.mark.parametrize("bits", [128, 256])
@pytest.mark.parametrize("mnemonic", VECTORS)
def test_upper_halves_that_are_not_in_use_are_zero(code, mnemonic, bits):
    rng = np.random.default_rng(1)
    state = shared(code, "state").reshape(16, 64)
    state[:] = bytes_for(rng, state.shape)
    expected = state.copy()
    expected[:, 16 : 64 if "avx512f" in cpu_features() else 32] = 0
    expected[3, :16] = expected_vector(
        mnemonic, state[3, :16].view(np.int32), state[2, :16].copy(), state[1, :16].copy()
    )
    with emulating(marked=True):
        getattr(code, f"{mnemonic}_{bits}_upper")()
    np.testing.assert_array_equal(state, expected)


@pytest.mark.parametrize("mnemonic", VECTORS)
def test_instructions_in_a_row(code, mnemonic):
    state = shared(code, "state").reshape(16, 64)
    state[:] = bytes_for(np.random.default_rng(4), state.shape)
    registers = state[:, :32].copy()
    for i in range(10):
        b, a, sums = registers[i], registers[i + 1], registers[i + 2]
        registers[i + 2] = expected_vector(mnemonic, sums.view(np.int32), a, b)
    with emulating(marked=True) as count:
        getattr(code, f"{mnemonic}_row")()
    np.testing.assert_array_equal(state[:, :32], registers)
    assert count[mnemonic] == 10


@pytest.mark.parametrize("pair", ["ss", "us"])
def test_a_loop_of_vectors_in_many_threads(code, pair):
    rng = np.random.default_rng(2)
    steps, threads = 5000, 8
    x_dtype, w_dtype = PAIRS[pair]
    x = bytes_for(rng, (threads, steps, 4), x_dtype)
    w = bytes_for(rng, (threads, steps, 8, 4), w_dtype)
    sums = sums_for(rng, (threads, 8))
    # Modulo 2**32, as the instruction counts.
    expected = sums + np.einsum("tsd,tsld->tl", x.astype(np.int32), w.astype(np.int32))

    def dot(thread):
        where = (pointer(array[thread]) for array in (x, w, sums))
        getattr(code, f"dot_{pair}")(*where, ctypes.c_long(steps))

    with emulating() as count, ThreadPoolExecutor(threads) as pool:
        list(pool.map(dot, range(threads)))
    np.testing.assert_array_equal(sums, expected)
    mnemonic = f"vpdpb{pair}d"
    assert count[mnemonic] == (0 if is_native(mnemonic) else steps * threads)


# ---- Tiles ----


def configuration(tiles, palette=1):
    """The 64 bytes of a configuration; `tiles` maps numbers to (rows, bytes per row)."""
    config = np.zeros(64, np.uint8)
    config[0] = palette
    for tile, (rows, colsb) in tiles.items():
        config[16 + 2 * tile] = colsb
        config[48 + tile] = rows
    return config


def matrix(rng, rows, columns, gap, dtype):
    """A matrix whose rows are `gap` elements longer than it, with those elements."""
    make = sums_for if dtype == "int32" else lambda rng, shape: bytes_for(rng, shape, dtype)
    whole = make(rng, (rows, columns + gap))
    return whole, whole[:, :columns]


def multiply(code, pair, tiles, m, n, k, rng):
    """A product of tiles of m x k and k x n 4-byte groups, compared with NumPy's."""
    c, a, b = tiles
    x_dtype, w_dtype = PAIRS[pair]
    whole_sums, sums = matrix(rng, m, n, int(rng.integers(0, 9)), "int32")
    _, x = matrix(rng, m, 4 * k, int(rng.integers(0, 99)), x_dtype)
    _, w = matrix(rng, k, 4 * n, int(rng.integers(0, 99)), w_dtype)
    w_columns = w.reshape(k, n, 4).transpose(0, 2, 1).reshape(4 * k, n)
    expected = whole_sums.copy()
    # Modulo 2**32, as the instruction counts.
    expected[:, :n] += x.astype(np.int32) @ w_columns.astype(np.int32)
    config = configuration({c: (m, 4 * n), a: (m, 4 * k), b: (k, 4 * n)})
    where = []
    for array in (sums, x, w):
        where += [pointer(array), ctypes.c_long(array.strides[0])]
    getattr(code, f"multiply_{pair}_{c}{a}{b}")(pointer(config), *where)
    np.testing.assert_array_equal(whole_sums, expected, err_msg=str((m, n, k)))


@pytest.mark.parametrize("tiles", TILES, ids=str)
@pytest.mark.parametrize("pair", PAIRS)
def test_products_of_tiles(tile_code, pair, tiles):
    rng = np.random.default_rng(3)
    sizes = [(m, n, k) for m in (1, 2, 7, 16) for n in (1, 5, 15, 16) for k in (1, 2, 15, 16)]
    with emulating() as count:
        for m, n, k in sizes:
            multiply(tile_code, pair, tiles, m, n, k, rng)
    once = {"ldtilecfg", "tileloaddt1", f"tdpb{pair}d", "tilestored", "tilerelease"}
    expected = dict.fromkeys(once, len(sizes)) | {"tileloadd": 2 * len(sizes)}
    assert {mnemonic: n for mnemonic, n in count.items() if n} == expected


def test_every_thread_has_its_own_tiles(tile_code):
    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(200):
            m, n, k = (int(size) for size in rng.integers(1, 17, 3))
            pair = rng.choice(list(PAIRS))
            multiply(tile_code, pair, TILES[seed % len(TILES)], m, n, k, rng)

    with emulating() as count, ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert count["tilerelease"] == 8 * 200


@pytest.mark.parametrize("i", range(len(TILE_ADDRESSES)), ids=lambda i: TILE_ADDRESSES[i].text)
def test_addresses_of_tiles(tile_code, i):
    rows, colsb = 9, 20
    address = TILE_ADDRESSES[i]
    stride = address.index_value * address.scale
    buffer = shared(tile_code, "buffer")
    buffer[:] = bytes_for(np.random.default_rng(i), buffer.shape)
    start = MIDDLE + address.displacement
    places = [slice(start + row * stride, start + row * stride + colsb) for row in range(rows)]
    expected = np.zeros_like(buffer)
    for place in places:
        expected[place] = buffer[place]
    config = configuration({0: (rows, colsb), 5: (rows, colsb)})
    with emulating():
        tile_code.configure(pointer(config))
        getattr(tile_code, f"load_{i}")()
        buffer[:] = 0
        getattr(tile_code, f"store_{i}")()
        tile_code.release()
    if address.base == "rsp":
        buffer[:MIDDLE] = 0  # the stack
    np.testing.assert_array_equal(buffer, expected)


def test_configuration_is_stored_and_released(tile_code):
    config = configuration({0: (3, 12), 7: (16, 64)})
    stored = np.full(64, 99, np.uint8)
    with emulating() as count:
        tile_code.configure(pointer(config))
        tile_code.store_configuration(pointer(stored))
        np.testing.assert_array_equal(stored, config)
        for forget in (tile_code.release, lambda: tile_code.configure(pointer(stored * 0))):
            tile_code.configure(pointer(config))
            forget()
            tile_code.store_configuration(pointer(stored))
            assert not stored.any()
    assert count["ldtilecfg"] == 4
    assert count["sttilecfg"] == 3


def test_zeroed_and_configured_tiles_hold_zeros(tile_code):
    config = configuration({0: (3, 12)})
    data = np.full((3, 12), 7, np.uint8)

    def stored():
        result = np.full((3, 12), 99, np.uint8)
        tile_code.store_tile_0(pointer(result), ctypes.c_long(12))
        return result

    with emulating() as count:
        for forget in (tile_code.zero_tile_0, lambda: tile_code.configure(pointer(config))):
            tile_code.configure(pointer(config))
            tile_code.load_tile_0(pointer(data), ctypes.c_long(12))
            assert (stored() == 7).all()
            forget()
            assert not stored().any()
        tile_code.release()
    assert count["tilezero"] == 1


# ---- Counting, and what is not allowed ----


def test_counts_are_per_block(tile_code):
    with emulating() as first:
        tile_code.release()
        assert first["tilerelease"] == 1
        with pytest.raises(RuntimeError, match="inside"), emulating():
            pass
        tile_code.release()
    with emulating() as second:
        tile_code.release()
    assert (first["tilerelease"], second["tilerelease"]) == (2, 1)
    assert repr(second) == "{'tilerelease': 1}"
    with pytest.raises(KeyError):
        second["tdpbf16ps"]


def configured(call=None, config=None, **fields):
    """Configure tiles and call a function of the code; `fields` are bytes of the configuration."""

    def run(code):
        used = configuration({0: (2, 8), 1: (2, 8), 2: (2, 8)}) if config is None else config
        for offset, value in fields.items():
            used[int(offset.removeprefix("byte"))] = value
        code.configure(pointer(used))
        if call:
            getattr(code, call)()

    return run


def in_another_thread(code):
    """Use tiles that only another thread has configured."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(configured(), code).result()
    code.zero_tile_0()


zero_tile_0 = operator.methodcaller("zero_tile_0")
#: The line on stderr, and what ends the process; every call is in a block of its own.
MISUSE = {
    "palette": ("ldtilecfg: palette 2; only 0 and 1 exist", configured(byte0=2)),
    "start_row": ("start_row is 1", configured(byte1=1)),
    "reserved": ("reserved bytes", configured(byte2=1)),
    "ninth colsb": ("reserved bytes", configured(byte32=4)),
    "ninth rows": ("reserved bytes", configured(byte56=4)),
    "17 rows": ("tile 1 has 17 rows of 8 bytes", configured(byte49=17)),
    "65 bytes": ("tile 1 has 2 rows of 65 bytes", configured(byte18=65)),
    "264 bytes": ("tile 1 has 2 rows of 264 bytes", configured(byte19=1)),
    "no rows": ("tile 1 has 0 rows of 8 bytes", configured(byte49=0)),
    "no bytes": ("tile 1 has 2 rows of 0 bytes", configured(byte18=0)),
    "never configured": ("tilezero: tiles are not configured", zero_tile_0),
    "configured elsewhere": ("tilezero: tiles are not configured", in_another_thread),
    "configured before": ("tilezero: tiles are not configured", configured(), zero_tile_0),
    "released": ("tiles are not configured: c4 e2 7b 49 c0", configured("zero_after_release")),
    "palette 0": ("tdpbssd: tiles are not configured", configured("multiply_012", byte0=0)),
    "left out": ("not in the conf", configured("zero_tile_0", configuration({1: (2, 8)}))),
    "tile 8": ("there is no tile 8", configured("zero_tile_8")),
    "same tile": ("tiles 1, 1 and 2 must differ", configured("multiply_112")),
    "odd bytes": ("tile 2 has rows of 6 bytes", configured("multiply_012", byte20=6)),
    "m": ("3 x 8 and 2 x 8 bytes has no 2 x 2 sums", configured("multiply_012", byte49=3)),
    "n": ("2 x 8 and 2 x 12 bytes has no 2 x 2 sums", configured("multiply_012", byte20=12)),
    "k": ("2 x 8 and 3 x 8 bytes has no 2 x 2 sums", configured("multiply_012", byte50=3)),
    "ud2": (": this instruction is not emulated: 0f 0b", operator.methodcaller("undefined")),
    **{
        form: (": this instruction is not emulated: c4 e", configured(f"zero_{form}"))
        for form in ("with_vvvv", "with_l", "with_w", "with_rm", "of_0f")
    },
}


def misuse(path: str) -> None:
    """Every case in a process of its own; prints how each ended, as JSON."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    code = ctypes.CDLL(path)
    with emulating():
        pass  # built once, before the processes part

    def inside(*calls):
        for call in calls:
            with emulating():
                call(code)

    def outside():
        inside(operator.methodcaller("release"))
        code.release()

    def end(case, *arguments):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(writer, 2)
            signal.alarm(60)  # ends the child should the handler never get past an instruction
            try:
                case(*arguments)
            finally:
                os._exit(0)
        os.close(writer)
        with open(reader, encoding="utf-8") as file:
            text = file.read()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text

    ends = {name: end(inside, *calls) for name, (_, *calls) in MISUSE.items()}
    print(json.dumps(ends | {"outside": end(outside)}))


@pytest.fixture(scope="module")
def ends(library_path):
    script = f"import {Path(__file__).stem} as t; t.misuse({str(library_path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_ends_the_process_and_says_why(ends, name):
    if name != "ud2" and "amx_tile" in cpu_features():
        pytest.skip("this CPU has AMX")
    status, text = ends[name]
    assert status == -signal.SIGILL
    assert MISUSE[name][0] in text


def test_nothing_is_emulated_outside(ends):
    if "amx_tile" in cpu_features():
        pytest.skip("this CPU has AMX")
    assert ends["outside"] == [-signal.SIGILL, ""]


@pytest.mark.parametrize("machine", [("Darwin", "x86_64"), ("Linux", "aarch64")])
def test_other_machines_skip(monkeypatch, machine):
    monkeypatch.setattr(platform, "system", lambda: machine[0])
    monkeypatch.setattr(platform, "machine", lambda: machine[1])
    with pytest.raises(pytest.skip.Exception, match=machine[1]), emulating():
        pass


def test_machines_without_a_compiler_skip(monkeypatch):
    def command():
        raise ToolError("install a C compiler")

    monkeypatch.setattr(illegal_instructions.linker, "command", command)
    with pytest.raises(pytest.skip.Exception, match="install a C compiler"), emulating():
        pass
