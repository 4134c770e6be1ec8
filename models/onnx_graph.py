"""The graph of an ONNX file: its constants, which stay where they are until they are read, and who
uses them.

The format is https://github.com/onnx/onnx, docs/IR.md and onnx.proto3. Weights may lie in files
beside the model's ("external data"), which are read piece by piece.
"""

from __future__ import annotations

import math
from collections import ChainMap, defaultdict
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import ArrayError, WeightFileError
from ..extras import install
from .blocks import OpenFile, reading

#: By name: the number in onnx.proto3, the dtype of NumPy, and the bits of a number in the file.
DTYPES: dict[str, tuple[int, np.dtype, int]] = {
    "float32": (1, np.dtype("<f4"), 32),
    "uint8": (2, np.dtype("u1"), 8),
    "int8": (3, np.dtype("i1"), 8),
    "uint16": (4, np.dtype("<u2"), 16),
    "int16": (5, np.dtype("<i2"), 16),
    "int32": (6, np.dtype("<i4"), 32),
    "int64": (7, np.dtype("<i8"), 64),
    "bool": (9, np.dtype("?"), 8),
    "float16": (10, np.dtype("<f2"), 16),
    "float64": (11, np.dtype("<f8"), 64),
    "uint32": (12, np.dtype("<u4"), 32),
    "uint64": (13, np.dtype("<u8"), 64),
    "bfloat16": (16, np.dtype(ml_dtypes.bfloat16), 16),
    "uint4": (21, np.dtype("u1"), 4),
    "int4": (22, np.dtype("i1"), 4),
}
NAMES = {row[0]: name for name, row in DTYPES.items()}
#: In which field a tensor has its numbers, where it does not have their bytes.
FIELDS = {
    "float32": "float_data",
    "float64": "double_data",
    "int64": "int64_data",
    "uint32": "uint64_data",
    "uint64": "uint64_data",
}
HALF = np.dtype("<u2")
#: Of which whole numbers there have the bits.
IN_INTEGERS: dict[str, np.dtype] = {"float16": HALF, "bfloat16": HALF, "int4": np.dtype("u1")}
EXTERNAL = 1


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor whose numbers are in the file, or beside it.

    Attributes
    ----------
    dtype : its name; "int4" and "uint4" are read as int8 and uint8, a number in each.
    load : its bytes; call `read` instead.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    load: Callable[[], np.ndarray]

    def read(self) -> np.ndarray:
        """All of it.

        Raises
        ------
        WeightFileError
            It has another number of bytes, or a dtype that is not read.
        """
        with reading(self.path, self.name):
            if self.dtype not in DTYPES:
                raise ArrayError(f"its numbers are {self.dtype}; expected {', '.join(DTYPES)}")
            _, storage, bits = DTYPES[self.dtype]
            raw = self.load()
            if raw.size != self.nbytes:
                raise ArrayError(f"it has {raw.size:,} bytes; its shape takes {self.nbytes:,}")
            if bits == 4:
                raw = four_bits(raw, math.prod(self.shape), self.dtype == "int4")
            return raw.view(storage).reshape(self.shape)


def four_bits(raw: np.ndarray, count: int, signed: bool) -> np.ndarray:
    """Integers of 4 bits, of which a byte has two, the first in its low half."""
    nibbles = np.stack([raw & 0xF, raw >> 4], axis=-1).reshape(-1)[:count]
    return (nibbles ^ 8).view(np.int8) - np.int8(8) if signed else nibbles


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph, or one within it, which sees what is around it.

    Attributes
    ----------
    constants : by name, the values that are known.
    makers : by name, the nodes that make the others.
    users : the nodes that read a value, within this graph.
    """

    nodes: list[Any]
    constants: MutableMapping[str, Constant]
    makers: MutableMapping[str, Any]
    users: dict[str, list[Any]]

    def constant(self, node: Any, index: int) -> Constant | None:
        """An input of a node, if it is one and its numbers are known."""
        name = input_name(node, index)
        return self.constants.get(name) if name else None

    def maker(self, name: str, *operators: str) -> Any | None:
        """The node that makes a value, if it is one of these operators."""
        node = self.makers.get(name)
        return node if node is not None and operator(node) in operators else None


def input_name(node: Any, index: int) -> str:
    """The name of an input, "" where there is none."""
    return node.input[index] if index < len(node.input) else ""


def operator(node: Any) -> str:
    """The name of an operator, with its domain where that is not ONNX's."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """An attribute of a node: a number, or whole numbers."""
    for each in node.attribute:
        if each.name == name:
            return {1: each.f, 2: each.i, 7: list(each.ints)}.get(each.type, default)
    return default


