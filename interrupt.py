"""Ctrl-C while the command `quantmm` imports its modules: one line in the place of a traceback.

The package imports this module before all others. In other programs it does nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

#: The exit status of a command that Ctrl-C ended: 128 and the number of SIGINT, as shells have it.
INTERRUPTED = 130


def in_one_line(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Say that the command was interrupted, and show other errors as Python does."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print("quantmm: interrupted", file=sys.stderr)
    raise SystemExit(INTERRUPTED)


if sys.argv and Path(sys.argv[0]).stem == "quantmm":
    sys.excepthook = in_one_line
