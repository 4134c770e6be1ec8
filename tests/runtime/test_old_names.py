"""What earlier versions pickled is found under the names that it has in those pickles."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import quantmm as qmm
from quantmm.runtime import load

NAMES = [
    ("spec", "MatmulSpec", qmm.MatmulSpec),
    ("quantize", "QTensor", qmm.QTensor),
    ("kernel", "Kernel", qmm.Kernel),
    ("linear", "Linear", qmm.Linear),
    ("cuda_kernel", "CudaKernel", qmm.CudaKernel),
    ("cuda_linear", "CudaLinear", qmm.CudaLinear),
    ("kernel_file", "unpickled", load.unpickled),
]
#: Where both devices had classes of their own.
LATER = [
    ("cuda_kernel", "CudaKernel", qmm.Kernel),
    ("cuda_linear", "CudaLinear", qmm.Linear),
]


@pytest.mark.parametrize(("module", "name", "now"), NAMES)
def test_a_name_in_a_pickle(module, name, now):
    assert pickle.loads(f"cquantmm.compiler.{module}\n{name}\n.".encode()) is now


@pytest.mark.parametrize(("module", "name", "now"), LATER)
def test_a_name_of_one_device(module, name, now):
    assert pickle.loads(f"cquantmm.runtime.{module}\n{name}\n.".encode()) is now


def test_what_a_linear_of_before_had_in_its_pickle():
    spec = qmm.MatmulSpec(n=8, k=16, out="int8")
    linear = qmm.compile(spec).bind(qmm.quantize(np.eye(8, 16)), x_scale=1.0, out_scale=0.5)
    of_before = {
        "_spec": spec,
        "_names": linear.kernel.info.arguments[1:-1],
        "_x_dtype": np.dtype("int8"),
        "_x_columns": 16,
        "_out_dtype": np.dtype("int8"),
        "_complete": False,
        "_arrays": linear._arrays,
        "_defaults": linear._defaults,
        "kernel": linear.kernel,
    }
    again = object.__new__(qmm.Linear)
    again.__setstate__(of_before)
    x = np.arange(16, dtype=np.int8)[None]
    np.testing.assert_array_equal(again(x), linear(x))


def test_a_linear_under_the_names_of_before():
    spec = qmm.MatmulSpec(n=8, k=16)
    linear = qmm.compile(spec).bind(qmm.quantize(np.eye(8, 16)), x_scale=1.0)
    x = np.arange(16, dtype=np.int8)[None]
    content = pickle.dumps(linear, protocol=0)
    for now, before in (
        (b"quantmm.runtime.load", b"quantmm.compiler.kernel_file"),
        (b"quantmm.runtime.linear", b"quantmm.compiler.linear"),
    ):
        assert now in content
        content = content.replace(now, before)
    np.testing.assert_array_equal(pickle.loads(content)(x), linear(x))
