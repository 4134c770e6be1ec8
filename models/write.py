"""A model, quantized, as a folder in the conventions of compressed-tensors.

vLLM and transformers read those. Our spec of each layer is beside, in the metadata of
model.safetensors under `SPECS`, as JSON: it says what those conventions have no words for.
Scales are rounded to the dtype of the model's weights, which other readers compute in, and the
weight is quantized with what they are then.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes  # noqa: F401  gives NumPy the name bfloat16
import numpy as np

from ..errors import SpecError, WeightFileError
from ..files import write_whole, writing
from ..formats.integers import INTEGERS
from ..formats.named import fits
from ..formats.quality import quantize_weight
from ..formats.quantize import QTensor, quantize
from ..formats.ranges import group_range, pieces, scale_shape
from ..formats.spec import MatmulSpec
from ..formats.values import as_matrix
from ..side_by_side import side_by_side
from .blocks import reading
from .compressed_tensors import METHOD, SPECS
from .floats import WEIGHT
from .model import Layer, Model
from .source import CONFIG
from .tensors import DTYPES, SUFFIX

NAME = "model" + SUFFIX
#: What is copied beside, such as a tokenizer's files: texts, and no code.
COPIED = (".json", ".txt", ".model", ".jinja", ".md")
#: What is not: the settings that others left of how they quantized, and indexes of shards.
NOT_COPIED = (CONFIG, "quantize_config.json", "quant_config.json", "*.index.json")
#: Numbers that are quantized at a time; no format here has a scale for several rows.
BLOCK = 1 << 20
#: The least positive number of the dtypes in which scales are written.
SMALLEST = {"float16": np.float32(2.0**-24), "bfloat16": np.float32(2.0**-133)}
CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor that is to be written, and where; `offset` counts from the first of the data."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Written:
    """A layer that was quantized.

    Attributes
    ----------
    original : the weight before, as it was in the file.
    nbytes : that it takes now.
    """

    layer: Layer
    spec: MatmulSpec
    original: np.ndarray
    weight: QTensor
    nbytes: int


def chosen_layers(model: Model, skip: Sequence[str]) -> dict[str, Layer]:
    """The layers that are to be quantized.

    Raises
    ------
    WeightFileError
        There are none, or one is quantized already.
    SpecError
        A pattern fits no layer.
    """
    for pattern in skip:
        if not any(fits(name, pattern) for name in model.layers):
            raise SpecError(f"--skip {pattern} fits none of the {len(model.layers)} layers")
    layers = {
        name: layer
        for name, layer in model.layers.items()
        if not layer.shared and not any(fits(name, pattern) for pattern in skip)
    }
    if not layers:
        raise WeightFileError(f"{model.path} has no layers to quantize")
    for name, layer in layers.items():
        if layer.experts is not None:
            raise WeightFileError(
                f"{layer.file}: {name} has the weights of {layer.experts} experts, which these "
                f"conventions have no words for; leave it with --skip {name}"
            )
        if layer.fields is not None:
            raise WeightFileError(
                f"{layer.file}: {name} is {layer.format} already; expected a model of floats"
            )
    return layers


def quantize_model(
    model: Model,
    folder: Path,
    fields: Mapping[str, Any],
    *,
    skip: Sequence[str] = (),
    method: str = "absmax",
    percentile: float | None = None,
) -> Iterator[Written]:
    """Quantize a model of floats into a folder, one layer at a time.

    Each layer is given to the caller when it is written. The folder is complete when there is no
    further one.

    Parameters
    ----------
    fields : of a `MatmulSpec`, without its shape; X is quantized in the call.
    skip : patterns of names of layers that stay floats, such as "lm_head" or "model.layers.0.*".
    method, percentile : how `quantize` finds the ranges.

    Raises
    ------
    WeightFileError
        The model is damaged or is quantized already, or the folder cannot be written.
    SpecError
        A format that these conventions have no words for, or a pattern that fits no layer.
    """
    settings = quantization_config(fields)
    layers = chosen_layers(model, skip)
    specs = {name: MatmulSpec(*layer.shape, **fields) for name, layer in layers.items()}
    kept: dict[str, Callable[[], Any]] = {
        **{name: partial(model.tensors.__getitem__, name) for name in model.tensors},
        **{
            name + WEIGHT: layer.read
            for name, layer in model.layers.items()
            if name not in layers and not layer.shared
        },
    }
    rows = [entry_of(name, make()) for name, make in kept.items()]
    for name, layer in layers.items():
        rows += entries(name, specs[name], dtype_of_scales(layer))
    placed = place(rows)
    texts = {name: spec.to_json() for name, spec in specs.items()}
    ignored = [name for name in model.layers if name not in layers]
    settings["ignore"] = ignored
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightFileError(f"cannot write {folder}: {error.strerror}") from None
    with writing(folder / NAME, WeightFileError) as file:
        start = write_header(file, placed, {"format": "pt", SPECS: json.dumps(texts)})
        for name, make in kept.items():
            put(file, start, placed[name], make())
        for name, layer in layers.items():
            written, parts = quantized_layer(layer, specs[name], method, percentile)
            put_all(file, start, placed, parts)
            yield written
            del written, parts  # or the next layer would be read while this one takes memory
    beside(model, folder, settings)


def quantized_layer(
    layer: Layer, spec: MatmulSpec, method: str, percentile: float | None
) -> tuple[Written, dict[str, np.ndarray]]:
    """A layer, and the tensors that are written of it."""
    original, scales = layer.read(), dtype_of_scales(layer)
    assert isinstance(original, np.ndarray)
    with reading(layer.file, layer.name):
        as_matrix("the weight", original)
    weight = quantized(original, spec, scales, method, percentile)
    parts = parts_of(layer.name, weight, scales)
    nbytes = sum(values.nbytes for values in parts.values())
    return Written(layer, spec, original, weight, nbytes), parts


def quantized(
    original: np.ndarray,
    spec: MatmulSpec,
    scales: np.dtype,
    method: str,
    percentile: float | None,
) -> QTensor:
    """A weight whose scales the dtype `scales` holds, some rows at a time on all cores."""
    n, k = original.shape

    def some(rows: slice) -> QTensor:
        values = original[rows]
        values = values.astype(np.float32) if values.itemsize < 4 else values
        if scales == np.float32:
            return quantize_weight(values, spec, method, percentile)
        scale = scales_of(values, spec, method, percentile)
        least = SMALLEST[scales.name]
        scale = np.maximum(scale.astype(scales).astype(np.float32), least)
        return quantize(values, spec.weight, group_size=spec.group_size, scale=scale)

    parts = side_by_side(some, pieces(n, BLOCK // k))
    data, scale = (
        np.concatenate([getattr(each, of) for each in parts]) for of in ("data", "scale")
    )
    return QTensor(data, scale, None, spec.weight, spec.group_size, (n, k))


def scales_of(
    values: np.ndarray, spec: MatmulSpec, method: str, percentile: float | None
) -> np.ndarray:
    """The scales that `quantize` finds. "absmax" sees nothing but the ends of each range."""
    if method != "absmax":
        return quantize_weight(values, spec, method, percentile).scale
    ends = np.stack(group_range(values, spec.group_size), axis=-1)
    return quantize(ends.reshape(-1, 2), spec.weight).scale.reshape(ends.shape[:-1])


def dtype_of_scales(layer: Layer) -> np.dtype:
    """What scales are stored in: the dtype of the weight, and no more than float32."""
    name = layer.format.lower()
    short = {"float16": "float16", "f16": "float16", "bfloat16": "bfloat16", "bf16": "bfloat16"}
    return np.dtype(short.get(name, "float32"))


def entry_of(name: str, values: np.ndarray) -> Entry:
    """That of an array."""
    return Entry(name, values.dtype, values.shape)


def entries(name: str, spec: MatmulSpec, scales: np.dtype) -> list[Entry]:
    """The tensors of a layer."""
    n, k = spec.n, spec.k
    grouped = scale_shape((n, k), spec.group_size)
    scale = Entry(f"{name}.weight_scale", scales, grouped if len(grouped) == 2 else (n, 1))
    if not spec.four_bit_weight:
        return [Entry(name + WEIGHT, np.dtype(np.int8), (n, k)), scale]
    return [
        Entry(f"{name}.weight_packed", np.dtype(np.int32), (n, -(-k // 8))),
        Entry(f"{name}.weight_shape", np.dtype(np.int64), (2,)),
        scale,
    ]


def parts_of(name: str, weight: QTensor, scales: np.dtype) -> dict[str, np.ndarray]:
    """The tensors of a layer, as compressed-tensors has them."""
    n, k = weight.shape
    scale = weight.scale.astype(scales)
    parts = {f"{name}.weight_scale": scale if scale.ndim == 2 else scale[:, None]}
    if not INTEGERS[weight.dtype].packed:
        return {name + WEIGHT: weight.data, **parts}
    words = np.zeros((n, -(-k // 8) * 4), np.uint8)
    words[:, : weight.data.shape[1]] = weight.data ^ 0x88
    if k % 2:
        words[:, k // 2] &= 15
    parts[f"{name}.weight_packed"] = words.view(np.int32)
    parts[f"{name}.weight_shape"] = np.array([n, k], np.int64)
    return parts


def place(rows: Sequence[Entry]) -> dict[str, Entry]:
    """Where each tensor lies: the wide ones first, so that all are aligned without gaps."""
    placed, offset = {}, 0
    for row in sorted(rows, key=lambda row: -row.dtype.itemsize):
        if row.name in placed:
            raise WeightFileError(f"there are two tensors {row.name}; expected one")
        placed[row.name] = dataclasses.replace(row, offset=offset)
        offset += row.nbytes
    return placed


def write_header(file: BinaryIO, placed: Mapping[str, Entry], metadata: Mapping[str, str]) -> int:
    """The header of .safetensors; where the data begin."""
    header: dict[str, Any] = {"__metadata__": metadata}
    for name, row in placed.items():
        header[name] = {
            "dtype": CODES[row.dtype],
            "shape": row.shape,
            "data_offsets": [row.offset, row.offset + row.nbytes],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    start = file.tell()
    file.truncate(start + sum(row.nbytes for row in placed.values()))
    return start


def put_all(
    file: BinaryIO, start: int, placed: Mapping[str, Entry], parts: Mapping[str, np.ndarray]
) -> None:
    """Write several tensors."""
    for name, values in parts.items():
        put(file, start, placed[name], values)


def put(file: BinaryIO, start: int, row: Entry, values: np.ndarray) -> None:
    """Write a tensor where it belongs."""
    if (values.dtype, values.shape) != (row.dtype, row.shape):
        raise WeightFileError(
            f"{row.name} is {values.dtype}{values.shape} now; it was {row.dtype}{row.shape}"
        )
    file.seek(start + row.offset)
    file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)


def beside(model: Model, folder: Path, settings: Mapping[str, Any]) -> None:
    """config.json with the settings of the quantization, and what else is in the model's folder."""
    others = sorted(model.path.iterdir()) if model.path.is_dir() else []
    for path in others:
        wanted = path.suffix in COPIED and path.is_file()
        if wanted and not any(fnmatch.fnmatch(path.name, each) for each in NOT_COPIED):
            shutil.copyfile(path, folder / path.name)
    config = {key: value for key, value in model.config.items() if key != "quantization"}
    text = json.dumps({**config, "quantization_config": settings}, indent=2)
    write_whole(folder / CONFIG, text.encode(), WeightFileError)


