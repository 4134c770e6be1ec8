"""quantmm beside its peers: the tables of docs/performance.md.

    python benchmarks/peers.py [--threads 1 2] [--shapes 512,4096,4096 ...] [--json FILE]

Every contender lives in a process of its own, with its own threads, and takes turns with the
others: warm up, time for a moment, sleep until the next round. The machine's limits take part as a
contender, so that they see the same slow and fast moments. Weights are packed beforehand; for M up
to 16 they are rotated through more memory than the caches hold, unless the shape says "hot".
Needs torch and onnxruntime with onnx; a peer that cannot do a shape is left out of its row.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

SHAPES = [
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
ROUNDS = 7
PAUSE_SECONDS = 0.06
Calls = list[Callable[[], object]]


def data(m: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 X and W of all values."""
    rng = np.random.default_rng(0)
    shape = (m, k), (n, k)
    x, w = (rng.integers(-128, 128, s, dtype=np.int8) for s in shape)
    return x, w


def quantmm(m: int, n: int, k: int, threads: int, copies: int) -> Calls:
    """quantmm, int8 x int8 to float32 with scales."""
    import quantmm as qmm

    x, w = data(m, n, k)
    kernel = qmm.compile(qmm.MatmulSpec(n=n, k=k), num_threads=threads)
    q = qmm.QTensor(w, np.full(n, 0.01, np.float32), None, "int8", None, (n, k))
    out = np.empty((m, n), np.float32)
    linears = [kernel.bind(q, x_scale=0.01) for _ in range(copies)]
    return [functools.partial(linear, x, out) for linear in linears]


def onednn(m: int, n: int, k: int, threads: int, copies: int) -> Calls:
    """OneDNN as torch brings it, int8 x int8 to float32 with scales, packed weight."""
    import torch

    torch.set_num_threads(threads)
    x, w = data(m, n, k)
    unsigned = torch.from_numpy(x).view(torch.uint8) ^ 128
    scale, zero = torch.full((n,), 0.01), torch.zeros(n, dtype=torch.int32)
    pack = torch.ops.onednn.qlinear_prepack
    weights = [pack(torch.from_numpy(w.copy()), [m, k]) for _ in range(copies)]
    run = torch.ops.onednn.qlinear_pointwise
    end: tuple[Any, ...] = (None, 1.0, 0, torch.float32, "none", [], "")
    return [functools.partial(run, unsigned, 0.01, 128, p, scale, zero, *end) for p in weights]


def torch_int_mm(m: int, n: int, k: int, threads: int, copies: int) -> Calls:
    """torch._int_mm, int8 x int8 to int32, nothing packed; refuses some shapes."""
    import torch

    torch.set_num_threads(threads)
    x, w = data(m, n, k)
    tensor = torch.from_numpy(x)
    weights = [torch.from_numpy(w.copy()).t() for _ in range(copies)]
    return [functools.partial(torch._int_mm, tensor, v) for v in weights]


