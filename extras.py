"""The extras of the package: what each brings, and what is missing without it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Extra:
    """A row of the table, which `pyproject.toml` has the distributions of.

    Attributes
    ----------
    name : in the brackets of `pip install`.
    modules : that it brings.
    serves : what needs them.
    """

    name: str
    modules: tuple[str, ...]
    serves: str


EXTRAS = (
    Extra("torch", ("torch",), "quantmm.nn, quantmm bench --inside torch"),
    Extra("transformers", ("torch", "transformers"), "quantmm.nn with transformers"),
    Extra(
        "link",
        ("ziglang",),
        "saving kernels without a C compiler or for other architectures; GPUs emulated",
    ),
    Extra("cuda", ("cuda.bindings.nvrtc",), "quantmm compile --target cuda-..."),
    Extra(
        "bench",
        ("ai_edge_litert", "jinja2", "matplotlib", "onnx", "onnxruntime", "openvino", "torch"),
        "quantmm bench --against all, --html",
    ),
    Extra("ggml", ("llama_cpp",), "quantmm bench --against ggml"),
    Extra("onnx", ("onnx",), "model files in .onnx"),
    Extra("tune", ("matplotlib",), "quantmm tune --plot"),
    Extra("rpc", ("tornado",), "quantmm tracker"),
    Extra("examples", ("sklearn",), "examples/digits.py"),
)


def install(name: str) -> str:
    """How to install an extra, in the one spelling that messages have."""
    assert name in {extra.name for extra in EXTRAS}
    return f"pip install 'quantmm[{name}]'"
