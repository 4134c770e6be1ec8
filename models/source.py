"""What a path leads to, before anybody knows its format: config.json and tensors, or one file."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import WeightFileError
from ..formats.weights import listed
from .model import Layer
from .tensors import SUFFIX, Contents, Stored, contents, folder_contents, read_json

CONFIG = "config.json"
#: Where a quantizer may have written its settings, beside config.json's quantization_config.
QUANTIZER_CONFIGS = ("quantize_config.json", "quant_config.json")
#: Files of other kinds that a folder may hold instead of .safetensors.
ONE_FILE = (".gguf", ".onnx")
#: Files that execute code when they are read.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True)
class Source:
    """A path that `open_model` was given.

    Attributes
    ----------
    path : the file or folder, for messages.
    file : the one file to read, or None for a folder of .safetensors.
    """

    path: Path
    file: Path | None

    @property
    def suffix(self) -> str:
        """Of the one file, in small letters; ".safetensors" for a folder."""
        return SUFFIX if self.file is None else self.file.suffix.lower()

    @property
    def folder(self) -> Path:
        """Where config.json would be."""
        return self.path if self.file is None else self.file.parent

    @cached_property
    def contents(self) -> Contents:
        """The tensors of .safetensors files."""
        return folder_contents(self.path) if self.file is None else contents(self.file)

    @property
    def tensors(self) -> dict[str, Stored]:
        """By name."""
        return self.contents.tensors

    @cached_property
    def config(self) -> dict[str, Any]:
        """What config.json says, or {}."""
        path = self.folder / CONFIG
        return read_json(path) if path.is_file() else {}

    @cached_property
    def quantization(self) -> dict[str, Any]:
        """What config.json, or a file of the quantizer's, says of quantized weights, or {}."""
        for name in ("quantization_config", "compression_config", "quantization"):
            if isinstance(found := self.config.get(name), dict):
                return found
        for name in QUANTIZER_CONFIGS:
            if (path := self.folder / name).is_file():
                return read_json(path)
        return {}

    @property
    def method(self) -> str | None:
        """The quantizer's name in lower case, or None where nothing is said."""
        method = self.quantization.get("quant_method")
        return method.lower() if isinstance(method, str) else None


def source_of(path: Path) -> Source:
    """What is at a path.

    Raises
    ------
    WeightFileError
        Nothing is, or nothing that can be read.
    """
    if path.is_dir():
        names = sorted(each.name for each in path.iterdir())
        if any(name.lower().endswith(SUFFIX) for name in names):
            return Source(path, None)
        single = [name for name in names if name.lower().endswith(ONE_FILE)]
        if len(single) == 1:
            return Source(path, path / single[0])
        if single:
            raise WeightFileError(f"{path} holds {listed(single)}; name one of these files")
        if pickles := [name for name in names if name.lower().endswith(PICKLES)]:
            raise WeightFileError(
                f"{path} holds {pickles[0]}, which may execute code when it is read; expected "
                f"{SUFFIX}, .gguf or .onnx"
            )
        raise WeightFileError(f"{path} holds no {SUFFIX}, .gguf or .onnx file")
    if not path.is_file():
        raise WeightFileError(f"cannot read {path}: no such file or folder")
    if path.suffix.lower() not in (SUFFIX, *ONE_FILE):
        why = ", which may execute code when it is read" if path.suffix in PICKLES else ""
        raise WeightFileError(
            f"cannot read {path}{why}: expected a folder, or a file in {SUFFIX}, .gguf or .onnx"
        )
    return Source(path, path)


@dataclass(frozen=True, eq=False)
class Found:
    """Layers of one format in .safetensors.

    Attributes
    ----------
    used : names of the tensors that are parts of these layers.
    notes : what could not be told, in sentences.
    """

    layers: dict[str, Layer]
    used: frozenset[str]
    notes: tuple[str, ...] = ()


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts names by their words, and by their numbers as numbers."""
    words = re.split(r"(\d+)", name)
    return [(int(word), "") if i % 2 else (0, word) for i, word in enumerate(words)]


def modules(
    tensors: Mapping[str, Stored], needed: Collection[str], others: Collection[str] = ()
) -> dict[str, dict[str, Stored]]:
    """The parts of each module, by its name and by theirs.

    Parameters
    ----------
    needed : what every module has that is found.
    others : what it may have beside.
    """
    first, *more = needed
    found = {}
    for key in tensors:
        name = key.removesuffix("." + first)
        if name == key or any(f"{name}.{part}" not in tensors for part in more):
            continue
        parts = {part: tensors.get(f"{name}.{part}") for part in (*needed, *others)}
        found[name] = {part: row for part, row in parts.items() if row is not None}
    return found


def found(
    layers: dict[str, Layer], parts: Mapping[str, Mapping[str, Stored]], *notes: str
) -> Found:
    """Layers, of which each consists of parts."""
    used = frozenset(row.name for rows in parts.values() for row in rows.values())
    return Found(layers, used, notes)


def whole_number(source: Source, name: str, value: Any, least: int = 1) -> int:
    """A number of the quantizer's settings.

    Raises
    ------
    WeightFileError
        It is none, or less than `least`.
    """
    if type(value) is not int or value < least:
        raise WeightFileError(
            f"{source.path}: {name}={value!r} in the settings of the quantizer; expected a whole "
            f"number of at least {least}"
        )
    return value
