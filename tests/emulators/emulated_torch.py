"""As much of torch with a GPU as tests use, on the emulated driver.

    torch = emulated_torch.module(driver)      # for sys.modules["torch"]

Tensors lie in the emulated device's memory; what torch computes is computed by NumPy. Work is done
when it is asked for, so a graph only notes calls, and times are those of this machine.
"""

from __future__ import annotations

import contextlib
import time
import types
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {
    "int8": np.int8,
    "uint8": np.uint8,
    "int16": np.int16,
    "int32": np.int32,
    "float16": np.float16,
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
}


class DType:
    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return f"torch.{self.name}"


def module(driver: Any) -> types.ModuleType:
    """A torch whose only GPU is the driver's."""
    torch = types.ModuleType("torch")
    torch.__version__ = "emulated"
    dtypes = {np.dtype(kind): DType(name) for name, kind in DTYPES.items()}

    class Tensor:
        is_cuda = True
        is_nested = False
        layout = "strided"
        device = types.SimpleNamespace(index=0)

        def __init__(self, array: np.ndarray, owner: Any = None) -> None:
            self.array, self.owner = array, owner

        dtype = property(lambda self: dtypes[self.array.dtype])
        shape = property(lambda self: self.array.shape)
        ndim = property(lambda self: self.array.ndim)

        def is_neg(self) -> bool:
            return False

        def data_ptr(self) -> int:
            return self.array.ctypes.data

        def stride(self) -> tuple[int, ...]:
            return tuple(step // self.array.itemsize for step in self.array.strides)

        def __dlpack__(self) -> Any:
            raise NotImplementedError

        def cuda(self) -> Tensor:
            return there(self.array)

        def cpu(self) -> Tensor:
            return Tensor(self.array.copy())

        def numpy(self) -> np.ndarray:
            return self.array

        def view(self, to: Any) -> Tensor:
            array = self.array.view(DTYPES[to.name]) if isinstance(to, DType) else None
            return Tensor(self.array.reshape(to) if array is None else array, self)

        def t(self) -> Tensor:
            return Tensor(self.array.T, self)

        def to(self, dtype: DType) -> Tensor:
            return there(self.array.astype(DTYPES[dtype.name]))

        def copy_(self, other: Tensor) -> None:
            self.array[...] = other.array

        def __getitem__(self, index: Any) -> Tensor:
            return Tensor(self.array[index], self)

        def __add__(self, number: float) -> Tensor:
            return there((self.array + number).astype(self.array.dtype))

        def round_(self) -> Tensor:
            return self

        def clamp_(self, low: float, high: float) -> Tensor:
            return self

    Tensor.__module__ = "torch"

    def there(array: np.ndarray) -> Tensor:
        """A copy in the device's memory."""
        address = driver.allocate(0, max(array.nbytes, 16))
        memory = driver.memories[address]
        placed = memory.bytes()[: array.nbytes].view(array.dtype).reshape(array.shape)
        placed[...] = array
        return Tensor(placed)

    def empty(shape: Any, *, dtype: DType, device: Any) -> Tensor:
        return there(np.zeros(shape, DTYPES[dtype.name]))

    def randint(low: int, high: int, shape: Any, *, dtype: DType, device: str) -> Tensor:
        draw = np.random.default_rng(0)
        return there(draw.integers(low, high, shape).astype(DTYPES[dtype.name]))

    def rand(n: int, *, device: str) -> Tensor:
        return there(np.random.default_rng(0).random(n, np.float32))

    def mul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        return out or there((a.array * b.array).astype(np.float32))

    def product(a: Tensor, b: Tensor) -> Tensor:
        whole = a.array.dtype == np.int8
        wide, out = (np.int32, np.int32) if whole else (np.float32, a.array.dtype)
        return there((a.array.astype(wide) @ b.array.astype(wide)).astype(out))

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.time = time.perf_counter()

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, other: Event) -> float:
            return (other.time - self.time) * 1e3

    class CUDAGraph:
        """The launches that were made while it was captured."""

        def __init__(self) -> None:
            self.launches: list[Any] = []

        def replay(self) -> None:
            for function, grid, stream, arguments in self.launches:
                function(grid, stream, *arguments)

    @contextlib.contextmanager
    def graph(made: CUDAGraph, stream: Any = None) -> Any:
        with driver.capturing() as made.launches:
            yield

    for name in DTYPES:
        setattr(torch, name, dtypes[np.dtype(DTYPES[name])])
    current = types.SimpleNamespace(cuda_stream=0)
    torch.cuda = types.SimpleNamespace(
        Event=Event,
        CUDAGraph=CUDAGraph,
        graph=graph,
        Stream=types.SimpleNamespace,
        stream=lambda stream: contextlib.nullcontext(),
        synchronize=lambda: None,
        current_stream=lambda device: current,
    )
    torch.Tensor, torch.strided = Tensor, "strided"
    torch._C = types.SimpleNamespace(
        _get_tracing_state=lambda: None,
        _get_dispatch_mode=lambda key: None,
        _TorchDispatchModeKey=types.SimpleNamespace(PROXY=None),
    )
    torch.from_numpy = Tensor
    torch.empty, torch.empty_like = empty, lambda other: there(other.array)
    torch.randint, torch.rand, torch.mul = randint, rand, mul
    torch.matmul = torch._int_mm = product
    torch.equal = lambda a, b: np.array_equal(a.array, b.array)
    return torch
