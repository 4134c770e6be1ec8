"""The torch that modules need; asked for before anything else of it is imported."""

from __future__ import annotations

import re

from ..errors import ToolError

#: The first version that the tests cover, which the extra asks for too.
MINIMUM = (2, 13)
INSTALL = "pip install 'quantmm[torch]'"


def require_torch() -> None:
    """Import torch.

    Raises
    ------
    ToolError
        It is missing, or older than `MINIMUM`.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ToolError(f"quantmm.nn needs torch, which is not installed: {INSTALL}") from None
    check_version(torch.__version__)


def check_version(version: str) -> None:
    """Refuse a version before `MINIMUM`."""
    found = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if found < MINIMUM:
        expected = ".".join(map(str, MINIMUM))
        raise ToolError(
            f"quantmm.nn found torch {version}; expected {expected} or later: {INSTALL}"
        )
