"""Models of floats: a matrix of .safetensors is a layer, the tables of embeddings are not.

A Hugging Face folder has config.json and one or more .safetensors files; modules are called as
the tensors are, without ".weight".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..formats.weights import FLOATS
from .model import Layer
from .source import Found, Source
from .tensors import Stored

WEIGHT = ".weight"
#: Tables that rows are taken from: token, position and type embeddings by the names models give.
TABLES = re.compile(
    r"(embed(ding)?s?(_?tokens|_?in|_?positions)?|(^|[._])(wte|wpe|relative_attention_bias))$"
)
#: A module that multiplies with the table of token embeddings, where config.json says so.
TIED = "lm_head"
#: GPT-2 keeps the weights of these as (K, N) (transformers, Conv1D).
TRANSPOSED = {"gpt2": re.compile(r"(^|\.)(c_attn|c_proj|c_fc|q_attn)$")}


def find(source: Source, tensors: Mapping[str, Stored] | None = None) -> Found:
    """Every matrix of floats that is multiplied.

    Parameters
    ----------
    tensors : those that are left; all of them when left out.
    """
    tensors = source.tensors if tensors is None else tensors
    layers: dict[str, Layer] = {}
    used = set()
    transposed = TRANSPOSED.get(str(source.config.get("model_type")))
    for key, tensor in tensors.items():
        name = key.removesuffix(WEIGHT)
        if not is_matrix(tensor) or not key.endswith(WEIGHT) or TABLES.search(name):
            continue
        layers[name] = layer(name, tensor, bool(transposed and transposed.search(name)))
        used.add(key)
    notes: tuple[str, ...] = ()
    if strange := [key for key, row in tensors.items() if is_strange(key, row)]:
        names = sorted({tensors[key].dtype.name for key in strange})
        notes = (
            f"{len(strange)} weights of {', '.join(names)} are of no format that is read, such as "
            f"{min(strange)}",
        )
    if source.config.get("tie_word_embeddings") is True and TIED not in layers:
        tables = [row for key, row in tensors.items() if is_token_table(key) and is_matrix(row)]
        if len(tables) == 1:
            layers[TIED] = replace(layer(TIED, tables[0], False), shared=True)
    return Found(layers, frozenset(used), notes)


def is_matrix(tensor: Stored) -> bool:
    """Whether a tensor can be a weight of floats."""
    return len(tensor.shape) == 2 and 0 not in tensor.shape and tensor.dtype.name in FLOATS


def is_strange(key: str, tensor: Stored) -> bool:
    """Whether a tensor is a weight of floats with 8 bits, which nothing here reads."""
    name = tensor.dtype.name
    return key.endswith(WEIGHT) and name.startswith("float8")


def is_token_table(key: str) -> bool:
    """Whether a tensor has the embeddings of tokens."""
    return key.removesuffix(WEIGHT).rpartition(".")[2] in ("embed_tokens", "wte", "word_embeddings")


def layer(name: str, tensor: Stored, transposed: bool) -> Layer:
    """A layer of floats; its weight is as it is stored, or transposed."""
    n, k = reversed(tensor.shape) if transposed else tensor.shape

    def load() -> np.ndarray:
        values = tensor.read()
        return np.ascontiguousarray(values.T) if transposed else values

    return Layer(name, (n, k), tensor.dtype.name, tensor.nbytes, tensor.path, load)
