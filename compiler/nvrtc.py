"""CUDA C++ to machine code for NVIDIA GPUs, on machines with and without one.

NVRTC compiles, through cuda-bindings, which the extra quantmm[cuda] brings. Its options keep the
roundings that the source has: no contraction of a * b + c, no fast division or square root,
denormal numbers.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any, Literal

from ..errors import CudaSourceError, QuantmmError, ToolError
from ..extras import install
from .cuda_prelude import INTEGERS, PRELUDE

Form = Literal["cubin", "ptx"]

OPTIONS = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")

#: NVRTC has no standard library. TVM's sources include these and use the integers' names.
HEADERS = {
    "cuda/std/cstdint": "namespace cuda { namespace std {\n"
    + "".join(f"using ::{name};\n" for name in INTEGERS)
    + "} }\n",
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

#: What a log has where NVRTC does not know the architecture.
UNKNOWN = re.compile(r"gpu.architecture")
#: "kernel.cu(3): error: ..." "ptxas error : ..." and the like.
ERROR = re.compile(r".*\b(?:error|fatal)\b.*", re.IGNORECASE)


def compile_cuda(source: str, architecture: str, *, form: Form = "cubin") -> bytes:
    """Machine code ("cubin") or PTX of CUDA C++, with the functions of `cuda_prelude`.

    Parameters
    ----------
    source : functions, `extern "C" __global__` those that are called from outside.
    architecture : "sm_75" to "sm_90a". PTX is for it and for every later one.

    Raises
    ------
    ToolError
        NVRTC is not there, does not load, or does not know the architecture.
    CudaSourceError
        The source is wrong; the message has the first error.
    """
    full = f'{PRELUDE}#line 1 "kernel.cu"\n{source}'
    nvrtc = bindings()
    if nvrtc is None:
        raise ToolError(f"compiling for NVIDIA GPUs needs NVRTC: {install('cuda')}")
    real = architecture if form == "cubin" else architecture.replace("sm_", "compute_")
    options = encoded([*OPTIONS, f"--gpu-architecture={real}"])
    with new_program(nvrtc, full) as program:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if status:
            log = output(nvrtc, program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
            raise refused(log, architecture)
        if form == "cubin":
            return output(nvrtc, program, "CUBIN")
        return output(nvrtc, program, "PTX").rstrip(b"\0")


def version() -> str:
    """What compiles here, for cache keys and reports: "nvrtc 12.6", or "none"."""
    nvrtc = bindings()
    if nvrtc is None:
        return "none"
    major, minor = check(nvrtc.nvrtcVersion())
    return f"nvrtc {major}.{minor}"


@functools.cache
def bindings() -> ModuleType | None:
    """cuda-bindings' module, if it finds NVRTC: in a package of NVIDIA's, conda or a toolkit."""
    try:
        from cuda.bindings import nvrtc
        from cuda.pathfinder import DynamicLibNotFoundError
    except ImportError:
        return None
    try:
        nvrtc.nvrtcVersion()  # The first call loads NVRTC.
    except DynamicLibNotFoundError:
        return None
    except RuntimeError as error:
        raise ToolError(f"NVRTC does not load: {error}") from error
    return nvrtc


def check(returned: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a function of NVRTC returned, without the status that it begins with."""
    status, *results = returned
    if status:
        raise ToolError(f"NVRTC: {status.name}")
    return tuple(results)


@contextlib.contextmanager
def new_program(nvrtc: ModuleType, source: str) -> Iterator[Any]:
    """A program of NVRTC's, destroyed at the end."""
    headers, names = encoded(HEADERS.values()), encoded(HEADERS)
    arguments = (source.encode(), b"kernel.cu", len(names), headers, names)
    (program,) = check(nvrtc.nvrtcCreateProgram(*arguments))
    try:
        yield program
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def encoded(strings: Iterable[str]) -> list[bytes]:
    """Strings as NVRTC takes them."""
    return [string.encode() for string in strings]


def output(nvrtc: ModuleType, program: Any, name: str) -> bytes:
    """What `nvrtcGet<name>` gives."""
    (size,) = check(getattr(nvrtc, f"nvrtcGet{name}Size")(program))
    content = bytes(size)  # The bindings write into it.
    check(getattr(nvrtc, f"nvrtcGet{name}")(program, content))
    return content


def refused(log: str, architecture: str) -> QuantmmError:
    """The error for a compiler's log."""
    if UNKNOWN.search(log):
        return ToolError(f"{version()} does not know the architecture {architecture!r}")
    found = ERROR.search(log)
    return CudaSourceError(found[0].strip() if found else log.strip()[-500:])
