"""`fuse_`: linears that a model calls with one X, in one call.

Rows of weights do not depend on each other, so q, k and v are the same numbers from one matmul as
from three. Gate and up are multiplied before they are rounded to the dtype of x.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..formats.spec import MatmulSpec
from .linear import EXTRA_STATE, Linear, Piece
from .patterns import PATTERNS, Followed, Gated, Pattern, Together, function_of

#: Where a module keeps what is to be called before and after it.
HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


class Whole:
    """A linear for several, and its last result for as long as somebody may still ask for it."""

    def __init__(self, linear: Linear) -> None:
        self.linear = linear
        self._last: tuple[Tensor, Any, int, Tensor] | None = None

    def columns(self, x: Tensor, piece: int) -> Tensor:
        """Those of a piece. Who comes before all that were given computes, the last one forgets.

        So nobody gets the same memory twice, and a next call with the same x computes again.
        """
        last, now = self._last, circumstances(self.linear, x)
        if last is not None and last[0] is x and last[1] == now and last[2] < piece:
            y = last[3]
        else:
            y = self.linear(x)
        pieces = self.linear.pieces
        self._last = None if piece == len(pieces) - 1 else (x, now, piece, y)
        return y[..., pieces[piece].rows]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}


def circumstances(linear: Linear, x: Tensor) -> Any:
    """What a result depends on beside which tensor x is.

    None while a graph is built, where dynamo sees none of it.
    """
    if torch.compiler.is_compiling():
        return None
    modes = (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
    )
    held = [(id(each), version_of(each)) for each in linear._buffers.values() if each is not None]
    return modes, held, x.requires_grad, version_of(x), address_of(x)


def version_of(tensor: Tensor) -> int | None:
    """What differs once a tensor was changed in place, where torch counts that."""
    return None if tensor.is_inference() else tensor._version


def address_of(x: Tensor) -> int | None:
    """Where the numbers are, which `x.data = ...` changes; None for tensors of a trace."""
    try:
        return x.data_ptr()
    except RuntimeError:
        return None


class Part(nn.Module):
    """Stands where a linear was that a module beside it computes with others."""

    def __init__(self, whole: Whole, piece: int) -> None:
        super().__init__()
        self.whole, self.piece = whole, piece
        spec = whole.linear.pieces[piece].spec
        self.in_features, self.out_features = spec.k, spec.n

    def forward(self, x: Tensor) -> Tensor:
        """The linear's (..., n) for an x (..., k)."""
        return self.whole.columns(x, self.piece)

    def extra_repr(self) -> str:
        """What stands between the brackets when the module is printed."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)), gate and up in one call."""

    def __init__(self, names: Gated, gate_up: Linear, down: nn.Module) -> None:
        super().__init__()
        self.first, self.second = names.name, names.down
        self.add_module(names.name, gate_up)
        self.add_module(names.down, down)

    def forward(self, x: Tensor) -> Tensor:
        """(..., k) to (..., n)."""
        return self._modules[self.second](self._modules[self.first](x))  # type: ignore[misc]


def fuse_(model: nn.Module) -> tuple[str, ...]:
    """Compute in one call what a table of patterns knows to belong together, in place.

    The table (`nn/patterns.py`) has Llama, Mistral, Qwen2, Qwen3, Gemma, BERT and their like: q, k
    and v are one matmul, gate, up and their activation function one gated matmul, an activation
    function behind a linear a part of it. Linears are put together where they are quantized in one
    format and have no hooks; a state dict of the model has what is together under a name of its
    own, see `unfused_state`.

    q, k and v of one X are computed when the first of them is called, and the others get their
    part of that result. Who changes X, a weight or a bias in place between these calls must do it
    where torch counts changes: in inference mode and inside one compiled graph k and v would still
    be those of X as it was.

    Returns
    -------
    The names of the modules that compute several linears, or one and its activation function.
    """
    made = []
    for path, parent in list(model.named_modules()):
        pattern = PATTERNS.get(type(parent).__name__)
        if pattern is not None:
            made += [f"{path}.{name}".lstrip(".") for name in apply(model, path, parent, pattern)]
    return tuple(made)


def apply(model: nn.Module, path: str, parent: nn.Module, pattern: Pattern) -> list[str]:
    """Put together in `parent` what the pattern names; the names of what was made."""
    if isinstance(pattern, Together):
        return together(parent, pattern)
    if isinstance(pattern, Gated):
        return gated(model, path, parent, pattern)
    return followed(parent, pattern)


def together(parent: nn.Module, pattern: Together) -> list[str]:
    """Linears of one X as parts of one."""
    linears = {name: found for name in pattern.parts if (found := plain(parent, name))}
    alike: dict[MatmulSpec, list[str]] = {}
    for name, linear in linears.items():
        alike.setdefault(dataclasses.replace(linear.spec, n=1), []).append(name)
    made = []
    for names in alike.values():
        parts = [linears[name] for name in names]
        if len(parts) < 2 or not stackable(parts):
            continue
        spec = dataclasses.replace(parts[0].spec, n=sum(part.spec.n for part in parts))
        whole = stacked(dict(zip(names, parts, strict=True)), spec)
        name = pattern.name if len(names) == len(pattern.parts) else "_".join(names)
        parent.add_module(name, whole)
        shared = Whole(whole)
        for piece, each in enumerate(names):
            setattr(parent, each, Part(shared, piece))
        made.append(name)
    return made


