"""quantmm on a GPU: right on random problems, how fast, and which kernel is best where.

    python benchmarks/gpu_check.py prepare FOLDER [--target cuda-sm90]   where a compiler is
    python benchmarks/gpu_check.py run FOLDER                            where a GPU is

`prepare` compiles kernels and writes them to FOLDER. `run` needs these files, quantmm's run time
(NumPy, ml-dtypes, tvm-ffi; no compiler) and torch, and takes under eight minutes. It writes

    FOLDER/progress.jsonl   a line for each task when it begins and when it ends
    FOLDER/results.json     every figure, and which of them are as they should be (docs/gpu.md)
    FOLDER/tuned/           the best kernel for each shape and M: a log that `qmm.compile` reads

A child process does the tasks. Where one crashes, hangs or leaves the GPU unusable, it is written
down as failed, and another child goes on with the next; the files are whole at any time.

Times are medians of CUDA events around replayed graphs, so that Python's part of a call is not in
them. Weights are rotated through more memory than L2 holds.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import random
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import quantmm as qmm
from quantmm.files import write_whole
from quantmm.formats.problem import Problem, difference, random_spec
from quantmm.formats.ranges import scale_shape
from quantmm.formats.reference import bounds
from quantmm.processes import Worker, WorkerError
from quantmm.runtime import driver
from quantmm.runtime.cuda_info import CudaFunction
from quantmm.schedules import cuda_records
from quantmm.tuning.log import database_for

INDEX, PROGRESS, RESULTS, TUNED = "index.json", "progress.jsonl", "results.json", "tuned"
PROBLEMS, LARGEST_N, LARGEST_K = 48, 700, 3000
ROWS = (1, 2, 3, 7, 16, 17, 40, 64, 65, 130, 300)
#: Large multiplications, (M, N, K); and few rows, (N, K), with their numbers of rows.
SQUARES = ((4096, 4096, 4096), (8192, 8192, 8192))
NARROW = ((4096, 14336), (28672, 8192))
FEW = (1, 2, 4, 8, 16, 32, 64, 1024)
SQUARE_FORMATS: dict[str, dict[str, Any]] = {
    "int32": {"out": "int32", "activation_scale": "tensor"},
    "bfloat16": {"out": "bfloat16"},
    "requantized": {"out": "int8", "activation_scale": "tensor"},
}
NARROW_FORMATS: dict[str, dict[str, Any]] = {
    "w8": {"out": "bfloat16", "activation_scale": "tensor"},
    "w4-g128": {
        "weight": "int4",
        "group_size": 128,
        "out": "bfloat16",
        "activation_scale": "tensor",
    },
}
#: Rotated bytes, as a multiple of L2; milliseconds of a graph, and how often it is replayed.
BEYOND_L2, GRAPH_MS, REPLAYS = 3, 1.0, 20
COPY_BYTES = 1 << 30
#: Kernels whose expected time is more than this multiple of the least are not timed.
WORTH_TIMING = 4.0
#: Seconds for everything, for the problems among them, and without a word from a child.
ALL_SECONDS, PROBLEM_SECONDS, SILENT_SECONDS = 430.0, 180.0, 120.0

Calls = list[Callable[[], Any]]


# What is compiled.


def prepare(folder: Path, target: str) -> None:
    """Compile every kernel that `run` needs."""
    folder.mkdir(parents=True, exist_ok=True)
    start, tasks = time.perf_counter(), list[dict[str, Any]]()
    for seed in range(PROBLEMS):
        draw = random.Random(seed)
        n, k = draw.randint(1, LARGEST_N), draw.choice([256, 512, draw.randint(1, LARGEST_K)])
        file = f"problem{seed}.qmm"
        save(random_spec(partial(pick, draw), n, k), target, folder / file)
        tasks.append({"kind": "problem", "name": f"problem {seed}", "file": file, "seed": seed})
        print(f"\r{seed + 1} of {PROBLEMS} problems", end="", flush=True)
    tasks.append({"kind": "copy", "name": "copy"})
    for n, k in NARROW:
        for form, fields in NARROW_FORMATS.items():
            file = f"narrow{n}-{form}.qmm"
            save(qmm.MatmulSpec(n=n, k=k, **fields), target, folder / file)
            tasks.append({"kind": "graph", "name": f"graph of {file}", "file": file})
            tasks += [timed("times", m, n, k, form, file) for m in FEW]
        tasks += [timed("torch", m, n, k) for m in FEW]
    for m, n, k in SQUARES:
        for form, fields in SQUARE_FORMATS.items():
            file = f"square{n}-{form}.qmm"
            save(qmm.MatmulSpec(n=n, k=k, **fields), target, folder / file)
            tasks.append(timed("times", m, n, k, form, file))
        tasks.append(timed("apart", m, n, k, file=f"square{n}-int32.qmm"))
        tasks.append(timed("torch", m, n, k))
    content = {"target": target, "tasks": tasks}
    write_whole(folder / INDEX, json.dumps(content, indent=1).encode(), qmm.QuantmmError)
    print(f"\n{folder}: kernels for {target}, {time.perf_counter() - start:.0f} s")


def timed(kind: str, m: int, n: int, k: int, form: str = "", file: str = "") -> dict[str, Any]:
    """A task that times something."""
    name = " ".join([kind, f"{m} x {n} x {k}", form]).strip()
    return {"kind": kind, "name": name, "shape": [m, n, k], "format": form, "file": file}


def pick(draw: random.Random, choices: Sequence[Any]) -> Any:
    """One of `choices`."""
    return draw.choice(list(choices))


def save(spec: qmm.MatmulSpec, target: str, path: Path) -> None:
    """One kernel file."""
    qmm.compile(spec, target, cache=False, log=False).save(path)


# Arrays and kernels on the GPU.


def load(path: Path) -> qmm.Kernel:
    """A kernel file's kernel for the GPU."""
    return qmm.load(path, device="cuda")


