"""ONNX: weights of the operators that multiply with a matrix, quantized or not.

    MatMul, Gemm                     floats, or integers behind DequantizeLinear ("QDQ")
    MatMulInteger                    integers, whose scale is a factor of the product further on
    QLinearMatMul                    integers, with given scales on all sides
    com.microsoft MatMulNBits, QGemm, DynamicQuantizeMatMul, MatMulIntegerToFloat

They are defined in onnx/docs/Operators.md, and onnxruntime's docs/ContribOperators.md. Layers are
called as their nodes are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import ArrayError
from ..formats.weights import FLOATS
from .model import Layer, Model
from .onnx_graph import Constant, Graph, attribute, graphs, input_name, operator, read_proto
from .onnx_inputs import DYNAMIC, given, of_floats, of_integers
from .onnx_weights import Weight, integers, matmul_n_bits
from .source import Source, natural

SUFFIX = ".onnx"
MICROSOFT = "com.microsoft."


def recognises(source: Source) -> bool:
    """Whether it is a file of this format, by its name."""
    return source.suffix == SUFFIX


def read(source: Source) -> Model:
    """The model of a file."""
    assert source.file is not None
    layers: dict[str, Layer] = {}
    constants: dict[str, Constant] = {}
    used: set[str] = set()
    notes: list[str] = []
    for graph in graphs(source.file, read_proto(source.file)):
        constants = {**graph.constants, **constants}
        for node in graph.nodes:
            find = OPERATORS.get(operator(node))
            weight = find(graph, node) if find is not None and node.output else None
            if weight is None:
                continue
            name = node.name or node.output[0]
            while name in layers:
                name = f"{name}:{node.output[0]}"
            nbytes = sum(part.nbytes for part in weight.parts)
            layers[name] = Layer(
                name,
                weight.shape,
                weight.format,
                nbytes,
                source.file,
                weight.load,
                weight.fields,
                weight.activations,
            )
            used |= {part.name for part in weight.parts}
            if weight.note is not None:
                notes.append(f"{name}: {weight.note}")
    ordered = {name: layers[name] for name in sorted(layers, key=natural)}
    beside = {name: each.read for name, each in constants.items() if name not in used}
    return Model(source.path, "ONNX", ordered, beside, source.config, tuple(notes))


def product(graph: Graph, node: Any) -> Weight | None:
    """MatMul and Gemm: floats, integers behind DequantizeLinear, or either behind Transpose."""
    kind = operator(node)
    columns = not (kind == "Gemm" and attribute(node, "transB", 0))
    name = input_name(node, 1)
    note = alpha(node)
    turned = graph.maker(name, "Transpose")
    if turned is not None and attribute(turned, "perm", [1, 0]) == [1, 0]:
        columns, name = not columns, input_name(turned, 0)
    if (dequantize := graph.maker(name, "DequantizeLinear")) is not None:
        return behind_dequantize(graph, node, dequantize, columns, note)
    matrix = graph.constants.get(name)
    if matrix is None or len(matrix.shape) != 2 or 0 in matrix.shape or matrix.dtype not in FLOATS:
        return None
    n, k = reversed(matrix.shape) if columns else matrix.shape

    def load() -> np.ndarray:
        values = matrix.read()
        return np.ascontiguousarray(values.T) if columns else values

    x = of_floats(graph, input_name(node, 0))
    return Weight(matrix.dtype, (n, k), (matrix,), load, None, x, note)


def behind_dequantize(
    graph: Graph, node: Any, dequantize: Any, columns: bool, note: str | None
) -> Weight | None:
    """The weight of QDQ, whose scales lie along the axis that DequantizeLinear says."""
    matrix, scale, zero_point = (graph.constant(dequantize, index) for index in range(3))
    if matrix is None or scale is None:
        return None
    block = attribute(dequantize, "block_size", 0) or None
    along = 0 if columns else 1  # the axis of K
    axis = attribute(dequantize, "axis", 1) % 2
    if math.prod(scale.shape) > 1 and (axis == along) != (block is not None):
        expected = along if block is not None else 1 - along
        raise ArrayError(f"{matrix.name} has scales along axis {axis}; expected axis {expected}")
    x = of_floats(graph, input_name(node, 0))
    return integers(
        "QDQ", matrix, scale, zero_point, columns=columns, block=block, activations=x, note=note
    )


def alpha(node: Any) -> str | None:
    """A note where Gemm multiplies its product with a number."""
    factor = attribute(node, "alpha", 1.0)
    if factor == 1:
        return None
    return f"its product is multiplied with alpha={factor:g}; the weight is not"


def matmul_integer(graph: Graph, node: Any) -> Weight | None:
    """Integers whose product is multiplied with the scales of X and W further on."""
    matrix, zero_point = graph.constant(node, 1), graph.constant(node, 3)
    if matrix is None:
        return None
    scale, note = scale_further_on(graph, node.output[0]), None
    bare = {"out": "int32"} if scale is None else {}
    x = of_integers(graph, input_name(node, 0)) or given(None, graph.constant(node, 2), **bare)
    if scale is None:
        note = "the graph does not say its scale; it is taken to be 1"
    return integers("MatMulInteger", matrix, scale, zero_point, activations=x, note=note)


def scale_further_on(graph: Graph, product: str) -> Constant | None:
    """The constant that a product of integers is multiplied with, alone or with the scale of X."""
    users = graph.users.get(product, [])
    if len(users) == 1 and operator(users[0]) == "Cast" and users[0].output:
        product = users[0].output[0]
        users = graph.users.get(product, [])
    if len(users) != 1 or operator(users[0]) != "Mul":
        return None
    others = [name for name in users[0].input if name != product]
    for name in others:
        factors = graph.maker(name, "Mul")
        each_of = [name, *(factors.input if factors is not None else ())]
        found = [graph.constants[each] for each in each_of if each in graph.constants]
        if len(found) == 1 and found[0].dtype in FLOATS:
            return found[0]
    return None


def q_linear_matmul(graph: Graph, node: Any) -> Weight | None:
    """Integers with scales of their own, on integers with given ones."""
    matrix, scale, zero_point = (graph.constant(node, index) for index in (3, 4, 5))
    if matrix is None or scale is None:
        return None
    x = given(graph.constant(node, 1), graph.constant(node, 2))
    return integers("QLinearMatMul", matrix, scale, zero_point, activations=x)


def q_gemm(graph: Graph, node: Any) -> Weight | None:
    """As QLinearMatMul, and the matrix may be stored as (N, K)."""
    matrix, scale, zero_point = (graph.constant(node, index) for index in (3, 4, 5))
    if matrix is None or scale is None:
        return None
    columns = not attribute(node, "transB", 0)
    x = given(graph.constant(node, 1), graph.constant(node, 2))
    return integers(
        "QGemm", matrix, scale, zero_point, columns=columns, activations=x, note=alpha(node)
    )


def dynamic_quantize_matmul(graph: Graph, node: Any) -> Weight | None:
    """Floats that are quantized in the operator, and a weight with a scale of its own."""
    matrix, scale, zero_point = (graph.constant(node, index) for index in (1, 2, 3))
    if matrix is None or scale is None:
        return None
    return integers("DynamicQuantizeMatMul", matrix, scale, zero_point, activations=DYNAMIC)


def matmul_integer_to_float(graph: Graph, node: Any) -> Weight | None:
    """Integers on either side, with their scales."""
    matrix, scale, zero_point = (graph.constant(node, index) for index in (1, 3, 5))
    if matrix is None or scale is None:
        return None
    x = of_integers(graph, input_name(node, 0))
    x = x or given(graph.constant(node, 2), graph.constant(node, 4))
    return integers("MatMulIntegerToFloat", matrix, scale, zero_point, activations=x)


OPERATORS: dict[str, Callable[[Graph, Any], Weight | None]] = {
    "MatMul": product,
    "Gemm": product,
    "MatMulInteger": matmul_integer,
    "QLinearMatMul": q_linear_matmul,
    MICROSOFT + "MatMulNBits": matmul_n_bits,
    MICROSOFT + "QGemm": q_gemm,
    MICROSOFT + "DynamicQuantizeMatMul": dynamic_quantize_matmul,
    MICROSOFT + "MatMulIntegerToFloat": matmul_integer_to_float,
}
