"""What a graph of ONNX says of the X of a product."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .model import Activations
from .onnx_graph import Constant, Graph, attribute, input_name

#: What QuantizeLinear makes without a zero point, by the number of its type (0: none is said).
OUTPUTS = {0: "uint8", 2: "uint8", 3: "int8"}

#: DynamicQuantizeLinear finds one scale and zero point for all of X. quantmm finds them by row.
DYNAMIC = Activations("uint8 tensor dynamic", None)


def of_integers(graph: Graph, name: str) -> Activations | None:
    """What is said of integers that the graph itself makes of floats, at once."""
    return DYNAMIC if graph.maker(name, "DynamicQuantizeLinear") is not None else None


def of_floats(graph: Graph, name: str) -> Activations | None:
    """What is said of floats: they may have been integers before."""
    dequantize = graph.maker(name, "DequantizeLinear")
    if dequantize is None:
        return None
    integers = input_name(dequantize, 0)
    quantize = graph.maker(integers, "QuantizeLinear")
    scale, zero_point = graph.constant(dequantize, 1), graph.constant(dequantize, 2)
    if (found := of_integers(graph, integers)) is not None:
        return found
    if quantize is None:
        return given(scale, zero_point)
    dtype = OUTPUTS.get(attribute(quantize, "output_dtype", 0))
    return given(scale, zero_point, input="float32", dtype=dtype)


def given(
    scale: Constant | None,
    zero_point: Constant | None,
    *,
    input: str | None = None,
    dtype: str | None = None,
    **fields: Any,
) -> Activations:
    """What is said of integers whose scale is given.

    Parameters
    ----------
    scale, zero_point : where they are constants. The zero point's dtype is X's.
    input : the float type in which X arrives, None where it arrives quantized.
    dtype : of X without a zero point; None where nothing says it.
    fields : of a spec, besides.
    """
    dtype = zero_point.dtype if zero_point is not None else dtype
    if dtype not in ("int8", "uint8"):
        return Activations(dtype or "integers without a name", None)
    if any(part is not None and math.prod(part.shape) != 1 for part in (scale, zero_point)):
        return Activations(f"{dtype} by row, static", None)
    zero = None if zero_point is None else zero_point.read().astype(np.int32).reshape(())
    zero = zero if zero is not None and zero.any() else None
    fields = {
        "activation": dtype,
        "activation_scale": "tensor",
        "activation_zero_point": zero is not None,
        "dynamic": False,
        "input": input,
        **fields,
    }
    value = None if scale is None else scale.read().astype(np.float32).reshape(())
    return Activations(f"{dtype} tensor static", fields, value, zero)
