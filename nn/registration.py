"""Tell transformers of quantmm's quantizer, whichever of both is imported first.

transformers gives a model of a folder whose quantizer it does not know random weights, and goes on.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from ..errors import ToolError
from .requirement import require_transformers

#: The module of transformers with the table of quantizers.
TABLE = "transformers.quantizers.auto"


def register() -> None:
    """Register now where transformers has its table, else as soon as it imports it."""
    if TABLE in sys.modules:
        add()
    elif not any(isinstance(each, BehindTable) for each in sys.meta_path):
        sys.meta_path.insert(0, BehindTable())


def add() -> None:
    """Import what registers; a warning where transformers is too old for it."""
    try:
        require_transformers()
    except ToolError as error:
        warnings.warn(
            f"transformers does not read models that quantmm saved: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
    else:
        importlib.import_module(".pretrained", __package__)


class BehindTable:
    """In sys.meta_path: finds the table as Python would, and has `add` called behind its import."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """None for all modules but the table."""
        if name != TABLE:
            return None
        sys.meta_path.remove(self)  # once, and the search below is to find the file
        spec = importlib.util.find_spec(name)
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                add()

            loader.exec_module = exec_module
        return spec
