"""Memory on GPUs: a weight, which lies on each device that was called, and what calls need.

What a call needs beyond its arguments is kept per stream, and grows with M. A graph that was
captured uses the memory of the stream that it was captured on.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..errors import CudaError
from .cuda_arrays import DeviceArray
from .driver import Driver

#: What vector loads and stores of rows need.
ALIGNMENT = 16


class Place(NamedTuple):
    """Where work is done: a device and one of its streams."""

    device: int
    stream: int


class Memory:
    """What a weight has on devices, freed with the last object that uses it.

    Parameters
    ----------
    constants : arrays that a device gets when it is first used.
    """

    def __init__(self, gpu: Driver, constants: dict[str, np.ndarray]) -> None:
        self.gpu = gpu
        self.lock = threading.Lock()
        self._constants = constants
        self._there: dict[int, dict[str, int]] = {}
        #: By place and name: address and bytes.
        self._workspace: dict[tuple[Place, str], tuple[int, int]] = {}
        self._allocated: list[tuple[int, int]] = []
        # At the process's exit the driver frees everything itself, and may be gone already.
        weakref.finalize(self, release, gpu, self._allocated).atexit = False

    def constants(self, place: Place, load: Callable[[], object]) -> dict[str, int]:
        """Addresses of the constants on a device; copied there once, after `load` loaded code."""
        device = place.device
        if device not in self._there:
            self.not_captured(place, "the weight must be copied to the device")
            load()
            found = {}
            for name, array in self._constants.items():
                found[name] = self._allocate(device, array.nbytes)
                self.gpu.copy_to(device, found[name], array, 0)
            self.gpu.synchronize(device, 0)
            self._there[device] = found
        return self._there[device]

    def of_calls(self, name: str, size: int, place: Place) -> int:
        """Memory of at least `size` bytes for one stream's calls."""
        address, there = self._workspace.get((place, name), (0, 0))
        if size > there:
            # Into a graph that is being captured goes the address, and not the allocation. So what
            # was there may still be in use, and is freed with everything else. Doubled, all of it
            # together is less than what takes its place, however M grows.
            size = max(size, 2 * there)
            address = self._allocate(place.device, size)
            self._workspace[place, name] = address, size
        return address

    def copied(self, name: str, array: np.ndarray, place: Place) -> int:
        """The address of a copy of `array` for a call."""
        self.not_captured(place, f"{name} must be copied from the host")
        address = self.of_calls(name, array.nbytes, place)
        if array.nbytes:
            self.gpu.copy_to(place.device, address, array, place.stream)
        return address

    def uploaded(self, name: str, array: np.ndarray, place: Place) -> DeviceArray:
        """A copy on the device of a contiguous matrix of the host."""
        address = self.copied(name, array, place)
        rows, columns = array.shape
        return DeviceArray(address, (rows, columns), columns, array.dtype.name, *place)

    def repeated(self, name: str, number: np.ndarray, count: int, place: Place) -> int:
        """The address of a bound number, repeated at least `count` times."""
        memory = f"bound {name}"
        address, there = self._workspace.get((place, memory), (0, 0))
        if there < count * number.itemsize:
            self.not_captured(place, f"{name} must be repeated for every row")
            address = self.of_calls(memory, count * number.itemsize, place)
            _, size = self._workspace[place, memory]
            rows = np.repeat(number, size // number.itemsize)
            self.gpu.copy_to(place.device, address, rows, place.stream)
        return address

    def _allocate(self, device: int, size: int) -> int:
        """New memory on a device."""
        address = self.gpu.allocate(device, max(size, ALIGNMENT))
        self._allocated.append((device, address))
        return address

    def not_captured(self, place: Place, what: str) -> None:
        """Refuse what no CUDA graph can hold."""
        if self.gpu.is_capturing(*place):
            raise CudaError(f"a CUDA graph is being captured, and {what}: call once before")


def release(gpu: Driver, allocated: list[tuple[int, int]]) -> None:
    """Give memory back to the devices."""
    for device, address in allocated:
        gpu.free(device, address)
