"""quantmm on a GPU: right on random problems, how fast, and which kernel is best where.

    python benchmarks/gpu_check.py prepare FOLDER [--target cuda-sm90]   where a compiler is
    python benchmarks/gpu_check.py run FOLDER                            where a GPU is

`prepare` compiles kernels and writes them to FOLDER, in some four minutes. `run` needs these files,
quantmm's run time (NumPy, ml-dtypes, tvm-ffi; no compiler) and torch, and takes under eight
minutes. It writes FOLDER/results.json with every figure, and FOLDER/tuned.json with the best kernel
for each shape and M. docs/gpu.md says what the figures should be.

Times are medians of CUDA events; weights are rotated through more memory than L2 holds.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import quantmm as qmm
from quantmm.compiler.problem import Problem, difference, random_spec

INDEX = "index.json"
PROBLEMS = 48
ROWS = (1, 2, 3, 7, 16, 17, 40, 64, 65, 130, 300)
#: Large multiplications (M, N, K), and few rows (N, K) with their numbers of rows.
SQUARES = ((4096, 4096, 4096), (8192, 8192, 8192))
NARROW = ((4096, 14336), (28672, 8192))
FEW = (1, 2, 4, 8, 16, 32, 64)
NARROW_FORMATS: dict[str, dict[str, Any]] = {
    "w8": {"out": "bfloat16"},
    "w4-g128": {"weight": "int4", "group_size": 128, "out": "bfloat16"},
}
REPEATS = 20
#: Rotated bytes, as a multiple of L2.
BEYOND_L2 = 3


def square_specs(n: int, k: int) -> dict[str, qmm.MatmulSpec]:
    """What is measured at large M."""
    return {
        "int32": qmm.MatmulSpec(n=n, k=k, out="int32"),
        "bfloat16": qmm.MatmulSpec(n=n, k=k, activation_scale="row", out="bfloat16"),
        "requantized": qmm.MatmulSpec(n=n, k=k, out="int8"),
    }


def prepare(folder: Path, target: str) -> None:
    """Compile every kernel that `run` needs."""
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {"target": target, "problems": [], "squares": [], "narrow": []}
    start = time.perf_counter()
    for seed in range(PROBLEMS):
        draw = random.Random(seed)
        n, k = draw.randint(1, 700), draw.choice([512, 1024, draw.randint(1, 3000)])
        spec = random_spec(partial(pick, draw), n, k)
        save(spec, target, folder / f"problem{seed}.qmm")
        index["problems"].append([f"problem{seed}.qmm", seed])
        print(f"\r{seed + 1} of {PROBLEMS} problems", end="", flush=True)
    for m, n, k in SQUARES:
        for name, spec in square_specs(n, k).items():
            file = f"square{n}-{name}.qmm"
            save(spec, target, folder / file)
            index["squares"].append([file, name, m, n, k])
    for n, k in NARROW:
        for name, fields in NARROW_FORMATS.items():
            file = f"narrow{n}-{name}.qmm"
            save(qmm.MatmulSpec(n=n, k=k, **fields), target, folder / file)
            index["narrow"].append([file, name, n, k])
    (folder / INDEX).write_text(json.dumps(index, indent=1))
    print(f"\n{folder}: kernels for {target}, {time.perf_counter() - start:.0f} s")


def pick(draw: random.Random, choices: Sequence[Any]) -> Any:
    """One of `choices`."""
    return draw.choice(list(choices))


def save(spec: qmm.MatmulSpec, target: str, path: Path) -> None:
    """One kernel file."""
    qmm.compile(spec, target, cache=False).save(path)


def load(path: Path) -> qmm.CudaKernel:
    """A kernel file's kernel for the GPU."""
    kernel = qmm.load(path, device="cuda")
    assert isinstance(kernel, qmm.CudaKernel)
    return kernel


