"""What runs without the modules and calls that only POSIX has, as on macOS and Windows."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import quantmm as qmm
from quantmm.compiler import linker
from quantmm.errors import ToolError
from quantmm.runtime.kernel_file import contents
from quantmm.targets import machine
from safetensors.numpy import save_file

#: What a Python for Windows lacks; macOS lacks some of it. Modules are missing for quantmm alone:
#: other packages ask which system this is.
MASKED = """
import builtins, os
imported = builtins.__import__

def without_posix(name, globals=None, *more, **named):
    asks = (globals or {}).get("__name__", "")
    if asks.startswith("quantmm") and name in ("resource", "fcntl", "pwd", "grp", "termios"):
        raise ModuleNotFoundError(name)
    return imported(name, globals, *more, **named)

builtins.__import__ = without_posix
for name in ("memfd_create", "register_at_fork", "fork", "getuid", "O_NOFOLLOW", "O_NONBLOCK",
             "O_CLOEXEC", "preadv", "sched_getaffinity", "getloadavg"):
    delattr(os, name)
"""
WORK = """
import sys
import json
import numpy as np
import quantmm as qmm
from quantmm.cli.main import cli

weights, model, file = sys.argv[1:]
w = qmm.quantize(qmm.read_matrix(weights, "layer.weight"), "int4", group_size=32)
spec = w.spec(input="float32", dynamic=True, m=2)
y = qmm.reference(spec, np.ones((2, 64), np.float32), w)
names = list(qmm.open_model(model))
qmm.save_weights(model + ".q.safetensors", {"w": (w, spec)})
kernel = qmm.compile(spec, sys.argv[-1].rpartition(".")[2], cache=True)
kernel.save(file)
for words in (["--help"], ["doctor"], ["inspect", file], ["logs", "list"]):
    cli.main(words, "quantmm", standalone_mode=False)
print(json.dumps([y.tolist(), names, kernel.origin]))
"""


def test_without_what_only_posix_has(tmp_path):
    """Imports, quantization, reference, readers, and a kernel for another machine."""
    here = machine.architecture()
    target = next(row.name for row in qmm.targets.TARGETS if row.architecture not in (None, here))
    weights, file = tmp_path / "w.safetensors", tmp_path / f"kernel.{target}"
    matrix = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    save_file({"layer.weight": matrix}, weights)
    done = subprocess.run(
        [sys.executable, "-c", MASKED + WORK, weights, weights, file],
        env={**os.environ, "XDG_DATA_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if "needs a linker" in done.stderr:
        pytest.skip(f"there is no linker for {target}")
    assert done.returncode == 0, done.stderr
    y, names, origin = json.loads(done.stdout.splitlines()[-1])
    w = qmm.quantize(matrix, "int4", group_size=32)
    spec = w.spec(input="float32", dynamic=True, m=2)
    assert y == qmm.reference(spec, np.ones((2, 64), np.float32), w).tolist()
    assert (names, origin) == (["layer"], "built")

    (stored,) = contents(file)
    assert (stored.info.target, stored.info.spec) == (target, spec)
    assert stored.content.startswith(b"\x7fELF")


def test_another_system_links_for_linux(monkeypatch):

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(linker, "foreign", lambda architecture: ["linker", architecture])
    assert linker.command() == ["linker", machine.architecture()]
    monkeypatch.setattr(linker, "foreign", lambda architecture: None)
    with pytest.raises(ToolError, match=f"needs a linker for {machine.architecture()}: install"):
        linker.command()
