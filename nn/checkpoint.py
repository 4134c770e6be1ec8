"""`load_model`: a transformers model from any file of weights, with the integers of the file.

What a file's layers are called in the model, and in which order their rows are, transformers says:
llama.cpp stores the rows of q and k by pairs for its rotary embedding, which no group of K notices.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from ..errors import ModuleError, QuantmmError, SpecError, UnsupportedError
from ..formats.quantize import QTensor
from ..formats.spec import MatmulSpec
from ..models.model import Layer, Model
from ..models.open import open_model
from .linear import Linear, owned
from .pretrained import METHOD, QuantmmConfig, as_layers, known, skips_all
from .replace import linears_of

WEIGHT, BIAS = ".weight", ".bias"
#: By how `open_model` calls their formats, files whose layers are not named as in the model.
GGUF, FLOATS = "GGUF", "floats"


def load_model(
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    skip: tuple[str, ...] = (),
    activation_scale: str | None = None,
    fuse: bool = True,
    dtype: torch.dtype = torch.float32,
    model_class: Any = None,
) -> Any:
    """A transformers model from a folder or file of weights, computing with quantmm.

    Quantized weights are taken as they are, integer by integer. `quantmm.nn.report` lists them.

    Parameters
    ----------
    path : what `quantmm.open_model` opens: a .gguf file, or a folder with config.json and weights
        in GPTQ, AWQ, compressed-tensors, floats, or those that `save_pretrained` wrote.
    format : of linears whose weights are floats in the file; None leaves them as they are, where
        others are quantized.
    skip : patterns of names of linears that are left as floats, see `QuantmmConfig`; of linears
        whose weights are floats in the file.
    activation_scale : "row" or "group": what one scale of X covers where the file says nothing.
        None is "group" where weights have groups, as llama.cpp computes them, and "row" elsewhere.
    fuse : compute in one call what belongs together, see `fuse_`.
    dtype : of everything that is not quantized.
    model_class : of transformers; None for the one that config.json names, or
        AutoModelForCausalLM.

    Raises
    ------
    WeightFileError
        The file cannot be read, is damaged, or of a format that is not read.
    UnsupportedError
        transformers knows no such model, or not how its GGUF files are to be read.
    ModuleError
        A linear of the model is not in the file, or none is to be quantized.
    SpecError
        No such format, or `format`, `skip` or `activation_scale` for weights that are quantized in
        the file and cannot follow it.
    """
    place = Path(path)
    if format is not None:
        known(format)
    if activation_scale not in (None, "row", "group"):
        raise SpecError(f"activation_scale={activation_scale!r}; expected None, 'row' or 'group'")
    model = open_model(place)
    config = config_of(place, model)
    made = model_class or class_of(config)
    theirs = getattr(config, "quantization_config", None) or {}
    if theirs.get("quant_method") == METHOD:
        refuse_given(place, format=format, skip=skip, activation_scale=activation_scale)
        theirs["fuse"] = fuse
        return made.from_pretrained(place, config=config, dtype=dtype)
    if model.format == FLOATS and place.is_dir():
        if format is None:
            raise has_floats(place)
        ours = QuantmmConfig(format, skip, fuse=fuse)
        return made.from_pretrained(place, dtype=dtype, quantization_config=ours)
    config.quantization_config = None
    with torch.device("meta"):
        skeleton = from_config(made, config)
    names = GgufNames(skeleton, model, config) if model.format == GGUF else Names()
    settings = QuantmmConfig(format or "w8a8", skip, fuse=fuse)
    state, specs = {}, {}
    for name, module in linears_of(skeleton):
        try:
            made_of = linear_of(names, model, name, module, settings, format, activation_scale)
        except QuantmmError as error:
            raise type(error)(f"{name}: {error}") from None
        if made_of is not None:
            specs[name] = made_of.spec
            state.update({f"{name}.{key}": each for key, each in made_of.state_dict().items()})
    if not specs:
        raise skips_all(skip, skeleton) if format is not None else has_floats(place)
    given = {name.rpartition(".")[0] for name in state}
    for source, load in names.others(model):
        target = names.target(source)
        if target is not None and target.rpartition(".")[0] not in given:
            state[target] = as_tensor(names.ordered(source, load()))
    settings.layers = as_layers(specs.items())
    config.quantization_config = settings.to_dict()
    return type(skeleton).from_pretrained(None, config=config, state_dict=state, dtype=dtype)


def refuse_given(place: Path, **given: Any) -> None:
    """Refuse what cannot be chosen again for a folder that `save_pretrained` wrote."""
    for name, each in given.items():
        if each:
            raise SpecError(
                f"{name}={each!r} for {place}, whose layers quantmm has quantized; expected no "
                f"{name}: quantize the floats again"
            )


def has_floats(place: Path) -> ModuleError:
    """What a file of floats without a format is refused with."""
    return ModuleError(f"{place} has floats; expected format=, such as 'w4a8-g32'")


def config_of(place: Path, model: Model) -> Any:
    """The config that transformers has of a model."""
    try:
        if model.format == GGUF:
            return transformers.AutoConfig.from_pretrained(place.parent, gguf_file=place.name)
        return transformers.AutoConfig.from_pretrained(place if place.is_dir() else place.parent)
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise UnsupportedError(
            f"{place}: transformers finds no model in it: {error}; expected a folder with "
            "config.json, or a .gguf file of an architecture that transformers reads"
        ) from None


def class_of(config: Any) -> Any:
    """The class of models that a config names."""
    for name in getattr(config, "architectures", None) or ():
        if (found := getattr(transformers, name, None)) is not None:
            return found
    return transformers.AutoModelForCausalLM


def from_config(made: Any, config: Any) -> Any:
    """A model as its config says, of a class or one of the Auto classes."""
    return (
        made(config)
        if isinstance(made, type(nn.Module)) and issubclass(made, nn.Module)
        else made.from_config(config)
    )


class Names:
    """What layers and tensors of a file are in the model: the same, in the same order."""

    def layer(self, model: Model, name: str) -> Layer | None:
        """The layer of a linear."""
        return model.layers.get(name)

    def source(self, target: str) -> str | None:
        """The name in the file of a tensor of the model."""
        return target

    def target(self, source: str) -> str | None:
        """The name in the model of a tensor of the file."""
        return source

    def ordered(self, source: str, values: np.ndarray) -> np.ndarray:
        """A tensor as the model has it."""
        return values

    def rows(self, source: str, count: int) -> np.ndarray | None:
        """For each row of a weight in the model the one in the file; None for the same."""
        return None

    def others(self, model: Model) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
        """All tensors and float layers of a file, by name."""
        for name in model.tensors:
            yield name, lambda name=name: model.tensors[name]  # type: ignore[misc]
        for name, layer in model.layers.items():
            if layer.fields is None:
                yield name + WEIGHT, layer.read  # type: ignore[misc]


class GgufNames(Names):
    """Those of llama.cpp, by the tables of transformers."""

    def __init__(self, skeleton: Any, model: Model, config: Any) -> None:
        from transformers import modeling_gguf_pytorch_utils as tables

        processors: dict[Any, Any] = tables.TENSOR_PROCESSORS
        architecture = model.config.get("general.architecture")
        made = processors.get(architecture, tables.TensorProcessor)
        self.processor = made(config=config.to_dict())
        try:
            self.targets = tables.get_gguf_hf_weights_map(skeleton, self.processor)
        except (NotImplementedError, ImportError) as error:
            raise UnsupportedError(f"{model.path}: {error}") from None
        self.sources = {target: source for source, target in self.targets.items()}

    def layer(self, model: Model, name: str) -> Layer | None:
        """The layer of a linear."""
        source = self.sources.get(name + WEIGHT)
        return None if source is None else model.layers.get(source.removesuffix(WEIGHT))

    def source(self, target: str) -> str | None:
        """The name in the file of a tensor of the model."""
        return self.sources.get(target)

    def target(self, source: str) -> str | None:
        """The name in the model of a tensor of the file."""
        return self.targets.get(source)

    def ordered(self, source: str, values: np.ndarray) -> np.ndarray:
        """A tensor as the model has it."""
        return np.asarray(self.processor.process(weights=values, name=source).weights)

    def rows(self, source: str, count: int) -> np.ndarray | None:
        """For each row of a weight in the model the one in the file; None for the same."""
        there = np.arange(count)[:, None]
        found = self.ordered(source, there)
        if np.array_equal(found, there):
            return None
        if not np.array_equal(np.sort(found, axis=0), there):
            raise UnsupportedError(
                f"{source} of {type(self.processor).__name__} has other numbers in the file than "
                "in the model; expected rows in another order, and nothing else"
            )
        return found[:, 0]


def linear_of(
    names: Names,
    model: Model,
    name: str,
    module: nn.Linear,
    settings: QuantmmConfig,
    format: str | None,
    activation_scale: str | None,
) -> Linear | None:
    """The module for a linear of the model; None where it stays a float one.

    Raises
    ------
    ModuleError
        The file has no such layer.
    SpecError
        It is to be left as floats, and is quantized in the file.
    """
    layer = names.layer(model, name)
    if layer is None:
        raise ModuleError(f"{model.path} has no layer for it; expected one of {model.format}")
    source = names.source(name + WEIGHT) or name
    added = names.source(name + BIAS)
    bias = None
    if module.bias is not None and added is not None and added in model.tensors:
        bias = as_tensor(names.ordered(added, model.tensors[added])).to(torch.float32)
    if layer.fields is None:
        if format is None or not settings.chosen(name):
            return None
        weight = as_tensor(names.ordered(source, np.asarray(layer.read())))
        return Linear.from_float(float_linear(weight, bias), settings.format_of(name))
    if not settings.chosen(name):
        raise SpecError(
            f"skip={settings.skip} has it, but it is {layer.format} in the file; expected linears "
            "of floats"
        )
    q = layer.read()
    assert isinstance(q, QTensor)
    rows = names.rows(source, q.shape[0])
    if rows is not None:
        q = taken(q, rows)
    spec = spec_of_layer(layer, bias is not None, activation_scale)
    return Linear.from_quantized(q, None if bias is None else bias.numpy(), spec)


def float_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """One of torch's own, over the given numbers."""
    n, k = weight.shape
    linear = nn.Linear(k, n, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def spec_of_layer(layer: Layer, bias: bool, activation_scale: str | None) -> MatmulSpec:
    """What a module for a layer computes: what the file says, for floats that arrive.

    X with given scales is quantized in the call instead, which is more exact; a warning says so.
    """
    said = None if layer.activations is None else layer.activations.fields
    if layer.activations is not None and not (said and said.get("dynamic")):
        warnings.warn(
            f"{layer.file}: {layer.name} has activations of {layer.activations.text}; they are "
            "quantized in the call, row by row",
            RuntimeWarning,
            stacklevel=4,
        )
    if said and said.get("dynamic"):
        return layer.spec(bias=bias, out=said.get("input", "float32"))
    fields: Mapping[str, Any] = layer.fields or {}
    n, k = layer.shape
    grouped = isinstance(fields.get("group_size"), int) and not fields.get("weight_order")
    scale = activation_scale or ("group" if grouped and said is None else "row")
    spec = MatmulSpec(n=n, k=k, bias=bias, dynamic=True, input="float32", **fields)
    return dataclasses.replace(spec, activation_scale=scale if grouped else "row")


def taken(q: QTensor, rows: np.ndarray) -> QTensor:
    """Rows of a weight in another order."""

    def some(values: np.ndarray | None) -> np.ndarray | None:
        return values if values is None or not values.ndim else values[rows]

    scale = some(q.scale)
    assert scale is not None
    others = q.dtype, q.group_size, q.shape, some(q.offset), q.order
    return QTensor(q.data[rows], scale, some(q.zero_point), *others)


def as_tensor(values: np.ndarray) -> Tensor:
    """A torch tensor of the same numbers; bfloat16 goes by its bits."""
    if values.dtype.name == "bfloat16":
        return owned(values.view(np.uint16)).view(torch.bfloat16)
    return owned(values)
