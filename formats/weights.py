"""Weights in files: float matrices read from .npy, .npz and .safetensors, quantized ones both ways.

A quantized weight NAME lies in a .safetensors file as the tensors NAME.data, NAME.scale and, where
it has them, NAME.zero_point or NAME.offset, and NAME.order, just as a `QTensor` holds them. The
file's metadata has under "quantmm:NAME" a JSON object: version, dtype, group_size, shape,
zero_point (whether there are any), in version 2 offset and order (likewise) and, where one was
given, the fields of the MatmulSpec as spec.
Other tensors may lie beside.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  gives NumPy the name bfloat16, for which safetensors asks
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save as to_bytes

from ..errors import ArrayError, QuantmmError, SpecError, WeightFileError
from ..files import as_path, write_whole
from .checks import check_weight
from .quantize import QTensor
from .spec import MatmulSpec
from .values import to_float32

SAFETENSORS = ".safetensors"
NUMPY = (".npy", ".npz")
FLOATS = ("float32", "float16", "bfloat16", "float64")
#: What safetensors calls them.
CODES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}

KEY = "quantmm:"
#: The arrays of a `QTensor`, of which it need not have the last three.
PARTS = ("data", "scale", "zero_point", "offset", "order")
#: Those that entries of version 1 say nothing of: who reads that would leave them out. What has
#: none of them is written as 1.
SINCE_2 = ("offset", "order")
VERSIONS = (1, 2)

#: How many names a message lists.
LISTED = 8


def read_matrix(path: str | os.PathLike[str], name: str | None = None) -> np.ndarray:
    """A float matrix from a .npy, .npz or .safetensors file, as float32.

    Parameters
    ----------
    path : the suffix says which of the formats it is.
    name : of the array in .npz, or of the tensor in .safetensors. It may be left out where there
        is only one; a .npy has no names.

    Raises
    ------
    WeightFileError
        The file cannot be read, is none of these or damaged, or has no array of that name.
    ArrayError
        The array is no matrix, is empty, or holds no floats, or finite ones beyond float32.
    """
    return find_matrix(path, name)[1]


def find_matrix(path: str | os.PathLike[str], name: str | None) -> tuple[str, np.ndarray]:
    """What `read_matrix` reads, with its name; that of a .npy is the file's."""
    suffix = as_path(path, WeightFileError).suffix.lower()
    if suffix in NUMPY:
        chosen, array = numpy_array(path, name)
    elif suffix == SAFETENSORS:
        chosen, array = safetensors_array(path, name)
    else:
        raise WeightFileError(f"cannot read {path}: expected a file in .npy, .npz or .safetensors")
    what = f"{path}: {chosen}"
    check_matrix(what, array.shape, array.dtype.name)
    return chosen, np.ascontiguousarray(to_float32(what, array), np.float32)


def numpy_array(path: str | os.PathLike[str], name: str | None) -> tuple[str, np.ndarray]:
    """An array of a .npy or .npz file."""
    with reading(path):
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            if name is not None:
                raise WeightFileError(f"{path} holds one array without a name, no {name!r}")
            return Path(path).stem, loaded
        with loaded as archive:
            chosen = choose(path, archive.files, name)
            return chosen, np.asarray(archive[chosen])


def safetensors_array(path: str | os.PathLike[str], name: str | None) -> tuple[str, np.ndarray]:
    """A tensor of a .safetensors file."""
    with reading(path), safe_open(os.fspath(path), framework="np") as file:
        chosen = choose(path, file.keys(), name)
        tensor = file.get_slice(chosen)
        code = tensor.get_dtype()
        # NumPy has not every format, nor memory for every shape.
        check_matrix(f"{path}: {chosen}", tuple(tensor.get_shape()), CODES.get(code, code))
        return chosen, file.get_tensor(chosen)


def choose(path: str | os.PathLike[str], names: Collection[str], name: str | None) -> str:
    """The name that is meant, of those in the file."""
    if name in names:
        return str(name)
    if not names:
        raise WeightFileError(f"{path} holds no arrays")
    if name is None and len(names) == 1:
        return next(iter(names))
    if name is None:
        raise WeightFileError(f"{path} holds {len(names)} arrays; name one of {listed(names)}")
    close = difflib.get_close_matches(name, names, len(names), cutoff=0)
    raise WeightFileError(f"{path} holds no {name!r}; it holds {listed(close)}")


