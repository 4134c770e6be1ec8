"""OpenVINO: one model that holds all copies, so that they share one thread pool."""

from __future__ import annotations

from typing import Any

import numpy as np

from .job import Job, Ready, Weight, nibbles

#: Consecutive k of X that share a scale where the weight's do not say; the fastest of 32 to 1024.
X_GROUP = 128


def compressed_matmul(job: Job) -> Ready:
    """MatMul of decompressed weights, which the plugin computes with X quantized per group."""
    import openvino as ov
    from openvino import opset13 as op

    group = job.group
    if group and job.k % group:
        raise ValueError(f"needs K in multiples of {group}")
    inputs, outputs = [], []
    for weight in job.weights():
        # An input for each copy: with a common one the quantized X could be reused.
        inputs.append(op.parameter([job.m, job.k], np.float32))
        outputs.append(op.result(op.matmul(inputs[-1], decompressed(weight), False, True)))
    options = {
        "INFERENCE_NUM_THREADS": job.threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": group or X_GROUP,
    }
    request = ov.Core().compile_model(ov.Model(outputs, inputs, "m"), "CPU", options)
    request = request.create_infer_request()
    x = job.x()
    for i in range(job.copies):
        request.set_input_tensor(i, ov.Tensor(x, shared_memory=True))

    def every_copy() -> object:
        request.start_async()
        request.wait()
        return x  # which the request only points to

    last = request.get_output_tensor(job.copies - 1)
    return Ready([every_copy], lambda: last.data, job.copies)


def decompressed(weight: Weight) -> Any:
    """The nodes that turn packed weights into floats, as OpenVINO's own compression leaves them."""
    import openvino as ov
    from openvino import opset13 as op

    n, k = weight.values.shape
    if weight.bits == 8:
        return op.multiply(op.convert(op.constant(weight.values), "f32"), weight.scales)
    shape = [n, weight.scales.shape[1], k // weight.scales.shape[1]]
    packed = ov.Tensor(nibbles(weight.values), shape, ov.Type.i4)
    scales = op.constant(weight.scales[:, :, None].astype(np.float16))
    halves = op.multiply(op.convert(op.constant(packed, shared_memory=False), "f16"), scales)
    return op.convert(op.reshape(halves, op.constant(np.array([n, k], np.int64)), False), "f32")
