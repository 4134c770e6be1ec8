"""`quantmm bench --inside`: who takes turns in a host's process, how, and what is said of it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import quantmm as qmm
from quantmm import processes
from quantmm.bench import contenders
from quantmm.bench.contenders import CONTENDERS, OURS, Contender, Job
from quantmm.bench.export import to_json
from quantmm.bench.inside import calls, clock, company, encoder, encoders, export, hosts, page, row
from quantmm.bench.inside.compare import compare
from quantmm.bench.timing import Time
from quantmm.errors import BenchError, ToolError
from quantmm.formats.named import fields_of

needs_torch = pytest.mark.usefixtures("torch")
#: Square linears, so that each format is compiled once.
SMALL = encoder.Size(layers=2, width=64, hidden=64, heads=4)


def job(m=3, threads=2, format="int8"):
    return Job(qmm.MatmulSpec(n=32, k=64, **fields_of(format)), m, threads, False, "host")


class MadeUpClock:
    """Time passes only where a test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def passing(self, seconds):
        def wait():
            self.now += seconds

        return wait


@pytest.mark.parametrize(
    ("seconds", "made"),
    [
        (0.0, clock.WAKING + clock.MOST),
        (clock.SAMPLE_SECONDS, clock.WAKING + clock.LEAST),
    ],
)
def test_a_sample_is_the_median_of_calls_without_what_stands_before_them(seconds, made):
    now, done = MadeUpClock(), []

    def call():
        done.append(now())
        now.now += len(done) * 1e-6  # the call's number

    median = clock.median_call(itertools.repeat(call), now.passing(seconds), now)
    assert len(done) == made
    assert median == pytest.approx(np.median(np.arange(clock.WAKING, made) + 1) * 1e-6)


def test_no_more_calls_are_begun_once_a_sample_has_lasted():
    now, done = MadeUpClock(), []
    wait = now.passing(clock.SAMPLE_SECONDS / 10)
    clock.median_call(itertools.repeat(lambda: done.append(1)), wait, now)
    assert clock.WAKING + clock.LEAST < len(done) == 10 < clock.WAKING + clock.MOST


def test_alone_and_inside_differ_in_the_threads_of_the_operation_before_a_call(monkeypatch):
    seen = []
    operations = hosts.Operations(seen.append, lambda: seen.append("operation"))
    orders = calls.changing_order()

    def once(rotation, before):
        before()
        next(rotation)()
        return float(len(seen))

    monkeypatch.setattr(calls, "median_call", once)
    rotation = itertools.cycle([lambda: seen.append("a"), lambda: seen.append("b")])
    samples = [calls.sample(operations, 7, rotation, orders) for _ in range(2)]
    alone, inside = [1, "operation", 7], [7, "operation", 7]
    assert seen == [*alone, "a", *inside, "b", *inside, "a", *alone, "b"]
    assert samples == [{"alone": 4.0, "inside": 8.0}, {"inside": 12.0, "alone": 16.0}]


def test_everyone_has_a_turn_in_every_round_and_orders_differ():
    names = ["a", "b", "c", "d"]
    facts = company.Facts(dict.fromkeys(names, ""), {}, "a pool")
    shared = company.Company({name: name.upper for name in names}, facts)
    assert company.Facts(**json.loads(shared.about)) == facts
    turns = [shared.turn() for _ in range(40)]
    rounds = [[turn["contender"] for turn in turns[i : i + 4]] for i in range(0, 40, 4)]
    assert all(sorted(each) == names for each in rounds)
    assert len({*map(tuple, rounds)}) > 1
    assert all(turn["sample"] == turn["contender"].upper() for turn in turns)


def test_operations_of_numpy_have_the_threads_they_are_told():
    from threadpoolctl import threadpool_info, threadpool_limits

    operations = hosts.numpy_operations()
    with threadpool_limits(None):  # puts back what there was
        for count in (1, 2):
            operations.set_threads(count)
            assert {
                each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"
            } == {count}
            assert operations.operate().shape == (hosts.ROWS, hosts.WIDTH)