def read_proto(path: Path) -> Any:
    """The message that is an ONNX file, without what lies beside it.

    Raises
    ------
    WeightFileError
        The file is damaged, or the package `onnx` is missing.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise WeightFileError(
            f"cannot read {path} without the package onnx: {install('onnx')}"
        ) from None
    file = OpenFile(path)
    content = file.array("the file", 0, "u1", (file.size,)).tobytes()
    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        raise WeightFileError(f"{path} is no ONNX file: {error}") from None
    if not model.HasField("graph"):
        raise WeightFileError(f"{path} is no ONNX file: it has no graph")
    return model


def graphs(path: Path, model: Any) -> Iterator[Graph]:
    """The graph of a file, and all that are within it."""
    yield from graphs_of(model.graph, Beside(path), ChainMap(), ChainMap())


def graphs_of(
    proto: Any, beside: Beside, constants: ChainMap[str, Constant], makers: ChainMap[str, Any]
) -> Iterator[Graph]:
    """A graph, and those in attributes of its nodes, which see its values."""
    graph = Graph([*proto.node], constants.new_child(), makers.new_child(), defaultdict(list))
    for tensor in proto.initializer:
        if tensor.name in graph.constants:
            raise WeightFileError(f"{beside.path}: {tensor.name} is there twice; expected it once")
        graph.constants[tensor.name] = beside.constant(tensor, tensor.name)
    within: list[Any] = []
    for node in graph.nodes:
        for name in node.output:
            graph.makers[name] = node
        for name in node.input:
            graph.users[name].append(node)
        for each in node.attribute:
            within += [each.g] if each.HasField("g") else each.graphs
            if operator(node) == "Constant" and each.name == "value" and node.output:
                graph.constants[node.output[0]] = beside.constant(each.t, node.output[0])
    yield graph
    for inner in within:
        yield from graphs_of(inner, beside, graph.constants, graph.makers)  # type: ignore[arg-type]


class Beside:
    """Where tensors of a file have their numbers: in it, or in files beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, OpenFile] = {}

    def constant(self, tensor: Any, name: str) -> Constant:
        """What is known of a tensor before its numbers are read.

        Raises
        ------
        WeightFileError
            It has a shape that cannot be, or is placed where no file can be.
        """
        shape = tuple(tensor.dims)
        dtype = NAMES.get(tensor.data_type, f"of type {tensor.data_type}")
        bits = DTYPES[dtype][2] if dtype in DTYPES else 8
        with reading(self.path, name):
            if any(size < 0 for size in shape):
                raise ArrayError(f"its shape is {shape}; expected whole numbers")
            nbytes = -(-math.prod(shape) * bits // 8)
            if tensor.data_location == EXTERNAL:
                place = {pair.key: pair.value for pair in tensor.external_data}
                return Constant(
                    self.path, name, dtype, shape, nbytes, self.external(name, place, nbytes)
                )
            return Constant(self.path, name, dtype, shape, nbytes, lambda: numbers(tensor, dtype))

    def external(self, name: str, place: dict[str, str], nbytes: int) -> Callable[[], np.ndarray]:
        """Reads bytes of another file in the folder, or below it."""
        location = place.get("location", "")
        path = PurePosixPath(location.replace("\\", "/"))
        if not path.parts or ".." in path.parts or path.is_absolute() or "\0" in location:
            raise ArrayError(
                f"it lies in {location!r}; expected the name of a file in the model's folder"
            )
        offset = size_in(place, "offset", 0)
        if (length := size_in(place, "length", nbytes)) != nbytes:
            raise ArrayError(f"it has {length:,} bytes; its shape takes {nbytes:,}")

        def load() -> np.ndarray:
            if location not in self._files:
                self._files[location] = OpenFile(self.path.parent / location)
            return self._files[location].array(name, offset, "u1", (nbytes,))

        return load


def size_in(place: dict[str, str], key: str, default: int) -> int:
    """A number of bytes that is given as text."""
    words = place.get(key, str(default))
    if not (words.isascii() and words.isdigit() and len(words) < 20):
        raise ArrayError(f"its {key} is {words!r}; expected a whole number")
    return int(words)


def numbers(tensor: Any, dtype: str) -> np.ndarray:
    """The bytes of a tensor that has its numbers in the file."""
    if tensor.HasField("raw_data"):
        return np.frombuffer(tensor.raw_data, np.uint8)
    values = np.array(getattr(tensor, FIELDS.get(dtype, "int32_data")))
    stored: np.dtype = IN_INTEGERS.get(dtype, DTYPES[dtype][1])
    return values.astype(stored).view(np.uint8)
