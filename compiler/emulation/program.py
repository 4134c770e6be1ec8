"""Runs generated CUDA C++ on the CPU, strictly: what a GPU might let pass is an error here.

    program = Emulated(source)
    program.launch("scale", grid=(2,), block=(128,), arguments=[x, y, 7])

The source is compiled with `emulate.h` (toolchain.py); the threads of a block are fibers of one CPU
thread (`emulate.cpp`). Errors are `EmulationError`s that name the kernel, the block, the thread
and, where it is known, the line of the source:

- an access outside of an array of global, dynamic shared, static shared or local memory, and a
  write to an array whose `flags.writeable` is off;
- an access to a vector type, and a cp.async or ldmatrix, at an address that is no multiple of its
  size;
- a barrier that not all threads reach, a collective that not all lanes of its mask reach;
- a kernel that does not end, a stack overflow, a division of integers by zero.

Shared memory and local variables hold poison until they are written, and an asynchronous copy
leaves poison until its group is waited for; a wrong result shows what is missing then. Threads run
one at a time, in their order or in a random one (`seed`), up to their next barrier or collective.
What is not seen: races that neither order shows, and up to 15 bytes read behind the end of an
array within the 16-byte word that its last byte is in, which no device faults on.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import EmulationError
from .toolchain import built, runtime

KERNEL = re.compile(
    r"__global__\s+void\s+(?:__launch_bounds__\s*\(\s*(?P<bound>\d+)[^)]*\)\s*)?(?P<name>\w+)\s*\("
)
FLOATS = {"f": ctypes.c_float, "d": ctypes.c_double}
INTEGERS = {
    "b": ctypes.c_int8,
    "B": ctypes.c_uint8,
    "h": ctypes.c_int16,
    "H": ctypes.c_uint16,
    "i": ctypes.c_int32,
    "I": ctypes.c_uint32,
    "q": ctypes.c_int64,
    "Q": ctypes.c_uint64,
}
#: CUDA's limit, by dimension.
MAX_BLOCK = (1024, 1024, 64)
MAX_THREADS = 1024


@dataclass(frozen=True)
class Address:
    """A pointer argument that is passed as it is: an address in a `Memory`."""

    value: int


class _Triple(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint) for name in "xyz"]


class _Memory(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p) for name in ("mapping", "first_page", "begin", "end", "last_page")
    ]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p),
        ("shared_begin", ctypes.c_void_p),
        ("shared_end", ctypes.c_void_p),
        ("grid", _Triple),
        ("block", _Triple),
        ("shared_bytes", ctypes.c_size_t),
        ("random", ctypes.c_uint64),
        ("seconds", ctypes.c_double),
        ("message", ctypes.c_char_p),
        ("fault", ctypes.c_void_p),
        ("in_thread", ctypes.c_int),
        ("failed_block", _Triple),
        ("failed_thread", _Triple),
    ]


#: One launch at a time: threadIdx and its like are global.
_lock = threading.RLock()


class Memory:
    """Bytes that a kernel may read and write, filled with 0xCD, and nothing around them.

    Attributes
    ----------
    address : int, a multiple of 16.
    """

    def __init__(self, size: int, name: str = "the memory") -> None:
        self.size, self.name = size, name
        self._memory = _Memory()
        if runtime().emulated_allocate(ctypes.byref(self._memory), ctypes.c_size_t(size)):
            raise MemoryError(f"no memory for {size} bytes")
        self.address = self._memory.begin

    def bytes(self) -> np.ndarray:
        """The memory itself, as uint8."""
        return np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(self.address))

    def protect(self) -> None:
        """From now on, writing is an error."""
        runtime().emulated_protect(ctypes.byref(self._memory))

    def check(self) -> None:
        """Raise where bytes just outside of the memory were changed."""
        if damage := runtime().emulated_damage(ctypes.byref(self._memory)):
            raise EmulationError(f"write to byte {damage} of {self.name}, {self.size} bytes")

    def free(self) -> None:
        """Give the memory back: its addresses fault."""
        runtime().emulated_free(ctypes.byref(self._memory))

    def place(self, address: int) -> str:
        """Where an address lies, in words."""
        offset = address - self.address
        where = "" if 0 <= offset < self.size else "outside of "
        return f"byte {offset} of {self.name}, {where}{self.size} bytes"


class Emulated:
    """A program of CUDA C++, compiled for this CPU.

    Raises
    ------
    EmulationError
        The source cannot be compiled.
    """

    def __init__(self, source: str) -> None:
        self.bounds = {
            match["name"]: int(match["bound"] or MAX_THREADS) for match in KERNEL.finditer(source)
        }
        self._library = ctypes.CDLL(str(built(source, tuple(self.bounds))))
        self._library.emulated_shared_begin.restype = ctypes.c_void_p
        self._library.emulated_shared_end.restype = ctypes.c_void_p

    def parameters(self, kernel: str) -> str:
        """The kinds of a kernel's parameters: P for a pointer, else as in `struct`."""
        if kernel not in self.bounds:
            raise EmulationError(f"no kernel {kernel!r}; the source has {[*self.bounds]}")
        kinds = self._library[f"emulated_kinds_{kernel}"]
        kinds.restype = ctypes.c_char_p
        return kinds().decode()

    def launch(
        self,
        kernel: str,
        *,
        grid: Sequence[int],
        block: Sequence[int],
        shared_bytes: int = 0,
        arguments: Sequence[Any] = (),
        seed: int | None = None,
        seconds: float = 60,
        memories: Sequence[Memory] = (),
    ) -> None:
        """Run a kernel to its end.

        Parameters
        ----------
        grid, block : up to three sizes, x first.
        shared_bytes : dynamic shared memory of a block.
        arguments : arrays, which are copied to guarded memory of their exact size, and back where
            they may be written; `Address`es; ints and floats.
        seed : None runs blocks and threads in order, a number in the random order that it starts.
        seconds : of CPU time, after which the kernel counts as endless.
        memories : what addresses are in, for messages, and for checks of what surrounds them.

        Raises
        ------
        EmulationError
            The kernel did something wrong, or cannot be launched like this. Arrays are as before.
        """
        sizes, threads = triple(kernel, "grid", grid), triple(kernel, "block", block)
        if math.prod(threads) > self.bounds.get(kernel, MAX_THREADS) or any(
            size > limit for size, limit in zip(threads, MAX_BLOCK, strict=True)
        ):
            raise EmulationError(
                f"{kernel}: block {threads}; expected at most {self.bounds[kernel]} threads"
            )
        kinds = self.parameters(kernel)
        if len(kinds) != len(arguments):
            raise EmulationError(f"{kernel}: {len(arguments)} arguments; expected {len(kinds)}")
        with _lock, contextlib.ExitStack() as stack:
            values, copies = [], []
            for i, (kind, argument) in enumerate(zip(kinds, arguments, strict=True)):
                if isinstance(argument, np.ndarray) and kind == "P":
                    memory = Memory(argument.nbytes, f"argument {i}")
                    stack.callback(memory.free)
                    memory.bytes()[:] = np.ascontiguousarray(argument).reshape(-1).view(np.uint8)
                    copies.append((memory, argument))
                    if not argument.flags.writeable:
                        memory.protect()
                    values.append(ctypes.c_void_p(memory.address))
                else:
                    values.append(scalar(kernel, i, kind, argument))
            self._run(
                kernel,
                _Launch(
                    grid=_Triple(*sizes),
                    block=_Triple(*threads),
                    shared_bytes=shared_bytes,
                    random=0 if seed is None else 2 * seed + 1,
                    seconds=seconds,
                ),
                values,
                [*(memory for memory, _ in copies), *memories],
            )
            for memory, array in copies:
                if array.flags.writeable:
                    array[...] = memory.bytes().view(array.dtype).reshape(array.shape)

    def _run(self, kernel: str, launch: _Launch, values: list[Any], memories: list[Memory]) -> None:
        pointers = (ctypes.c_void_p * max(1, len(values)))(*map(ctypes.addressof, values))
        call = self._library[f"emulated_call_{kernel}"]
        launch.kernel = ctypes.cast(call, ctypes.c_void_p).value
        launch.arguments = ctypes.addressof(pointers)
        launch.shared_begin = self._library.emulated_shared_begin()
        launch.shared_end = self._library.emulated_shared_end()
        if runtime().emulated_launch(ctypes.byref(launch)):
            raise EmulationError(description(kernel, launch, memories))
        for memory in memories:
            try:
                memory.check()
            except EmulationError as error:
                raise EmulationError(f"{kernel}: {error}") from None


