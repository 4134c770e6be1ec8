"""GGUF files as llama.cpp writes them, or as nobody should."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from quantmm.models.ggml_blocks import BLOCK_TYPES

NUMBERS = {row.name: number for number, row in BLOCK_TYPES.items()}
FORMS = dict(enumerate("BbHhIif?")) | dict(enumerate("Qqd", 10))
ALIGNMENT = 32


@dataclass
class Entry:
    """A tensor of a file; its `shape` has the innermost dimension last."""

    name: str
    type: str
    shape: tuple[int, ...]
    data: bytes
    offset: int | None = None
    number: int | None = None


def text(words: str | bytes) -> bytes:
    raw = words.encode() if isinstance(words, str) else words
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, content: Any) -> bytes:
    """A value of the metadata; that of an array is its elements' type, and the elements."""
    if kind == 8:
        return text(content)
    if kind == 9:
        element, members = content
        return struct.pack("<IQ", element, len(members)) + b"".join(
            value(element, member) for member in members
        )
    return struct.pack("<" + FORMS[kind], content)


def gguf(
    tensors: Sequence[Entry],
    metadata: Sequence[tuple[str, int, Any]] = (("general.architecture", 8, "llama"),),
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = ALIGNMENT,
) -> bytes:
    """The bytes of a file."""
    header = [b"GGUF", struct.pack("<I", version)]
    header.append(struct.pack("<QQ", *(counts or (len(tensors), len(metadata)))))
    header += [text(key) + struct.pack("<I", kind) + value(kind, it) for key, kind, it in metadata]
    data = b""
    for each in tensors:
        offset = len(data) if each.offset is None else each.offset
        number = NUMBERS[each.type] if each.number is None else each.number
        header.append(
            text(each.name)
            + struct.pack("<I", len(each.shape))
            + struct.pack(f"<{len(each.shape)}Q", *reversed(each.shape))
            + struct.pack("<IQ", number, offset)
        )
        data += each.data + bytes(-len(each.data) % alignment)
    start = b"".join(header)
    return start + bytes(-len(start) % alignment) + data


def blocks(type: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Random blocks of a type, whose float16 scales are finite numbers of every kind."""
    row = BLOCK_TYPES[NUMBERS[type]]
    count = int(np.prod(shape)) // row.weights
    if row.fields is None:
        floats = rng.standard_normal(count).astype(row.plain)
        return floats.view(np.uint8)
    raw = rng.integers(0, 256, (count, row.nbytes), np.uint8)
    structs = raw.view(row.fields)[:, 0]
    for name in {"d", "m", "dmin"} & set(row.fields.names or ()):
        structs[name] = halves(count, rng)
    return raw.reshape(-1)


def halves(count: int, rng: np.random.Generator) -> np.ndarray:
    """Finite float16 numbers: all bit patterns, subnormal ones and both zeros among them."""
    bits = rng.integers(0, 2**16, count, np.uint16)
    special = np.array([0, 0x8000, 1, 0x8001, 0x7BFF, 0xFBFF, 0x3C00], np.uint16)
    bits = np.where(rng.random(count) < 0.2, rng.choice(special, count), bits)
    return np.where(bits & 0x7C00 == 0x7C00, bits & 0x83FF, bits).astype(np.uint16).view(np.float16)


def entry(name: str, type: str, shape: tuple[int, ...], rng: np.random.Generator) -> Entry:
    """A tensor of random blocks."""
    return Entry(name, type, shape, blocks(type, shape, rng).tobytes())
