"""`Linear`: a quantized weight as a torch module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from ..errors import ModuleError, SpecError, StateError
from ..formats.checks import check_bias, check_weight
from ..formats.named import FLOATS
from ..formats.quantize import QTensor, check_qtensor, quantize
from ..formats.ranges import scale_shape
from ..formats.spec import MatmulSpec, stored_as
from . import packed
from .dequantize import as_qtensor, dequantize
from .formats import format_name, module_spec, spec_for, to_text
from .memory import keep_freed_memory
from .op import is_plain, linear
from .product import product

EXTRA_STATE = "_extra_state"


@dataclass(frozen=True)
class Piece:
    """A linear that a module for several computes: its name beside it, its rows of W, its spec."""

    name: str
    rows: slice
    spec: MatmulSpec


class Linear(nn.Module):
    """y = x Wᵀ + bias with a quantized W; x is quantized in the call, row by row.

    With a gated spec W has the rows of a gate and then those of "up", and y is the activation
    function of the one product times the other; all that has n rows below then has 2 n.

    The buffers are a `QTensor`'s arrays, the same for every machine. What a kernel reads is packed
    from them at the first call, and again after they were changed. A kernel is compiled when a
    module first meets a dtype of x, and shared by all modules of one spec. `half()` and its like
    leave the buffers as they are: their numbers are exact, and every call takes any dtype of x.

    Attributes
    ----------
    spec : what is computed, for x of float32.
    data : (n, k) of int8 or uint8, 4-bit formats (n, ceil(k / 2)) of uint8, see `pack_int4`.
    scale : float32 of the shape that `QTensor` names.
    zero_point : int32 of the same shape, or None.
    offset : float32 of the same shape, or None.
    order : int32 (k,), the columns of x that those of `data` are multiplied with, or None.
    bias : float32 (n,), or None.
    pieces : the linears that this one stands for, where it is several, see `quantmm.nn.fuse_`.
    """

    pieces: tuple[Piece, ...] = ()
    data: Tensor
    scale: Tensor
    zero_point: Tensor | None
    offset: Tensor | None
    order: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        format: str | MatmulSpec = "w8a8-dynamic",
        *,
        device: torch.device | str | None = None,
    ) -> None:
        """Make a module whose weight is zero, for `load_state_dict` to fill.

        Parameters
        ----------
        format : "w8a8-dynamic", "w7a8-dynamic", "w4a8", "w4a8-g128", "w4a8-g32"; "w4a8-g128-xg",
            "w4a8-g32-xg" or "w8a8-g32-xg", in which X has a scale for each group of the weight; or
            a `MatmulSpec` with this shape that is dynamic and gives what it takes.
        device : "meta" makes buffers without memory.

        Raises
        ------
        SpecError
            Not such a format.
        """
        super().__init__()
        keep_freed_memory()
        spec = spec_for(format, out_features, in_features, bias)
        self.spec = spec
        self.in_features, self.out_features = spec.k, spec.n
        self._text = to_text(spec)
        if spec.four_bit_weight:
            columns, dtype = -(-spec.k // 2), torch.uint8
        else:
            columns, dtype = spec.k, getattr(torch, stored_as(spec.weight))
        rows = spec.w_rows
        shape = scale_shape((rows, spec.k), spec.group_size)
        # Changes of tensors that are made in inference mode would go unnoticed.
        with torch.inference_mode(False):
            zeros, ones = torch.zeros, torch.ones
            self.register_buffer("data", zeros((rows, columns), dtype=dtype, device=device))
            self.register_buffer("scale", ones(shape, dtype=torch.float32, device=device))
            zero_point = zeros(shape, dtype=torch.int32, device=device)
            self.register_buffer("zero_point", zero_point if spec.weight_zero_point else None)
            offset = zeros(shape, dtype=torch.float32, device=device)
            self.register_buffer("offset", offset if spec.weight_offset else None)
            order = torch.arange(spec.k, dtype=torch.int32, device=device)
            self.register_buffer("order", order if spec.weight_order else None)
            added = zeros(rows, dtype=torch.float32, device=device)
            self.register_buffer("bias", added if spec.bias else None)

    @classmethod
    def from_float(cls, module: nn.Linear, format: str | MatmulSpec = "w8a8-dynamic") -> Linear:
        """Quantize the weight of a `torch.nn.Linear`, which stays as it is.

        Parameters
        ----------
        format : as for `Linear`. A spec has to have the module's n, k and bias; a gated one half of
            its n, since the module has the rows of gate and up.

        Raises
        ------
        ModuleError
            Something else than a `torch.nn.Linear`, or a lazy one without a weight yet.
        SpecError
            Not such a format.
        ArrayError
            A weight with NaN or infinity.
        """
        if not isinstance(module, nn.Linear):
            raise ModuleError(f"module is {type(module).__name__}; expected a torch.nn.Linear")
        weight, bias = module.weight, module.bias
        if isinstance(weight, UninitializedParameter):
            raise ModuleError(
                f"module is {type(module).__name__} without a weight; expected one that was called "
                "before, which tells it its shape"
            )
        rows, k = weight.shape
        gated = isinstance(format, MatmulSpec) and format.gated
        spec = spec_for(format, rows // 2 if gated else rows, k, bias is not None)
        if weight.is_meta:
            return cls(k, spec.n, spec.bias, spec, device="meta").train(module.training)
        w = quantize(
            cast(npt.ArrayLike, weight),
            spec.weight,
            group_size=spec.group_size,
            symmetric=None if spec.weight_offset else not spec.weight_zero_point,
            offset=spec.weight_offset,
        )
        made = cls.from_quantized(w, cast("npt.ArrayLike | None", bias), spec)
        return made.to(weight.device).train(module.training)

    @classmethod
    def from_quantized(
        cls, w: QTensor, bias: npt.ArrayLike | None = None, spec: MatmulSpec | None = None
    ) -> Linear:
        """A module for a weight that is quantized already, with a copy of its numbers.

        Parameters
        ----------
        bias : a float for each row of `w`.
        spec : None for the dynamic spec that fits `w` and `bias`.

        Raises
        ------
        ArrayError
            No weight, or one or a bias that `spec` does not describe.
        SpecError
            A spec that no module can have.
        """
        w = check_qtensor("w", w)
        if spec is None:
            spec = MatmulSpec(
                n=w.shape[0],
                k=w.shape[1],
                weight=w.dtype,
                group_size=w.group_size,
                weight_zero_point=w.zero_point is not None,
                weight_offset=w.offset is not None,
                weight_order=w.order is not None,
                bias=bias is not None,
                **FLOATS,
            )
        spec = module_spec(spec)
        check_weight(spec, w)
        added = check_bias(spec, bias)
        module = cls(spec.k, spec.n, spec.bias, spec, device="meta")
        module.data, module.scale = owned(w.data), owned(w.scale)
        if spec.weight_zero_point:
            zeros = np.zeros(w.scale.shape, np.int32)
            module.zero_point = owned(zeros if w.zero_point is None else w.zero_point)
        if spec.weight_offset:
            zeros = np.zeros(w.scale.shape, np.float32)
            module.offset = owned(zeros if w.offset is None else w.offset)
        if spec.weight_order:
            as_they_are = np.arange(spec.k, dtype=np.int32)
            module.order = owned(as_they_are if w.order is None else w.order)
        if added is not None:
            module.bias = owned(added)
        return module

    def to_quantized(self) -> QTensor:
        """The weight as a `QTensor` with a copy of its numbers."""
        zero_point, offset, order = (
            None if tensor is None else tensor.cpu().clone()
            for tensor in (self.zero_point, self.offset, self.order)
        )
        data, scale = self.data.cpu().clone(), self.scale.cpu().clone()
        return as_qtensor(data, scale, zero_point, self.spec, offset, order)

    def dequantize(self) -> Tensor:
        """The weight as float32 (n, k), gated (2 n, k)."""
        beside = self.offset, self.order
        return dequantize(self.data, self.scale, self.zero_point, self._text, *beside)

    def forward(self, x: Tensor) -> Tensor:
        """Y = x Wᵀ + bias.

        Parameters
        ----------
        x : (..., k) of float32, float16 or bfloat16, on the CPU.

        Returns
        -------
        (..., n) of the dtype of x.

        Raises
        ------
        ArrayError
            Another shape, dtype or device.
        """
        # A module looks attributes up in this dictionary, in ten times the time.
        own = cast(dict[str, Any], self._buffers)
        data, scale, zero_point, bias = own["data"], own["scale"], own["zero_point"], own["bias"]
        offset, order, text = own["offset"], own["order"], self._text
        if is_plain(x, scale, bias, offset):
            weight = data, scale, zero_point, bias, text, offset, order
            return product(packed.find(x.dtype, *weight), x)
        return linear(x, data, scale, zero_point, bias, text, offset, order)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What was pickled, also before weights had offsets and orders."""
        super().__setstate__(state)
        for name in ("offset", "order"):
            self._buffers.setdefault(name, None)

    def extra_repr(self) -> str:
        """What stands between the brackets when the module is printed."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, format={format_name(self.spec)}"
        )

    def get_extra_state(self) -> Tensor:
        """The spec as the bytes of its JSON: a tensor, since safetensors stores nothing else."""
        return owned(np.frombuffer(self.spec.to_json().encode(), np.uint8))

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing but a check of the spec, for those that load without `_load_from_state_dict`."""
        check_spec(self, state, EXTRA_STATE)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any
    ) -> None:
        """Load what fits, and refuse everything before anything of it is loaded where it does not.

        Raises
        ------
        StateError
            A state of another format, or with a tensor of another shape or dtype.
        """
        check_state(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        for name, tensor in self._buffers.items():
            if tensor is not None and tensor.is_inference():
                with torch.inference_mode(False):
                    self._buffers[name] = tensor.clone()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear:
        """Let `fn` change where buffers lie, and not their dtype."""

        def moved(tensor: Tensor) -> Tensor:
            with torch.inference_mode(False):
                found = fn(tensor)
                return found if found.dtype == tensor.dtype else tensor.to(found.device)

        return super()._apply(moved, recurse)


def check_state(module: Linear, state: Mapping[str, Any], prefix: str) -> None:
    """Refuse a state that `module` would not compute the same with."""
    check_spec(module, state.get(prefix + EXTRA_STATE), prefix + EXTRA_STATE)
    for name, own in module._buffers.items():
        tensor = state.get(prefix + name)
        if own is None or not isinstance(tensor, Tensor):
            continue
        if (tensor.shape, tensor.dtype) != (own.shape, own.dtype):
            raise StateError(
                f"{prefix}{name} is {kind(tensor)}; the module, {format_name(module.spec)} of "
                f"{(module.spec.w_rows, module.spec.k)}, has {kind(own)}"
            )


def check_spec(module: Linear, extra: Any, name: str) -> None:
    """Refuse the extra state of another spec."""
    # A state without numbers does not say what it is of.
    if extra is not None and not (isinstance(extra, Tensor) and extra.is_meta):
        given = spec_of(extra, name)
        if given != module.spec:
            text, expected = given.to_json(), module.spec.to_json()
            raise StateError(f"{name} has {text}; the module has {expected}")


def spec_of(extra: Any, name: str) -> MatmulSpec:
    """The spec that `Linear.get_extra_state` wrote."""
    if not isinstance(extra, Tensor) or extra.dtype != torch.uint8 or extra.dim() != 1:
        found = kind(extra) if isinstance(extra, Tensor) else type(extra).__name__
        raise StateError(f"{name} is {found}; expected the bytes of a spec, uint8 of one dimension")
    try:
        return MatmulSpec.from_json(bytes(extra.tolist()).decode(errors="replace"))
    except SpecError as error:
        raise StateError(f"{name}: {error}") from None


def kind(tensor: Tensor) -> str:
    """Dtype and shape."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{(*tensor.shape,)}"


def owned(array: np.ndarray) -> Tensor:
    """A tensor with a copy of the array, on the CPU whatever torch's default device is."""
    with torch.inference_mode(False):
        return torch.from_numpy(np.array(array))