def gated(model: nn.Module, path: str, parent: nn.Module, pattern: Gated) -> list[str]:
    """A module for gate, up and their product in the place of `parent`."""
    names = pattern.gate, pattern.up
    parts = [found for name in names if (found := plain(parent, name))]
    activation = getattr(parent, pattern.activation, None)
    function = function_of(activation)
    down = getattr(parent, pattern.down, None)
    if len(parts) < 2 or function is None or down is None:
        return []
    if hooked(parent) or hooked(activation):
        return []
    gate, up = parts
    if gate.spec != up.spec or not path or not stackable(parts):
        return []
    spec = dataclasses.replace(gate.spec, gated=True, activation_fn=function)
    whole = stacked(dict(zip(names, parts, strict=True)), spec)
    model.set_submodule(path, GatedMLP(pattern, whole, down).train(parent.training))
    return [pattern.name]


def followed(parent: nn.Module, pattern: Followed) -> list[str]:
    """The activation function behind a linear in its epilogue."""
    linear = plain(parent, pattern.linear)
    activation = getattr(parent, pattern.activation, None)
    function = function_of(activation)
    if linear is None or function is None or hooked(activation):
        return []
    spec = dataclasses.replace(linear.spec, activation_fn=function)
    setattr(parent, pattern.linear, stacked({pattern.linear: linear}, spec))
    setattr(parent, pattern.activation, nn.Identity())
    return [pattern.linear]


def plain(parent: nn.Module, name: str) -> Linear | None:
    """The quantized linear of that name, unless something is to happen beside what it computes."""
    found = getattr(parent, name, None)
    if type(found) is not Linear or found.pieces or hooked(found):
        return None
    return None if found.spec.gated or found.spec.activation_fn else found


def hooked(module: Any) -> bool:
    """Whether somebody wants to know of the calls of a module."""
    return any(getattr(module, hooks, None) for hooks in HOOKS)


def stackable(linears: Sequence[Linear]) -> bool:
    """Whether the rows of weights of one format may stand in one weight."""
    first, *others = linears
    if first.spec.group_size == "tensor":
        return False
    order = first.order
    if order is None or order.is_meta:
        return order is None
    return all(other.order is not None and torch.equal(order, other.order) for other in others)


def stacked(linears: dict[str, Linear], spec: MatmulSpec) -> Linear:
    """A linear with the rows of several, in their order."""
    first = next(iter(linears.values()))
    whole = Linear(spec.k, spec.n, spec.bias, spec, device="meta").train(first.training)
    for name, tensor in first._buffers.items():
        if tensor is not None and name != "order":
            found: list[Any] = [each._buffers[name] for each in linears.values()]
            with torch.inference_mode(False):
                whole._buffers[name] = found[0] if len(found) == 1 else torch.cat(found)
    whole.order = first.order
    start, pieces = 0, []
    for name, linear in linears.items():
        pieces.append(Piece(name, slice(start, start + linear.spec.n), linear.spec))
        start += linear.spec.n
    whole.pieces = tuple(pieces)
    return whole


def unfused_state(model: nn.Module) -> dict[str, Any]:
    """The state dict as it is without `fuse_`: every linear under its own name.

    A model that was only quantized loads it, also one on which `fuse_` is called after that.
    """
    state = model.state_dict()
    for path, module in model.named_modules():
        if not isinstance(module, Linear) or not module.pieces:
            continue
        inner = {name: state.pop(f"{path}.{name}") for name in module_state(module)}
        parent = path.rpartition(".")[0]
        for piece in module.pieces:
            prefix = f"{parent}.{piece.name}.".lstrip(".")
            for name, tensor in inner.items():
                state[prefix + name] = STATE_OF[name](tensor, piece)
    return state


def module_state(module: Linear) -> list[str]:
    """The names in the state of one linear."""
    return [*(name for name, each in module._buffers.items() if each is not None), EXTRA_STATE]


def rows_of(tensor: Tensor, piece: Piece) -> Tensor:
    """What a tensor has for the rows of a piece; one number is for all of them."""
    return (tensor[piece.rows] if tensor.ndim else tensor).clone()


#: From each tensor in the state of a linear for several to that of a piece.
STATE_OF: dict[str, Callable[[Tensor, Piece], Tensor]] = {
    "data": rows_of,
    "scale": rows_of,
    "zero_point": rows_of,
    "offset": rows_of,
    "bias": rows_of,
    "order": lambda tensor, piece: tensor.clone(),
    EXTRA_STATE: lambda tensor, piece: state_of_spec(piece.spec),
}


def state_of_spec(spec: MatmulSpec) -> Tensor:
    """As `Linear.get_extra_state`."""
    return Linear(spec.k, spec.n, spec.bias, spec, device="meta").get_extra_state()