def to_device(array: np.ndarray) -> Any:
    """A NumPy array as a torch tensor on the GPU."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).cuda().view(torch.bfloat16)
    return torch.from_numpy(array).cuda()


def to_host(tensor: Any) -> np.ndarray:
    """A torch tensor as a NumPy array."""
    import torch

    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.cpu().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.cpu().numpy()


def check_problems(folder: Path, problems: list[list[Any]]) -> list[str]:
    """Every problem on every kernel of its file, from device and from host; what differs."""
    wrong = []
    for file, seed in problems:
        kernel = load(folder / file)
        draw = random.Random(seed)
        for variant in kernel.info.variants:
            only = qmm.CudaKernel(replace(kernel.info, variants=(variant,)), kernel._library)
            problem = Problem(kernel.spec, draw.choice(ROWS), seed)
            x, w = problem.activation(), problem.weight()
            bind, call = problem.bind_arguments(), problem.call_arguments()
            expected = qmm.reference(kernel.spec, x, w, **bind, **call)
            linear = only.bind(w, **bind)
            there = dict(call)
            if "residual" in there:
                there["residual"] = to_device(there["residual"])
            found = {"device": to_host(linear(to_device(x), **there)), "host": linear(x, **call)}
            for where, y in found.items():
                if differs := difference(y, expected):
                    wrong.append(f"{file} {variant[0]} m={problem.m} {where}: {differs}")
    return wrong


def check_graph(folder: Path, file: str, m: int) -> str | None:
    """A call captured into a CUDA graph and replayed on other numbers."""
    import torch

    kernel = load(folder / file)
    problem = Problem(kernel.spec, m)
    linear = kernel.bind(problem.weight(), **problem.bind_arguments(), x_scale=0.5)
    x = to_device(problem.activation())
    y = linear(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    linear_out = torch.zeros_like(y)
    new_stream: Any = torch.cuda.Stream
    stream = new_stream()
    with torch.cuda.stream(stream):
        linear(x, linear_out)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        linear(x, linear_out)
    x.copy_(to_device(Problem(kernel.spec, m, seed=1).activation()))
    graph.replay()
    torch.cuda.synchronize()
    expected = linear(x)
    return None if torch.equal(linear_out, expected) else f"{file}: a replayed graph differs"


def median_ms(calls: list[Callable[[], object]], repeats: int = REPEATS) -> dict[str, float]:
    """Median, least and spread (half the distance of the quartiles) of one call's milliseconds."""
    import torch

    for call in calls:
        call()
    torch.cuda.synchronize()
    times = []
    for i in range(repeats):
        first, last = events()
        first.record()
        for call in calls:
            call()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) / len(calls))
        if i == 3 and times[-1] * len(calls) > 200:
            break
    quartiles = statistics.quantiles(times, n=4)
    return {
        "median": statistics.median(times),
        "least": min(times),
        "spread": (quartiles[2] - quartiles[0]) / 2,
    }


def events() -> tuple[Any, Any]:
    """Two events with times."""
    import torch

    event: Any = torch.cuda.Event
    return event(enable_timing=True), event(enable_timing=True)