def alone(kernel: qmm.Kernel) -> Iterator[tuple[CudaFunction, qmm.Kernel]]:
    """Each kernel of a file, and one that has no other."""
    for variant in kernel.info.variants:
        yield variant, qmm.Kernel(replace(kernel.info, variants=(variant,)), kernel.code)


def to_device(array: Any) -> Any:
    """A NumPy array as a torch tensor on the GPU."""
    import torch

    array = np.ascontiguousarray(array)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).cuda().view(torch.bfloat16)
    return torch.from_numpy(array).cuda()


def to_host(tensor: Any) -> np.ndarray:
    """A torch tensor as a NumPy array."""
    import torch

    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.cpu().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.cpu().numpy()


def weight(spec: qmm.MatmulSpec, seed: int = 0) -> qmm.QTensor:
    """A random weight, made in less time than `Problem.weight` takes for large ones."""
    draw = np.random.default_rng(seed)
    columns = spec.k // 2 if spec.weight == "int4" else spec.k
    data = np.frombuffer(draw.bytes(spec.n * columns), np.uint8).reshape(spec.n, columns)
    shape = scale_shape((spec.n, spec.k), spec.group_size)
    scale = draw.uniform(0.001, 0.1, shape).astype(np.float32)
    data = data if spec.weight == "int4" else data.view(np.int8)
    return qmm.QTensor(data, scale, None, spec.weight, spec.group_size, (spec.n, spec.k))


def l2_bytes() -> int:
    """Bytes of the first GPU's L2 cache."""
    return driver.driver().devices()[0].l2_bytes


