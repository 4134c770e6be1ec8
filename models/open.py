"""`open_model`: which reader a model's file is for."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import WeightFileError
from ..files import as_path
from . import awq, compressed_tensors, floats, gguf, gptq, hqq, mlx, onnx, own, torchao
from .blocks import reading
from .model import Model
from .source import Found, Source, natural, source_of
from .tensors import SUFFIX


@dataclass(frozen=True)
class Reader:
    """A row of the table of formats.

    Attributes
    ----------
    format : its name.
    recognises : whether a source is of this format. It looks at names, and at config.json.
    read : the model. Weights are read later.
    """

    format: str
    recognises: Callable[[Source], bool]
    read: Callable[[Source], Model]


def among_tensors(
    format: str, recognises: Callable[[Source], bool], find: Callable[[Source], Found]
) -> Reader:
    """A format of layers among the tensors of .safetensors, beside which there may be floats."""

    def read(source: Source) -> Model:
        found = find(source)
        left = {key: row for key, row in source.tensors.items() if key not in found.used}
        beside = floats.find(source, left)
        layers = {**beside.layers, **found.layers}
        return Model(
            source.path,
            format,
            {name: layers[name] for name in sorted(layers, key=natural)},
            {key: row.read for key, row in left.items() if key not in beside.used},
            source.config,
            found.notes + beside.notes,
        )

    return Reader(format, lambda source: source.suffix == SUFFIX and recognises(source), read)


def only_floats(source: Source) -> Found:
    """No quantized layers.

    Raises
    ------
    WeightFileError
        The settings name a quantizer, so what lies there are no floats.
    """
    if source.method is not None:
        raise WeightFileError(
            f"{source.path} is quantized by {source.method}, which is not read; docs/files.md has "
            "the formats"
        )
    return Found({}, frozenset())


#: Whoever recognises a source first reads it.
READERS: tuple[Reader, ...] = (
    Reader("GGUF", gguf.recognises, gguf.read),
    Reader("ONNX", onnx.recognises, onnx.read),
    among_tensors("quantmm", own.recognises, own.find),
    among_tensors("awq", awq.recognises, awq.find),
    among_tensors(
        compressed_tensors.METHOD, compressed_tensors.recognises, compressed_tensors.find
    ),
    among_tensors("gptq", gptq.recognises, gptq.find),
    among_tensors("hqq", hqq.recognises, hqq.find),
    among_tensors("torchao", torchao.recognises, torchao.find),
    among_tensors("mlx", mlx.recognises, mlx.find),
    among_tensors("floats", lambda source: True, only_floats),
)


def open_model(path: str | os.PathLike[str]) -> Model:
    """Open a model's file, whatever its format: a lazy mapping from layers to weights.

    Parameters
    ----------
    path : a folder with .safetensors files, as Hugging Face has them, or one file in .safetensors,
        .gguf or .onnx. docs/files.md has the formats.

    Returns
    -------
    `Model`: `model["layer"]` reads a weight, a `QTensor` (N, K) or a float matrix;
    `model.layers["layer"]` says its shape, format and spec without reading it; `model.tensors` has
    everything else. What a reader cannot tell is in `model.notes`, and is a RuntimeWarning.

    Raises
    ------
    WeightFileError
        The file cannot be read, is damaged, or is of a format that is not read. A pickle is never
        loaded.
    """
    place = as_path(path, WeightFileError)
    with reading(place):
        source = source_of(place)
        model = next(reader for reader in READERS if reader.recognises(source)).read(source)
    for note in model.notes:
        warnings.warn(f"{place}: {note}", RuntimeWarning, stacklevel=2)
    return model
