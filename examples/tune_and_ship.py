"""Tune for a shape, ship the log, and compile with it elsewhere.

A log is a folder of text; a machine of the same kind uses it as it is. This search is far too short
to find much. Give it 64 trials, on a quiet machine.

    python examples/tune_and_ship.py FOLDER [TRIALS]
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import quantmm as qmm

SPEC = qmm.MatmulSpec(n=256, k=256)


def main(folder: Path, trials: int) -> None:
    """Tune into one folder, copy what came out, and compile with the copy."""
    tuned, shipped = folder / "tuned", folder / "shipped"
    qmm.tune(SPEC, m=[4], trials=trials, log=tuned)
    shutil.copytree(tuned, shipped, dirs_exist_ok=True)
    for row in qmm.compile(SPEC, log=shipped).report(m=[4]):
        print(f"M = {row['m']}: {row['function']}, record {row['record'] or 'none: default'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 4)
