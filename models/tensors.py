"""The tensors of .safetensors files, which are one file or the shards of a folder.

The file is 8 bytes with the length of a header, a header in JSON (name: dtype, shape, data_offsets)
and the data: https://github.com/huggingface/safetensors, "Format". The `safetensors` package
reads no bfloat16 into NumPy without being told, and no tensor's place in the file, hence this.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import WeightFileError
from .blocks import OpenFile, reading

SUFFIX = ".safetensors"
#: What names the shards of a folder.
INDEX = "model.safetensors.index.json"
#: Longer headers are refused by the safetensors package too.
LONGEST_HEADER = 100_000_000
#: Of an array of NumPy.
MOST_DIMENSIONS = 32

DTYPES: dict[str, np.dtype] = {
    code: np.dtype(dtype)
    for code, dtype in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "U16": np.uint16,
        "I16": np.int16,
        "U32": np.uint32,
        "I32": np.int32,
        "U64": np.uint64,
        "I64": np.int64,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F32": np.float32,
        "F64": np.float64,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
    }.items()
}


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor in a file.

    Attributes
    ----------
    offset : of its first byte in the file.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    file: OpenFile

    @property
    def nbytes(self) -> int:
        """The bytes that it takes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def path(self) -> Path:
        """The file."""
        return self.file.path

    def read(self) -> np.ndarray:
        """All of it.

        Raises
        ------
        WeightFileError
            The file was changed.
        """
        with reading(self.path, self.name):
            return self.file.array(self.name, self.offset, self.dtype, self.shape)

    def expect(self, dtypes: str | Iterable[str], shape: tuple[int | None, ...]) -> Stored:
        """Itself, if it has one of the dtypes and this shape; None is any number.

        Raises
        ------
        WeightFileError
            It has not.
        """
        names = [dtypes] if isinstance(dtypes, str) else list(dtypes)
        fits = len(shape) == len(self.shape) and all(
            expected in (None, size) for size, expected in zip(self.shape, shape, strict=True)
        )
        if self.dtype.name not in names or not fits:
            sizes = ", ".join("any" if size is None else str(size) for size in shape)
            raise WeightFileError(
                f"{self.path}: {self.name} is {self.dtype.name}{self.shape}; expected "
                f"{' or '.join(names)}({sizes})"
            )
        return self


@dataclass(frozen=True, eq=False)
class Contents:
    """What a file or folder holds.

    Attributes
    ----------
    tensors : by name, of all shards.
    metadata : words by name from the files' headers.
    """

    tensors: dict[str, Stored]
    metadata: dict[str, str]


def contents(path: Path) -> Contents:
    """The tensors of one .safetensors file, without their data.

    Raises
    ------
    WeightFileError
        The file cannot be read, or is damaged.
    """
    with reading(path):
        file = OpenFile(path)
        length = int(file.array("the header's length", 0, "<u8", (1,))[0])
        if length > min(LONGEST_HEADER, file.size - 8):
            raise WeightFileError(
                f"{path}: the header has {length:,} bytes; expected at most "
                f"{min(LONGEST_HEADER, file.size - 8):,}"
            )
        text = file.array("the header", 8, "u1", (length,)).tobytes()
        header = parsed(path, text, "the header")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or any(type(v) is not str for v in metadata.values()):
            raise WeightFileError(f"{path}: __metadata__ is no table of words")
        tensors = {name: stored(file, 8 + length, name, row) for name, row in header.items()}
        refuse_overlaps(tensors.values())
        return Contents(tensors, metadata)


