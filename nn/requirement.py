"""The torch and transformers that modules need; asked for before anything of them is imported."""

from __future__ import annotations

import re

from ..errors import ToolError
from ..extras import install

#: The first versions that the tests cover, which the extras ask for too.
MINIMUM = (2, 13)
INSTALL = install("torch")
TRANSFORMERS = (5, 24)
INSTALL_TRANSFORMERS = install("transformers")


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


def require_transformers() -> None:
    """Import transformers.

    Raises
    ------
    ToolError
        It is missing, or older than `TRANSFORMERS`.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ToolError(
            "quantmm.nn needs transformers for this, which is not installed: "
            f"{INSTALL_TRANSFORMERS}"
        ) from None
    check_version(transformers.__version__, "transformers", TRANSFORMERS, INSTALL_TRANSFORMERS)


def check_version(
    version: str,
    name: str = "torch",
    minimum: tuple[int, int] = MINIMUM,
    install: str = INSTALL,
) -> None:
    """Refuse a version before the first that is tested."""
    found = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if found < minimum:
        expected = ".".join(map(str, minimum))
        raise ToolError(
            f"quantmm.nn found {name} {version}; expected {expected} or later: {install}"
        )
