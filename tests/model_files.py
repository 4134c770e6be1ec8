"""Small model files in the layouts of other projects, written number by number as they are defined.

Nothing here is taken from the readers: `words` puts one number after the other into a long integer.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import Phase, find, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

SCALES = ("float16", "float32", ml_dtypes.bfloat16)


@dataclass
class Written:
    """Tensors of one module "a", its settings, and the matrix (N, K) in float64 that they mean."""

    tensors: dict[str, np.ndarray]
    settings: dict[str, Any]
    matrix: np.ndarray
    metadata: dict[str, str] = field(default_factory=dict)

    def save(self, folder: Path, **config: Any) -> Path:
        """A folder as Hugging Face has them."""
        tensors = {name: np.ascontiguousarray(values) for name, values in self.tensors.items()}
        save_file(tensors, folder / "model.safetensors", self.metadata or None)
        if self.settings:
            config = {"quantization_config": self.settings, **config}
        (folder / "config.json").write_text(json.dumps(config))
        return folder


def words(values, bits, dtype=np.int32):
    """Numbers in 32-bit words from the low bits on, each with `bits` bits."""
    together = 0
    for i, value in enumerate(values):
        together |= (int(value) % (1 << bits)) << (i * bits)
    count = -(-len(values) * bits // 32)
    return np.array([together >> 32 * i & 0xFFFFFFFF for i in range(count)], np.uint32).view(dtype)


def words_of_rows(matrix, bits, dtype=np.int32):
    return np.stack([words(row, bits, dtype) for row in matrix])


def scales(rng, shape, dtype):
    """Any finite ones: negative, zero and subnormal too."""
    values = rng.standard_normal(shape)
    values = np.where(rng.random(shape) < 0.05, 0.0, values)
    values = np.where(rng.random(shape) < 0.05, 6e-8, values)
    return values.astype(dtype)


def group_of(k, group_size):
    """The group of each column where they lie side by side."""
    return np.array([column // group_size for column in range(k)])


def meant(q, scale, zero_point, g_idx, offset=None):
    """scale[n, g] (q[n, k] - zero_point[n, g]) + offset[n, g], in float64 (N, K)."""
    matrix = np.empty(q.shape)
    for column, g in enumerate(g_idx):
        steps = q[:, column].astype(np.float64)
        steps = steps if zero_point is None else steps - zero_point[:, g]
        matrix[:, column] = scale[:, g].astype(np.float64) * steps
        if offset is not None:
            matrix[:, column] += offset[:, g].astype(np.float64)
    return matrix


def seeds():
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


@st.composite
def gptq(draw, version=None, symmetric=None):
    """GPTQ, checkpoint_format "gptq" (zero points minus one) or "gptq_v2"."""
    rng = draw(seeds())
    bits = draw(st.sampled_from((4, 4, 8, 2, 3)))
    step = 32 if bits == 3 else 32 // bits  # rows and columns that fill words
    n, k = step * draw(st.integers(1, 5)), step * draw(st.integers(1, 9))
    size = draw(st.sampled_from((8, 24, 32, 40, k)))
    groups = -(-k // size)
    version = version or draw(st.sampled_from(("gptq", "gptq_v2")))
    symmetric = draw(st.booleans()) if symmetric is None else symmetric
    q = rng.integers(0, 1 << bits, (n, k))
    z = rng.integers(0, 1 << bits, (n, groups))
    z[0, 0] = 0  # which "gptq" stores as 15
    z = np.full_like(z, 1 << bits - 1) if symmetric else z
    scale = scales(rng, (n, groups), draw(st.sampled_from(SCALES)))
    g_idx = group_of(k, size)
    order = draw(st.booleans())
    g_idx = rng.permutation(g_idx) if order else g_idx
    tensors = {
        "a.qweight": words_of_rows(q, bits).T,
        "a.qzeros": words_of_rows((z - (version == "gptq")).T, bits),
        "a.scales": scale.T,
    }
    if order or draw(st.booleans()):
        tensors["a.g_idx"] = g_idx.astype(np.int32)
    says = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": -1 if size == k else size,
        "desc_act": order,
        "sym": symmetric,
        "checkpoint_format": version,
    }
    return Written(tensors, says, meant(q, scale, z, g_idx))


@st.composite
def awq(draw):
    """AWQ's gemm layout: nibble i of word c is column 8 c + (0, 2, 4, 6, 1, 3, 5, 7)[i]."""
    rng = draw(seeds())
    n, k = 8 * draw(st.integers(1, 5)), draw(st.integers(1, 70))
    size = draw(st.sampled_from((8, 16, 64, k)))
    groups = -(-k // size)
    q, z = rng.integers(0, 16, (n, k)), rng.integers(0, 16, (n, groups))
    z = np.full_like(z, 8) if draw(st.booleans()) else z
    scale = scales(rng, (n, groups), draw(st.sampled_from(SCALES)))
    place = [8 * c + i for c in range(n // 8) for i in (0, 2, 4, 6, 1, 3, 5, 7)]
    tensors = {
        "a.qweight": words_of_rows(q.T[:, place], 4),
        "a.qzeros": words_of_rows(z.T[:, place], 4),
        "a.scales": scale.T,
    }
    says = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": -1 if size == k else size,
        "version": "gemm",
        "zero_point": True,
    }
    return Written(tensors, says, meant(q, scale, z, group_of(k, size)))


@st.composite
def packed(draw):
    """compressed-tensors, pack-quantized: q + 2**(bits - 1) along K, zero points along N."""
    rng = draw(seeds())
    bits = draw(st.sampled_from((4, 4, 8, 3, 2, 6)))
    n, k = draw(st.integers(1, 40)), draw(st.integers(1, 70))
    strategy = draw(st.sampled_from(("group", "group", "channel", "tensor")))
    size = draw(st.sampled_from((8, 32, 128))) if strategy == "group" else k
    groups = -(-k // size)
    half = 1 << bits - 1
    q = rng.integers(-half, half, (n, k))
    rows = 1 if strategy == "tensor" else n
    scale = scales(rng, (rows, groups), draw(st.sampled_from(SCALES)))
    asymmetric = draw(st.booleans())
    z = rng.integers(-half, half, (rows, groups)) if asymmetric else np.zeros((rows, groups), int)
    g_idx = group_of(k, size)
    order = strategy == "group" and draw(st.booleans())
    g_idx = rng.permutation(g_idx) if order else g_idx
    tensors = {
        "a.weight_packed": words_of_rows(q + half, bits),
        "a.weight_shape": np.array([n, k]),
        "a.weight_scale": scale if strategy != "tensor" else scale.reshape(1),
    }
    if order:
        tensors["a.weight_g_idx"] = g_idx.astype(np.int32)
    elif draw(st.booleans()):
        tensors["a.weight_g_idx"] = np.full(k, -1, np.int32)
    if asymmetric:
        along_n = words_of_rows((z + half).T, bits).T
        tensors["a.weight_zero_point"] = along_n if strategy != "tensor" else z.astype(np.int8)[0]
    weights = {"num_bits": bits, "type": "int", "symmetric": not asymmetric, "strategy": strategy}
    if strategy == "group":
        weights["group_size"] = size
    wide = np.broadcast_to(scale, (n, groups)), np.broadcast_to(z, (n, groups))
    return Written(tensors, of_groups("pack-quantized", weights), meant(q, *wide, g_idx))


@st.composite
def int_quantized(draw):
    """compressed-tensors, int-quantized: int8 as they are."""
    rng = draw(seeds())
    n, k = draw(st.integers(1, 20)), draw(st.integers(1, 40))
    strategy = draw(st.sampled_from(("channel", "tensor", "group")))
    size = 8 if strategy == "group" else k
    rows, groups = 1 if strategy == "tensor" else n, -(-k // size)
    q = rng.integers(-128, 128, (n, k)).astype(np.int8)
    scale = scales(rng, (rows, groups), draw(st.sampled_from(SCALES)))
    z = rng.integers(-128, 128, (rows, groups)).astype(np.int8)
    tensors = {"a.weight": q, "a.weight_scale": scale}
    if asymmetric := draw(st.booleans()):
        tensors["a.weight_zero_point"] = z
    if strategy == "tensor":
        tensors["a.weight_scale"] = scale.reshape(1)
    weights = {"num_bits": 8, "type": "int", "symmetric": not asymmetric, "strategy": strategy}
    if strategy == "group":
        weights["group_size"] = size
    wide = np.broadcast_to(scale, (n, groups)), np.broadcast_to(z * asymmetric, (n, groups))
    return Written(tensors, of_groups("int-quantized", weights), meant(q, *wide, group_of(k, size)))


def of_groups(method, weights, activations=None, **more):
    """Settings of compressed-tensors."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": method,
        "config_groups": {"group_0": {**group, **more}},
    }


@st.composite
def mlx(draw):
    """MLX: scale q + bias, low bits first."""
    rng = draw(seeds())
    bits = draw(st.sampled_from((4, 4, 8, 2, 3, 5, 6)))
    n, groups, size = draw(st.integers(1, 20)), draw(st.integers(1, 4)), 32
    q = rng.integers(0, 1 << bits, (n, groups * size))
    dtype = draw(st.sampled_from(SCALES))
    scale, bias = (scales(rng, (n, groups), dtype) for _ in range(2))
    tensors = {
        "a.weight": words_of_rows(q, bits, np.uint32),
        "a.scales": scale,
        "a.biases": bias,
    }
    matrix = meant(q, scale, None, group_of(groups * size, size), bias)
    return Written(tensors, {"bits": bits, "group_size": size}, matrix)


#: HQQ's packings: bits, numbers in a word, and its dtype. The first number is in the high bits.
HQQ = {
    "8bit_u8": (8, 1, np.uint8),
    "4bit_u8": (4, 2, np.uint8),
    "3bit_32": (3, 10, np.int32),
    "2bit_u8": (2, 4, np.uint8),
    "1bit_u8": (1, 8, np.uint8),
}


@st.composite
def hqq(draw):
    """HQQ: (q - zero) scale, groups along K, words of numbers from rows that lie far apart."""
    rng = draw(seeds())
    packing = draw(st.sampled_from(("4bit_u8", *HQQ)))
    bits, count, dtype = HQQ[packing]
    n, groups, size = count * draw(st.integers(1, 3)), draw(st.integers(1, 3)), 8
    q = rng.integers(0, 1 << bits, (n, groups * size))
    kind = draw(st.sampled_from(("float16", ml_dtypes.bfloat16)))
    scale = scales(rng, (n, groups), kind)
    whole = draw(st.booleans())
    zero = rng.integers(0, 1 << bits, (n, groups)) if whole else 7 * rng.random((n, groups))
    rows = q.reshape(-1, size)  # of groups
    step = len(rows) // count
    words_of_groups = np.zeros((step, size), np.int64)
    for row in range(step):
        for i in range(count):
            words_of_groups[row] |= rows[i * step + row] << bits * (count - 1 - i)
    letters = np.frombuffer(packing.encode(), np.uint8)
    tensors = {
        "a.W_q": words_of_groups.astype(dtype),
        "a.scale": scale.reshape(-1, 1),
        "a.zero": zero.astype(kind).reshape(-1, 1),
        "a.shape": np.array(q.shape),
        "a.nbits": np.array(bits, np.int32),
        "a.group_size": np.array(size, np.int32),
        "a.axis": np.array(1, np.int32),
        "a.packing": letters,
        "a.view_as_float": np.array(0, np.uint8),
        "a.encoded_state_dict": np.array(1, np.uint8),
    }
    matrix = meant(q, scale, zero.astype(kind).astype(np.float64), group_of(q.shape[1], size))
    return Written(tensors, {}, matrix)


def of_torchao(kind, parts, **attributes):
    """The metadata of one weight "a" of torchao's."""
    says = {"_type": kind, "_data": attributes, "_tensor_data_names": parts}
    return {"a.weight": json.dumps(says), "tensor_names": '["a.weight"]'}


@st.composite
def torchao(draw):
    """torchao: (qdata - zero_point) scale, one for each block_size."""
    rng = draw(seeds())
    intx = draw(st.booleans())
    bits = draw(st.sampled_from((4, 2, 8))) if intx else 8
    n, k = draw(st.integers(1, 9)), 8 * draw(st.integers(1, 4))
    block = draw(st.sampled_from(((1, k), (n, k), (1, 8)) if intx else ((1, k), (n, k))))
    half = 1 << bits - 1
    q = rng.integers(-half, half, (n, k)).astype(np.int8)
    shape = n // block[0], k // block[1]
    kind = draw(st.sampled_from(("float16", ml_dtypes.bfloat16)))
    scale = scales(rng, shape, kind)
    z = rng.integers(-half, half, shape).astype(np.int8)
    z = draw(st.sampled_from((z, 0 * z, (z * 0.3).astype(kind) if intx else z)))
    tensors = {"a._weight_qdata": q, "a._weight_scale": scale, "a._weight_zero_point": z}
    if intx:
        target = {"_type": "torch.dtype", "_data": f"int{bits}"}
        says = {"target_dtype": target, "activation_quantization": None}
    else:
        says = {"act_quant_kwargs": None}
    metadata = of_torchao(
        "IntxUnpackedToInt8Tensor" if intx else "Int8Tensor",
        ["qdata", "scale", "zero_point"],
        block_size=list(block),
        **says,
    )
    wide = np.broadcast_to(scale, (n, shape[1])), np.broadcast_to(z.astype(float), (n, shape[1]))
    matrix = meant(q, *wide, group_of(k, block[1]))
    return Written(tensors, {}, matrix, metadata)


@st.composite
def own(draw):
    """`save_weights`: a `QTensor` as it is, and what it is as JSON."""
    rng = draw(seeds())
    n, k, size = draw(st.integers(1, 9)), draw(st.integers(1, 40)), 8
    groups = -(-k // size)
    q = rng.integers(0, 256, (n, k)).astype(np.uint8)
    scale = scales(rng, (n, groups), np.float32)
    z = rng.integers(0, 256, (n, groups)).astype(np.int32)
    offset = scales(rng, (n, groups), np.float32)
    says = {"version": 2, "dtype": "uint8", "group_size": size, "shape": [n, k]}
    says |= {"zero_point": False, "offset": False, "order": False}
    tensors = {"a.data": q, "a.scale": scale}
    beside = draw(st.sampled_from(("zero_point", "offset", None)))
    if beside is not None:
        says[beside] = True
        tensors[f"a.{beside}"] = z if beside == "zero_point" else offset
    z, offset = z if beside == "zero_point" else None, offset if beside == "offset" else None
    matrix = meant(q, scale, z, group_of(k, size), offset)
    return Written(tensors, {}, matrix, {"quantmm:a": json.dumps(says)})


def example(strategy, condition=lambda each: True):
    """The same one whenever it is asked for."""
    quick = settings(phases=[Phase.generate], max_examples=1000, database=None)
    return find(strategy, condition, settings=quick, random=random.Random(0))


#: Each format that tensors are drawn of.
FORMATS = {
    "gptq": gptq,
    "awq": awq,
    "pack-quantized": packed,
    "int-quantized": int_quantized,
    "mlx": mlx,
    "hqq": hqq,
    "torchao": torchao,
    "quantmm": own,
}
