"""Damage to files: what a reader may say of it, and what memory it may take to say so."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import hypothesis
from quantmm.errors import WeightFileError
from quantmm.models.open import open_model

#: Numbers that files lie with, as counts, sizes and places of 1, 2, 4 and 8 bytes.
LIES = (0, 1, 2, 7, 8, 9, 31, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63)
LIES = (*LIES, 2**63 - 1, 2**64 - 1, 2**64 - 32)
#: Memory that reading may take: for each byte of a file, and besides.
PER_BYTE, BESIDE = 64, 16 << 20


def mutations(content: bytes, count: int, seed: int, head: int | None = None) -> Iterator[bytes]:
    """`content` damaged in `count` ways, most often within its first `head` bytes."""
    draw = random.Random(seed)
    for _ in range(count):
        damaged = bytearray(content)
        for _ in range(draw.choice((1, 1, 1, 2, 5))):
            if not damaged:
                break
            within = len(damaged) if draw.random() < 0.2 else min(head or 2**62, len(damaged))
            damage(damaged, draw.randrange(within), draw)
        yield bytes(damaged)


def damage(content: bytearray, at: int, draw: random.Random) -> None:
    """One change around the place `at`."""
    size = draw.choice((1, 2, 4, 8))
    kind = draw.randrange(7)
    if kind == 0:
        content[at] ^= 1 << draw.randrange(8)
    elif kind == 1:
        content[at : at + size] = draw.randbytes(size)
    elif kind in (2, 3):
        lie = draw.choice(LIES) + draw.choice((0, 0, 1, -1))
        content[at : at + size] = (lie % 256**size).to_bytes(size, "little")
    elif kind == 4:
        del content[at:]
    elif kind == 5:
        del content[at : at + draw.randrange(1, 64)]
    else:
        other = draw.randrange(len(content))
        part = content[other : other + draw.randrange(1, 64)]
        content[at : at if draw.random() < 0.5 else at + len(part)] = part


def read_all(path: Path) -> bool:
    """Whether a file is a model all of which can be read; what is wrong with it was said in words.

    Fails where anything else is raised, or where memory was taken that a file of this size does
    not suggest.
    """
    tracemalloc.start()
    try:
        whole = open_and_read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= PER_BYTE * path.stat().st_size + BESIDE
    return whole


def open_and_read(path: Path) -> bool:
    """Read all of a model that can be, and say whether that was everything."""
    said: list[str] = []
    try:
        model = open_model(path)
    except WeightFileError as error:
        said.append(str(error))
    else:
        for mapping, name in [(each, name) for each in (model, model.tensors) for name in each]:
            try:
                mapping[name]
            except WeightFileError as error:
                said.append(str(error))
    assert all(path.name in message for message in said)
    return not said


def fuzz(content: bytes, path: Path, seed: int, head: int | None = None, count: int = 300) -> int:
    """Read a file with each of some hundred damages, and say how many left it a whole model.

    `path` is where it is written. The profile "deep" tries ten times as many.
    """
    deep = hypothesis.settings.get_current_profile_name() == "deep"
    whole = 0
    for damaged in mutations(content, 10 * count if deep else count, seed, head):
        path.write_bytes(damaged)
        whole += read_all(path)
    return whole