def rotated(size: int, make: Callable[[], Any]) -> list[Any]:
    """As many copies of something of `size` bytes as L2 cannot hold."""
    return [make() for _ in range(max(2, -(-BEYOND_L2 * l2_bytes() // size)))]


# Times.


def milliseconds(calls: Calls) -> dict[str, Any]:
    """Median, least and spread (half the distance of the quartiles) of one call's milliseconds."""
    import torch

    for call in calls:
        call()
    once = elapsed(lambda: [call() for call in calls])
    rounds = max(1, min(50, math.ceil(GRAPH_MS / max(once, 1e-3))))
    new_stream: Any = torch.cuda.Stream
    stream, how = new_stream(), "graph"
    try:
        with torch.cuda.stream(stream):
            for call in calls:
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(rounds):
                for call in calls:
                    call()
        replay: Callable[[], Any] = graph.replay
    except (RuntimeError, qmm.QuantmmError) as error:
        torch.cuda.synchronize()  # raises where the GPU is lost
        how, rounds = f"calls, as they cannot be captured: {error}"[:200], 1
        replay = lambda: [call() for call in calls]  # noqa: E731
    replay()
    replays = max(5, min(REPLAYS, int(400 / max(once * rounds, 1e-3))))
    times = [elapsed(replay) / rounds / len(calls) for _ in range(replays)]
    quartiles = statistics.quantiles(times, n=4)
    return {
        "median": statistics.median(times),
        "least": min(times),
        "spread": (quartiles[2] - quartiles[0]) / 2,
        "how": how,
    }


def elapsed(work: Callable[[], Any]) -> float:
    """Milliseconds that the GPU spends on what `work` gives it."""
    import torch

    event: Any = torch.cuda.Event
    first, last = event(enable_timing=True), event(enable_timing=True)
    torch.cuda.synchronize()
    first.record()
    work()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last))


@functools.lru_cache(maxsize=1)
def linears_of(path: Path) -> list[Any]:
    """A file's kernel with a weight, as often as L2 cannot hold it."""
    kernel = load(path)
    w, bound = weight(kernel.spec), Problem(kernel.spec, 1).bind_arguments()
    if kernel.spec.out != "int32" and kernel.spec.activation_scale == "tensor":
        bound["x_scale"] = 0.01
    return rotated(w.data.nbytes, lambda: kernel.bind(w, **bound))


@functools.lru_cache(maxsize=1)
def matrices_of(n: int, k: int) -> tuple[list[Any], list[Any]]:
    """Weights for torch, of int8 and bfloat16, as often as L2 cannot hold them."""
    import torch

    narrow = rotated(n * k, lambda: random_bytes(n, k).t())
    return narrow, rotated(2 * n * k, lambda: random_bytes(n, k).to(torch.bfloat16).t())


def random_bytes(rows: int, columns: int) -> Any:
    """A random int8 matrix on the GPU."""
    import torch

    return torch.randint(-128, 128, (rows, columns), dtype=torch.int8, device="cuda")


# Tasks: each gives a result as JSON types.


def check_problem(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """One spec on every kernel of its file, from the device and from the host."""
    kernel = load(folder / task["file"])
    draw, wrong, count = random.Random(task["seed"]), [], 0
    for variant, only in alone(kernel):
        problem = Problem(kernel.spec, draw.choice(ROWS), task["seed"])
        x, w = problem.activation(), problem.weight()
        bind, call = problem.bind_arguments(), problem.call_arguments()
        expected = bounds(kernel.spec, x, w, **bind, **call)
        linear = only.bind(w, **bind)
        there = {
            name: to_device(value) if np.ndim(value) else value for name, value in call.items()
        }
        found = {"device": to_host(linear(to_device(x), **there)), "host": linear(x, **call)}
        for where, y in found.items():
            count += 1
            if differs := difference(y, expected):
                wrong.append(f"{variant.name} m={problem.m} {where}: {differs}")
    return {"spec": kernel.spec.to_json(), "compared": count, "wrong": wrong}


def check_graph(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """Calls captured into a graph and replayed on other numbers; x in place, and made ready."""
    import torch

    kernel, wrong = load(folder / task["file"]), []
    linear = kernel.bind(weight(kernel.spec), x_scale=0.5)
    for m, skipped in ((1, 0), (16, 0), (3, 1)):
        numbers = [Problem(kernel.spec, m, seed=seed).activation() for seed in (0, 1)]
        memory = torch.empty(numbers[0].size + 16, dtype=torch.int8, device="cuda")
        x = memory[skipped : skipped + numbers[0].size].view(numbers[0].shape)
        x.copy_(to_device(numbers[0]))
        y = linear(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            linear(x, y)
        x.copy_(to_device(numbers[1]))
        graph.replay()
        torch.cuda.synchronize()
        if not torch.equal(y, linear(x)):
            wrong.append(f"m={m}: a replayed graph differs")
    return {"compared": 3, "wrong": wrong}


def copy_bandwidth(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """GB/s that a copy reads and writes."""
    import torch

    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    to = torch.empty_like(source)
    return {"gbps": 2 * COPY_BYTES / milliseconds([lambda: to.copy_(source)])["least"] / 1e6}


def time_kernels(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """Every kernel of a file that may be the fastest for M rows: its times, or why it failed."""
    import torch

    linears, (m, _, k) = linears_of(folder / task["file"]), task["shape"]
    kernel: qmm.Kernel = linears[0].kernel
    call = {}
    if kernel.spec.activation_scale == "row":
        call["x_scale"] = torch.rand(m, device="cuda") + 0.01
    x = random_bytes(m, k)
    y = linears[0](x, **call)
    info = kernel.info
    costs = {v.name: v.cost.time(m, info.multiprocessors) for v in info.variants}
    chosen, times = kernel.plan(m).name, dict[str, Any]()
    for variant, only in alone(kernel):
        name = variant.name
        if name != chosen and costs[name] > WORTH_TIMING * min(costs.values()):
            continue
        bound = [linear.for_kernel(only) for linear in linears]
        try:
            times[name] = milliseconds([partial(linear, x, y, **call) for linear in bound])
        except (RuntimeError, qmm.QuantmmError) as error:
            if not usable():
                raise
            times[name] = {"failed": str(error)}
    right = {name: each for name, each in times.items() if "median" in each}
    best = min(right, key=lambda name: right[name]["median"], default=None)
    result = {"shape": task["shape"], "format": task["format"], "chosen": chosen, "best": best}
    if best is not None:
        print(f"  {best}: {right[best]['median'] * 1e3:.1f} us", flush=True)
        log_best(folder, kernel, m, chosen, best, right)
    return {**result, "kernels": times}


def log_best(
    folder: Path, kernel: qmm.Kernel, m: int, chosen: str, best: str, times: dict[str, Any]
) -> None:
    """Add to the record of the kernel's spec what is fastest for M rows."""
    if chosen not in times:
        return
    name = driver.driver().devices()[0].name
    info = kernel.info
    header = cuda_records.header(info.target, info.versions, name)
    database = database_for(folder / TUNED, header)
    before = cuda_records.latest(database.path, info.spec)
    default, fastest = (times[each]["median"] / 1e3 for each in (chosen, best))
    measured = [*before, cuda_records.Measured(m, best, default, fastest)]
    database.add(cuda_records.KERNELS, [cuda_records.as_line(info.spec, measured)])


def time_apart(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """The int32 kernel, and behind it what torch needs to scale its sums: one kernel or a few."""
    import torch

    linears, (m, n, k) = linears_of(folder / task["file"]), task["shape"]
    x, scale = random_bytes(m, k), torch.rand(n, device="cuda")
    sums = linears[0](x)
    halves = torch.empty((m, n), dtype=torch.bfloat16, device="cuda")

    def to_bfloat16(linear: Any) -> None:
        torch.mul(linear(x, sums), scale, out=halves)

    def requantized(linear: Any) -> None:
        torch.mul(linear(x, sums), scale).round_().clamp_(-128, 127).to(torch.int8)

    return {
        "shape": task["shape"],
        "bfloat16": milliseconds([partial(to_bfloat16, linear) for linear in linears]),
        "requantized": milliseconds([partial(requantized, linear) for linear in linears]),
    }


def time_torch(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """Products of torch of the same shape: bfloat16, and int8 for more than 16 rows."""
    import torch

    m, n, k = task["shape"]
    narrow, wide = matrices_of(n, k)
    x = random_bytes(m, k)
    half = x.to(torch.bfloat16)
    result = {"shape": task["shape"]}
    result["bfloat16"] = milliseconds([partial(torch.matmul, half, each) for each in wide])
    if m > 16:
        result["int_mm"] = milliseconds([partial(torch._int_mm, x, each) for each in narrow])
    return result


TASKS = {
    "problem": check_problem,
    "graph": check_graph,
    "copy": copy_bandwidth,
    "times": time_kernels,
    "apart": time_apart,
    "torch": time_torch,
}


# One process does tasks, another one looks after it.


class Tasks:
    """What does tasks, in a process of its own."""

    def do(self, folder: str, task: dict[str, Any]) -> dict[str, Any]:
        """The result of a task.

        Raises
        ------
        WorkerError
            It failed; the message says where.
        """
        start = time.time()
        try:
            result: dict[str, Any] = TASKS[task["kind"]](Path(folder), task)
        except Exception:
            raise WorkerError(traceback.format_exc(limit=-4)) from None
        return {**result, "seconds": time.time() - start}

    def usable(self) -> bool:
        """Whether there is use in further tasks here."""
        return usable()


def usable() -> bool:
    """Whether the GPU still works in this process; some failures are for good."""
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def work(folder: Path, worker: Worker) -> None:
    """Have all tasks done, as long as there is time."""
    (folder / PROGRESS).unlink(missing_ok=True)
    first = time.time()
    deadline = first + ALL_SECONDS
    for task in json.loads((folder / INDEX).read_text())["tasks"]:
        late = task["kind"] == "problem" and time.time() > first + PROBLEM_SECONDS
        if late or time.time() > deadline:
            continue
        say(folder, task["name"], "begun", True)
        seconds = min(SILENT_SECONDS, deadline + SILENT_SECONDS / 4 - time.time())
        try:
            result = worker.call("do", str(folder), task, seconds=seconds)
        except WorkerError as error:
            say(folder, task["name"], "failed", str(error))
            if worker.alive and not worker.call("usable", seconds=SILENT_SECONDS):
                worker.close()  # the next task gets another one
        else:
            say(folder, task["name"], "result", result)
            print(
                f"{task['name']}: {result['seconds']:.1f} s", *result.get("wrong", ()), flush=True
            )
        assemble(folder)


def say(folder: Path, task: str, what: str, content: Any) -> None:
    """A line of progress."""
    line = json.dumps({"task": task, "at": time.time(), what: content}) + "\n"
    with open(folder / PROGRESS, "a", encoding="utf-8") as file:
        file.write(line)


def run(folder: Path, place: str = "gpu_check:Tasks") -> int:
    """Have children do all tasks; the exit status says whether everything was done and right."""
    if not (folder / INDEX).exists():
        print(f"no kernels in {folder}: run `gpu_check.py prepare` first", file=sys.stderr)
        return 2
    places = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    worker = Worker(place, {"PYTHONPATH": places})
    try:
        work(folder, worker)
    finally:
        worker.close()
    results = assemble(folder)
    for line in results["verdicts"]:
        should = "at least {least}" if line["most"] is None else "at most {most}"
        word = "held  " if line["held"] else "MISSED"
        print(f"{word} {line['figure']}: {line['value']:.3g}, {should.format(**line)}")
    for name, reason in results["failed"].items():
        print(f"FAILED {name}: {reason.strip().splitlines()[-1]}")
    for line in results["wrong"]:
        print(f"WRONG  {line}")
    print(f"{len(results['skipped'])} tasks skipped for want of time; see {folder / RESULTS}")
    return 1 if results["wrong"] or results["failed"] or results["skipped"] else 0


def states(folder: Path) -> dict[str, dict[str, Any]]:
    """The last line of every task that was begun."""
    path = folder / PROGRESS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {line["task"]: line for line in map(json.loads, lines)}


# What comes out.


def assemble(folder: Path) -> dict[str, Any]:
    """Write results.json from the progress so far."""
    index, found = json.loads((folder / INDEX).read_text()), states(folder)
    tasks = {task["name"]: task["kind"] for task in index["tasks"]}
    done = {name: line["result"] for name, line in found.items() if "result" in line}

    def of(kind: str) -> list[dict[str, Any]]:
        return [done[name] for name, each in tasks.items() if each == kind and name in done]

    results = {
        **whereabouts(),
        "target": index["target"],
        "compared": sum(each["compared"] for each in of("problem") + of("graph")),
        "wrong": [f"{n}: {w}" for n, each in done.items() for w in each.get("wrong", ())],
        "failed": {name: line["failed"] for name, line in found.items() if "failed" in line},
        "skipped": [name for name in tasks if name not in found],
        "copy_gbps": next((each["gbps"] for each in of("copy")), None),
        **{kind: of(kind) for kind in ("times", "apart", "torch")},
    }
    judged = [{**asdict(each), "held": each.held} for each in verdicts(results)]
    results["verdicts"] = judged
    write_whole(folder / RESULTS, json.dumps(results, indent=1).encode(), qmm.QuantmmError)
    return results


def whereabouts() -> dict[str, Any]:
    """The GPU and the versions, as far as this process, which does not use them, can tell."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        device: Any = asdict(driver.driver().devices()[0])
    except (qmm.QuantmmError, IndexError) as error:
        device = str(error)
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "missing"
    return {"device": device, "torch": torch}


@dataclass(frozen=True)
class Verdict:
    """A figure beside what it should be at least, or at most."""

    figure: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def held(self) -> bool:
        """Whether it is."""
        return self.value >= (self.least or 0) and self.value <= (self.most or math.inf)


def verdicts(results: dict[str, Any]) -> Iterator[Verdict]:
    """The figures of docs/gpu.md, of the kernels that quantmm chooses by itself."""
    ours = {
        (*each["shape"], each["format"]): median(each["kernels"].get(each["chosen"]))
        for each in results["times"]
    }
    torch = {tuple(each["shape"]): each for each in results["torch"]}
    apart = {tuple(each["shape"]): each for each in results["apart"]}
    for (m, n, k, form), time_of in ours.items():
        if time_of is None:
            continue
        name = f"{m} x {n} x {k} {form}"
        bfloat16 = median(torch.get((m, n, k), {}).get("bfloat16"))
        if bfloat16 and (m <= 64 or m >= 1024):
            yield Verdict(f"{name}, as fast as bfloat16 matmul", bfloat16 / time_of, 1.0)
        if (m, n, k) in SQUARES:
            int_mm = median(torch.get((m, n, k), {}).get("int_mm"))
            if int_mm:
                yield Verdict(f"{name}, as fast as int_mm", int_mm / time_of, 0.65)
            if two := median(apart.get((m, n, k), {}).get(form)):
                yield Verdict(f"{name}, as fast as int32 and a scaling", two / time_of, 1.2)
        if m == 1 and results["copy_gbps"]:
            size = n * k * (0.5 if form.startswith("w4") else 1)
            share = size / time_of / 1e6 / results["copy_gbps"]
            yield Verdict(f"{name}, share of the copy bandwidth", share, 0.85)
        if m == 1 and form.startswith("w4") and (eight := ours.get((m, n, k, "w8"))):
            yield Verdict(f"{name}, as fast as w8", eight / time_of, 1.8)
        if m == 16 and (one := ours.get((1, n, k, form))):
            yield Verdict(f"{name}, time over that of M = 1", time_of / one, None, 1.3)


def median(times: dict[str, Any] | None) -> float | None:
    """Milliseconds; None where it failed or was not reached."""
    return (times or {}).get("median")


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
