"""From a spec to a kernel: expression, schedule, machine code; the cache, and the linker."""

from __future__ import annotations

import sys

from ..formats import quantize, spec
from ..runtime import kernel, linear, load

#: Where earlier versions had what they wrote into pickles, which are readable by these names.
_BEFORE = {
    "spec": spec,
    "quantize": quantize,
    "kernel": kernel,
    "linear": linear,
    "cuda_kernel": kernel,
    "cuda_linear": linear,
    "kernel_file": load,
}
for _name, _module in _BEFORE.items():
    sys.modules[f"{__name__}.{_name}"] = _module
    if _name.startswith("cuda_"):
        sys.modules[f"{_module.__package__}.{_name}"] = _module
