"""Quantized linear layers as torch modules; needs `pip install 'quantmm[torch]'`.

quantmm.nn.quantize_(model, "w8a8-dynamic")     # in place, every torch.nn.Linear
quantmm.nn.Linear.from_float(layer, "w4a8-g32")     # one of them
quantmm.nn.QuantmmConfig("w4a8-g32")        # for transformers' from_pretrained, which it needs
quantmm.nn.load_model("model.gguf")         # a transformers model with the integers of a file
"""

from __future__ import annotations

import importlib
from typing import Any

from .requirement import require_torch, require_transformers

require_torch()

from .fuse import fuse_, unfused_state  # noqa: E402
from .linear import Linear  # noqa: E402
from .registration import register  # noqa: E402
from .replace import quantize_  # noqa: E402
from .report import LayerRow, report  # noqa: E402

__all__ = ["LayerRow", "Linear", "fuse_", "quantize_", "report", "unfused_state"]

#: What needs transformers, which takes a second or two to import.
WITH_TRANSFORMERS = {"QuantmmConfig": "pretrained", "load_model": "checkpoint"}


def __getattr__(name: str) -> Any:
    """What needs transformers, imported when it is asked for.

    Raises
    ------
    ToolError
        transformers is missing or too old.
    """
    if name not in WITH_TRANSFORMERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_transformers()
    return getattr(importlib.import_module(f".{WITH_TRANSFORMERS[name]}", __name__), name)


register()
