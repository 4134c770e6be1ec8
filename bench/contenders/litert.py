"""XNNPACK through LiteRT: one model that holds all copies, so that they share one thread pool."""

from __future__ import annotations

from typing import Any

import numpy as np

from .job import Job, Ready, Weight, nibbles

#: The version of FULLY_CONNECTED that has group scales.
OP_VERSION = 13


def fully_connected(job: Job) -> Ready:
    """FULLY_CONNECTED: X becomes int8 with scale and zero point per row, W has given scales."""
    group = job.group
    if group and job.k % group:
        raise ValueError(f"needs K in multiples of {group}")
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model(job), num_threads=job.threads)
    interpreter.allocate_tensors()
    # What XNNPACK refuses LiteRT computes itself, slowly: its operators are then still in the plan.
    operators = [operator["op_name"] for operator in interpreter._get_ops_details()]
    if "DELEGATE" not in operators and "TfLiteXNNPackDelegate" not in operators:
        raise ValueError("XNNPACK does not take FULLY_CONNECTED of this shape")
    x = job.x()
    for each in interpreter.get_input_details():
        interpreter.set_tensor(each["index"], x)
    last = interpreter.get_output_details()[-1]["index"]
    return Ready([interpreter.invoke], lambda: interpreter.get_tensor(last), job.copies)


def model(job: Job) -> bytes:
    """A TFLite model of `copies` FULLY_CONNECTED, each with an input of its own.

    With a common input the quantized X could be reused.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    graph = Graph(schema)
    inputs, outputs, operators = [], [], []
    for i, weight in enumerate(job.weights()):
        x = graph.tensor(f"x{i}", (job.m, job.k), schema.TensorType.FLOAT32)
        w = graph.weight(f"w{i}", weight)
        y = graph.tensor(f"y{i}", (job.m, job.n), schema.TensorType.FLOAT32)
        options = schema.FullyConnectedOptionsT(asymmetricQuantizeInputs=True)
        operators.append(
            schema.OperatorT(
                opcodeIndex=0,
                inputs=[x, w, -1],
                outputs=[y],
                builtinOptionsType=schema.BuiltinOptions.FullyConnectedOptions,
                builtinOptions=options,
            )
        )
        inputs.append(x)
        outputs.append(y)
    subgraph = schema.SubGraphT(
        tensors=graph.tensors, inputs=inputs, outputs=outputs, operators=operators, name="g"
    )
    code = schema.BuiltinOperator.FULLY_CONNECTED
    whole = schema.ModelT(
        version=3,
        operatorCodes=[
            schema.OperatorCodeT(deprecatedBuiltinCode=code, builtinCode=code, version=OP_VERSION)
        ],
        subgraphs=[subgraph],
        buffers=graph.buffers,
    )
    size = sum(buffer.data.nbytes for buffer in graph.buffers if buffer.data is not None)
    builder = flatbuffers.Builder(size + (1 << 20))
    builder.Finish(whole.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class Graph:
    """The tensors of a model and the buffers of its constants."""

    def __init__(self, schema: Any) -> None:
        self.schema = schema
        self.tensors: list[Any] = []
        self.buffers: list[Any] = [schema.BufferT()]  # number 0 is of all that is no constant

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: int,
        data: np.ndarray | None = None,
        quantization: Any = None,
    ) -> int:
        """Add a tensor, constant if it has `data`; its number."""
        if data is not None:
            raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
            self.buffers.append(self.schema.BufferT(data=raw))
        self.tensors.append(
            self.schema.TensorT(
                name=name,
                shape=list(shape),
                type=dtype,
                buffer=0 if data is None else len(self.buffers) - 1,
                quantization=quantization,
            )
        )
        return len(self.tensors) - 1

    def weight(self, name: str, weight: Weight) -> int:
        """Add a weight with its scales."""
        schema = self.schema
        shape = weight.values.shape
        if weight.group is None:
            quantization = schema.QuantizationParametersT(
                scale=weight.scales[:, 0].copy(),
                zeroPoint=np.zeros(shape[0], np.int64),
                quantizedDimension=0,
            )
        else:
            half = weight.scales.astype(np.float16)
            scales = self.tensor(f"{name}_scales", half.shape, schema.TensorType.FLOAT16, half)
            quantization = schema.QuantizationParametersT(
                detailsType=schema.QuantizationDetails.BlockwiseQuantization,
                details=schema.BlockwiseQuantizationT(
                    scales=scales, zeroPoints=-1, blockSize=weight.group
                ),
            )
        dtype = schema.TensorType.INT4 if weight.bits == 4 else schema.TensorType.INT8
        data = nibbles(weight.values) if weight.bits == 4 else weight.values
        return self.tensor(name, shape, dtype, data, quantization)
