"""GGUF: the files of llama.cpp, whose layers keep their names there ("blk.0.attn_q").

The header is read by `gguf_header`, not by the package `gguf`: docs/decisions.md says why.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable

import numpy as np

from ..errors import WeightFileError
from ..formats.quantize import QTensor, dequantize
from ..formats.ranges import pieces
from ..side_by_side import side_by_side
from .blocks import OpenFile, reading
from .ggml_blocks import BLOCK_TYPES, BlockType, Parts
from .gguf_header import GgufError, Header, Tensor, read_header
from .model import Layer, Model
from .source import Source, natural

SUFFIX = ".gguf"
WEIGHT = ".weight"
TABLE, TIED = "token_embd", "output"
#: Matrices that nothing is multiplied with: rows are taken from them, or they are filters.
TABLES = re.compile(
    rf"({TABLE}|position_embd|token_types|.*token_embd|.*_rel_b|.*ssm_conv1d|.*shortconv\.conv)"
    rf"\{WEIGHT}"
)
#: The weights of experts lie one behind the other, (experts, N, K).
EXPERTS = re.compile(rf".*_exps\{WEIGHT}")
#: Bytes of blocks that are taken apart at a time.
PIECE = 1 << 20


def recognises(source: Source) -> bool:
    """Whether it is a file of this format, by its name."""
    return source.suffix == SUFFIX


def read(source: Source) -> Model:
    """The model of a file."""
    assert source.file is not None
    file = OpenFile(source.file)

    def some(start: int, count: int) -> bytes:
        return file.array("the header", start, "u1", (count,)).tobytes()

    try:
        header = read_header(some, file.size)
    except GgufError as error:
        of = f": {error.tensor}" if error.tensor is not None else ""
        raise WeightFileError(f"{file.path}{of}: {error}") from None
    found = {layer.name: layer for layer in layers(file, header)}
    beside = {
        name: array_of(file, tensor)
        for name, tensor in header.tensors.items()
        if not is_layer(tensor)
    }
    ordered = {name: found[name] for name in sorted(found, key=natural)}
    return Model(source.path, "GGUF", ordered, beside, header.metadata)


def is_layer(tensor: Tensor) -> bool:
    """Whether X is multiplied with a tensor."""
    dimensions = 3 if EXPERTS.fullmatch(tensor.name) else 2
    return (
        len(tensor.shape) == dimensions
        and tensor.name.endswith(WEIGHT)
        and not tensor.type.is_integer
        and not TABLES.fullmatch(tensor.name)
    )


def layers(file: OpenFile, header: Header) -> list[Layer]:
    """All layers, with the one that multiplies with the table of tokens where llama.cpp has it so.

    That is where a model of language has no weight for its last layer.
    """
    found = [layer_of(file, tensor) for tensor in header.tensors.values() if is_layer(tensor)]
    table = header.tensors.get(TABLE + WEIGHT)
    architecture = header.metadata.get("general.architecture")
    causal = header.metadata.get(f"{architecture}.attention.causal", True)
    if (
        table is not None
        and len(table.shape) == 2
        and TIED + WEIGHT not in header.tensors
        and causal
    ):
        found.append(dataclasses.replace(layer_of(file, table), name=TIED, shared=True))
    return found


def layer_of(file: OpenFile, tensor: Tensor) -> Layer:
    """The layer of a weight."""
    block = tensor.type
    fields = {
        "weight": block.dtype,
        "group_size": block.group_size,
        "weight_offset": block.has_offset,
    }
    experts = tensor.shape[0] if len(tensor.shape) == 3 else None
    if experts is not None:
        fields["experts"] = experts
    return Layer(
        tensor.name.removesuffix(WEIGHT),
        matrix_shape(tensor),
        block.name if block.plain is None else block.plain.name,
        tensor.nbytes,
        file.path,
        lambda: weight_of(file, tensor),
        fields if block.read is not None else None,
        experts=experts if block.plain is not None else None,
    )


def matrix_shape(tensor: Tensor) -> tuple[int, int]:
    """Rows, of all experts, and K."""
    return math.prod(tensor.shape[:-1]), tensor.shape[-1]


def weight_of(file: OpenFile, tensor: Tensor) -> QTensor | np.ndarray:
    """The integers and scales of a tensor, or its floats."""
    block, (rows, k) = tensor.type, matrix_shape(tensor)
    if block.plain is not None:
        return file.array(tensor.name, tensor.start, block.plain, (rows, k))
    if block.read is None or block.fields is None:
        raise WeightFileError(
            f"{file.path}: {tensor.name} is {block.name}; expected one of "
            + ", ".join(row.name for row in BLOCK_TYPES.values() if row.multiplied)
        )
    raw = file.array(tensor.name, tensor.start, block.fields, (rows, k // block.weights))
    data, scale, offset = taken_apart(block, raw)
    return QTensor(data, scale, None, block.dtype, block.group_size, (rows, k), offset)


def taken_apart(block: BlockType, raw: np.ndarray) -> Parts:
    """What `block.read` gives for blocks (rows, blocks), some rows at a time on all cores."""
    read = block.read
    assert read is not None
    if raw.nbytes <= PIECE:
        return read(raw)
    arrays = [
        None if part is None else np.empty((len(raw), *part.shape[1:]), part.dtype)
        for part in read(raw[:0])
    ]

    def some(rows: slice) -> None:
        for whole, part in zip(arrays, read(raw[rows]), strict=True):
            if whole is not None:
                whole[rows] = part

    side_by_side(some, pieces(len(raw), PIECE // (raw.shape[1] * raw.itemsize)))
    data, scale, offset = arrays
    assert data is not None
    assert scale is not None
    return data, scale, offset


def array_of(file: OpenFile, tensor: Tensor) -> Callable[[], np.ndarray]:
    """Reads a tensor that is no layer, as floats of its shape."""

    def load() -> np.ndarray:
        with reading(file.path, tensor.name):
            weight = weight_of(file, tensor)
            array = dequantize(weight) if isinstance(weight, QTensor) else weight
            return array.reshape(tensor.shape)

    return load
