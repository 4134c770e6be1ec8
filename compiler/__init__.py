"""From a spec to a kernel: expression, schedule, machine code; the cache, and the linker."""

from __future__ import annotations

import sys

from ..formats import quantize, spec
from ..runtime import cuda_kernel, cuda_linear, kernel, linear, load

#: Where version 0.1.0 had what it wrote into pickles, which are readable by these names.
for _module in (spec, quantize, kernel, linear, cuda_kernel, cuda_linear):
    sys.modules[f"{__name__}.{_module.__name__.rpartition('.')[2]}"] = _module
sys.modules[f"{__name__}.kernel_file"] = load
