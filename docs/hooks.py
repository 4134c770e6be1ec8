"""Lets mkdocstrings find the package, whatever the folder is called that it is checked out to."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

_place = tempfile.TemporaryDirectory()


def on_startup(**_: object) -> None:
    """Give the checkout the package's name, in a folder where modules are looked for."""
    (Path(_place.name) / "quantmm").symlink_to(Path(__file__).parent.parent)
    sys.path.insert(0, _place.name)


def on_shutdown() -> None:
    """Take the name away."""
    sys.path.remove(_place.name)
    _place.cleanup()
