"""TVM's lowering pipeline with one more step: small buffers live on the stack.

TVM takes buffers of 1 KB and more from its workspace allocator, in a call per tile. A tile of
accumulators is larger than that, and LLVM only keeps it in registers for good when it is a local
variable; an allocation that escapes must be written to memory before anything that may read it.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import s_tir, tirx

#: The name to pass to `tvm.compile` as `tir_pipeline`.
PIPELINE = "quantmm"
#: Bytes up to which a buffer of constant size goes on the stack.
STACK_BYTES = 64 << 10
CACHE_LINE = 64
ADDRESS_OF = tvm.ir.Op.get("tirx.address_of")


@tirx.transform.prim_func_pass(opt_level=0, name="quantmm.OnStack")  # type: ignore[untyped-decorator]
def on_stack(
    func: tirx.PrimFunc, _mod: tvm.IRModule, _context: tvm.transform.PassContext
) -> tirx.PrimFunc:
    """Keep LowerTVMBuiltin from turning small buffers into workspace allocations.

    TVM makes vectors of buffers that are read and written as such, which aligns them. Those whose
    address an instruction takes stay scalar, and would lie across cache lines.
    """
    addressed: list[tirx.Var] = []

    def note(call: tvm.ir.Call) -> tvm.ir.Call:
        if call.op.same_as(ADDRESS_OF):
            addressed.append(call.args[0].source)
        return call

    def mark(stmt: tirx.AllocBuffer) -> tirx.Stmt:
        buffer, dtype = stmt.buffer, tvm.DataType(stmt.buffer.dtype)
        size = dtype.itemsize
        for extent in buffer.shape:
            if not isinstance(extent, tirx.IntImm):
                return stmt
            size *= extent.value
        if size > STACK_BYTES:
            return stmt
        annotations = {**stmt.annotations, "disable_lower_builtin": tirx.IntImm("bool", True)}
        if size % CACHE_LINE or not any(buffer.same_as(each) for each in addressed):
            return tirx.AllocBuffer(buffer, annotations)
        lines = (size // CACHE_LINE,)
        aligned = tirx.decl_buffer(lines, f"{dtype}x{CACHE_LINE // dtype.itemsize}", buffer.name)
        view = tirx.DeclBuffer(buffer, data=tirx.buffer_data(aligned))
        return tirx.SeqStmt([tirx.AllocBuffer(aligned, annotations), view])

    tvm_ffi.structural_map(func.body, [(tvm.ir.Call, note)])
    body = tvm_ffi.structural_map(func.body, [(tirx.AllocBuffer, mark)])
    return func.with_body(body)


def pipeline() -> tuple[tvm.transform.Pass, object, object]:
    """TVM's pipeline for scheduled functions, and its two finishing touches."""
    lower, finish_host, finish_device = s_tir.pipeline.default_s_tir_pipeline()

    def finish() -> tvm.transform.Pass:
        return tvm.transform.Sequential([on_stack, finish_host()])

    return lower, finish, finish_device


tirx.compilation_pipeline.register_tir_pipeline(PIPELINE, pipeline)
