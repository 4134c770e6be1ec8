"""Checks of arguments: a kernel and the reference refuse the same, in the same words.

Only what is refused is shared. The reference computes by itself, so that it can judge.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArrayError
from .quantize import QTensor, check_qtensor
from .spec import MatmulSpec
from .values import as_array, scales, to_float32, zero_points

#: Numbers that come with a call or are bound beforehand, and the type in which a kernel takes them.
SCALARS: dict[str, type[np.generic]] = {
    "x_scale": np.float32,
    "x_zero_point": np.int32,
    "out_scale": np.float32,
    "out_zero_point": np.int32,
}


def takes(name: str, spec: MatmulSpec) -> bool:
    """Whether a spec has a use for the number `name` of `SCALARS`."""
    if name.startswith("out_"):
        return spec.requantized
    if spec.dynamic:
        return False
    if name == "x_zero_point":
        return spec.activation_zero_point
    return spec.out != "int32" or spec.input is not None


def by_row(name: str, spec: MatmulSpec) -> bool:
    """Whether there are numbers `name` of `SCALARS` for each row of X."""
    return spec.activation_scale != "tensor" and name.startswith("x_")


def shape_of(name: str, spec: MatmulSpec, m: int | None) -> tuple[int, ...]:
    """The shape in which a kernel takes `name` of `SCALARS` for `m` rows of X; of bound ones (1,).

    That is (1,), (m,), or (m, groups) where each group has a scale.
    """
    if m is None or not by_row(name, spec):
        return (1,)
    return (m, spec.groups) if spec.activation_scale == "group" else (m,)


def check_taken(name: str, spec: MatmulSpec) -> None:
    """Refuse a number `name` of `SCALARS` for which the spec has no use."""
    if not takes(name, spec):
        raise ArrayError(f"{name} was given; {why_no(name, spec)}")


def takes_residual(spec: MatmulSpec, residual: Any, m: int) -> bool:
    """Whether a residual is added; refuses one that is not, and its absence where it is."""
    if residual is not None and not spec.residual:
        raise ArrayError("a residual was given; the spec has residual=False")
    if residual is None and spec.residual:
        raise ArrayError(f"residual is missing; the spec adds one of ({m}, {spec.n})")
    return spec.residual


def why_no(name: str, spec: MatmulSpec) -> str:
    """Why a spec takes no number `name`."""
    if name.startswith("out_"):
        return f"only int8 and uint8 outputs have one, the spec has out={spec.out!r}"
    if spec.dynamic:
        return "a dynamic spec finds it from X"
    if name == "x_zero_point":
        return "the spec has activation_zero_point=False"
    return "out='int32' is the sum without scales"


def numbers(name: str, value: npt.ArrayLike, spec: MatmulSpec, m: int | None) -> np.ndarray:
    """Scales or zero points of `SCALARS` in the shape `shape_of`, one number being repeated."""
    check_taken(name, spec)
    array = as_array(name, value)
    shape = shape_of(name, spec, m)
    if array.size != 1 and array.shape != shape:
        expected = "a scalar" if shape == (1,) else f"a scalar or {shape}"
        raise ArrayError(f"{name} has shape {array.shape}; expected {expected}")
    if SCALARS[name] is np.float32:
        array = scales(name, array)
    else:
        array = zero_points(name, array, spec.activation if name == "x_zero_point" else spec.out)
    found = np.empty(shape, array.dtype)
    found[...] = array.reshape(()) if array.size == 1 else array
    return found


def missing(name: str, spec: MatmulSpec) -> ArrayError:
    """The error for a number that neither `bind` nor the call was given."""
    text = f"{name} is missing; give it to bind or to the call"
    if name.startswith("x_") and spec.input is None:
        text += ", or give x as a QTensor, which quantize makes"
    elif name.startswith("x_"):
        text += ", or have the call find it from x: a spec with dynamic=True"
    return ArrayError(text)


def opened(
    spec: MatmulSpec, x: QTensor, x_scale: Any, x_zero_point: Any
) -> tuple[np.ndarray, Any, Any]:
    """The integers as they are stored, scale and zero point of a quantized activation."""
    if spec.input is not None:
        raise ArrayError(f"x is a QTensor; the spec quantizes {spec.input} activations itself")
    if x.dtype != spec.activation or x.shape[1] != spec.k:
        raise ArrayError(f"x is {x.dtype}{x.shape}; expected {spec.activation} of (M, {spec.k})")
    if x_scale is not None or x_zero_point is not None:
        raise ArrayError("x is a QTensor, which has a scale of its own; x_scale was given too")
    if x.offset is not None:
        raise ArrayError("x has offsets; expected zero points or none: weights alone have offsets")
    if x.order is not None:
        raise ArrayError("x has an order; expected the columns as they are: weights have orders")
    if x.zero_point is not None and not spec.activation_zero_point and x.zero_point.any():
        raise ArrayError("x has zero points; the spec has activation_zero_point=False")
    if x.scale.ndim == 2 and spec.activation_scale == "group" and x.group_size != spec.group_size:
        raise ArrayError(
            f"x is quantized with group_size={x.group_size!r}; the spec has "
            f"activation_scale='group' with group_size={spec.group_size}"
        )
    scale = x.scale if takes("x_scale", spec) else None
    zero = x.zero_point
    if zero is None and spec.activation_zero_point:
        zero = np.zeros(x.scale.shape, np.int32)
    return x.data, scale, zero if spec.activation_zero_point else None


def check_weight(spec: MatmulSpec, w: object) -> None:
    """Refuse a weight that is not quantized as `spec` says."""
    w = check_qtensor("w", w)
    given = w.dtype, w.shape, w.group_size
    if spec.gated and w.shape[0] % 2:
        raise ArrayError(
            f"w has {w.shape[0]} rows; gated=True takes those of a gate and of up, "
            f"{spec.weight_rows}"
        )
    expected = spec.weight, (spec.weight_rows, spec.k), spec.group_size
    if given != expected:
        transposed = given[1] != expected[1] == given[1][::-1]
        raise ArrayError(
            f"w is {given[0]}{given[1]} with group_size={given[2]!r}; "
            f"the spec has {expected[0]}{expected[1]} with group_size={expected[2]!r}"
            + ("; is W transposed? It is N x K" if transposed else "")
        )
    if w.zero_point is not None and w.zero_point.any() and not spec.weight_zero_point:
        raise ArrayError("w has zero points; the spec has weight_zero_point=False")
    if w.offset is not None and w.offset.any() and not spec.weight_offset:
        raise ArrayError("w has offsets; the spec has weight_offset=False")
    if w.order is not None and not spec.weight_order:
        raise ArrayError("w has an order; the spec has weight_order=False")


def check_offs(spec: MatmulSpec, offs: npt.ArrayLike | None, m: int) -> list[int]:
    """Where the rows of X of each expert end."""
    if spec.experts is None:
        raise ArrayError("offs was given; the spec has one weight, experts=None")
    count = spec.experts
    if offs is None:
        raise ArrayError(
            f"offs is missing; the spec has {count} experts, whose rows of x end there"
        )
    array = as_array("offs", offs)
    if array.shape != (count,) or array.dtype.kind not in "iu":
        found = f"{array.dtype.name}{array.shape}"
        raise ArrayError(f"offs is {found}; expected integers of shape ({count},)")
    ends: list[int] = array.tolist()
    for expert, (start, end) in enumerate(itertools.pairwise((0, *ends))):
        if end < start:
            raise ArrayError(f"offs has {end} for expert {expert}, whose rows begin at {start}")
    if ends[-1] != m:
        raise ArrayError(f"offs ends at {ends[-1]}; x has {m} rows")
    return ends


def check_bias(spec: MatmulSpec, bias: npt.ArrayLike | None) -> np.ndarray | None:
    """The bias as float32 (n,), that of all experts in one; None where the spec has none."""
    if not spec.bias:
        if bias is not None:
            raise ArrayError("a bias was given; the spec has bias=False")
        return None
    if bias is None:
        raise ArrayError(f"bias is missing; the spec adds one of ({spec.weight_rows},)")
    values = as_array("bias", bias)
    if spec.experts is not None and values.shape == (spec.experts, spec.w_rows):
        values = values.reshape(-1)
    if values.shape != (spec.weight_rows,):
        found = f"{values.dtype.name}{values.shape}"
        raise ArrayError(f"bias is {found}; expected float32({spec.weight_rows},)")
    return to_float32("bias", values)
