"""Made-up CPUs, described as Linux does in /sys/devices/system/cpu."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def describe(
    root: Path, siblings: Mapping[int, str], caches: Mapping[int, Mapping[str, str]] | None = None
) -> None:
    """Write the folders of CPUs.

    Parameters
    ----------
    siblings : by CPU, which CPUs are its core's.
    caches : by CPU, sizes by which CPUs share the cache.
    """
    for cpu, shared in siblings.items():
        write(root / f"cpu{cpu}" / "topology", thread_siblings_list=shared)
    for cpu, sizes in (caches or {}).items():
        for i, (shared, size) in enumerate(sizes.items()):
            write(root / f"cpu{cpu}" / "cache" / f"index{i}", size=size, shared_cpu_list=shared)


def write(folder: Path, **files: str) -> None:
    """Files of a line in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")
