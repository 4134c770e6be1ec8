"""The settings of compressed-tensors: which scheme a module has, and what that says of X."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import WeightFileError
from .model import Activations
from .source import Source, whole_number
from .tensors import Stored

#: Names of module classes that a scheme may be for; files say nothing of the classes of modules.
CLASSES = ("Linear", "LinearBase", "Conv1D", "RowParallelLinear", "ColumnParallelLinear")
FORMATS = ("pack-quantized", "int-quantized", "naive-quantized", "mixed-precision", "dense")
STRATEGIES = ("tensor", "channel", "group")


@dataclass(frozen=True, eq=False)
class Scheme:
    """A row of config_groups.

    Attributes
    ----------
    targets : names of modules, of classes, or "re:" and a regular expression.
    bits, group_size : of the weights.
    activations : settings of X, or None.
    outputs : whether results are quantized too.
    """

    targets: tuple[str, ...]
    bits: int
    group_size: int | None
    activations: Mapping[str, Any] | None
    outputs: bool

    def fits(self, name: str) -> bool:
        """Whether this scheme names a module."""
        for target in self.targets:
            if target.startswith("re:"):
                if re.match(target.removeprefix("re:"), name):
                    return True
            elif name == target or name.endswith("." + target):
                return True
        return False


def schemes(source: Source) -> list[Scheme]:
    """The schemes of a model; none where there are no settings.

    Raises
    ------
    WeightFileError
        A scheme, or a format, that is not read.
    """
    says = source.quantization
    if not says:
        return []
    refuse_format(source, says.get("format", "dense"))
    groups = says.get("config_groups", {})
    if not isinstance(groups, dict):
        raise WeightFileError(f"{source.path}: config_groups={groups!r}; expected an object")
    return [scheme(source, name, row) for name, row in groups.items()]


def refuse_format(source: Source, format: object) -> None:
    """Refuse formats of weights that are not read."""
    if format not in FORMATS:
        raise WeightFileError(
            f"{source.path}: the format {format!r} of compressed-tensors is not read; expected one "
            f"of {', '.join(FORMATS)}"
        )


def scheme(source: Source, name: str, row: Any) -> Scheme:
    """A row of config_groups."""
    if not isinstance(row, dict) or not isinstance(row.get("weights"), dict):
        raise WeightFileError(f"{source.path}: {name} in config_groups has no weights")
    if row.get("format") is not None:
        refuse_format(source, row["format"])
    weights, targets = row["weights"], row.get("targets", [])
    if not isinstance(targets, list) or any(type(word) is not str for word in targets):
        raise WeightFileError(f"{source.path}: {name} has targets {targets!r}; expected words")
    for word in targets:
        if word.startswith("re:"):
            try:
                re.compile(word.removeprefix("re:"))
            except re.error as error:
                raise WeightFileError(
                    f"{source.path}: {name} has target {word!r}: {error}"
                ) from None
    bits = whole_number(source, f"{name} num_bits", weights.get("num_bits", 8))
    kind, strategy = weights.get("type", "int"), weights.get("strategy")
    if kind != "int" or bits > 8:
        raise WeightFileError(
            f"{source.path}: {name} has weights of {kind}{bits}, which are not read; expected int, "
            "of 1 to 8 bits"
        )
    if strategy is not None and strategy not in STRATEGIES:
        raise WeightFileError(
            f"{source.path}: {name} has weights by {strategy!r}, which are not read; expected one "
            f"of {', '.join(STRATEGIES)}"
        )
    size = weights.get("group_size")
    if size is not None:
        size = whole_number(source, f"{name} group_size", size, -1)
    x = row.get("input_activations")
    if x is not None and not isinstance(x, dict):
        raise WeightFileError(f"{source.path}: {name} has input_activations {x!r}")
    outputs = row.get("output_activations") is not None
    return Scheme(tuple(targets), bits, size if size and size > 0 else None, x, outputs)


def scheme_of(name: str, listed: Sequence[Scheme]) -> Scheme | None:
    """The scheme of a module: one that names it, or else one for a class of modules."""
    for each in listed:
        if each.fits(name):
            return each
    return next((each for each in listed if {*CLASSES} & {*each.targets}), None)


def activations_of(
    scheme: Scheme | None, parts: Mapping[str, Stored], group_size: int | str | None
) -> Activations | None:
    """What a scheme says of X, in fields of a spec where quantmm computes that."""
    if scheme is None or scheme.activations is None:
        said = scheme is not None and scheme.outputs
        return Activations("quantized outputs", None) if said else None
    says = scheme.activations
    bits, kind = says.get("num_bits", 8), says.get("type", "int")
    strategy, dynamic = says.get("strategy") or "tensor", says.get("dynamic", False)
    asymmetric = says.get("symmetric", True) is not True
    size = says.get("group_size")
    words = [f"{kind}{bits}", f"{strategy}{f' g={size}' if strategy == 'group' else ''}"]
    words += ["zero points"] * asymmetric + ["dynamic" if dynamic else "static"]
    text = " ".join([*words, *["and quantized outputs"] * scheme.outputs])
    covers = {"token": "row", "tensor": "tensor"}.get(str(strategy))
    if strategy == "group" and size == group_size and isinstance(group_size, int):
        covers = "group"
    computed = kind == "int" and bits in (4, 8) and covers is not None and not scheme.outputs
    if not computed or dynamic not in (True, False) or dynamic is not (covers != "tensor"):
        return Activations(text, None)
    fields = {
        "activation": f"int{bits}",
        "activation_scale": covers,
        "activation_zero_point": asymmetric,
        "dynamic": dynamic,
        "input": "float32",
    }
    if dynamic:
        return Activations(text, fields)
    found = {}
    for name, kinds in (("scale", ("float16", "bfloat16", "float32")), ("zero_point", ("int8",))):
        if (row := parts.get("input_" + name)) is not None:
            found[name] = row.expect(kinds, (1,) if row.shape else ()).read().reshape(())
    return Activations(text, fields, found.get("scale"), found.get("zero_point"))
