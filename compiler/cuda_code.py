"""From scheduled functions to CUDA C++ and to what a launch must know of it."""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.tirx.build import split_host_device_mods

from ..runtime.cuda_info import Launch
from ..targets.cuda import CudaTarget

#: LowerWarpMemory lowers the first warp buffer of a sequence and leaves the others.
WARP_BUFFERS = 4
AXES = ("x", "y", "z")
#: CUDA's functions for the bits of a number: TVM would take addresses, which constants have not.
BITS = {
    ("float32", "int32"): "__float_as_int",
    ("int32", "float32"): "__int_as_float",
    ("float64", "int64"): "__double_as_longlong",
    ("int64", "float64"): "__longlong_as_double",
}


def generate(funcs: dict[str, tirx.PrimFunc], target: CudaTarget) -> tuple[str, dict[str, Launch]]:
    """CUDA C++ of the kernels of `funcs`, without what TVM puts before them, and their launches."""
    named = {n: with_bits_called(f).with_attr("global_symbol", n) for n, f in funcs.items()}
    mod = tvm.IRModule(named)
    chip = tvm.target.Target({"kind": "cuda", "arch": target.arch}, host="llvm")
    mod = tirx.transform.BindTarget(chip)(mod)
    lower, _, _ = s_tir.pipeline.default_s_tir_pipeline()
    options = {"tirx.use_async_copy": True, "tirx.disable_cse_tir": True}
    with tvm.transform.PassContext(config=options):
        mod = lower(mod)
    _, devices = split_host_device_mods(mod)
    ((chip, device),) = devices.items()
    finish = [
        *[tirx.transform.LowerWarpMemory()] * WARP_BUFFERS,
        tirx.transform.StmtSimplify(),
        tirx.transform.LowerIntrin(),
    ]
    device = tvm.ir.transform.Sequential(finish)(device)
    launches = {}
    for var, func in device.functions.items():
        launch = launch_of(var.name_hint, func)
        launches[launch.name.removesuffix("_kernel")] = launch
    source = tvm.get_global_func("target.build.cuda")(device, chip).inspect_source()
    return source[source.index('extern "C" __global__') :], launches


def launch_of(name: str, func: tirx.PrimFunc) -> Launch:
    """What a kernel's body says of its grid, its threads and its memory."""
    extents: dict[str, int | str] = {}
    shared = 0

    def note(stmt: tirx.Stmt) -> tirx.Stmt:
        nonlocal shared
        if isinstance(stmt, tirx.AttrStmt) and stmt.attr_key == "thread_extent":
            value = stmt.value
            constant = isinstance(value, tirx.IntImm)
            extents[stmt.node.thread_tag] = int(value) if constant else value.name
        if isinstance(stmt, tirx.AllocBuffer) and stmt.buffer.scope() == "shared.dyn":
            shared = int(stmt.buffer.shape[0]) * tvm.DataType(stmt.buffer.dtype).itemsize
        return stmt

    tvm_ffi.structural_map(func.body, [(tirx.AttrStmt, note), (tirx.AllocBuffer, note)])
    grid = [extents.get(f"blockIdx.{axis}", 1) for axis in AXES]
    block = [int(extents.get(f"threadIdx.{axis}", 1)) for axis in AXES]
    arguments = tuple(param.name.removesuffix("_ptr") for param in func.params)
    return Launch(
        name, arguments, (grid[0], grid[1], grid[2]), (block[0], block[1], block[2]), shared
    )


def with_bits_called(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """`func` with reinterpretations of numbers as calls."""

    def called(call: tvm.ir.Call) -> tvm.ir.Call:
        if call.op != tvm.ir.Op.get("tirx.reinterpret"):
            return call
        (value,) = call.args
        dtypes = str(value.ty), str(call.ty)
        return tirx.call_pure_extern(dtypes[1], BITS[dtypes], value) if dtypes in BITS else call

    return func.with_body(tvm_ffi.structural_map(func.body, [(tvm.ir.Call, called)]))
