"""onnxruntime: one session whose graph holds all copies, so that they share one thread pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .job import Job, Ready, Weight, nibbles


def matmul_integer(job: Job) -> Ready:
    """MatMulInteger: uint8 x int8 to int32, packed weight."""
    x = (job.x().astype(np.int16) + 128).astype(np.uint8)

    def constants(weight: Weight) -> list[np.ndarray]:
        return [np.ascontiguousarray(weight.values.T), np.array(128, np.uint8)]

    return session(job, x, np.int32, constants, job.scaled, op_type="MatMulInteger")


def dynamic_quantize_matmul(job: Job) -> Ready:
    """DynamicQuantizeMatMul: X becomes uint8 with one scale for all rows.

    It is what onnxruntime fuses DynamicQuantizeLinear and MatMulIntegerToFloat into.
    """

    def constants(weight: Weight) -> list[np.ndarray]:
        zeros = np.zeros(job.n, np.int8)
        return [np.ascontiguousarray(weight.values.T), weight.scales[:, 0].copy(), zeros]

    microsoft = {"op_type": "DynamicQuantizeMatMul", "domain": "com.microsoft"}
    return session(job, job.x(), np.float32, constants, np.asarray, **microsoft)


def matmul_n_bits(job: Job, block: int) -> Ready:
    """MatMulNBits, int8 inside: X gets a scale per row and block, W one per row and block.

    `block` may be finer than the groups of the format.
    """
    blocks = -(-job.k // block)

    def constants(weight: Weight) -> list[np.ndarray]:
        padded = np.zeros((job.n, blocks * block), np.int8)
        padded[:, : job.k] = weight.values
        if weight.zeros is None:
            padded += 8  # the implied zero point
        scales = np.repeat(weight.scales, -(-blocks // weight.scales.shape[1]), axis=1)
        packed = nibbles(padded).reshape(job.n, blocks, block // 2)
        inputs = [packed, np.ascontiguousarray(scales[:, :blocks])]
        if weight.zeros is not None:
            zeros = np.repeat(weight.zeros, -(-blocks // weight.zeros.shape[1]), axis=1)
            even = np.pad(zeros[:, :blocks], ((0, 0), (0, blocks % 2)))
            inputs.append(nibbles(even).reshape(job.n, -1))
        return inputs

    return session(
        job,
        job.x(),
        np.float32,
        constants,
        np.asarray,
        op_type="MatMulNBits",
        domain="com.microsoft",
        N=job.n,
        K=job.k,
        bits=4,
        block_size=block,
        accuracy_level=4,
    )


def session(
    job: Job,
    x: np.ndarray,
    dtype: type[np.generic],
    constants: Callable[[Weight], list[np.ndarray]],
    meaning: Callable[[np.ndarray], np.ndarray],
    **node: Any,
) -> Ready:
    """A session with one such node per copy: inputs x and `constants`, output of `dtype`.

    `meaning` turns an output into the units of X Wᵀ.
    """
    import onnxruntime as ort
    from onnx import helper, numpy_helper

    def described(name: str, array: np.ndarray) -> Any:
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        return helper.make_tensor_value_info(name, kind, array.shape)

    results = [np.empty((job.m, job.n), dtype) for _ in range(job.copies)]
    nodes, initializers = [], []
    for i, weight in enumerate(job.weights()):
        tensors = [
            numpy_helper.from_array(array, f"c{i}_{j}") for j, array in enumerate(constants(weight))
        ]
        initializers += tensors
        names = ["x", *(tensor.name for tensor in tensors)]
        nodes.append(helper.make_node(inputs=names, outputs=[f"y{i}"], **node))
    outputs = [described(f"y{i}", y) for i, y in enumerate(results)]
    graph = helper.make_graph(nodes, "g", [described("x", x)], outputs, initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 10
    options = ort.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.log_severity_level = 3
    running = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = running.io_binding()
    binding.bind_cpu_input("x", x)
    for i, y in enumerate(results):
        binding.bind_output(f"y{i}", "cpu", 0, dtype, list(y.shape), y.ctypes.data)

    def every_copy() -> object:
        running.run_with_iobinding(binding)
        return x, results  # which the binding only points to

    return Ready([every_copy], lambda: meaning(results[-1]), job.copies)