def listed(names: Collection[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - LISTED
    return ", ".join(list(names)[:LISTED]) + (f" and {more} more" if more > 0 else "")


def check_matrix(what: str, shape: tuple[int, ...], dtype: str) -> None:
    """Refuse what is no matrix of floats."""
    if len(shape) != 2 or 0 in shape:
        raise ArrayError(f"{what} has shape {shape}; expected a matrix (N, K) that is not empty")
    if dtype not in FLOATS:
        raise ArrayError(f"{what} holds {dtype}; expected one of {', '.join(FLOATS)}")


def save_weights(
    path: str | os.PathLike[str], weights: Mapping[str, tuple[QTensor, MatmulSpec | None]]
) -> None:
    """Write quantized weights to one .safetensors file: whole, or not at all.

    Parameters
    ----------
    weights : for each name the weight, and the spec that it is for or None.

    Raises
    ------
    WeightFileError
        The file cannot be written.
    ArrayError
        There is nothing to write, something else than a `QTensor`, or one that its spec does not
        describe.
    """
    if not isinstance(weights, Mapping):
        raise ArrayError(
            f"weights is {type(weights).__name__}; expected name: (QTensor, MatmulSpec or None)"
        )
    file = as_path(path, WeightFileError)
    if file.suffix.lower() != SAFETENSORS:
        raise WeightFileError(f"cannot write {path}: expected a name that ends in {SAFETENSORS}")
    if not weights:
        raise ArrayError("weights is empty; expected name: (QTensor, MatmulSpec or None)")
    tensors: dict[str, np.ndarray] = {}
    metadata: dict[str, str] = {}
    for name, pair in weights.items():
        if not isinstance(name, str) or not name:
            raise ArrayError(f"weights has the name {name!r}; expected words")
        try:
            q, spec = check_pair(pair)
        except ArrayError as error:
            raise ArrayError(f"{name}: {error}") from None
        entry: dict[str, Any] = {
            "version": 1,
            "dtype": q.dtype,
            "group_size": q.group_size,
            "shape": q.shape,
            "zero_point": q.zero_point is not None,
        }
        since_2 = {part: getattr(q, part) is not None for part in SINCE_2}
        if any(since_2.values()):
            entry |= {"version": 2, **since_2}
        if spec is not None:
            entry["spec"] = json.loads(spec.to_json())
        metadata[KEY + name] = json.dumps(entry)
        # safetensors reads memory as it lies. (np.ascontiguousarray would give () a dimension.)
        for part in PARTS:
            if (array := getattr(q, part)) is not None:
                tensors[f"{name}.{part}"] = np.asarray(array, order="C")
    try:
        content = to_bytes(tensors, metadata)
    except UnicodeEncodeError as error:
        raise ArrayError(f"weights has the name {error.object!r}; expected words") from None
    write_whole(file, content, WeightFileError)


def load_weights(path: str | os.PathLike[str]) -> dict[str, tuple[QTensor, MatmulSpec | None]]:
    """The weights that `save_weights` wrote, in the order of their names.

    Raises
    ------
    WeightFileError
        The file cannot be read, is damaged, or holds no such weights.
    """
    with reading(path), safe_open(os.fspath(path), framework="np") as file:
        metadata = file.metadata() or {}
        names = sorted(key.removeprefix(KEY) for key in metadata if key.startswith(KEY))
        if not names:
            raise WeightFileError(f"{path} holds no weights that quantmm.save_weights wrote")
        weights = {}
        for name in names:
            try:
                weights[name] = read_weight(file, name, metadata[KEY + name])
            except QuantmmError as error:
                raise WeightFileError(f"{path}: {name}: {error}") from None
        return weights


def read_weight(file: Any, name: str, text: str) -> tuple[QTensor, MatmulSpec | None]:
    """One weight of an open file, from its tensors and its JSON."""
    try:
        entry = json.loads(text)
    except json.JSONDecodeError as error:
        raise SpecError(f"its metadata is not JSON: {error}") from None
    if not isinstance(entry, dict):
        raise SpecError(f"its metadata is {type(entry).__name__}; expected a JSON object")
    if entry.get("version") not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        raise SpecError(f"version={entry.get('version')!r}; this quantmm reads {known}")
    if entry["version"] == 1:
        entry |= dict.fromkeys(SINCE_2, False)
    shape: Any = entry.get("shape")
    whole = isinstance(shape, list) and [type(size) for size in shape] == [int, int]
    if not whole or min(shape) < 1:
        raise SpecError(f"shape={shape!r} in its metadata; expected two whole numbers")
    for field, kind in (("dtype", str), *((part, bool) for part in ("zero_point", *SINCE_2))):
        if not isinstance(entry.get(field), kind):
            raise SpecError(
                f"{field}={entry.get(field)!r} in its metadata; expected {kind.__name__}"
            )
    parts = [part for part in PARTS if entry.get(part) is not False]
    there = set(file.keys())
    if missing := [part for part in parts if f"{name}.{part}" not in there]:
        raise ArrayError(f"no tensor {name}.{missing[0]}")
    tensors = {part: file.get_tensor(f"{name}.{part}") for part in parts}
    q = QTensor(
        tensors["data"],
        tensors["scale"],
        tensors.get("zero_point"),
        entry["dtype"],
        entry.get("group_size"),
        (shape[0], shape[1]),
        tensors.get("offset"),
        tensors.get("order"),
    )
    spec = MatmulSpec.from_json(json.dumps(entry["spec"])) if "spec" in entry else None
    return check_pair((q, spec))


def check_pair(pair: tuple[QTensor, MatmulSpec | None]) -> tuple[QTensor, MatmulSpec | None]:
    """Refuse what is no weight, and a weight that its spec does not describe."""
    if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], QTensor):
        raise ArrayError(f"expected (QTensor, MatmulSpec or None), not {type(pair).__name__}")
    q, spec = pair
    if spec is None:
        return q, None
    if not isinstance(spec, MatmulSpec):
        raise ArrayError(f"the spec is {spec!r}; expected a MatmulSpec or None")
    check_weight(spec, q)
    return q, spec


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what goes wrong while a file is read into a `WeightFileError`."""
    as_path(path, WeightFileError)
    try:
        with open(path, "rb"):
            pass  # what is missing or forbidden has a clear error here
        yield
    except QuantmmError:
        raise
    except OSError as error:
        raise WeightFileError(f"cannot read {path}: {error.strerror or error}") from None
    except MemoryError as error:
        raise WeightFileError(f"cannot read {path}: {error or 'out of memory'}") from None
    except Exception as error:  # a damaged file raises anything, out of four parsers
        raise WeightFileError(f"{path} is damaged or holds Python objects: {error}") from None
