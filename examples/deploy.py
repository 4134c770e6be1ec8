"""A kernel file: write it where a compiler is, and run it where NumPy is all there is.

python examples/deploy.py write FOLDER    # needs a linker
python examples/deploy.py run FOLDER      # imports neither tvm nor torch
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import quantmm as qmm


def write(folder: Path) -> None:
    """A kernel and its weight, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    W = np.random.default_rng(0).standard_normal((256, 128), np.float32)
    w = qmm.quantize(W, "int4", group_size=32)
    spec = w.spec(input="float32", dynamic=True)
    qmm.compile(spec).save(folder / "linear.qmm")
    qmm.save_weights(folder / "weights.safetensors", {"layer": (w, spec)})


def run(folder: Path) -> None:
    """Load both, and multiply."""
    w, _ = qmm.load_weights(folder / "weights.safetensors")["layer"]
    linear = qmm.load(folder / "linear.qmm").bind(w)
    y = linear(np.ones((3, 128), np.float32))
    print(f"{y.shape[0]} x {y.shape[1]} results")
    print("imported:", [name for name in ("tvm", "torch") if name in sys.modules] or "no compiler")


if __name__ == "__main__":
    {"write": write, "run": run}[sys.argv[1]](Path(sys.argv[2]))