def description(kernel: str, launch: _Launch, memories: list[Memory]) -> str:
    """What went wrong, where."""
    words = [kernel]
    if launch.in_thread:
        for name, index in (("block", launch.failed_block), ("thread", launch.failed_thread)):
            words.append(f"{name} ({index.x}, {index.y}, {index.z})")
    text = f"{', '.join(words)}: {launch.message.decode()}"
    if launch.fault is None:
        return text
    nearest = min(memories, key=lambda m: distance(m, launch.fault), default=None)
    if nearest is None or distance(nearest, launch.fault) > 1 << 32:
        return f"{text} at {launch.fault:#x}"
    return f"{text} at {launch.fault:#x}, {nearest.place(launch.fault)}"


def distance(memory: Memory, address: int) -> int:
    """Bytes between an address and the memory, 0 within."""
    return max(memory.address - address, address - (memory.address + memory.size), 0)


def triple(kernel: str, name: str, sizes: Sequence[int]) -> tuple[int, int, int]:
    """Up to three sizes of at least 1, filled up with ones."""
    x, y, z = (*sizes, 1, 1, 1)[:3]
    if not 1 <= len(sizes) <= 3 or min(x, y, z) < 1:
        raise EmulationError(f"{kernel}: {name} {tuple(sizes)}; expected one to three sizes")
    return x, y, z


def scalar(kernel: str, position: int, kind: str, value: Any) -> Any:
    """An argument that is no array, as the parameter's ctypes object."""
    if kind == "P" and isinstance(value, Address):
        return ctypes.c_void_p(value.value)
    if kind in INTEGERS and isinstance(value, (int, np.integer)):
        result = INTEGERS[kind](int(value))
        if result.value == value:
            return result
    if kind in FLOATS and isinstance(value, (int, float, np.number)):
        return FLOATS[kind](float(value))
    raise EmulationError(
        f"{kernel}: argument {position} is {value!r}; its parameter's kind is {kind!r}"
    )
