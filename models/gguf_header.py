"""What stands before the weights in a GGUF file: metadata, and where each tensor lies.

The format is llama.cpp's docs/gguf.md, in versions 2 and 3, little-endian. Everything that a file
says is held against its size before it is believed: what is read takes time and memory in
proportion to the bytes that are there.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .ggml_blocks import BLOCK_TYPES, BlockType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
#: ggml has no tensors with more dimensions.
DIMENSIONS = 4
#: Where the tensors of a file begin, when its metadata do not say otherwise.
ALIGNMENT = 32
#: Arrays in arrays; files have one at most.
DEPTH = 4
#: Bytes that are read at once.
WINDOW = 1 << 20

UINT32, UINT64 = struct.Struct("<I"), struct.Struct("<Q")
STRING, ARRAY = 8, 9
#: The numbers that metadata hold, by their types' numbers.
NUMBERS = {
    number: struct.Struct("<" + code)
    for number, code in (
        *enumerate("BbHhIif?"),
        *enumerate("Qqd", 10),
    )
}
#: The fewest bytes that an element of an array takes.
LEAST = {number: form.size for number, form in NUMBERS.items()} | {STRING: 8, ARRAY: 12}


class GgufError(ValueError):
    """What is wrong with a file, and the tensor if it is one's."""

    def __init__(self, problem: str, tensor: str | None = None) -> None:
        super().__init__(problem)
        self.tensor = tensor


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies.

    Attributes
    ----------
    shape : the outermost dimension first: a weight's is (N, K).
    start, nbytes : in the file.
    """

    name: str
    type: BlockType
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """What a file says before its weights.

    Attributes
    ----------
    metadata : numbers and words; arrays, of which a vocabulary is made, are left out.
    """

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


class Cursor:
    """Reads one thing after the other, and refuses what would lie beyond the end.

    `read` gives bytes by their start and count, which lie within the `end` of the file.
    """

    def __init__(self, read: Callable[[int, int], bytes], end: int) -> None:
        self.read, self.end = read, end
        self.at = 0
        self.window, self.window_start = b"", 0

    def skip(self, count: int, what: str) -> int:
        """Where `count` bytes start, which are passed over."""
        start = self.at
        if count > self.end - start:
            raise GgufError(
                f"{what} would take {count:,} bytes from byte {start:,} on; the file has "
                f"{self.end:,}"
            )
        self.at = start + count
        return start

    def within_window(self, start: int, count: int) -> int:
        """Where in the window these bytes of the file are, which have been passed over."""
        at = start - self.window_start
        if at < 0 or at + count > len(self.window):
            self.window = self.read(start, min(max(count, WINDOW), self.end - start))
            self.window_start = start
            return 0
        return at

    def number(self, form: struct.Struct, what: str) -> Any:
        """A number."""
        start = self.skip(form.size, what)
        at = self.within_window(start, form.size)
        return form.unpack_from(self.window, at)[0]

    def text(self, what: str) -> str:
        """A string, as its length and its UTF-8."""
        size = self.number(UINT64, what)
        start = self.skip(size, what)
        at = self.within_window(start, size)
        try:
            return self.window[at : at + size].decode()
        except UnicodeDecodeError:
            raise GgufError(f"{what} at byte {start:,} is no UTF-8") from None

    def value(self, kind: int, what: str) -> Any:
        """A value of the metadata, or None for an array."""
        if kind in NUMBERS:
            return self.number(NUMBERS[kind], what)
        if kind == STRING:
            return self.text(what)
        if kind != ARRAY:
            raise GgufError(f"{what} has type {kind}; expected 0 to {max(NUMBERS)}")
        self.skip_array(what, DEPTH)
        return None

    def skip_array(self, what: str, depth: int) -> None:
        """Pass over an array."""
        element, count = self.number(UINT32, what), self.number(UINT64, what)
        if element not in LEAST:
            raise GgufError(f"{what} has elements of type {element}; expected 0 to {max(NUMBERS)}")
        if count * LEAST[element] > self.end - self.at:
            raise GgufError(f"{what} has {count:,} elements, more than the file has bytes for")
        if element in NUMBERS:
            self.skip(count * LEAST[element], what)
        elif element == STRING:
            self.skip_texts(count, what)
        elif depth == 1:
            raise GgufError(f"{what} has arrays in arrays, more than {DEPTH} deep")
        else:
            for _ in range(count):
                self.skip_array(what, depth - 1)

    def skip_texts(self, count: int, what: str) -> None:
        """Pass over strings: a vocabulary has hundreds of thousands."""
        size_at = UINT64.unpack_from
        at, last = self.at - self.window_start, len(self.window) - 8
        for _ in range(count):
            if not 0 <= at <= last:
                self.at = self.window_start + at
                at = self.within_window(self.skip(8, what), 8)
                last = len(self.window) - 8
            at += 8 + size_at(self.window, at)[0]
        self.at = self.window_start + at
        if self.at > self.end:
            raise GgufError(f"{what} would end at byte {self.at:,}; the file has {self.end:,}")


def read_header(read: Callable[[int, int], bytes], end: int) -> Header:
    """The header of a file of `end` bytes; `read` gives bytes by their start and count.

    Raises
    ------
    GgufError
        It is no GGUF file, or not what it says it is.
    """
    cursor = Cursor(read, end)
    magic = cursor.number(UINT32, "the magic").to_bytes(4, "little")
    if magic != MAGIC:
        raise GgufError(f"it begins with {magic!r}; expected {MAGIC!r}")
    version = cursor.number(UINT32, "the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        more = ", of a big-endian machine" if swapped else ""
        raise GgufError(f"its version is {version}{more}; expected 2 or 3, little-endian")
    count, pairs = cursor.number(UINT64, "the tensors"), cursor.number(UINT64, "the metadata")
    metadata = read_metadata(cursor, pairs)
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise GgufError(f"general.alignment is {alignment!r}; expected a power of two")
    tensors: dict[str, Tensor] = {}
    for _ in range(count):
        tensor = read_tensor(cursor)
        if tensor.name in tensors:
            raise GgufError("the file has it twice; expected it once", tensor.name)
        tensors[tensor.name] = tensor
    start = -(-cursor.at // alignment) * alignment
    placed = {name: place(each, start, alignment, end) for name, each in tensors.items()}
    refuse_overlaps(placed.values())
    return Header({key: value for key, value in metadata.items() if value is not None}, placed)


def read_metadata(cursor: Cursor, pairs: int) -> dict[str, Any]:
    """The pairs of names and values; that of an array is None."""
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.text("a key of the metadata")
        if key in metadata:
            raise GgufError(f"its metadata have {key!r} twice; expected it once")
        metadata[key] = cursor.value(cursor.number(UINT32, repr(key)), repr(key))
    return metadata


def read_tensor(cursor: Cursor) -> Tensor:
    """What the header says of the next tensor, with a `start` behind the header's end."""
    name = cursor.text("the name of a tensor")
    what = repr(name)
    count = cursor.number(UINT32, what)
    if not 1 <= count <= DIMENSIONS:
        raise GgufError(f"it has {count} dimensions; expected 1 to {DIMENSIONS}", name)
    shape = tuple(cursor.number(UINT64, what) for _ in range(count))[::-1]
    number, start = cursor.number(UINT32, what), cursor.number(UINT64, what)
    if number not in BLOCK_TYPES:
        raise GgufError(f"it has type {number}, which this quantmm knows nothing of", name)
    block = BLOCK_TYPES[number]
    if min(shape) < 1 or shape[-1] % block.weights:
        raise GgufError(
            f"it has shape {shape}; expected rows of {block.name}, which has blocks of "
            f"{block.weights}",
            name,
        )
    return Tensor(name, block, shape, start, math.prod(shape) // block.weights * block.nbytes)


def place(tensor: Tensor, start: int, alignment: int, end: int) -> Tensor:
    """The tensor with its place in the file, whose data begin at `start`."""
    if tensor.start % alignment:
        raise GgufError(
            f"it lies at {tensor.start:,}; expected a multiple of {alignment}", tensor.name
        )
    at = start + tensor.start
    if at + tensor.nbytes > end:
        raise GgufError(
            f"{tensor.type.name}{tensor.shape} would be {tensor.nbytes:,} bytes from byte {at:,} "
            f"on; the file has {end:,}",
            tensor.name,
        )
    return dataclasses.replace(tensor, start=at)


def refuse_overlaps(tensors: Iterable[Tensor]) -> None:
    """Refuse tensors that share bytes of the file."""
    end, before = 0, ""
    for tensor in sorted(tensors, key=lambda each: (each.start, each.nbytes)):
        if tensor.start < end:
            raise GgufError(
                f"it begins within {before!r}; expected one behind the other", tensor.name
            )
        end, before = tensor.start + tensor.nbytes, tensor.name
