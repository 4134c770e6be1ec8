"""ggml, as llama-cpp-python builds it for the machine: its libraries called through ctypes."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from .job import Job, Ready, roll

#: Weight types: their number in ggml, and the k of a block, which K has to be a multiple of.
#: Q4_0 and Q8_0 have a float16 scale per 32 k, Q4_1 a minimum too; Q4_K has 6-bit scales and minima
#: per 32 k and two float16 factors for those of 256. X becomes int8 with a scale per 32 k; for Q4_K
#: per 256.
TYPES = {"q4_0": (2, 32), "q4_1": (3, 32), "q8_0": (8, 32), "q4_k": (12, 256)}

#: C types of what `library` calls: result, then arguments.
P, INT, LONG, SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_size_t
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "ggml_version": (ctypes.c_char_p,),
    "ggml_tensor_overhead": (SIZE,),
    "ggml_graph_overhead": (SIZE,),
    "ggml_row_size": (SIZE, INT, LONG),
    "ggml_quantize_chunk": (SIZE, INT, P, P, LONG, LONG, LONG, P),
    "ggml_new_tensor_2d": (P, P, INT, LONG, LONG),
    "ggml_mul_mat": (P, P, P, P),
    "ggml_new_graph": (P, P),
    "ggml_build_forward_expand": (None, P, P),
    "ggml_backend_cpu_init": (P,),
    "ggml_backend_cpu_set_n_threads": (None, P, INT),
    "ggml_backend_cpu_reg": (P,),
    "ggml_backend_cpu_buffer_type": (P,),
    "ggml_backend_get_device": (P, P),
    "ggml_backend_reg_get_proc_address": (P, P, ctypes.c_char_p),
    "ggml_backend_buft_name": (ctypes.c_char_p, P),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, P, P),
    "ggml_backend_alloc_ctx_tensors_from_buft": (P, P, P),
    "ggml_backend_alloc_ctx_tensors": (P, P, P),
    "ggml_backend_tensor_set": (None, P, P, SIZE, SIZE),
    "ggml_backend_tensor_get": (None, P, P, SIZE, SIZE),
    "ggml_backend_graph_compute": (INT, P, P),
}


class InitParams(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = [("mem_size", SIZE), ("mem_buffer", P), ("no_alloc", ctypes.c_bool)]


def mul_mat(job: Job, kind: str, repack: bool = False) -> Ready:
    """ggml_mul_mat of a weight of type `kind`, its rows interleaved if `repack`."""
    number, block = TYPES[kind]
    if job.k % block:
        raise ValueError(f"{kind} needs K in multiples of {block}")
    ggml = library()
    backend = ggml.ggml_backend_cpu_init()
    ggml.ggml_backend_cpu_set_n_threads(backend, job.threads)
    device = ggml.ggml_backend_get_device(backend)
    buffers = repack_buffers(ggml, device) if repack else ggml.ggml_backend_cpu_buffer_type()
    x = job.x()
    first = quantized(ggml, job, number)
    calls, y = [], None
    for i in range(job.copies):
        constants, variables = context(ggml), context(ggml)
        w = ggml.ggml_new_tensor_2d(constants, number, job.k, job.n)
        x_tensor = ggml.ggml_new_tensor_2d(variables, 0, job.k, job.m)
        y = ggml.ggml_mul_mat(variables, w, x_tensor)
        ggml.ggml_backend_alloc_ctx_tensors_from_buft(constants, buffers)
        if not ggml.ggml_backend_dev_supports_op(device, y):
            raise ValueError(f"{kind} is not repacked for this shape or machine")
        rows = roll(first, i)
        ggml.ggml_backend_tensor_set(w, rows.ctypes.data, 0, rows.nbytes)
        graph = ggml.ggml_new_graph(variables)
        ggml.ggml_build_forward_expand(graph, y)
        ggml.ggml_backend_alloc_ctx_tensors(variables, backend)
        ggml.ggml_backend_tensor_set(x_tensor, x.ctypes.data, 0, x.nbytes)
        calls.append(functools.partial(ggml.ggml_backend_graph_compute, backend, graph))

    def result() -> np.ndarray:
        out = np.empty((job.m, job.n), np.float32)
        ggml.ggml_backend_tensor_get(y, out.ctypes.data, 0, out.nbytes)
        return out

    return Ready([*calls], result, about=f"ggml {ggml.ggml_version().decode()}")


def library() -> Any:
    """Ggml's functions, with their types."""
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("No module named 'llama_cpp'")
    folder = Path(found.origin).parent / "lib"
    # Each depends on those before it, so that a name is found in whichever library has it.
    parts = [
        ctypes.CDLL(str(folder / f"lib{name}.so"), ctypes.RTLD_GLOBAL)
        for name in ("ggml-base", "ggml-cpu", "ggml")
    ]
    whole = parts[-1]
    whole.ggml_init.argtypes, whole.ggml_init.restype = [InitParams], P
    for name, (result, *arguments) in SIGNATURES.items():
        function = getattr(whole, name)
        function.argtypes, function.restype = arguments, result
    return whole


def context(ggml: Any) -> Any:
    """Room for the descriptions of a few tensors and of a graph."""
    size = 8 * ggml.ggml_tensor_overhead() + ggml.ggml_graph_overhead()
    return ggml.ggml_init(InitParams(size, None, True))


def repack_buffers(ggml: Any, device: Any) -> Any:
    """The kind of memory in which ggml interleaves rows."""
    address = ggml.ggml_backend_reg_get_proc_address(
        ggml.ggml_backend_cpu_reg(), b"ggml_backend_dev_get_extra_bufts"
    )
    kinds = ctypes.CFUNCTYPE(ctypes.POINTER(P), P)(address)(device)
    for kind in kinds:
        if kind is None:
            break
        if ggml.ggml_backend_buft_name(kind) == b"CPU_REPACK":
            return kind
    raise ValueError("built without repacking")


def quantized(ggml: Any, job: Job, number: int) -> np.ndarray:
    """The first weight's rows as bytes of a ggml type, from its floats."""
    floats = job.weight().floats()
    rows = np.empty((job.n, ggml.ggml_row_size(number, job.k)), np.uint8)
    ggml.ggml_quantize_chunk(number, floats.ctypes.data, rows.ctypes.data, 0, job.n, job.k, None)
    return rows
