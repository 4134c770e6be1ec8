"""Quantized linear layers as torch modules; needs `pip install 'quantmm[torch]'`.

quantmm.nn.quantize_(model, "w8a8-dynamic")     # in place, every torch.nn.Linear
quantmm.nn.Linear.from_float(layer, "w4a8-g32")     # one of them
"""

from .requirement import require_torch

require_torch()

from .fuse import fuse_, unfused_state  # noqa: E402
from .linear import Linear  # noqa: E402
from .replace import quantize_  # noqa: E402
from .report import LayerRow, report  # noqa: E402

__all__ = ["LayerRow", "Linear", "fuse_", "quantize_", "report", "unfused_state"]
