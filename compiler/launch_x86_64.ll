
; The floating-point mode of x86-64, MXCSR: set that with which a process starts, see float_mode.py.
define internal i64 @set_usual_floats() {
  %found = alloca i32
  %own = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %found)
  store i32 8064, ptr %own
  call void @llvm.x86.sse.ldmxcsr(ptr %own)
  %mode = load i32, ptr %found
  %mode.long = zext i32 %mode to i64
  ret i64 %mode.long
}

define internal void @set_floats(i64 %mode.long) {
  %own = alloca i32
  %mode = trunc i64 %mode.long to i32
  store i32 %mode, ptr %own
  call void @llvm.x86.sse.ldmxcsr(ptr %own)
  ret void
}

declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
