
; The floating-point mode of aarch64, FPCR: set that with which a process starts, see float_mode.py.
define internal i64 @set_usual_floats() {
  %mode = call i64 @llvm.aarch64.get.fpcr()
  call void @llvm.aarch64.set.fpcr(i64 0)
  ret i64 %mode
}

define internal void @set_floats(i64 %mode) {
  call void @llvm.aarch64.set.fpcr(i64 %mode)
  ret void
}

declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)