def parsed(path: Path, text: bytes, what: str) -> dict[str, Any]:
    """A JSON object in which no name stands twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice = next(name for name, count in counts.items() if count > 1)
            raise WeightFileError(f"{path}: {what} has {twice!r} twice; expected it once")
        return found

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise WeightFileError(f"{path}: {what} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise WeightFileError(f"{path}: {what} is {type(value).__name__}; expected a JSON object")
    return value


def read_json(path: Path, most: int = LONGEST_HEADER) -> dict[str, Any]:
    """A JSON object from a file of its own.

    Raises
    ------
    WeightFileError
        The file cannot be read, is longer than `most` bytes, or holds something else.
    """
    with reading(path):
        file = OpenFile(path)
        if file.size > most:
            raise WeightFileError(f"{path} has {file.size:,} bytes; expected at most {most:,}")
        return parsed(path, file.array("the file", 0, "u1", (file.size,)).tobytes(), "the file")


def stored(file: OpenFile, start: int, name: str, row: Any) -> Stored:
    """A tensor from its row in the header; `start` is where the data begin."""
    path = file.path
    if not isinstance(row, dict) or not {"dtype", "shape", "data_offsets"} <= row.keys():
        raise WeightFileError(f"{path}: {name} has no dtype, shape and data_offsets in the header")
    code, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise WeightFileError(f"{path}: {name} is {code!r}; expected one of {', '.join(DTYPES)}")
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or any(type(i) is not int or i < 0 for i in numbers):
            raise WeightFileError(f"{path}: {name} has {what} {numbers!r}; expected whole numbers")
    if len(shape) > MOST_DIMENSIONS:
        raise WeightFileError(
            f"{path}: {name} has {len(shape):,} dimensions; expected at most {MOST_DIMENSIONS}"
        )
    size = math.prod(shape) * DTYPES[code].itemsize
    if len(offsets) != 2 or offsets[1] - offsets[0] != size:
        raise WeightFileError(
            f"{path}: {name} of {code}{tuple(shape)} has data_offsets {offsets}; expected two that "
            f"are {size:,} bytes apart"
        )
    if start + offsets[1] > file.size:
        raise WeightFileError(
            f"{path}: {name} ends at byte {start + offsets[1]:,}; the file has {file.size:,}"
        )
    return Stored(name, DTYPES[code], tuple(shape), start + offsets[0], file)


def refuse_overlaps(tensors: Iterable[Stored]) -> None:
    """Refuse tensors that share bytes of a file."""
    end, before = 0, ""
    for tensor in sorted(tensors, key=lambda each: (each.offset, each.nbytes)):
        if tensor.offset < end:
            raise WeightFileError(
                f"{tensor.path}: {tensor.name} begins within {before}; expected one tensor behind "
                "the other"
            )
        end, before = tensor.offset + tensor.nbytes, tensor.name


def folder_contents(folder: Path) -> Contents:
    """The tensors of all .safetensors files of a folder: those that its index names, if it has one.

    Raises
    ------
    WeightFileError
        A file is missing or damaged, two hold a tensor of one name, or the index names others than
        there are.
    """
    index = folder / INDEX
    there = sorted(path.name for path in folder.iterdir() if path.suffix.lower() == SUFFIX)
    placed: dict[str, Any] | None = None
    if index.exists():
        placed = read_json(index).get("weight_map")
        if not isinstance(placed, dict) or any(type(file) is not str for file in placed.values()):
            raise WeightFileError(f"{index}: no weight_map from tensors to files")
        shards = sorted(set(placed.values()))
        for name in shards:
            if name != Path(name).name or name not in there:
                raise WeightFileError(f"{index} names {name!r}, which is not in {folder}")
    else:
        shards = there
    tensors: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for shard in shards:
        found = contents(folder / shard)
        for name, tensor in found.tensors.items():
            if name in tensors:
                raise WeightFileError(f"{name} is in {tensors[name].path} and in {tensor.path}")
            if placed is not None and placed.get(name) != shard:
                raise WeightFileError(
                    f"{tensor.path} holds {name}; {index.name} has it in {placed.get(name)}"
                )
            tensors[name] = tensor
        metadata |= found.metadata
    if placed is not None and (missing := placed.keys() - tensors.keys()):
        name = min(missing)
        raise WeightFileError(f"{folder / placed[name]} lacks {name}, which {index.name} has there")
    return Contents(tensors, metadata)
