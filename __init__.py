"""quantmm: a compiler for quantized matrix multiplication on Apache TVM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import targets
from .compiler.compile import compile
from .compiler.cuda_kernel import CudaKernel
from .compiler.cuda_linear import CudaLinear
from .compiler.kernel import Kernel
from .compiler.kernel_file import load
from .compiler.linear import Linear
from .compiler.quality import ErrorRow, error_report
from .compiler.quantize import QTensor, dequantize, pack_int4, quantize, unpack_int4
from .compiler.reference import reference
from .compiler.spec import MatmulSpec
from .compiler.weights import load_weights, read_matrix, save_weights
from .errors import QuantmmError

if TYPE_CHECKING:
    from .tuning.run import tune

__version__ = "0.1.0"

__all__ = [
    "CudaKernel",
    "CudaLinear",
    "ErrorRow",
    "Kernel",
    "Linear",
    "MatmulSpec",
    "QTensor",
    "QuantmmError",
    "compile",
    "dequantize",
    "error_report",
    "load",
    "load_weights",
    "pack_int4",
    "quantize",
    "read_matrix",
    "reference",
    "save_weights",
    "targets",
    "tune",
    "unpack_int4",
]


def __getattr__(name: str) -> Any:
    """`tune`, whose modules only a program that tunes has to import."""
    if name == "tune":
        from .tuning.run import tune

        return tune
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