def onnxruntime(m: int, n: int, k: int, threads: int, copies: int) -> Calls:
    """MatMulInteger of onnxruntime, uint8 x int8 to int32, packed weight."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    x, w = data(m, n, k)
    x = (x.astype(np.int16) + 128).astype(np.uint8)
    nodes, outputs, constants = [], [], []
    zero = numpy_helper.from_array(np.array(128, np.uint8), "zero")
    for i in range(copies):
        # Identical constants would be shared, so every copy differs in one row.
        values = w.copy()
        values[0] = i
        constants.append(numpy_helper.from_array(np.ascontiguousarray(values.T), f"w{i}"))
        nodes.append(helper.make_node("MatMulInteger", ["x", f"w{i}", "zero"], [f"y{i}"]))
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.INT32, [m, n]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.UINT8, [m, k])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [zero, *constants])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    results = [np.empty((m, n), np.int32) for _ in range(copies)]
    for i, y in enumerate(results):
        binding.bind_output(f"y{i}", "cpu", 0, np.int32, [m, n], y.ctypes.data)

    def every_copy() -> object:
        session.run_with_iobinding(binding)
        return x, results  # which the binding only points to

    return [every_copy]


CONTENDERS = {
    "quantmm": quantmm,
    "onednn": onednn,
    "int_mm": torch_int_mm,
    "onnxruntime": onnxruntime,
}
#: Contenders whose one call computes all copies.
ALL_AT_ONCE = {"onnxruntime"}


def worker(name: str) -> None:
    """Serve one contender: a line in is a request, a line out the answer."""
    calls: Calls = []
    per_call = 1
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "shape" in request:
                calls, per_call = setup(name, request)
                answer: Any = "ready"
            elif name == "limits":
                answer = measure_limits(request["threads"])
            else:
                answer = turn(calls) / per_call
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def setup(name: str, request: dict[str, Any]) -> tuple[Calls, int]:
    """Build a contender for a shape."""
    m, n, k = request["shape"]
    copies = request["copies"]
    calls = CONTENDERS[name](m, n, k, request["threads"], copies)
    for call in calls:
        call()
    return calls, copies if name in ALL_AT_ONCE else 1


def turn(calls: Calls) -> float:
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


def measure_limits(threads: int) -> dict[str, float]:
    """GOPS and GB/s now."""
    import dataclasses

    from quantmm import targets
    from quantmm.bench import limits

    limit = limits.measure(targets.host(), threads)
    return {**dataclasses.asdict(limit), "gbps": limit.gbps}


class Contender:
    """A worker process."""

    def __init__(self, name: str, threads: int) -> None:
        import os

        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, request: dict[str, Any]) -> Any:
        """Send a request and wait for its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def compare(shape: tuple[int, int, int], cold: bool, threads: int) -> dict[str, Any]:
    """One shape: every contender's times, and the limits beside them."""
    from quantmm.bench.run import copies_for

    _, n, k = shape
    request = {"shape": shape, "threads": threads, "copies": copies_for(n * k) if cold else 1}
    workers = {name: Contender(name, threads) for name in (*CONTENDERS, "limits")}
    absent = {}
    try:
        for name in CONTENDERS:
            answer = workers[name].ask(request)
            if answer != "ready":
                absent[name] = answer["error"]
        names = [name for name in CONTENDERS if name not in absent]
        samples: dict[str, list[Any]] = {name: [] for name in (*names, "limits")}
        for _ in range(ROUNDS):
            for name in samples:
                samples[name].append(workers[name].ask({"threads": threads}))
                time.sleep(PAUSE_SECONDS)
    finally:
        for process in workers.values():
            process.close()
    limits = samples.pop("limits")
    return {
        "shape": shape,
        "cold": cold,
        "threads": threads,
        "absent": absent,
        "gops": statistics.median(limit["gops"] for limit in limits),
        "gbps": statistics.median(limit["gbps"] for limit in limits),
        "median": {name: statistics.median(times) for name, times in samples.items()},
        "least": {name: min(times) for name, times in samples.items()},
    }


def line(row: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    m, n, k = row["shape"]
    ours = row["median"]["quantmm"]
    compute = 2 * m * n * k / row["gops"] / 1e9
    floor = max(compute, n * k / row["gbps"] / 1e9) if row["cold"] else compute
    peers = {name: t for name, t in row["median"].items() if name != "quantmm"}
    best = min(peers, key=lambda name: peers[name])
    cells = [
        f"{m} x {n} x {k}" + (" cold" if row["cold"] else ""),
        str(row["threads"]),
        f"{floor * 1e3:.4f}",
        f"{ours * 1e3:.4f}",
        f"{row['least']['quantmm'] * 1e3:.4f}",
        f"{floor / ours:.0%}",
        f"{best} {peers[best] * 1e3:.4f}",
        f"{peers[best] / ours:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


HEADER = """\
| M x N x K | threads | floor ms | quantmm ms | least ms | share | best peer ms | ratio |
|---|---|---|---|---|---|---|---|"""


def main() -> None:
    """Compare on the shapes asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--json", help="also write every figure to this file")
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker)
        return
    rows = []
    print(HEADER)
    for threads in arguments.threads:
        for text in arguments.shapes:
            sizes, hot = text.split(",")[:3], text.endswith("hot")
            shape = int(sizes[0]), int(sizes[1]), int(sizes[2])
            rows.append(compare(shape, shape[0] <= 16 and not hot, threads))
            print(line(rows[-1]), flush=True)
    for name, reason in rows[-1]["absent"].items():
        print(f"without {name}: {reason}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