@needs_torch
def test_operations_of_torch_have_the_threads_they_are_told():
    import torch

    operations, before = hosts.torch_operations(), torch.get_num_threads()
    try:
        for count in (1, 2):
            operations.set_threads(count)
            assert torch.get_num_threads() == count
            assert operations.operate().shape == (hosts.ROWS, hosts.WIDTH)
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def fakes(monkeypatch):
    """Made-up contenders on NumPy's threads, which child processes can import too."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent), prepend=os.pathsep)
    monkeypatch.setattr(processes, "EXIT_SECONDS", 1.0)

    def give(*names):
        table = [Contender(name, f"fake_contenders:{name}", ("numpy",)) for name in names]
        table.append(Contender("old", "fake_contenders:right", ("numpy",), baseline=True))
        table.append(Contender("elsewhere", "fake_contenders:right", ("pool_of_its_own",)))
        monkeypatch.setattr(contenders, "CONTENDERS", tuple(table))
        monkeypatch.setattr(hosts, "CONTENDERS", tuple(table))
        monkeypatch.setattr(contenders, "GROUPS", ("numpy", "pool_of_its_own"))

    return give


def test_who_is_wrong_is_left_out_and_others_share_a_process(fakes):
    fakes("right", "wrong")
    found = compare(job(), "numpy", rounds=3)
    assert found.names == ["quantmm", "right", "old"]
    assert (found.best_peer, found.baselines) == ("right", ("old",))
    assert {*found.absent} == {"wrong"}
    assert found.absent["wrong"].startswith("ArithmeticError: wrong result, relative error 1")
    assert found.about["right"] == "made up"
    assert found.pool == "quantmm's own"
    for times in (found.alone, found.inside):
        assert {name: len(time.samples) for name, time in times.items()} == dict.fromkeys(
            found.names, 3
        )


def test_who_ends_the_process_ends_the_measurement(fakes):
    fakes("right", "dies")
    message = r"inside numpy, 3 x 32 x 64 hot, could not be measured: exit code 9: no more memory"
    with pytest.raises(BenchError, match=message):
        compare(job(), "numpy", rounds=1)


def test_who_leaves_no_memory_is_left_out(monkeypatch):
    monkeypatch.setattr(calls, "MEMORY_SHARE", 0.0)
    with pytest.raises(MemoryError, match="not enough memory for this shape"):
        calls.built(OURS, job(threads=1))


def test_a_host_has_to_be_there(monkeypatch):
    with pytest.raises(BenchError, match="no host 'jax'; expected one of torch, numpy"):
        compare(job(), "jax")
    other = Job(qmm.MatmulSpec(n=32, k=64), 3, 1, False, "arm-i8mm")
    with pytest.raises(qmm.QuantmmError, match="arm-i8mm cannot run here"):
        compare(other, "numpy")
    missing = hosts.Host("torch", ("torch",), ("no_such_module",), hosts.torch_operations)
    monkeypatch.setattr(hosts, "HOSTS", (missing,))
    with pytest.raises(ToolError, match="--inside torch needs no_such_module: pip install"):
        compare(job(), "torch")


def test_only_contenders_on_the_hosts_threads_can_be_asked_for(fakes):
    fakes("right")
    message = (
        "'elsewhere' does not run on the threads of numpy; with --inside numpy expected some of "
        "numpy"
    )
    with pytest.raises(BenchError, match=message):
        compare(job(), "numpy", ["elsewhere"])
    with pytest.raises(BenchError, match="no contender 'cublas'"):
        compare(job(), "numpy", ["cublas"])


def test_every_contender_of_torch_is_one_of_its_host():
    on_torch = {each.name for each in CONTENDERS if hosts.find_host("torch").has(each)}
    assert on_torch == {each.name for each in CONTENDERS if each.needs == ("torch",)}
    on_numpy = {each.name for each in CONTENDERS if hosts.find_host("numpy").has(each)}
    assert on_numpy == {"numpy"}
    assert not hosts.find_host("torch").has(OURS)


@pytest.fixture(scope="module")
def made_up():
    """A row with times that were made up: inside, quantmm takes what it takes alone."""

    def times(**seconds):
        return {name: Time((t, t * 1.1, t * 1.2)) for name, t in seconds.items()}

    return row.InsideRow(
        job=job(),
        host="torch",
        target="generic",
        alone=times(quantmm=1e-3, slow=1e-3, quick=2e-3, float32=3e-3),
        inside=times(quantmm=1e-3, slow=9e-3, quick=3e-3, float32=4e-3),
        baselines=("float32",),
        absent={"int_mm": "refuses"},
        about={"quantmm": "gemv"},
        pool="OpenMP, libgomp",
        busy_cores=0.5,
        stolen_cores=0.0,
    )


def test_a_row_says_what_company_costs_and_who_is_best_in_it(made_up):
    assert made_up.names == ["quantmm", "quick", "slow", "float32"]
    assert made_up.best_peer == "quick"
    assert made_up.ratio("quick").value == pytest.approx(3.0)
    assert made_up.slowdown("slow").value == pytest.approx(9.0)
    assert made_up.slowdown("quantmm").value == 1.0
    found = json.loads(to_json([made_up], {"cpu": "a CPU"}, encoders=[]))["rows"][0]
    assert found["ratios"]["quick"]["value"] == pytest.approx(3.0)
    assert found["slowdowns"]["slow"]["value"] == pytest.approx(9.0)
    assert found["measured"]["inside"]["slow"]["samples"] == [*made_up.inside["slow"].samples]


def test_a_row_in_the_form_of_the_page(made_up):
    columns = export.HEADER.splitlines()[0].count("|")
    assert [line.count("|") for line in export.HEADER.splitlines()] == [columns] * 2
    first, baseline = export.markdown(made_up).splitlines()
    assert first == (
        "| 3 x 32 x 64 hot | 2 | 1.1000 | 1.1000 | ~1.00 | quick | 2.2000 | 3.3000 | 1.50 | 3.00 |"
    )
    assert baseline == "|  |  |  |  |  | float32 | 3.3000 | 4.4000 | 1.33 | 4.00 |"
    assert export.closing([made_up]) == [
        "int8, generic, 2 threads: a call inside torch takes 1.00 times what it takes alone; 3.00 "
        "times as fast there as the best peer of 1 shape (geometric means)",
        "quantmm's kernels ran on these threads: OpenMP, libgomp",
        "During 1 of 1 shapes other programs used more than 10% of a core.",
        "int8: without int_mm: refuses",
    ]


def test_a_row_of_the_encoder_in_the_form_of_the_page():
    seconds = dict(zip(encoder.VARIANTS, (4e-3, 2e-3, 1e-3, 4e-3), strict=True))
    times = {name: Time((t, t * 1.1, t)) for name, t in seconds.items()}
    made = encoders.EncoderRow(SMALL, 2, 5, 2, times, {}, "a pool", 0.0, 0.0)
    assert made.best_torch == "torch dynamic int8"
    line = export.encoder_markdown(made)
    assert line == "| 2 x 5 | 2 | 4.0000 | 2.0000 | 1.0000 | 4.0000 | 2.00 | 0.50 |"
    assert {each.count("|") for each in export.ENCODER_HEADER.splitlines()} == {line.count("|")}


@needs_torch
def test_contenders_of_torch_take_turns_in_one_process():
    found = compare(job(format="w8a8-dynamic"), "torch", ["torch"], rounds=2)
    assert {*found.names} | {*found.absent} == {
        *("quantmm", "torch_x86", "torch_fbgemm", "torch_onednn", "float32", "bfloat16")
    }
    assert {"quantmm", "float32"} <= {*found.names}
    assert found.pool.startswith("OpenMP, ")


@needs_torch
def test_the_encoder_takes_turns_with_its_quantized_copies():
    found = encoders.compare(SMALL, batch=2, tokens=5, threads=2, rounds=2)
    assert [*found.times] == [*encoder.VARIANTS]
    assert not found.absent
    assert found.title == "2 x 5"
    assert found.pool.startswith("OpenMP, ")
    assert all(len(time.samples) == 2 for time in found.times.values())


@needs_torch
def test_a_variant_that_computes_something_else_is_refused():
    import torch

    exact = torch.ones(2, 3)
    encoders.check(exact * 1.01, exact)
    for wrong, message in (
        (2 * exact, "wrong result, relative error 1"),
        (exact * float("nan"), "wrong result, relative error nan"),
        (exact[:1], r"result of shape \(1, 3\), not \(2, 3\)"),
    ):
        with pytest.raises((ArithmeticError, ValueError), match=message):
            encoders.check(wrong, exact)


@needs_torch
def test_the_encoder_is_always_the_same_and_leaves_random_numbers_alone():
    import torch

    state = torch.random.get_rng_state()
    x = torch.randn(2, 5, SMALL.width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        first, second = (encoder.encoder(SMALL)(x) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), state)


TINY = ["bench", "--m", "3", "--n", "32", "--k", "64", "--hot", "--threads", "1", "--rounds", "1"]


def test_the_command_prints_a_line_for_everyone(quantmm):
    status, out, _ = quantmm(*TINY, "--inside", "numpy")
    assert status == 0
    title, _, ours, numpy, *_ = out.splitlines()
    assert " inside numpy on " in title
    assert ours.split()[:9] == ["3", "x", "32", "x", "64", "hot", "int8", "1", "quantmm"]
    assert numpy.split()[0] == "numpy"
    assert "a call inside numpy takes" in out


def test_the_command_writes_everything(quantmm, tmp_path):
    status, out, _ = quantmm(*TINY, "--inside", "numpy", "--format", "w4a8-g32", "--json")
    assert status == 0
    content = json.loads(out)
    (found,) = content["rows"]
    assert content["environment"]["versions"]["quantmm"]
    assert found["format"] == "w4a8-g32"
    assert {*found["alone"]} == {*found["inside"]} == {"quantmm", "numpy"}
    path = tmp_path / "inside.json"
    status, out, _ = quantmm(*TINY, "--inside", "numpy", "--json", path)
    assert status == 0
    assert "quantmm" in out
    assert len(json.loads(path.read_text())["rows"]) == 1


@needs_torch
def test_the_command_repeats_the_tables_of_the_page(quantmm, monkeypatch, tmp_path):
    calls_table = page.Section("calls", "w8a8-dynamic", (page.Shape(1, 32, 64, hot=True),))
    monkeypatch.setattr(page, "CALLS", calls_table)
    monkeypatch.setattr(page, "SIZE", SMALL)
    monkeypatch.setattr(page, "INPUTS", ((2, 5),))
    path = tmp_path / "page.json"
    words = ["--inside", "torch", "--check", "--threads", "2", "--rounds", "1", "--json", path]
    status, out, _ = quantmm("bench", *words)
    assert status == 0
    assert f"calls:\n\n{export.HEADER}\n| 1 x 32 x 64 hot | 2 | " in out
    assert f"{page.ENCODER}:\n\n{export.ENCODER_HEADER}\n| 2 x 5 | 2 | " in out
    content = json.loads(path.read_text())
    assert [len(content[name]) for name in ("rows", "encoders")] == [1, 1]
    assert content["encoders"][0]["measured"]["batch"] == 2


def test_what_was_measured_before_a_failure_is_written(quantmm, monkeypatch, made_up, tmp_path):
    rows = iter((made_up,))

    def compare(*_):
        try:
            return next(rows)
        except StopIteration:
            raise BenchError("no more") from None

    monkeypatch.setattr("quantmm.cli.inside.compare", compare)
    path = tmp_path / "inside.json"
    status, _, err = quantmm(*TINY, "--m", "3,4", "--inside", "numpy", "--json", path)
    assert (status, err) == (2, "quantmm: no more\n")
    assert len(json.loads(path.read_text())["rows"]) == 1


def test_a_row_without_quantmm_is_a_failure(quantmm, monkeypatch, made_up):
    without = {name: time for name, time in made_up.inside.items() if name != "quantmm"}
    absent = {"quantmm": "not today"}
    rest = dataclasses.replace(made_up, alone=without, inside=without, absent=absent)
    assert export.markdown(rest).startswith("| 3 x 32 x 64 hot | 2 |  |  |  | quick | ")
    assert rest.ratio("quick") is None
    monkeypatch.setattr("quantmm.cli.inside.compare", lambda *_: rest)
    status, out, err = quantmm(*TINY, "--inside", "numpy")
    assert status == 2
    assert "quick" in out
    assert err == (
        "quantmm: quantmm took no part in 1 of 1 rows, the first int8 3 x 32 x 64 hot: not today\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--inside", "jax"], "no host 'jax'; expected one of torch, numpy"),
        (["--inside", ""], "no host ''; expected one of torch, numpy"),
        (["--inside"], "Option '--inside' requires an argument"),
        (
            ["--inside", "numpy", "--html", "x", "--csv", "--rpc", "a:1", "--key", "k"],
            "--csv, --html, --key, --rpc: --inside measures in a process of this machine, and",
        ),
        (
            ["--inside", "numpy", "--against", "onnxruntime"],
            "'onnxruntime' does not run on the threads of numpy; with --inside numpy expected some",
        ),
        (["--inside", "numpy", "--check"], "--inside numpy --check: the page has tables of torch"),
        (["--inside", "torch", "--check", "--m", "1"], "--m: --check decides this itself"),
        (["--inside", "numpy", "--json", "/nowhere/x"], "cannot write /nowhere/x"),
        (["--inside", "numpy", "--format", "int3"], "no format 'int3'"),
    ],
)
def test_errors(quantmm, words, message):
    status, out, err = quantmm("bench", *words)
    assert (status, out) == (2, "")
    assert err.startswith("quantmm: ")
    assert message in err


def test_the_page_has_both_kinds_of_tables():
    shapes = {(each.m, each.n, each.k) for each in page.CALLS.shapes}
    sides = (384, 1536, 4096)
    assert shapes == {(m, n, k) for m in (1, 16, 128, 512) for n in sides for k in sides}
    assert all(not each.cold for each in page.CALLS.jobs(2))
    assert [*page.inputs([1, 2])] == [
        (*each, threads) for threads in (1, 2) for each in ((32, 16), (1, 128), (1, 12))
    ]
