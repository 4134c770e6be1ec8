"""Who takes part: for each format the contenders, the package that has them, and what they are.

What they compute differs in ways that the names hint at and the modules' docstrings say: the scale
of X may cover a row, a group or all of X, and weights may have finer scales than the format asks.
None has coarser weight scales.

Nothing here imports a contender's library; `build` does, in a process of its own.
"""

from __future__ import annotations

import dataclasses
import pkgutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ... import targets
from ...errors import BenchError
from ...formats.named import is_named, name_of
from .job import Job, Ready, Timed, Turns, check

__all__ = [
    "CONTENDERS",
    "DISTRIBUTIONS",
    "GROUPS",
    "LIMITS",
    "OURS",
    "Contender",
    "Job",
    "Ready",
    "build",
    "chosen",
    "environment",
    "reason",
]


@dataclass(frozen=True)
class Contender:
    """Someone who computes the product of a job.

    Attributes
    ----------
    name : in tables.
    builder : "module:function" that makes it ready for a `Job`.
    groups : the words for `--against` that stand for it; its name does too.
    formats : named formats that it has; None for every format.
    needs : modules that have to be installed.
    options : further arguments of the builder.
    baseline : what the user leaves behind: shown, and no peer.
    device : on which it computes.
    """

    name: str
    builder: str
    groups: tuple[str, ...] = ()
    formats: tuple[str, ...] | None = None
    needs: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    baseline: bool = False
    device: str = "cpu"

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return dataclasses.asdict(self)

    def has(self, job: Job) -> bool:
        """Whether it has a job's format, and can be kept from instructions its target lacks."""
        if self.formats is not None and name_of(job.spec) not in self.formats:
            return False
        if job.row.device == "cuda" or self.device == "cuda":
            return self.device == job.row.device and is_named(job.spec)
        if job.spec.experts is not None:
            return False  # one product of X is not what each expert's rows take
        if job.row is targets.host() or self.baseline:
            return True
        return "onednn" in self.groups and job.row.name in ONEDNN_ISA


#: oneDNN's names of instruction sets by target (its ONEDNN_MAX_CPU_ISA). No other peer can be held
#: to one.
ONEDNN_ISA = {
    "x86-avx2": "AVX2",
    "x86-avxvnni": "AVX2_VNNI",
    "x86-avx512": "AVX512_CORE",
}

HERE = __name__
OURS = Contender("quantmm", f"{HERE}.ours:product")
LIMITS = Contender("limits", f"{HERE}.machine:measured")

#: Words for formats, for the modules that a library consists of, and for the table below.
INT8, DYNAMIC, W8_G32 = ("int8", "int7"), ("w8a8-dynamic", "w7a8-dynamic"), ("w8a8-g32-xg",)
W4_ROW, W4_G32 = ("w4a8", "w4a8-g128", "w4a8-g128-xg"), ("w4a8-g32", "w4a8-g32-xg")
W4, W8 = W4_ROW + W4_G32, DYNAMIC + W8_G32
OFFSET_G128, OFFSET_G32 = ("w4a8-g128-offset",), ("w4a8-g32-offset",)
FLOATING = W8 + W4 + OFFSET_G128 + OFFSET_G32
PACKED = ("w4a8-g128", "w4a8-g32", *OFFSET_G128, *OFFSET_G32)
LITERT, ORT, VINO = ("ai_edge_litert", "flatbuffers"), ("onnxruntime", "onnx"), ("openvino",)
TORCH, GGML = ("torch",), ("llama_cpp",)


def contender(
    name: str,
    function: str,
    group: str,
    formats: tuple[str, ...] | None,
    needs: tuple[str, ...],
    baseline: bool = False,
    device: str = "cpu",
    **options: Any,
) -> Contender:
    """A row of the table."""
    groups = tuple(group.split())
    return Contender(name, f"{HERE}.{function}", groups, formats, needs, options, baseline, device)


