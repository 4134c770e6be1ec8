"""`launch.ll` compiled by TVM's own LLVM, for kernels that were built in this process."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from ..targets import machine

HERE = Path(__file__).parent


def launcher_module(kernel: Any) -> Any:
    """The launcher for the target that an LLVM module was compiled for."""
    return compiled(kernel["_get_target_string"]())


@functools.cache
def compiled(target: str) -> Any:
    """The launcher for a target that is described as TVM does."""
    load = tvm_ffi.get_global_func("ffi.Module.load_from_file.ll")
    if hasattr(os, "memfd_create"):
        # In memory: folders for temporary files may be full.
        with open(os.memfd_create("launcher"), "w") as file:
            file.write(source(target))
            file.flush()
            return load(f"/proc/self/fd/{file.fileno()}", "ll")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "launcher.ll"
        path.write_text(source(target), encoding="utf-8")
        return load(str(path), "ll")


def source(target: str) -> str:
    """The launcher as LLVM IR for a target."""
    top = header(target)
    triple = top.partition('target triple = "')[2]
    architecture = machine.normalized(triple.partition("-")[0])
    parts = (HERE / name for name in ("launch.ll", f"launch_{architecture}.ll"))
    return top + "".join(part.read_text(encoding="utf-8") for part in parts)


def header(target: str) -> str:
    """What LLVM wants to know of the machine: what it writes above any code for the target."""
    nothing = tirx.PrimFunc([], tirx.Evaluate(tirx.const(0, "int32")))
    nothing = nothing.with_attr("global_symbol", "nothing")
    code = tvm.compile(tvm.IRModule({"nothing": nothing}), target=tvm.target.Target(target))
    lines = str(code.mod.inspect_source("ll")).splitlines()
    return "".join(f"{line}\n" for line in lines if line.startswith("target "))
