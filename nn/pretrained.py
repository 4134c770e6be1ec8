"""quantmm in transformers: `QuantmmConfig`, which `from_pretrained` and `save_pretrained` know.

A model is loaded in floats and quantized, or its integers are read from a folder that
`save_pretrained` wrote. Such a folder has every linear under its own name: what is computed in one
call is decided when a model is loaded, and changes no file.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..errors import ModuleError, SpecError, StateError, UnsupportedError
from ..formats.named import FORMATS, fits
from ..formats.spec import MatmulSpec
from .formats import SHORT
from .fuse import fuse_, unfused_state
from .linear import Linear
from .replace import linears_of, put_in, quantize_

METHOD = "quantmm"
#: Of what a saved folder says; a folder with a later one is refused.
VERSION = 1
#: What a layer's shape decides, and not its format.
OF_SHAPE = ("n", "k", "bias")


@register_quantization_config(METHOD)
class QuantmmConfig(QuantizationConfigMixin):
    """How transformers' `from_pretrained(..., quantization_config=...)` quantizes a model.

    Parameters
    ----------
    format : of all linears: a name of `quantmm.nn.Linear`'s formats, or "w8a8".
    skip : patterns of names of linears that stay as they are, such as "lm_head" or
        "model.layers.0.*"; "*" and "?" as in names of files, and a pattern may leave the beginning
        of a name out, up to a dot.
    formats : other formats by such patterns, of which the first that fits counts.
    fuse : compute in one call what belongs together, see `quantmm.nn.fuse_`.
    layers, version : what a saved folder says of its layers; `save_pretrained` writes them.

    Raises
    ------
    SpecError
        No such format, or patterns that are no text.
    StateError
        `version` is one that this quantmm does not know.
    """

    def __init__(
        self,
        format: str = "w8a8",
        skip: Sequence[str] = (),
        *,
        formats: Mapping[str, str] | None = None,
        fuse: bool = True,
        layers: Sequence[Mapping[str, Any]] | None = None,
        version: int = VERSION,
        quant_method: str = METHOD,
    ) -> None:
        if not isinstance(version, int) or not 1 <= version <= VERSION:
            raise StateError(
                f"quantization_config has version {version!r}; this quantmm reads {VERSION}: "
                "load it with the quantmm that saved it, or quantize the model again"
            )
        self.quant_method: Any = quant_method
        self.version = version
        self.format = known(format)
        self.skip = patterns("skip", skip)
        self.formats = {name: known(each) for name, each in (formats or {}).items()}
        patterns("formats", list(self.formats))
        self.fuse = bool(fuse)
        self.layers = None if layers is None else [dict(each) for each in layers]

    def chosen(self, name: str) -> bool:
        """Whether the linear of that name is to be quantized."""
        return not any(fits(name, pattern) for pattern in self.skip)

    def format_of(self, name: str) -> str:
        """The format of the linear of that name."""
        own = (each for pattern, each in self.formats.items() if fits(name, pattern))
        return next(own, self.format)

    def specs(self) -> dict[str, dict[str, Any]]:
        """For each quantized linear of a saved folder the fields of its spec, but for its shape."""
        return {
            name: dict(layer["format"]) for layer in self.layers or () for name in layer["names"]
        }


def known(format: Any) -> str:
    """Refuse what is not the name of a format."""
    if not isinstance(format, str) or SHORT.get(format, format) not in FORMATS:
        names = ", ".join((*SHORT, *FORMATS))
        raise SpecError(f"no format {format!r}; expected one of {names}")
    return format


def patterns(name: str, given: Any) -> list[str]:
    """Refuse what are no patterns of names."""
    if isinstance(given, str) or not all(isinstance(each, str) for each in given):
        raise SpecError(f"{name}={given!r}; expected names of linears, such as ['lm_head']")
    return list(given)


@register_quantizer(METHOD)
class QuantmmQuantizer(HfQuantizer):
    """What transformers asks while it loads and saves a model with a `QuantmmConfig`."""

    quantization_config: QuantmmConfig
    requires_calibration = False

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        """Refuse places where no kernel runs.

        Raises
        ------
        UnsupportedError
            `device_map` has another device than the CPU.
        """
        places = device_map.values() if isinstance(device_map, Mapping) else [device_map]
        for place in places:
            if place is not None and str(place) not in ("cpu", "auto"):
                raise UnsupportedError(
                    f"device_map has {place}; expected the CPU, where quantmm's modules run: leave "
                    "device_map out"
                )

    def update_device_map(self, device_map: Any) -> Any:
        """All of the model to the CPU, also where "auto" would find a GPU."""
        return {"": "cpu"} if device_map == "auto" else device_map

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        """Put modules for saved integers where the float linears are."""
        if self.pre_quantized:
            put_in(model, modules_for(model, self.quantization_config.specs()))
            untie(model)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        """Quantize what was loaded in floats, and put together what belongs together."""
        config = self.quantization_config
        if not self.pre_quantized:
            linears = [name for name, _ in linears_of(model)]
            if linears and not any(map(config.chosen, linears)):
                raise skips_all(config.skip, model)
            quantize_(model, config.format_of, lambda _, name: config.chosen(name), fuse=False)
            untie(model)
            config.layers = layers_of(model)
        if config.fuse:
            fuse_pretrained(model)
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Any], dict[str, str]]:
        """What `save_pretrained` writes."""
        return unfused_state(model), {}

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """Whether `save_pretrained` may write the model: yes."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether weights are trained: no."""
        return False

    @property
    def is_compileable(self) -> bool:
        """Whether torch.compile takes the model: yes."""
        return True


