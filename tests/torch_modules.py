"""What tests of `quantmm.nn` share: modules, what they should give, and fresh processes.

It needs torch, so a test asks for that before it imports this.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import subprocess
import sys

import ml_dtypes
import numpy as np
import problems
import quantmm as qmm
import torch
from quantmm import nn as qnn

FORMATS = ["w8a8-dynamic", "w4a8", "w4a8-g128", "w4a8-g32"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def layer(n=33, k=70, format="w8a8-dynamic", bias=True):
    """A module with random numbers of its own."""
    spec = format if isinstance(format, qmm.MatmulSpec) else None
    if spec is not None:
        n, k, bias = spec.n, spec.k, spec.bias
    return qnn.Linear.from_float(torch.nn.Linear(k, n, bias), format)


@functools.cache
def one_layer(format="w8a8-dynamic"):
    """The same module for all that do not change it."""
    return layer(format=format)


def network(format="w8a8-dynamic"):
    """Two quantized linears with something between them."""
    model = torch.nn.Sequential(
        torch.nn.Linear(40, 24), torch.nn.ReLU(), torch.nn.Linear(24, 40, bias=False)
    )
    qnn.quantize_(model, format)
    return model


def expected(module, x):
    """What the reference makes of x."""
    name = str(x.dtype).removeprefix("torch.")
    spec = dataclasses.replace(module.spec, input=name, out=name)
    shape = (*x.shape[:-1], spec.n)
    if not math.prod(x.shape):
        return torch.empty(shape, dtype=x.dtype)
    bias = None if module.bias is None else module.bias.numpy()
    rows = to_numpy(x).reshape(-1, spec.k)
    y = qmm.reference(spec, rows, module.to_quantized(), bias=bias)
    bits = torch.from_numpy(y.view(np.uint16)).view(x.dtype) if name != "float32" else y
    return torch.as_tensor(bits).reshape(shape)


def to_numpy(x):
    """The same numbers in NumPy's dtype of that name."""
    x = x.detach().resolve_neg().contiguous()
    if x.dtype == torch.bfloat16:
        return x.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


def assert_agrees(y, module, x):
    """That y is what the reference makes of x, in its shape and dtype."""
    right = expected(module, x)
    assert (y.shape, y.dtype) == (right.shape, right.dtype)
    if right.numel():
        columns = right.shape[-1]
        problems.assert_agrees(
            to_numpy(y).reshape(-1, columns), to_numpy(right).reshape(-1, columns)
        )


def float_linear(module):
    """What torch computes with the dequantized weight."""
    weight, bias = module.dequantize(), module.bias

    def call(x):
        return torch.nn.functional.linear(x, weight, bias)

    return call


def run(code, *arguments):
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
