"""quantmm beside its peers: the tables of docs/performance.md.

    python benchmarks/peers.py [--format w4a8-g128] [--target x86-avx2] [--threads 1 2]
                               [--shapes 512,4096,4096 ...] [--json FILE]

Formats, see contenders/job.py: int8 x int8 (the default), and those of float32 in and out that
quantize X to int8 inside the call: w8a8-dynamic, w4a8, w4a8-g128 and w4a8-g32.

With another target than the host's best row the only peer is oneDNN, held to the same instruction
set, and only for int8.

Every contender lives in a process of its own, with its own threads, and takes turns with the
others: warm up, time for a moment, sleep until the next round. The machine's limits take part as a
contender, so that they see the same slow and fast moments. Weights are packed beforehand; for M up
to 16 they are rotated through more memory than the caches hold, unless the shape says "hot". A
contender's result is compared with the exact product before it is timed.

The peers of int8 need torch and onnxruntime with onnx; those of the other formats also
ai-edge-litert (XNNPACK), openvino and llama-cpp-python (ggml), this one built for the machine:

    CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python --no-deps llama-cpp-python

Written with torch 2.13, onnxruntime 1.32, ai-edge-litert 2.3, openvino 2026.4 and llama-cpp-python
0.3.36 (ggml 0.25). A peer that is not installed or cannot do a shape is left out of the row and
named at the end. torch's float32 and bfloat16 have rows of their own and count as no peers.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from contenders import (
    BASELINES,
    FORMATS,
    ONEDNN_ISA,
    OURS,
    Job,
    Ready,
    build,
    environment,
    names,
)

INT8_SHAPES = [
    "512,4096,4096",
    "2048,4096,4096",
    "128,4096,4096",
    "1024,1024,1024",
    "384,3072,768",
    "384,768,768",
    "4,4096,4096,hot",
    "16,4096,4096,hot",
    "4,4096,4096",
    "16,4096,4096",
    "1,4096,4096",
    "1,11008,4096",
    "1,4096,11008",
    "1,32000,4096",
    "7,1000,333,hot",
    "33,4095,1111,hot",
]
DYNAMIC_SHAPES = [
    "128,4096,4096",
    "512,4096,4096",
    "4,4096,4096,hot",
    "16,4096,4096,hot",
    "4,4096,4096",
    "16,4096,4096",
    "1,4096,4096",
    "1,11008,4096",
    "1,32000,4096",
    "7,1000,333,hot",
    "33,4095,1111,hot",
]
ROUNDS = 7
PAUSE_SECONDS = 0.06
#: What all contenders of a row may occupy; whoever goes beyond is left out.
MEMORY_BYTES = 15 << 30


def worker(name: str) -> None:
    """Serve one contender: a line in is a request, a line out the answer."""
    # Libraries that print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ready: Ready | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "job" in request:
                ready = build(name, Job(**request["job"]))
                answer: Any = "ready"
            elif name == "limits":
                answer = measure_limits(request["target"], request["threads"])
            else:
                assert ready is not None
                answer = turn(ready.calls) / ready.per_call
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            answer = {"error": f"{type(error).__name__}: {reason}"}
        print(json.dumps(answer), file=answers, flush=True)


def turn(calls: list[Callable[[], object]]) -> float:
    """Seconds per call: a few calls to wake everything, then enough to trust the clock."""
    rotation = itertools.cycle(calls)
    start = time.perf_counter()
    for _ in range(3):
        next(rotation)()
    count = max(3, round(0.03 / ((time.perf_counter() - start) / 3)))
    start = time.perf_counter()
    for _ in range(count):
        next(rotation)()
    return (time.perf_counter() - start) / count


def measure_limits(target: str, threads: int) -> dict[str, float]:
    """GOPS and GB/s now."""
    from quantmm import targets
    from quantmm.bench import limits

    limit = limits.measure(targets.find_cpu(target), threads)
    return {**dataclasses.asdict(limit), "gbps": limit.gbps}


class Contender:
    """A worker process."""

    def __init__(self, name: str, job: Job) -> None:
        self.messages = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.messages,
            text=True,
            env={**os.environ, **environment(job)},
        )

    def ask(self, request: dict[str, Any]) -> Any:
        """Send a request and wait for its answer; {"error": reason} if there is none."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        return json.loads(answer) if answer else {"error": self.last_words()}

    def last_words(self) -> str:
        """Why the process ended."""
        code = self.process.wait()
        self.messages.seek(0)
        lines = self.messages.read().split("\n")
        return ": ".join([f"exit code {code}", *[line for line in lines if line.strip()][-1:]])

    def memory(self) -> int:
        """Bytes that the process occupies."""
        import psutil

        return psutil.Process(self.process.pid).memory_info().rss

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.messages.close()


