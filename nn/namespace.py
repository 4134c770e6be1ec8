"""The namespace of quantmm's operators."""

from __future__ import annotations

from torch import library

LIBRARY = library.Library("quantmm", "DEF")
