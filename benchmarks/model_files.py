"""How fast a large model's file is opened, read and bound: a GGUF in Q4_K with random weights.

    python benchmarks/model_files.py FOLDER [--model llama-7b] [--blocks 32]

Writes FOLDER/MODEL.gguf once, 4 GB for a model of 7 billion weights, with the package gguf. The
file is read as it lies in the page cache and after it was dropped from there.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import gguf
import numpy as np
import quantmm as qmm
from quantmm.bench.models import MODELS

TYPE = gguf.GGMLQuantizationType.Q4_K
WEIGHTS, BYTES = gguf.constants.GGML_QUANT_SIZES[TYPE]
#: Of a block, the bytes before the numbers and minima of 6 and 4 bits: two halves, d and dmin.
HALVES = 4


def main() -> None:
    """Make the file where it is missing, and read it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=MODELS, default="llama-7b")
    parser.add_argument("--blocks", type=int, default=32, help="how often its layers are repeated")
    arguments = parser.parse_args()
    path = arguments.folder / f"{arguments.model}.gguf"
    if not path.exists():
        write(path, arguments.model, arguments.blocks)
    for cached in (True, False):
        measure(path, cached)


def write(path: Path, model: str, blocks: int) -> None:
    """Every name of the model's layers as one layer, `blocks` times."""
    writer = gguf.GGUFWriter(path, "llama")
    shapes = {
        f"blk.{block}.{name.strip().replace(' ', '_')}.weight": (layer.n, layer.k)
        for block in range(blocks)
        for layer in MODELS[model]
        if layer.name != "head"
        for name in layer.name.split(",")
    }
    for name, (n, k) in shapes.items():
        nbytes = n * k // WEIGHTS * BYTES
        writer.add_tensor_info(name, (n, k // WEIGHTS * BYTES), np.dtype(np.uint8), nbytes, TYPE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(0)
    for n, k in shapes.values():
        raw = rng.integers(0, 256, (n * k // WEIGHTS, BYTES), np.uint8)
        scales = rng.uniform(0.001, 0.01, (len(raw), 2)).astype(np.float16)
        raw[:, :HALVES] = scales.view(np.uint8)
        writer.write_tensor_data(raw)
    writer.close()


def measure(path: Path, cached: bool) -> None:
    """Print what opening, reading and binding take."""
    if not cached:
        forget(path)
    begun = time.perf_counter()
    model = qmm.open_model(path)
    opened = time.perf_counter()
    for name in model:
        model[name]
    read = time.perf_counter()
    if not cached:
        forget(path)
    again = time.perf_counter()
    kernels: dict[qmm.MatmulSpec, qmm.Kernel] = {}
    compiling = 0.0
    for name, layer in model.layers.items():
        spec = layer.spec()
        if spec not in kernels:
            start = time.perf_counter()
            kernels[spec] = qmm.compile(spec, cache=True)
            compiling += time.perf_counter() - start
        weight = model[name]
        assert isinstance(weight, qmm.QTensor)
        kernels[spec].bind(weight)
    bound = time.perf_counter() - again - compiling
    size = path.stat().st_size / 1e9
    reading = read - opened
    print(
        f"{path.name}, {size:.2f} GB, {len(model)} layers, "
        f"{'in the page cache' if cached else 'from the disk'}: opened in {opened - begun:.3f} s; "
        f"read in {reading:.2f} s, {size / reading:.2f} GB/s; "
        f"read and bound in {bound:.2f} s, {size / bound:.2f} GB/s"
    )


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
