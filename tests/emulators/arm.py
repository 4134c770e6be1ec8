"""Runs aarch64 code: an aarch64 Python with this checkout's quantmm, under qemu-aarch64.

    if reason := arm.why_not():
        pytest.skip(reason)
    qmm.compile(spec, target="arm-dotprod").save(path)
    assert arm.check([(path, Problem(spec, m=3))]) == [None]

`.ci/arm-root` downloads the Python and what it imports; nothing here does.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import quantmm as qmm
from quantmm.formats.problem import Problem
from quantmm.formats.problem import check as check_problem

CHECKOUT = Path(__file__).resolve().parent.parent.parent
ROOT = CHECKOUT / ".arm"

QEMU = "qemu-aarch64"


def why_not() -> str | None:
    """Why no aarch64 code can be run here; None when it can."""
    if shutil.which(QEMU) is None:
        return f"{QEMU} is not installed"
    if not (ROOT / "complete").exists():
        return f"no Python for {QEMU}; .ci/arm-root makes it"
    return None


def run(
    *arguments: str | Path,
    cpu: str = "max",
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> str:
    """What `python *arguments` prints on an aarch64 machine.

    Parameters
    ----------
    cpu : one of `qemu-aarch64 -cpu help`, such as cortex-a72 (no dot products), neoverse-n1 (dot
        products) or max (also i8mm).
    env : added to an environment that has nothing of this process's.

    Raises
    ------
    RuntimeError
        It failed, was killed by a signal, or took longer than `timeout` seconds; with its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        # The checkout's root is the package, under whatever name it was checked out.
        Path(folder, "quantmm").symlink_to(CHECKOUT)
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{folder}:{ROOT / 'packages'}",
            "PYTHONUTF8": "1",
            **(env or {}),
        }
        # -S: no packages but ours; those of the machine's Python would be x86-64 code.
        python = [QEMU, "-cpu", cpu, "-L", ROOT, ROOT / "python", "-S"]
        command = [str(word) for word in (*python, *arguments)]
        try:
            done = subprocess.run(
                command,
                input=stdin,
                capture_output=True,
                text=True,
                check=False,
                env=environment,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(
                f"{' '.join(command)}\ntook longer than {timeout} s\n{text(error.stdout)}"
            ) from None
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)}\nexit status {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def check(
    problems: Iterable[tuple[str | Path, Problem]],
    *,
    num_threads: int | None = None,
    cpu: str = "max",
    timeout: float = 300,
) -> list[str | None]:
    """Run problems on kernel files, all in one process: what differs from the reference, or None.

    An exception of a kernel, or of loading it, is the text of its problem.
    """
    request = {
        "num_threads": num_threads,
        "problems": [
            (str(Path(path).absolute()), problem.spec.to_json(), problem.m, problem.seed)
            for path, problem in problems
        ],
    }
    output = run(__file__, cpu=cpu, stdin=json.dumps(request), timeout=timeout)
    return [json.loads(line) for line in output.splitlines()]


def text(output: str | bytes | None) -> str:
    """Output that was captured until a time-out: bytes, whatever was asked for."""
    return output.decode() if isinstance(output, bytes) else output or ""


def main() -> None:
    """The emulated side of `check`: a request on stdin, an answer a line on stdout."""
    request = json.loads(sys.stdin.read())
    load = functools.cache(functools.partial(qmm.load, num_threads=request["num_threads"]))
    for path, spec, m, seed in request["problems"]:
        try:
            problem = Problem(qmm.MatmulSpec.from_json(spec), m, seed)
            answer = check_problem(problem, load(path))
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        # At once: a kernel that ends the process is the one after the last answer.
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
