"""Kernels compute with floats as IEEE 754 has them, whatever the threads they run on do.

A program may have a thread flush subnormal numbers to zero, as `torch.set_flush_denormal` does, or
round otherwise; threads that it starts inherit that. The rows of X that such numbers scale would
become zeros, in some tasks and not in others. So a function sets the mode at its start and puts
back at its end what it found, some 20 ns; threads that share its loops do so in `launch.ll`.
"""

from __future__ import annotations

from tvm import tirx
from tvm.s_tir import SBlock, SBlockRealize

from ...targets import Target, machine

#: MXCSR as a process starts with it: no flushing, rounding to nearest, no traps (Intel SDM vol. 1,
#: "MXCSR Control and Status Register"). That of FPCR on Arm is 0 (Arm ARM, "FPCR").
MXCSR, FPCR = 0x1F80, 0


def with_usual_floats(func: tirx.PrimFunc, target: Target) -> tirx.PrimFunc:
    """The scheduled `func` with its own floating-point mode, and that of its caller afterwards."""
    architecture = target.architecture or machine.architecture()
    within = {"x86_64": on_x86, "aarch64": on_arm}[architecture]
    root = func.body.block
    block = SBlock(
        [],
        root.reads,
        root.writes,
        root.name_hint,
        within(root.body),
        alloc_buffers=root.alloc_buffers,
        match_buffers=root.match_buffers,
        annotations=root.annotations,
    )
    return func.with_body(SBlockRealize([], True, block))


def on_x86(body: tirx.Stmt) -> tirx.Stmt:
    """`body` between instructions that go through memory."""
    own, found = (tirx.decl_buffer((1,), "int32", name) for name in ("mxcsr", "mxcsr_found"))

    def run(name: str, buffer: tirx.Var) -> tirx.Stmt:
        address = tirx.address_of(tirx.BufferLoad(buffer, [0]))
        return tirx.Evaluate(tirx.call_llvm_intrin("void", f"llvm.x86.sse.{name}", address))

    return tirx.SeqStmt(
        [
            tirx.AllocBuffer(own),
            tirx.AllocBuffer(found),
            run("stmxcsr", found),
            tirx.BufferStore(own, tirx.const(MXCSR, "int32"), [0]),
            run("ldmxcsr", own),
            body,
            run("ldmxcsr", found),
        ]
    )


def on_arm(body: tirx.Stmt) -> tirx.Stmt:
    """`body` between instructions that go through a register."""
    found = tirx.Var("fpcr_found", "int64")

    def set_to(value: tirx.Expr) -> tirx.Stmt:
        return tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.aarch64.set.fpcr", value))

    value = tirx.call_llvm_intrin("int64", "llvm.aarch64.get.fpcr")
    after = set_to(found)
    return tirx.SeqStmt([tirx.Bind(found, value), set_to(tirx.const(FPCR, "int64")), body, after])