def quantization_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of the format that `fields` of a spec are.

    Raises
    ------
    SpecError
        compressed-tensors has no words for it.
    """
    spec = MatmulSpec(n=8, k=8, **fields)
    described = json.dumps(dict(fields))
    if spec.weight not in ("int8", "int7", "int4") or spec.weight_offset or spec.weight_zero_point:
        raise SpecError(
            f"{described} has weights for which compressed-tensors has no words; expected int8, "
            "int7 or int4 without offsets"
        )
    if not spec.dynamic:
        raise SpecError(f"{described} takes X quantized; expected a format that quantizes it")
    if spec.group_size == "tensor":
        raise SpecError(f"{described} has one scale for all rows; expected one per row or group")
    packed, size = spec.four_bit_weight, spec.group_size
    kind = "pack-quantized" if packed else "int-quantized"
    weights: dict[str, Any] = {
        "num_bits": 4 if packed else 8,
        "type": "int",
        "symmetric": True,
        "strategy": "group" if isinstance(size, int) else "channel",
    }
    x: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True}
    x["strategy"] = "group" if spec.activation_scale == "group" else "token"
    if isinstance(size, int):
        weights["group_size"] = size
        if x["strategy"] == "group":
            x["group_size"] = size
    group = {"targets": ["Linear"], "weights": weights, "input_activations": x}
    return {
        "quant_method": METHOD,
        "format": kind,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {**group, "output_activations": None}},
        "kv_cache_scheme": None,
    }
