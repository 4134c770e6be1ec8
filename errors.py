"""What quantmm raises. Every message names what was given and what was expected."""

from __future__ import annotations


class QuantmmError(Exception):
    """The base of every error that quantmm raises on purpose."""


class SpecError(QuantmmError, ValueError):
    """A `MatmulSpec`, a quantization format or a number in it that cannot be."""


class UnsupportedError(QuantmmError, NotImplementedError):
    """A spec that has a meaning (`reference` computes it) but no kernel yet."""


class ArrayError(QuantmmError, ValueError):
    """An array of the wrong shape, dtype, rank, device or value."""


class TargetError(QuantmmError, ValueError):
    """A target that does not exist, or that this machine cannot execute."""


class KernelFileError(QuantmmError, OSError):
    """A kernel file that cannot be written, or that is not what it says it is."""


class CacheError(QuantmmError, OSError):
    """A kernel cache that cannot be used; the message is why."""


class WeightFileError(QuantmmError, OSError):
    """A file of weights that cannot be read or written, or that is not what it says it is."""


class RecordError(QuantmmError, OSError):
    """Records, of verifications or of tuning, that cannot be read or written, or do not fit."""


class TuningError(QuantmmError, RuntimeError):
    """A tuning run that cannot begin or go on."""


class RpcError(QuantmmError, RuntimeError):
    """A tracker or a server elsewhere that does not answer, or does not fit; the message is why."""


class ToolError(QuantmmError, RuntimeError):
    """A program or library that a step needs is missing or failed."""


class CudaSourceError(QuantmmError, RuntimeError):
    """CUDA C++ that NVIDIA's compiler refuses; the message has its first error."""


class CudaError(QuantmmError, RuntimeError):
    """A call of the CUDA driver that failed; the message has the call and the driver's reason."""


class EmulationError(QuantmmError, RuntimeError):
    """A kernel that does, under emulation, what it must not; or that cannot be emulated."""


class BenchError(QuantmmError, ValueError):
    """A benchmark of what does not exist, or one that could not be measured."""


class ReportError(QuantmmError, OSError):
    """A report of measurements that cannot be written."""


class ModuleError(QuantmmError, ValueError):
    """A torch module that is not one to quantize."""


class StateError(QuantmmError, RuntimeError):
    """A state dict that does not fit a module; torch raises a RuntimeError for those too."""
