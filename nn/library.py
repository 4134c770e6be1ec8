"""The namespace of quantmm's operators."""

from __future__ import annotations

from torch.library import Library

LIBRARY = Library("quantmm", "DEF")
