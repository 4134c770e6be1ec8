"""quantmm: a compiler for quantized matrix multiplication on Apache TVM."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import interrupt as interrupt  # isort: split

from . import errors, targets
from .compiler.compile import compile
from .errors import QuantmmError
from .formats.nibbles import pack_int4, unpack_int4
from .formats.quality import ErrorRow, error_report
from .formats.quantize import QTensor, dequantize, quantize
from .formats.reference import reference
from .formats.spec import MatmulSpec
from .formats.weights import load_weights, read_matrix, save_weights
from .runtime.kernel import CudaKernel, Kernel
from .runtime.linear import CudaLinear, Linear
from .runtime.load import load
from .runtime.packed_file import load_packed, save_packed
from .versions import VERSION

if TYPE_CHECKING:
    from .models.open import open_model
    from .tuning.run import tune

__version__ = VERSION

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
    "errors",
    "load",
    "load_packed",
    "load_weights",
    "open_model",
    "pack_int4",
    "quantize",
    "read_matrix",
    "reference",
    "save_packed",
    "save_weights",
    "targets",
    "tune",
    "unpack_int4",
]


#: Names by the modules that only a program that uses them has to import.
LATE = {"open_model": ".models.open", "tune": ".tuning.run"}


def __getattr__(name: str) -> Any:
    """What is in `LATE`."""
    if name in LATE:
        return getattr(importlib.import_module(LATE[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What a program may use."""
    return sorted([*__all__, "__version__"])
