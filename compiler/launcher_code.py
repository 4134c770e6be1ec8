"""`launch.ll` compiled by TVM's own LLVM, for kernels that were built in this process."""

from __future__ import annotations

import functools
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

SOURCE = Path(__file__).with_name("launch.ll")


def launcher_module(kernel: Any) -> Any:
    """The launcher for the target that an LLVM module was compiled for."""
    return compiled(kernel["_get_target_string"]())


@functools.cache
def compiled(target: str) -> Any:
    """The launcher for a target that is described as TVM does."""
    with NamedTemporaryFile("w", suffix=".ll") as file:
        file.write(header(target) + SOURCE.read_text(encoding="utf-8"))
        file.flush()
        return tvm_ffi.load_module(file.name)


def header(target: str) -> str:
    """What LLVM wants to know of the machine: what it writes above any code for the target."""
    nothing = tirx.PrimFunc([], tirx.Evaluate(tirx.const(0, "int32")))
    nothing = nothing.with_attr("global_symbol", "nothing")
    code = tvm.compile(tvm.IRModule({"nothing": nothing}), target=tvm.target.Target(target))
    lines = str(code.mod.inspect_source("ll")).splitlines()
    return "".join(f"{line}\n" for line in lines if line.startswith("target "))
