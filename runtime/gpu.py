"""What kernels for GPUs are written against: devices, machine code, launches, and work as graphs.

`driver` has it over libcuda; `compiler.emulation.driver` emulates it. Streams are the driver's
handles as ints; 0 is the legacy default stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes
    ----------
    capability : compute capability, (9, 0) for sm_90.
    multiprocessors : how many.
    shared_bytes : of shared memory that a block may ask for.
    l2_bytes : of the cache of all multiprocessors.
    """

    number: int
    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_bytes: int
    l2_bytes: int


class Function(Protocol):
    """A kernel that is ready to be launched; threads may share it."""

    def __call__(self, grid: Triple, stream: int, *arguments: Any) -> None:
        """Launch on a stream and return at once; pointers are addresses on the device."""


class Graph(Protocol):
    """Work of a stream that can be done again; what it uses must be there as long."""

    def launch(self, stream: int) -> None:
        """Give it to a stream and return at once."""


class Module(Protocol):
    """Machine code on a device, as long as this or one of its functions is there.

    Graphs do not count: they must not be replayed afterwards.
    """

    def function(
        self, name: str, parameters: str, block: Triple, *, shared_bytes: int = 0
    ) -> Function:
        """A kernel of it, by name.

        Parameters
        ----------
        parameters : a letter of `struct` for each: "P" for a pointer, "i" for int32, "f", ...
        shared_bytes : dynamic shared memory of a block.
        """


class Driver(Protocol):
    """Devices, and for each (by its number) memory and machine code."""

    def devices(self) -> tuple[Device, ...]:
        """The GPUs; empty where there are none."""

    def load(self, device: int, image: bytes) -> Module:
        """A cubin, or PTX, which the driver compiles."""

    def allocate(self, device: int, size: int) -> int:
        """The address of new memory, a multiple of 256, also while a stream is captured."""

    def free(self, device: int, address: int) -> None:
        """Give memory back when all work that was launched before is done; as `allocate`."""

    def copy_to(self, device: int, address: int, array: np.ndarray, stream: int) -> None:
        """Copy a contiguous array to the device, in the stream's order.

        The array may change afterwards, unless its memory is page-locked: that is read later.
        """

    def copy_from(self, device: int, array: np.ndarray, address: int, stream: int) -> None:
        """Copy to a contiguous array, in the stream's order, and wait until it is there."""

    def synchronize(self, device: int, stream: int) -> None:
        """Wait until all of the stream's work is done."""

    def is_capturing(self, device: int, stream: int) -> bool:
        """Whether what the stream is given goes into a graph instead of being done."""

    def new_stream(self, device: int) -> int:
        """A stream that waits for no other one; it is there as long as the process."""

    def captured(self, device: int, stream: int, work: Callable[[], object]) -> Graph:
        """What `work` gives the stream, as a graph, instead of being done."""

    def seconds(self, device: int, stream: int, work: Callable[[], object]) -> float:
        """How long the device takes for what `work` gives the stream; waits for it."""
