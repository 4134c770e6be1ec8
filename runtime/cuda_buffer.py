"""Arrays in a GPU's memory that need no other package: what tuning and verification call with."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ArrayError
from .driver import Driver


@dataclass(frozen=True)
class Described:
    """What an array on a device says of itself.

    Attributes
    ----------
    strides : in elements; None for those of C.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: str
    device: int
    stream: int


class Buffer:
    """An array of consecutive elements in the memory of a device, which calls take as any other.

    Parameters
    ----------
    values : what it holds at first.
    stream : on which calls with it work.
    """

    def __init__(
        self, gpu: Driver, values: np.ndarray, *, device: int = 0, stream: int = 0
    ) -> None:
        self.gpu, self.dtype, self.shape = gpu, values.dtype, values.shape
        self.device, self.stream = device, stream
        self.address = gpu.allocate(device, max(1, values.nbytes))
        weakref.finalize(self, gpu.free, device, self.address).atexit = False
        self._owner: Buffer | None = None
        self.write(values)

    @property
    def ndim(self) -> int:
        """How many dimensions it has."""
        return len(self.shape)

    def described(self) -> Described:
        """What it says of itself."""
        name = self.dtype.name
        return Described(self.address, self.shape, None, name, self.device, self.stream)

    def write(self, values: np.ndarray) -> None:
        """Take other values of the same shape and dtype, when what was launched before is done."""
        if (values.shape, values.dtype) != (self.shape, self.dtype):
            found, wanted = (f"{each.dtype}{each.shape}" for each in (values, self))
            raise ArrayError(f"the values are {found}; expected {wanted}")
        self.gpu.copy_to(self.device, self.address, np.ascontiguousarray(values), self.stream)
        self.gpu.synchronize(self.device, self.stream)

    def read(self) -> np.ndarray:
        """Its values, when what was launched before is done."""
        values = np.empty(self.shape, np.dtype(f"V{self.dtype.itemsize}"))
        self.gpu.copy_from(self.device, values, self.address, self.stream)
        return values.view(self.dtype)

    def __getitem__(self, rows: slice) -> Buffer:
        """Some of its first dimension, in the same memory."""
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise ArrayError(f"a step of {step} through a buffer; expected 1")
        part: Any = object.__new__(Buffer)
        part.__dict__.update(self.__dict__)
        part._owner = self
        part.shape = (max(0, stop - start), *self.shape[1:])
        part.address += start * math.prod(self.shape[1:]) * self.dtype.itemsize
        return part
