"""Who takes part in benchmarks/peers.py: for each format the contenders by name.

What they compute differs in ways that the names hint at and the modules' docstrings say: the scale
of X may cover a row, a group or all of X, and weights may have finer scales than the format asks.
None has coarser weight scales.
"""

from __future__ import annotations

from functools import partial

from . import ggml, litert, ort, ours, pytorch, vino
from .job import FORMATS, Build, Job, Ready, check

__all__ = [
    "BASELINES",
    "CONTENDERS",
    "FORMATS",
    "ONEDNN_ISA",
    "OURS",
    "Build",
    "Job",
    "Ready",
    "build",
    "environment",
    "names",
]

OURS = "quantmm"
#: What the user leaves behind; measured too, but no peers.
BASELINES: dict[str, Build] = {
    "float32": partial(pytorch.floats, name="float32"),
    "bfloat16": partial(pytorch.floats, name="bfloat16"),
}
CONTENDERS: dict[str, dict[str, Build]] = {
    "int8": {
        OURS: ours.static,
        "onednn": pytorch.onednn,
        "int_mm": pytorch.int_mm,
        "onnxruntime": ort.matmul_integer,
    },
    "w8a8-dynamic": {
        OURS: ours.dynamic,
        "xnnpack": litert.fully_connected,
        "onnxruntime": ort.dynamic_quantize_matmul,
        "openvino": vino.compressed_matmul,
        "torch_x86": partial(pytorch.dynamic, engine="x86"),
        "torch_fbgemm": partial(pytorch.dynamic, engine="fbgemm"),
        "torch_onednn": partial(pytorch.dynamic, engine="onednn"),
        "ggml_q8_0": partial(ggml.mul_mat, kind="q8_0", repack=False),
        **BASELINES,
    },
    "w4a8": {
        OURS: ours.dynamic,
        "xnnpack": litert.fully_connected,
        "openvino": vino.compressed_matmul,
        "onnxruntime_block128": partial(ort.matmul_n_bits, block=128),
        **BASELINES,
    },
    "w4a8-g128": {
        OURS: ours.dynamic,
        "xnnpack": litert.fully_connected,
        "openvino": vino.compressed_matmul,
        "onnxruntime_block128": partial(ort.matmul_n_bits, block=128),
        **BASELINES,
    },
    "w4a8-g32": {
        OURS: ours.dynamic,
        "xnnpack": litert.fully_connected,
        "openvino": vino.compressed_matmul,
        "onnxruntime_block32": partial(ort.matmul_n_bits, block=32),
        "ggml_q4_0": partial(ggml.mul_mat, kind="q4_0", repack=False),
        "ggml_q4_0_repacked": partial(ggml.mul_mat, kind="q4_0", repack=True),
        "ggml_q4_k": partial(ggml.mul_mat, kind="q4_k", repack=False),
        "ggml_q4_k_repacked": partial(ggml.mul_mat, kind="q4_k", repack=True),
        **BASELINES,
    },
}

#: oneDNN's names of instruction sets by target (its ONEDNN_MAX_CPU_ISA). No other peer can be held
#: to one.
ONEDNN_ISA = {
    "x86-avx2": "AVX2",
    "x86-avxvnni": "AVX2_VNNI",
    "x86-avx512": "AVX512_CORE",
}


def names(job: Job) -> list[str]:
    """The contenders of a job."""
    everyone = CONTENDERS[job.format_name]
    return [*everyone] if job.target == "host" else [OURS, *{"onednn"} & {*everyone}]


def environment(job: Job) -> dict[str, str]:
    """What holds a contender's process to the job's threads and instruction set."""
    isa = ONEDNN_ISA.get(job.target)
    return {"OMP_NUM_THREADS": str(job.threads)} | ({"ONEDNN_MAX_CPU_ISA": isa} if isa else {})


def build(name: str, job: Job) -> Ready:
    """Build a contender and check that it computes what was asked for."""
    ready = CONTENDERS[job.format_name][name](job)
    check(job, ready, quantized=job.format.dynamic and name not in BASELINES)
    return ready
