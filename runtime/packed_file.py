r"""Packed layers of a whole model in one file, which is mapped when it is loaded, without a copy.

    8 bytes   b"qmmpack\0"
    4 bytes   format version, little endian
    4 bytes   length of the header
    32 bytes  SHA-256 of the header
    header    JSON {"kernels": [part], "layers": {name: {"kernel": number, "arrays": {name: part},
              "defaults": {name: part}, "checksum": hexadecimal}}, "length": bytes}; a part is
              {"start": bytes, "shape": [], "dtype": ""}, of a kernel that of its kernel file
    the rest  the parts, each at a multiple of 64 bytes, or of a page if it is as long as one; their
              starts count from the first page behind the header

All layers are packed for one target. Their kernels lie beside them, so the file is as trustworthy
as where it comes from, like any kernel file.

What is checked: the header, the kernels and the file's length when it is loaded; the numbers of a
layer when it is asked for, by sums over blocks of 64 KiB, at the speed of memory. These find bits
that changed, pages that were lost and blocks that were exchanged, not malice.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArrayError, KernelFileError
from ..files import as_path, writing
from . import kernel_file
from .kernel import Kernel
from .linear import Linear
from .load import best, check_runtime, loaded
from .memory import ALIGNMENT, aligned

MAGIC = b"qmmpack\0"
FORMAT_VERSION = 1
HEADER = struct.Struct("<8sII32s")
PAGE = 4096
#: Bytes under one sum of a checksum.
BLOCK = 1 << 16
#: What of a `Linear` a layer has.
PARTS = ("arrays", "defaults")


def save_packed(path: str | os.PathLike[str], layers: Mapping[str, Linear]) -> None:
    """Write layers that are bound to kernels of one target to one file: whole, or not at all.

    Parameters
    ----------
    layers : by name what `Kernel.bind` gave.

    Raises
    ------
    ArrayError
        There is nothing to write, or something else than a `Linear`.
    KernelFileError
        The file cannot be written, or the layers are for several targets.
    ToolError
        No linker was found for the kernels.
    """
    target = as_path(path, KernelFileError)
    if not isinstance(layers, Mapping) or not layers:
        raise ArrayError(f"layers is {type(layers).__name__}; expected one or more name: Linear")
    placed = Placed()
    numbers: dict[int, int] = {}  # of kernels, by their identities
    entries: dict[str, Any] = {}
    for name, linear in layers.items():
        if not isinstance(name, str) or not isinstance(linear, Linear):
            raise ArrayError(f"{name!r} is {type(linear).__name__}; expected a name and a Linear")
        kernel = linear.kernel
        if id(kernel) not in numbers:
            numbers[id(kernel)] = placed.kernel(kernel)
        parts = {"arrays": linear._arrays, "defaults": linear._defaults}
        entries[name] = {
            "kernel": numbers[id(kernel)],
            "checksum": checksum([*parts["arrays"].values(), *parts["defaults"].values()]),
            **{part: {n: placed.add(a) for n, a in of.items()} for part, of in parts.items()},
        }
    targets = {linear.kernel.info.target for linear in layers.values()}
    if len(targets) > 1:
        raise KernelFileError(
            f"cannot write {path}: the layers are packed for {', '.join(sorted(targets))}; "
            "expected one target"
        )
    kernels = [placed.entries[number] for number in placed.kernels.values()]
    header = {"kernels": kernels, "layers": entries, "length": placed.end}
    text = json.dumps(header).encode()
    with writing(target, KernelFileError) as file:
        file.write(HEADER.pack(MAGIC, FORMAT_VERSION, len(text), hashlib.sha256(text).digest()))
        file.write(text)
        file.write(bytes(-file.tell() % PAGE))
        for entry, array in zip(placed.entries, placed.arrays, strict=True):
            file.write(bytes(entry["start"] - placed.written))
            file.write(np.ascontiguousarray(array).data)
            placed.written = entry["start"] + array.nbytes


class Placed:
    """Arrays, and where they will lie.

    Attributes
    ----------
    kernels : by the content of a kernel file, the number of its entry.
    end : where the last one ends.   written : where the last one that was written does.
    """

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []
        self.entries: list[dict[str, Any]] = []
        self.kernels: dict[bytes, int] = {}
        self.end = self.written = 0

    def add(self, array: np.ndarray) -> dict[str, Any]:
        """Place one more array."""
        unit = ALIGNMENT if array.nbytes < PAGE else PAGE
        start = -(-self.end // unit) * unit
        entry = {"start": start, "shape": array.shape, "dtype": array.dtype.str}
        self.end = start + array.nbytes
        self.arrays.append(array)
        self.entries.append(entry)
        return entry

    def kernel(self, kernel: Kernel) -> int:
        """Place a kernel, unless it is there, and say which it is."""
        content = kernel_file.packed([kernel])
        if content not in self.kernels:
            self.add(np.frombuffer(content, np.uint8))
            self.kernels[content] = len(self.entries) - 1
        return [*self.kernels].index(content)


def checksum(arrays: list[np.ndarray]) -> str:
    """What tells that numbers are those that were written; see above."""
    digest = hashlib.sha256()
    for array in arrays:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        whole = data.size // BLOCK * BLOCK
        sums = np.add.reduce(data[:whole].view("<u8").reshape(-1, BLOCK // 8), axis=1)
        digest.update(sums.tobytes())
        digest.update(data[whole:].tobytes())
    return digest.hexdigest()


class PackedLayers(Mapping[str, Linear]):
    """The layers of a file by name, each ready to be called; it is bound when it is asked for.

    Attributes
    ----------
    path : the file.   kernels : of all layers.
    """

    def __init__(
        self, path: Path, memory: Any, header: dict[str, Any], kernels: list[Kernel], copy: bool
    ) -> None:
        self.path, self.kernels = path, kernels
        self._memory, self._layers, self._copy = memory, header["layers"], copy
        self._bound: dict[str, Linear] = {}

    def __getitem__(self, name: str) -> Linear:
        if name not in self._bound:
            self._bound[name] = self._bind(name, self._layers[name])
        return self._bound[name]

    def __contains__(self, name: object) -> bool:
        return name in self._layers

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def _bind(self, name: str, layer: dict[str, Any]) -> Linear:
        """A layer over the memory of the file, or a copy."""
        arrays, defaults = (
            {key: part_of(self._memory, part) for key, part in layer[of].items()} for of in PARTS
        )
        if checksum([*arrays.values(), *defaults.values()]) != layer["checksum"]:
            raise KernelFileError(
                f"{self.path} is damaged: the checksum of {name} does not match its numbers"
            )
        if self._copy:
            arrays = {key: aligned(array) for key, array in arrays.items()}
        linear = object.__new__(Linear)
        linear._bind(self.kernels[layer["kernel"]], arrays, defaults)
        return linear


def part_of(memory: Any, part: dict[str, Any]) -> np.ndarray:
    """An array over the memory of a file."""
    return np.ndarray(part["shape"], part["dtype"], memory, part["start"])


def load_packed(
    path: str | os.PathLike[str], *, copy: bool = False, num_threads: int | None = None
) -> PackedLayers:
    """The layers that `save_packed` wrote, ready to be called on the target they were packed for.

    Nothing is compiled or packed. The file is mapped: processes that load it share its memory, and
    it may be replaced, but must not be cut short, as long as one of them uses it.

    Parameters
    ----------
    copy : give each layer memory of its own when it is asked for, on huge pages where the system
        has them, which calls with few rows read faster than those of a file.
    num_threads : as for `compile`.

    Raises
    ------
    KernelFileError
        The file cannot be read, is none of these, is damaged, or comes from another version; a
        layer whose numbers are damaged raises it when it is asked for.
    TargetError
        This machine cannot execute what the layers were packed for.
    ArrayError
        `num_threads` is no whole number, less than 1 or too large.
    """
    file = as_path(path, KernelFileError)
    try:
        with file.open("rb") as stream:
            header, start = read_header(file, stream.read(HEADER.size), stream)
            size = os.fstat(stream.fileno()).st_size
            if size != start + header["length"]:
                raise KernelFileError(
                    f"{file} is damaged: it has {size:,} bytes; expected "
                    f"{start + header['length']:,}"
                )
            # Private: what calls are given must be writable to some libraries.
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    except KernelFileError:
        raise
    except (OSError, ValueError) as error:  # a name with a NUL is the latter
        reason = getattr(error, "strerror", None) or error
        raise KernelFileError(f"cannot read {str(file)!r}: {reason}") from None
    memory = memoryview(mapped)[start:]
    kernels = []
    for entry in header["kernels"]:
        content = part_of(memory, entry).tobytes()
        stored = best(file, kernel_file.parsed(file, content))
        check_runtime(str(file), stored.info)
        kernels.append(loaded(stored, num_threads))
    return PackedLayers(file, memory, header, kernels, copy)


def read_header(path: Path, head: bytes, stream: Any) -> tuple[dict[str, Any], int]:
    """The header of an open file, and where its parts begin."""
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise KernelFileError(f"{path} holds no layers that quantmm.save_packed wrote")
    _, version, length, digest = HEADER.unpack(head)
    if version != FORMAT_VERSION:
        raise KernelFileError(
            f"{path} has format version {version}; this quantmm reads {FORMAT_VERSION}"
        )
    text = stream.read(min(length, os.fstat(stream.fileno()).st_size))
    if len(text) != length or hashlib.sha256(text).digest() != digest:
        raise KernelFileError(f"{path} is damaged: its checksum does not match its header")
    return json.loads(text), -(-(HEADER.size + length) // PAGE) * PAGE
