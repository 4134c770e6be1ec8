"""A `quantmm.runtime.driver.Driver` whose GPU is the emulation of `program`.

    driver = EmulatedDriver({image: source}, capability=(8, 6))

Memory of the device is memory of this process, guarded on both sides. An image is the CUDA source
itself, or one whose source the driver was given. Work is done when it is launched, so streams are
numbers without meaning; `launches` says what ran on which.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ...errors import CudaError, TargetError
from ...runtime.driver import Device, Triple
from .program import Address, Emulated, Memory


class EmulatedDriver:
    """One device, number 0.

    Parameters
    ----------
    sources : of images that are not sources themselves.
    seed : as `Emulated.launch`.

    Attributes
    ----------
    launches : name, grid and stream of every launch, in order.
    """

    def __init__(
        self,
        sources: Mapping[bytes, str] | None = None,
        *,
        capability: tuple[int, int] = (8, 0),
        shared_bytes: int = 99 << 10,
        seed: int | None = None,
    ) -> None:
        self.sources = dict(sources or {})
        self.seed = seed
        self.memories: dict[int, Memory] = {}
        self.launches: list[tuple[str, Triple, int]] = []
        self._captured: list[Any] | None = None
        self._streams = 0x100
        self._device = Device(
            number=0,
            name="emulated",
            capability=capability,
            multiprocessors=4,
            shared_bytes=shared_bytes,
            l2_bytes=1 << 20,
        )

    def __del__(self) -> None:
        for memory in self.memories.values():
            memory.free()

    def devices(self) -> tuple[Device, ...]:
        """As `Driver`: one."""
        return (self._device,)

    def load(self, device: int, image: bytes) -> EmulatedModule:
        """As `Driver`; the image is compiled for the CPU."""
        self._check(device)
        source = self.sources.get(image)
        if source is None:
            try:
                source = image.decode()
            except UnicodeDecodeError:
                raise TargetError(f"an image without a source: {image[:8]!r}") from None
        return EmulatedModule(self, Emulated(source))

    def allocate(self, device: int, size: int) -> int:
        """As `Driver`."""
        self._check(device)
        memory = Memory(size, f"allocation {len(self.memories)}")
        self.memories[memory.address] = memory
        return memory.address

    def free(self, device: int, address: int) -> None:
        """As `Driver`."""
        self._check(device)
        if address not in self.memories:
            raise CudaError(f"free of {address:#x}, which was not allocated")
        self.memories.pop(address).free()

    def copy_to(self, device: int, address: int, array: np.ndarray, stream: int) -> None:
        """As `Driver`."""
        self._bytes(device, address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)

    def copy_from(self, device: int, array: np.ndarray, address: int, stream: int) -> None:
        """As `Driver`."""
        array.reshape(-1).view(np.uint8)[:] = self._bytes(device, address, array.nbytes)

    def synchronize(self, device: int, stream: int) -> None:
        """As `Driver`: all is done already."""
        self._check(device)

    def is_capturing(self, device: int, stream: int) -> bool:
        """As `Driver`."""
        self._check(device)
        return self._captured is not None

    def new_stream(self, device: int) -> int:
        """As `Driver`."""
        self._check(device)
        self._streams += 1
        return self._streams

    def captured(self, device: int, stream: int, work: Callable[[], object]) -> EmulatedGraph:
        """As `Driver`."""
        self._check(device)
        with self.capturing() as launches:
            work()
        return EmulatedGraph(launches)

    def seconds(self, device: int, stream: int, work: Callable[[], object]) -> float:
        """As `Driver`; of this machine's time."""
        self._check(device)
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    @contextlib.contextmanager
    def capturing(self) -> Iterator[list[Any]]:
        """Within, launches are noted in the list, and not done."""
        self._captured = []
        try:
            yield self._captured
        finally:
            self._captured = None

    def _check(self, device: int) -> None:
        if device != 0:
            raise CudaError(f"device {device}; expected 0")

    def _bytes(self, device: int, address: int, size: int) -> np.ndarray:
        """Part of an allocation."""
        self._check(device)
        for memory in self.memories.values():
            offset = address - memory.address
            if offset >= 0 and offset + size <= memory.size:
                return memory.bytes()[offset : offset + size]
        raise CudaError(f"{size} bytes at {address:#x} are in no allocation")


class EmulatedGraph:
    """As `Graph`: the launches that were noted."""

    def __init__(self, launches: list[Any]) -> None:
        self.launches = launches

    def launch(self, stream: int) -> None:
        """As `Graph`."""
        for function, grid, _, arguments in self.launches:
            function(grid, stream, *arguments)


class EmulatedModule:
    """As `Module`."""

    def __init__(self, driver: EmulatedDriver, program: Emulated) -> None:
        self.driver, self.program = driver, program

    def function(
        self, name: str, parameters: str, block: Triple, *, shared_bytes: int = 0
    ) -> EmulatedFunction:
        """As `Module`; the kinds of parameters must be the kernel's own.

        Raises
        ------
        CudaError
            They are not, there is no such kernel, or the device has less shared memory.
        """
        if name not in self.program.bounds:
            raise CudaError(f"no kernel {name}; the source has {[*self.program.bounds]}")
        if parameters != self.program.parameters(name):
            found = self.program.parameters(name)
            raise CudaError(f"{name} has the parameters {found!r}, not {parameters!r}")
        if shared_bytes > self.driver.devices()[0].shared_bytes:
            raise CudaError(f"{name}, {shared_bytes} bytes of dynamic shared memory: too much")
        return EmulatedFunction(self, name, parameters, block, shared_bytes)


class EmulatedFunction:
    """As `Function`."""

    def __init__(
        self, module: EmulatedModule, name: str, parameters: str, block: Triple, shared_bytes: int
    ) -> None:
        self.module, self.name, self.parameters = module, name, parameters
        self.block, self.shared_bytes = block, shared_bytes

    def __call__(self, grid: Triple, stream: int, *arguments: Any) -> None:
        """As `Function`; it returns when the kernel has ended.

        Raises
        ------
        EmulationError
            The kernel did what it must not.
        """
        driver = self.module.driver
        if driver._captured is not None:
            driver._captured.append((self, grid, stream, arguments))
            return
        driver.launches.append((self.name, grid, stream))
        self.module.program.launch(
            self.name,
            grid=grid,
            block=self.block,
            shared_bytes=self.shared_bytes,
            arguments=[
                Address(value) if letter == "P" else value
                for letter, value in zip(self.parameters, arguments, strict=True)
            ],
            seed=driver.seed,
            memories=[*driver.memories.values()],
        )
