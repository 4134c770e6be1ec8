"""`quantize_`: every linear of a model, in place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..errors import ModuleError, QuantmmError
from .fuse import HOOKS, fuse_
from .linear import Linear

Filter = Callable[[nn.Module, str], bool]
Format = Callable[[str], str]


def quantize_(
    model: nn.Module,
    format: str | Format = "w8a8-dynamic",
    filter_fn: Filter | None = None,
    *,
    fuse: bool = True,
) -> None:
    """Replace the linears of a model by quantized ones, in place: all of them, or none.

    Modules that the model holds several times, and weights that several linears share, stay shared;
    hooks that were registered for a call stay with it.
    Left alone are subclasses of `torch.nn.Linear` that compute something else, and the output
    projections of `torch.nn.MultiheadAttention`, which reads their weight itself.

    Parameters
    ----------
    model : any module but a linear itself.
    format : a name of a format, see `Linear`, or what gives one for a linear's qualified name.
    filter_fn : called with each linear and its qualified name; those for which it says False
        stay as they are.
    fuse : then compute in one call what belongs together, see `fuse_`; `report` says what that is.

    Raises
    ------
    ModuleError
        `model` is no module, is a linear itself, has none, or has none that was chosen.
    SpecError
        No such format, or not for a linear of that shape; the message has its name.
    ArrayError
        A weight with NaN or infinity; the message has its name.
    """
    if not isinstance(model, nn.Module):
        raise ModuleError(f"model is {type(model).__name__}; expected a torch.nn.Module")
    if isinstance(model, nn.Linear):
        raise ModuleError(
            "model is a linear itself, which cannot be replaced in place; expected a module that "
            f"holds some; quantmm.nn.Linear.from_float(model, {format!r}) gives the quantized one"
        )
    linears = dict(linears_of(model))
    chosen = {
        name: module
        for name, module in linears.items()
        if filter_fn is None or filter_fn(module, name)
    }
    if not chosen:
        found = f"{len(linears)} of them and filter_fn chose none" if linears else "none"
        raise ModuleError(f"expected torch.nn.Linear in {type(model).__name__}; it has {found}")
    put_in(model, quantized(chosen, format))
    if fuse:
        fuse_(model)


def linears_of(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linears that compute what `torch.nn.Linear` does, each once."""
    for name, module in model.named_modules():
        plain = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
        if plain and not isinstance(module, NonDynamicallyQuantizableLinear):
            yield name, module


def quantized(chosen: dict[str, nn.Linear], format: str | Format) -> dict[nn.Module, Linear]:
    """For each linear its quantized one."""
    of_weight: dict[Tensor, Linear] = {}
    made: dict[nn.Module, Linear] = {}
    for name, module in chosen.items():
        try:
            new = Linear.from_float(module, format if isinstance(format, str) else format(name))
        except QuantmmError as error:
            raise type(error)(f"{name}: {error}") from None
        first = of_weight.setdefault(module.weight, new)
        if dataclasses.replace(first.spec, bias=new.spec.bias) == new.spec:
            new.data, new.scale, new.zero_point = first.data, first.scale, first.zero_point
            new.offset, new.order = first.offset, first.order
        for hooks in HOOKS:
            setattr(new, hooks, getattr(module, hooks))
        made[module] = new
    return made


def put_in(model: nn.Module, made: dict[nn.Module, Linear]) -> None:
    """Replace modules wherever the model holds them."""
    for parent in list(model.modules()):
        held = {name: made[child] for name, child in parent._modules.items() if child in made}
        parent._modules.update(held)
        if held:
            leave_fast_path(parent)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def leave_fast_path(parent: nn.Module) -> None:
    """Have torch's encoder layer call its linears, where it would read their float weights."""
    if isinstance(parent, nn.TransformerEncoderLayer):
        parent.activation_relu_or_gelu = 0