def compare(job: Job, cold: bool) -> dict[str, Any]:
    """One shape: every contender's times, and the limits beside them."""
    workers: dict[str, Contender] = {}
    absent = {}
    samples: dict[str, list[Any]] = {}
    try:
        for name in names(job):
            workers[name] = Contender(name, job)
            answer = workers[name].ask({"job": dataclasses.asdict(job)})
            if answer != "ready":
                absent[name] = answer["error"]
            elif sum(process.memory() for process in workers.values()) > MEMORY_BYTES:
                absent[name] = "not enough memory for this shape"
            else:
                samples[name] = []
            if name in absent:
                workers.pop(name).close()
        workers["limits"], samples["limits"] = Contender("limits", job), []
        for _ in range(ROUNDS):
            for name in [*samples]:
                answer = workers[name].ask({"target": job.target, "threads": job.threads})
                if name != "limits" and isinstance(answer, dict):
                    absent[name] = answer["error"]
                    del samples[name]
                else:
                    samples[name].append(answer)
                time.sleep(PAUSE_SECONDS)
    finally:
        for process in workers.values():
            process.close()
    limits = samples.pop("limits")
    return {
        "format": job.format_name,
        "target": job.target,
        "shape": (job.m, job.n, job.k),
        "cold": cold,
        "threads": job.threads,
        "absent": absent,
        "gops": statistics.median(limit["gops"] for limit in limits),
        "gbps": statistics.median(limit["gbps"] for limit in limits),
        "median": {name: statistics.median(times) for name, times in samples.items()},
        "least": {name: min(times) for name, times in samples.items()},
    }


def title(row: dict[str, Any]) -> str:
    """The shape and where its weights come from."""
    return "{} x {} x {}".format(*row["shape"]) + (" cold" if row["cold"] else "")


def lines(row: dict[str, Any]) -> list[str]:
    """Rows of the Markdown table: quantmm beside its best peer, then what is no peer."""
    m, n, k = row["shape"]
    median = row["median"]
    compute = 2 * m * n * k / row["gops"] / 1e9
    read = FORMATS[row["format"]].weight_bytes(n, k) / row["gbps"] / 1e9
    floor = max(compute, read) if row["cold"] else compute
    ours = median.get(OURS)
    peers = [name for name in median if name != OURS and name not in BASELINES]
    best = min(peers, key=lambda name: median[name], default=None)
    cells = [
        title(row),
        str(row["threads"]),
        f"{floor * 1e3:.4f}",
        f"{ours * 1e3:.4f}" if ours else "",
        f"{row['least'][OURS] * 1e3:.4f}" if ours else "",
        f"{floor / ours:.0%}" if ours else "",
    ]
    table = [cells + beside(row, best) if best else [*cells, "", ""]]
    empty = [""] * len(cells)
    table += [empty + beside(row, name) for name in BASELINES if name in median]
    return ["| " + " | ".join(each) + " |" for each in table]


def beside(row: dict[str, Any], name: str) -> list[str]:
    """A contender's time and its ratio to quantmm's."""
    theirs, ours = row["median"][name], row["median"].get(OURS)
    return [f"{name} {theirs * 1e3:.4f}", f"{theirs / ours:.2f}" if ours else ""]


HEADER = """\
| M x N x K | threads | floor ms | quantmm ms | least ms | share | best peer ms | ratio |
|---|---|---|---|---|---|---|---|"""


def absences(rows: list[dict[str, Any]]) -> list[str]:
    """Who was left out, of which rows unless of all, and why."""
    titles: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, reason in row["absent"].items():
            titles.setdefault((name, reason), []).append(title(row))
    lines = []
    for (name, reason), where in titles.items():
        places = "" if len(where) == len(rows) else " at " + ", ".join(dict.fromkeys(where))
        lines.append(f"without {name}{places}: {reason}")
    return lines


def job_of(format_name: str, target: str, text: str, threads: int) -> tuple[Job, bool]:
    """The job that a shape asks for, and whether its weights come from memory."""
    from quantmm.bench.run import COLD_ROWS, copies_for

    sizes, hot = text.split(",")[:3], text.endswith("hot")
    m, n, k = int(sizes[0]), int(sizes[1]), int(sizes[2])
    cold = m <= COLD_ROWS and not hot
    copies = copies_for(FORMATS[format_name].weight_bytes(n, k)) if cold else 1
    return Job(format_name, m, n, k, threads, copies, target), cold


def main() -> None:
    """Compare on the shapes asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--format", choices=[*FORMATS], default="int8")
    parser.add_argument("--target", choices=["host", *ONEDNN_ISA], default="host")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shapes", nargs="+", help="M,N,K or M,N,K,hot")
    parser.add_argument("--json", help="also write every figure to this file")
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker)
        return
    shapes = DYNAMIC_SHAPES if FORMATS[arguments.format].dynamic else INT8_SHAPES
    rows = []
    print(HEADER)
    for threads in arguments.threads:
        for text in arguments.shapes or shapes:
            rows.append(compare(*job_of(arguments.format, arguments.target, text, threads)))
            print("\n".join(lines(rows[-1])), flush=True)
    for absence in absences(rows):
        print(absence)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
