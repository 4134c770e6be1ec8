"""The operator's packed weights: made when first asked for, gone with the tensors they are of.

torch keeps a tensor's Python object for as long as the tensor lives, so its `id` names it. A change
in place counts its `_version` up, and `tensor.data = other` moves its `data_ptr()`; either is seen
at the next call, which packs anew.
"""

from __future__ import annotations

import functools
import threading
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..compiler.compile import compile
from ..errors import ArrayError
from ..formats.spec import MatmulSpec
from ..runtime.forks import in_forked_children
from ..runtime.kernel import Kernel
from ..runtime.linear import Linear
from .dequantize import as_qtensor
from .formats import kernel_spec

Key = tuple[Any, ...]
Stamp = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Packed:
    """A bound kernel, and what its weight was packed from.

    Attributes
    ----------
    stamp : versions and addresses of the tensors at that time.
    sources : weak references that end the entry when a tensor dies.
    """

    linear: Linear
    stamp: Stamp
    sources: tuple[weakref.ref[Tensor], ...]


_packed: dict[Key, Packed] = {}
_kernels: weakref.WeakValueDictionary[MatmulSpec, Kernel] = weakref.WeakValueDictionary()
_packing = threading.Lock()


def find(
    dtype: torch.dtype,
    data: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    spec: str,
    offset: Tensor | None = None,
    order: Tensor | None = None,
) -> Linear:
    """The bound kernel for an x of `dtype`.

    Raises
    ------
    ArrayError
        The tensors are no weight that `spec` describes, lie elsewhere than on the CPU, or do not
        count their changes; x has a dtype that no kernel reads.
    SpecError
        `spec` is not the JSON of a spec that a module can have.
    """
    others = zero_point, bias, offset, order
    key = (id(data), id(scale), *map(id, others), spec, dtype)
    found = _packed.get(key)
    stamp = stamp_of(data, scale, *others)
    if found is not None and found.stamp == stamp:
        return found.linear
    with _packing:
        found = _packed.get(key)
        if found is not None and found.stamp == stamp:
            return found.linear
        linear = pack(data, scale, zero_point, bias, kernel_spec(spec, dtype), offset, order)
        tensors = [data, scale, *(each for each in others if each is not None)]
        forget = functools.partial(_forget, _packed, key)
        sources = tuple(weakref.ref(tensor, forget) for tensor in tensors)
        _packed[key] = Packed(linear, stamp, sources)
        return linear


def stamp_of(data: Tensor, scale: Tensor, *others: Tensor | None) -> Stamp:
    """What differs once a tensor was changed."""
    try:
        stamp: Stamp = (data._version, data.data_ptr(), scale._version, scale.data_ptr())
        for other in others:
            if other is not None:
                stamp += (other._version, other.data_ptr())
    except RuntimeError:
        raise ArrayError(
            "the weight has tensors that were made in torch.inference_mode, whose changes torch "
            "does not count; expected tensors made outside, for instance by their clone()"
        ) from None
    return stamp


def pack(
    data: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    spec: MatmulSpec,
    offset: Tensor | None = None,
    order: Tensor | None = None,
) -> Linear:
    """Bind the tensors to the kernel for `spec`."""
    named = {"data": data, "scale": scale, "zero_point": zero_point, "bias": bias}
    named |= {"offset": offset, "order": order}
    for name, tensor in named.items():
        if tensor is not None and not tensor.is_cpu:
            raise ArrayError(f"{name} is on {tensor.device}; expected the CPU, where kernels run")
    w = as_qtensor(data, scale, zero_point, spec, offset, order)
    return kernel_for(spec).bind(w, None if bias is None else bias.detach())


def kernel_for(spec: MatmulSpec) -> Kernel:
    """The kernel that all weights of `spec` share, for as long as there are any."""
    kernel = _kernels.get(spec)
    if kernel is None:
        kernel = _kernels[spec] = compile(spec)
    return kernel


def _forget(packed: dict[Key, Packed], key: Key, _: Any) -> None:
    """End the entry of a tensor that died; at the end of the process too, when globals are gone."""
    packed.pop(key, None)


def _unlock() -> None:
    """In a forked child, which has not the thread that may have held the lock."""
    global _packing
    _packing = threading.Lock()


in_forked_children(_unlock)
