"""Runs x86-64 code with instructions that this CPU lacks: they are executed in software.

    with emulating() as count:
        kernel(x, w)
    assert count["tdpbusd"] or "amx_int8" in cpu_features()

`illegal/emulate.c` says how, and what is emulated. An instruction that the CPU has runs natively
and is not counted. Code that breaks a rule, such as a product of tiles whose shapes do not fit,
ends the process with a line on stderr; under pytest that line is seen with `-s`, or with
`capfd.disabled()` around.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import platform
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from quantmm.compiler import linker
from quantmm.errors import ToolError

SOURCE = Path(__file__).parent / "illegal" / "emulate.c"


class Counts(Mapping[str, int]):
    """How many instructions have been emulated, by mnemonic; up to date at any time."""

    def __init__(self, mnemonics: tuple[str, ...]) -> None:
        self._mnemonics = mnemonics
        self._numbers = (ctypes.c_uint64 * len(mnemonics))()

    def __getitem__(self, mnemonic: str) -> int:
        try:
            return self._numbers[self._mnemonics.index(mnemonic)]
        except ValueError:
            raise KeyError(mnemonic) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._mnemonics)

    def __len__(self) -> int:
        return len(self._mnemonics)

    def __repr__(self) -> str:
        return repr({mnemonic: n for mnemonic, n in self.items() if n})


#: Features of CPUs whose instructions can be emulated.
EMULATED = frozenset({"avx_vnni", "avx_vnni_int8", "amx_tile", "amx_int8"})


@contextlib.contextmanager
def emulating(*, marked: bool = False) -> Iterator[Counts]:
    """Emulate inside the block, in every thread; skip the test where that is impossible.

    With `marked`, an instruction behind `ud2` is emulated even when the CPU has it.
    """
    if reason := why_impossible():
        pytest.skip(reason)
    emulator = _emulator()
    counts = Counts(_mnemonics())
    if emulator.emulation_start(counts._numbers, marked):
        raise RuntimeError("emulating() inside emulating()")
    try:
        yield counts
    finally:
        emulator.emulation_stop()


def why_impossible() -> str | None:
    """Why nothing can be emulated on this machine; None when it can."""
    here = platform.system(), platform.machine()
    if here != ("Linux", "x86_64"):
        return f"instructions are emulated on Linux x86_64, this is {' '.join(here)}"
    try:
        linker.command()
    except ToolError as error:
        return f"no C compiler to build the emulator with: {error}"
    return None


@functools.cache
def _emulator() -> ctypes.CDLL:
    """The emulator, built once per process."""
    compiler = linker.command()
    # It must not depend on what the CPU has; zig would compile for this very CPU.
    baseline = ["-march=x86_64"] if "ziglang" in compiler else []
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "emulate.so"
        build([*compiler, *baseline, "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE)])
        emulator = ctypes.CDLL(str(library))
    emulator.emulation_start.argtypes = [ctypes.c_void_p, ctypes.c_int]
    emulator.emulation_stop.restype = None
    emulator.emulated_name.restype = ctypes.c_char_p
    return emulator


def build(command: list[str]) -> None:
    """Run a compiler."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


@functools.cache
def _mnemonics() -> tuple[str, ...]:
    names = map(_emulator().emulated_name, itertools.count())
    return tuple(name.decode() for name in itertools.takewhile(bool, names))
