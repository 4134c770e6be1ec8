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


@tirx.transform.prim_func_pass(opt_level=0, name="quantmm.OnStack")  # type: ignore[untyped-decorator]
def on_stack(
    func: tirx.PrimFunc, _mod: tvm.IRModule, _context: tvm.transform.PassContext
) -> tirx.PrimFunc:
    """Keep LowerTVMBuiltin from turning small buffers into workspace allocations."""

    def mark(stmt: tirx.AllocBuffer) -> tirx.AllocBuffer:
        size = tvm.DataType(stmt.buffer.dtype).itemsize
        for extent in stmt.buffer.shape:
            if not isinstance(extent, tirx.IntImm):
                return stmt
            size *= extent.value
        if size > STACK_BYTES:
            return stmt
        annotations = {**stmt.annotations, "disable_lower_builtin": tirx.IntImm("bool", True)}
        return tirx.AllocBuffer(stmt.buffer, annotations)

    body = tvm_ffi.structural_map(func.body, [(tirx.AllocBuffer, mark)])
    return func.with_body(body)


def pipeline() -> tuple[tvm.transform.Pass, object, object]:
    """TVM's pipeline for scheduled functions, and its two finishing touches."""
    lower, finish_host, finish_device = s_tir.pipeline.default_s_tir_pipeline()

    def finish() -> tvm.transform.Pass:
        return tvm.transform.Sequential([on_stack, finish_host()])

    return lower, finish, finish_device


tirx.compilation_pipeline.register_tir_pipeline(PIPELINE, pipeline)