def rotated(kernel: qmm.CudaKernel, m: int, l2_bytes: int, **bound: Any) -> list[Callable[[], Any]]:
    """Calls on as many copies of the weight as L2 cannot hold, everything else prepared."""
    problem = Problem(kernel.spec, m)
    w, bind = problem.weight(), problem.bind_arguments()
    x = to_device(problem.activation())
    rows = {n: v for n, v in problem.call_arguments().items() if np.ndim(v) == 0}
    once = kernel.bind(w, **bind, **rows, **bound)
    copies = max(2, -(-BEYOND_L2 * l2_bytes // max(1, once.nbytes)))
    linears = [once, *(kernel.bind(w, **bind, **rows, **bound) for _ in range(copies - 1))]
    y = once(x)
    return [partial(linear, x, y) for linear in linears]


def squares(folder: Path, rows: list[list[Any]], l2_bytes: int) -> list[dict[str, Any]]:
    """Large multiplications beside torch's."""
    import torch

    results = []
    for file, name, m, n, k in rows:
        kernel = load(folder / file)
        if kernel.spec.activation_scale == "row":
            kernel_calls = row_scaled(kernel, m)
        else:
            kernel_calls = rotated(kernel, m, l2_bytes)
        ours = median_ms(kernel_calls)
        a = torch.randint(-128, 127, (m, k), dtype=torch.int8, device="cuda")
        b = torch.randint(-128, 127, (n, k), dtype=torch.int8, device="cuda").t()
        halves = a.to(torch.bfloat16), b.to(torch.bfloat16)
        scale = torch.rand(n, device="cuda")
        results.append(
            {
                "format": name,
                "shape": [m, n, k],
                "kernel": kernel.plan(m).name,
                "quantmm": ours,
                "int_mm": median_ms([partial(torch._int_mm, a, b)]),
                "bfloat16": median_ms([partial(torch.matmul, *halves)]),
                "int_mm and scaling": median_ms([partial(scaled_int_mm, a, b, scale)]),
                "tops": 2 * m * n * k / ours["median"] / 1e9,
            }
        )
        print(name, m, n, k, f"{ours['median']:.3f} ms, {results[-1]['tops']:.0f} TOPS", flush=True)
    return results


def scaled_int_mm(a: Any, b: Any, scale: Any) -> Any:
    """What a kernel without an epilogue leaves to do."""
    import torch

    return (torch._int_mm(a, b) * scale).to(torch.bfloat16)


def row_scaled(kernel: qmm.CudaKernel, m: int) -> list[Callable[[], Any]]:
    """Calls with a scale per row, which is copied from the host in each."""
    problem = Problem(kernel.spec, m)
    linear = kernel.bind(problem.weight(), **problem.bind_arguments())
    x, call = to_device(problem.activation()), problem.call_arguments()
    y = linear(x, **call)
    return [lambda: linear(x, y, **call)]


def narrow(folder: Path, rows: list[list[Any]], l2_bytes: int, gbps: float) -> list[dict[str, Any]]:
    """Few rows, every kernel of each file: how fast, and which is best."""
    import torch

    results = []
    for file, name, n, k in rows:
        kernel = load(folder / file)
        half = torch.randn(n, k, device="cuda", dtype=torch.bfloat16).t()
        for m in FEW:
            times = {}
            for variant in kernel.info.variants:
                alone = qmm.CudaKernel(replace(kernel.info, variants=(variant,)), kernel._library)
                times[variant[0]] = median_ms(rotated(alone, m, l2_bytes))
            x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
            chosen = kernel.plan(m).name
            best = min(times, key=lambda each: times[each]["median"])
            weight_bytes = n * k * (0.5 if name.startswith("w4") else 1)
            floor = weight_bytes / gbps / 1e6
            results.append(
                {
                    "format": name,
                    "shape": [m, n, k],
                    "chosen": chosen,
                    "best": best,
                    "quantmm": times[chosen],
                    "kernels": times,
                    "floor": floor,
                    "share": floor / times[best]["median"],
                    "bfloat16": median_ms([partial(torch.matmul, x, half)]),
                }
            )
            print(name, m, n, k, best, f"{results[-1]['share']:.0%} of bandwidth", flush=True)
    return results


def copy_bandwidth() -> float:
    """GB/s that a copy reads and writes."""
    import torch

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    to = torch.empty_like(source)
    return 2 * (1 << 30) / median_ms([lambda: to.copy_(source)])["least"] / 1e6


def run(folder: Path) -> int:
    """Check, measure, tune; the exit status says whether every result was right."""
    import torch

    index = json.loads((folder / INDEX).read_text())
    device = qmm.targets.driver.driver().devices()[0]
    results: dict[str, Any] = {"device": asdict(device), "torch": torch.__version__, **index}
    start = time.perf_counter()
    wrong = check_problems(folder, index["problems"])
    for file, _, n, _ in index["narrow"]:
        if differs := check_graph(folder, file, 1 if n == NARROW[0][0] else 16):
            wrong.append(differs)
    results["wrong"] = wrong
    print(f"{len(index['problems'])} problems, {len(wrong)} wrong results", flush=True)
    for line in wrong[:20]:
        print(" ", line)
    write(folder, "results.json", results)
    results["copy_gbps"] = copy_bandwidth()
    results["squares"] = squares(folder, index["squares"], device.l2_bytes)
    write(folder, "results.json", results)
    results["narrow"] = narrow(folder, index["narrow"], device.l2_bytes, results["copy_gbps"])
    results["seconds"] = time.perf_counter() - start
    write(folder, "results.json", results)
    tuned = [
        {"format": row["format"], "shape": row["shape"], "kernel": row["best"], **row["kernels"]}
        for row in results["narrow"]
    ]
    write(folder, "tuned.json", {"device": asdict(device), "rows": tuned})
    return 1 if wrong else 0


def write(folder: Path, name: str, content: Any) -> None:
    """A JSON file."""
    (folder / name).write_text(json.dumps(content, indent=1))


def main() -> None:
    """Prepare or run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["prepare", "run"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="cuda-sm90")
    arguments = parser.parse_args()
    if arguments.step == "prepare":
        prepare(arguments.folder, arguments.target)
    else:
        sys.exit(run(arguments.folder))


if __name__ == "__main__":
    main()