def skips_all(skip: Sequence[str], model: nn.Module) -> ModuleError:
    """What patterns that fit every linear are refused with."""
    return ModuleError(
        f"skip={list(skip)} leaves none of the {len(list(linears_of(model)))} linears of "
        f"{type(model).__name__}; expected some that are to be quantized"
    )


def fuse_pretrained(model: nn.Module) -> None:
    """`fuse_`, and a warning where a model is of a family that the table does not have."""
    if not fuse_(model):
        warnings.warn(
            f"no pattern for {type(model).__name__}: every linear is a matmul of its own; "
            "quantmm.nn.report(model) lists them, QuantmmConfig(..., fuse=False) is silent",
            stacklevel=2,
        )


def modules_for(
    model: nn.Module, specs: Mapping[str, Mapping[str, Any]]
) -> dict[nn.Module, Linear]:
    """For each linear that was quantized when a model was saved a module for its integers.

    Raises
    ------
    StateError
        The model has no such linear, or the spec is none.
    ModuleError
        There are none.
    """
    if not specs:
        raise ModuleError(
            "quantization_config has no layers; expected those that save_pretrained writes"
        )
    linears = dict(linears_of(model))
    made: dict[nn.Module, Linear] = {}
    for name, fields in specs.items():
        if name not in linears:
            raise StateError(
                f"quantization_config has the linear {name!r}, which {type(model).__name__} has "
                "not; expected a folder that was saved from this class of models"
            )
        n, k = linears[name].weight.shape
        bias = linears[name].bias is not None
        try:
            spec = MatmulSpec.from_json(json.dumps({**fields, "n": n, "k": k, "bias": bias}))
            made[linears[name]] = Linear(k, n, bias, spec, device="meta")
        except (SpecError, TypeError) as error:
            raise StateError(f"quantization_config, {name}: {error}") from None
    return made


def layers_of(model: nn.Module) -> list[dict[str, Any]]:
    """What `QuantmmConfig.layers` says of a model that was quantized linear by linear."""
    return as_layers(
        (name, module.spec) for name, module in model.named_modules() if isinstance(module, Linear)
    )


def as_layers(specs: Iterable[tuple[str, MatmulSpec]]) -> list[dict[str, Any]]:
    """Formats and the names of the layers that have them."""
    names: dict[str, list[str]] = {}
    for name, spec in specs:
        fields = json.loads(dataclasses.replace(spec, bias=False).to_json())
        text = json.dumps({key: each for key, each in fields.items() if key not in OF_SHAPE})
        names.setdefault(text, []).append(name)
    return [{"format": json.loads(text), "names": each} for text, each in names.items()]


def untie(model: Any) -> None:
    """Let transformers not tie what was a float weight of a linear that is quantized now."""
    tied = model.all_tied_weights_keys
    for target in list(tied):
        path = target.rpartition(".")[0]
        if isinstance(model.get_submodule(path), Linear):
            del tied[target]
    if not tied:
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
