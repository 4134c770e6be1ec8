"""CUDA C++ to machine code for NVIDIA GPUs, on machines with and without one.

NVRTC compiles where the package of its library is installed (the extra quantmm[cuda]) or a toolkit
is; otherwise nvcc does. Both get the same options, which keep the roundings that the source has:
no contraction of a * b + c, no fast division or square root, denormal numbers.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ..errors import CudaSourceError, QuantmmError, ToolError
from ..targets.cuda_prelude import PRELUDE

Form = Literal["cubin", "ptx"]

OPTIONS = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")

#: In the order in which they are tried. Machine code of CUDA 12 loads with the drivers of CUDA 12
#: and later, that of CUDA 13, whose ELF files have another version, with those of 13 and later.
LIBRARIES = ("libnvrtc.so.12", "libnvrtc.so.13")
#: Where NVIDIA's packages put them, below site-packages.
FOLDERS = ("cuda_nvrtc/lib", "cu13/lib")

#: NVRTC has no standard library. TVM's sources include these and use the integers' names.
HEADERS = {
    "cuda/std/cstdint": """\
namespace cuda { namespace std {
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
} }
""",
    "cuda/std/type_traits": """\
namespace cuda { namespace std {
template <class, class> struct is_same;
template <class, class> inline constexpr bool is_same_v = false;
template <class T> inline constexpr bool is_same_v<T, T> = true;
template <class> struct is_integral;
template <class> struct is_signed;
template <class> struct is_unsigned;
template <class> struct is_floating_point;
template <bool, class = void> struct enable_if;
template <bool, class, class> struct conditional;
} }
""",
}

#: What both compilers' logs have where they do not know the architecture.
UNKNOWN = re.compile(r"gpu.architecture")
#: "kernel.cu(3): error: ..." of NVRTC and nvcc, "ptxas error : ..." and the like.
ERROR = re.compile(r".*\b(?:error|fatal)\b.*", re.IGNORECASE)


def compile_cuda(source: str, architecture: str, *, form: Form = "cubin") -> bytes:
    """Machine code ("cubin") or PTX of CUDA C++, with the functions of `targets.cuda_prelude`.

    Parameters
    ----------
    source : functions, `extern "C" __global__` those that are called from outside.
    architecture : "sm_75" to "sm_90a". PTX is for it and for every later one.

    Raises
    ------
    ToolError
        Neither NVRTC nor nvcc is there, or the one that is does not know the architecture.
    CudaSourceError
        The source is wrong; the message has the first error.
    """
    full = f'{PRELUDE}#line 1 "kernel.cu"\n{source}'
    if library() is not None:
        return with_nvrtc(full, architecture, form)
    if nvcc := shutil.which("nvcc"):
        return with_nvcc(nvcc, full, architecture, form)
    raise ToolError(
        "compiling for NVIDIA GPUs needs NVRTC or nvcc: pip install 'quantmm[cuda]', or install "
        "the CUDA toolkit"
    )


def version() -> str:
    """What compiles here, for cache keys and reports: "nvrtc 12.6", "nvcc 13.0" or "none"."""
    if nvrtc := library():
        major, minor = ctypes.c_int(), ctypes.c_int()
        check(nvrtc, "nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return f"nvrtc {major.value}.{minor.value}"
    nvcc = shutil.which("nvcc")
    return nvcc_version(nvcc) if nvcc else "none"


@functools.cache
def nvcc_version(nvcc: str) -> str:
    """As `version`, of the toolkit's compiler."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    return f"nvcc {found[1] if found else '?'}"


@functools.cache
def library() -> ctypes.CDLL | None:
    """NVRTC's library, from its package or where the system looks for libraries."""
    spec = importlib.util.find_spec("nvidia")
    places = list(spec.submodule_search_locations or []) if spec else []
    paths = [
        Path(place) / folder / name for name in LIBRARIES for place in places for folder in FOLDERS
    ]
    for candidate in (*(str(path) for path in paths if path.exists()), *LIBRARIES):
        with contextlib.suppress(OSError):
            nvrtc = ctypes.CDLL(candidate)
            nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
            return nvrtc
    return None


def check(nvrtc: ctypes.CDLL, function: str, *arguments: object) -> None:
    """Call a function of NVRTC; what it returns is an error."""
    if status := nvrtc[function](*arguments):
        raise ToolError(f"{function}: {nvrtc.nvrtcGetErrorString(status).decode()}")


def with_nvrtc(source: str, architecture: str, form: Form) -> bytes:
    """Compile with NVRTC."""
    nvrtc = library()
    assert nvrtc is not None
    real = architecture if form == "cubin" else architecture.replace("sm_", "compute_")
    options = texts([*OPTIONS, f"--gpu-architecture={real}"])
    with new_program(nvrtc, source) as program:
        status = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if status:
            log = output(nvrtc, program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
            raise refused(log, architecture)
        if form == "cubin":
            return output(nvrtc, program, "CUBIN")
        return output(nvrtc, program, "PTX").rstrip(b"\0")


@contextlib.contextmanager
def new_program(nvrtc: ctypes.CDLL, source: str) -> Iterator[ctypes.c_void_p]:
    """A program of NVRTC's, destroyed at the end."""
    program = ctypes.c_void_p()
    headers, names = texts([*HEADERS.values()]), texts([*HEADERS])
    arguments = (source.encode(), b"kernel.cu", len(names), headers, names)
    check(nvrtc, "nvrtcCreateProgram", ctypes.byref(program), *arguments)
    try:
        yield program
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def texts(strings: list[str]) -> ctypes.Array[ctypes.c_char_p]:
    """Strings as C has them."""
    return (ctypes.c_char_p * len(strings))(*(string.encode() for string in strings))


def output(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, name: str) -> bytes:
    """What `nvrtcGet<name>` gives."""
    size = ctypes.c_size_t()
    check(nvrtc, f"nvrtcGet{name}Size", program, ctypes.byref(size))
    content = ctypes.create_string_buffer(size.value)
    check(nvrtc, f"nvrtcGet{name}", program, content)
    return content.raw


def with_nvcc(nvcc: str, source: str, architecture: str, form: Form) -> bytes:
    """Compile with the toolkit's nvcc."""
    with tempfile.TemporaryDirectory() as folder:
        path, made = Path(folder) / "kernel.cu", Path(folder) / f"kernel.{form}"
        path.write_text(source)
        command = [nvcc, f"--{form}", f"--gpu-architecture={architecture}", *OPTIONS]
        done = subprocess.run(
            [*command, "-o", str(made), str(path)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise refused(done.stdout + done.stderr, architecture)
        return made.read_bytes()


def refused(log: str, architecture: str) -> QuantmmError:
    """The error for a compiler's log."""
    if UNKNOWN.search(log):
        return ToolError(f"{version()} does not know the architecture {architecture!r}")
    found = ERROR.search(log)
    return CudaSourceError(found[0].strip() if found else log.strip()[-500:])