CONTENDERS = (
    contender("onednn", "pytorch:onednn", "onednn", INT8, TORCH),
    contender("int_mm", "pytorch:int_mm", "torch", INT8, TORCH),
    contender("onnxruntime", "ort:matmul_integer", "onnxruntime", INT8, ORT),
    contender("xnnpack", "litert:fully_connected", "xnnpack", DYNAMIC + W4, LITERT),
    contender("onnxruntime", "ort:dynamic_quantize_matmul", "onnxruntime", DYNAMIC, ORT),
    contender("openvino", "vino:compressed_matmul", "openvino", DYNAMIC + W4, VINO),
    contender(
        "onnxruntime_block128",
        "ort:matmul_n_bits",
        "onnxruntime",
        W4_ROW + OFFSET_G128,
        ORT,
        block=128,
    ),
    contender(
        "onnxruntime_block32",
        "ort:matmul_n_bits",
        "onnxruntime",
        W4_G32 + OFFSET_G32,
        ORT,
        block=32,
    ),
    contender("torch_x86", "pytorch:dynamic", "torch", DYNAMIC, TORCH, engine="x86"),
    contender("torch_fbgemm", "pytorch:dynamic", "torch", DYNAMIC, TORCH, engine="fbgemm"),
    contender("torch_onednn", "pytorch:dynamic", "torch onednn", DYNAMIC, TORCH, engine="onednn"),
    contender("ggml_q8_0", "ggml:mul_mat", "ggml", W8, GGML, kind="q8_0"),
    contender("ggml_q4_0", "ggml:mul_mat", "ggml", W4_G32, GGML, kind="q4_0"),
    contender("ggml_q4_0_repacked", "ggml:mul_mat", "ggml", W4_G32, GGML, kind="q4_0", repack=True),
    contender("ggml_q4_1", "ggml:mul_mat", "ggml", OFFSET_G32, GGML, kind="q4_1"),
    contender("ggml_q4_k", "ggml:mul_mat", "ggml", W4_G32 + OFFSET_G32, GGML, kind="q4_k"),
    contender(
        "ggml_q4_k_repacked",
        "ggml:mul_mat",
        "ggml",
        W4_G32 + OFFSET_G32,
        GGML,
        kind="q4_k",
        repack=True,
    ),
    contender("float32", "pytorch:floats", "torch", FLOATING, TORCH, True, dtype="float32"),
    contender("bfloat16", "pytorch:floats", "torch", FLOATING, TORCH, True, dtype="bfloat16"),
    contender("numpy", "blas:floats", "numpy", None, (), True),
    contender("int_mm", "torch_gpu:int_mm", "torch", INT8, TORCH, device="cuda"),
    contender("int4pack_mm", "torch_gpu:int4pack", "torch", PACKED, TORCH, True, device="cuda"),
    contender(
        "bfloat16", "torch_gpu:floats", "torch", None, TORCH, True, device="cuda", dtype="bfloat16"
    ),
    contender(
        "float16", "torch_gpu:floats", "torch", None, TORCH, True, device="cuda", dtype="float16"
    ),
)
#: The words for `--against`.
GROUPS = tuple(dict.fromkeys(group for each in CONTENDERS for group in each.groups))
#: The distributions that have the modules which contenders need.
DISTRIBUTIONS = {
    "torch": "torch",
    "onnxruntime": "onnxruntime",
    "onnx": "onnx",
    "ai_edge_litert": "ai-edge-litert",
    "flatbuffers": "flatbuffers",
    "openvino": "openvino",
    "llama_cpp": "llama-cpp-python",
}


def check_words(against: Collection[str]) -> None:
    """Refuse a word that stands for no contender.

    Raises
    ------
    BenchError
        There is one.
    """
    known = {*GROUPS, *(each.name for each in CONTENDERS)}
    if unknown := [word for word in against if word not in known]:
        raise BenchError(f"no contender {unknown[0]!r}; expected some of {', '.join(GROUPS)}")


def chosen(job: Job, against: Collection[str]) -> tuple[list[Contender], dict[str, str]]:
    """The contenders of a job that `against` asks for, and why there are none for a word of it."""
    check_words(against)
    taken: list[Contender] = []
    absent = {}
    for word in against:
        found = [each for each in CONTENDERS if word in (*each.groups, each.name)]
        able = [each for each in found if each.has(job)]
        taken += [each for each in able if each not in taken]
        if not able:
            free = job.row.device == "cuda" or job.row is targets.host()
            held = "" if free else f" that can be held to {job.row.name}"
            absent[word] = f"has nothing for this format{held}"
    return taken, absent


def environment(job: Job) -> dict[str, str]:
    """What holds a contender's process to the job's threads and instruction set."""
    held = ONEDNN_ISA.get(job.row.name) if job.row is not targets.host() else None
    isa = {"ONEDNN_MAX_CPU_ISA": held} if held else {}
    if job.row.device == "cuda":
        return {}
    return {"OMP_NUM_THREADS": str(job.threads), **isa}


def build(contender: Contender, job: Job) -> Turns:
    """Build a contender and check that it computes what was asked for."""
    ready = pkgutil.resolve_name(contender.builder)(job, **contender.options)
    if isinstance(ready, (Ready, Timed)):
        check(job, ready, quantized=job.dynamic and not contender.baseline)
    return ready


def reason(error: Exception) -> str:
    """Why a contender failed, in one line."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}"
