from __future__ import annotations

import dataclasses
import datetime
import io
import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import quantmm as qmm
from quantmm.cli import compile as cli_compile
from quantmm.cli import demo as cli_demo
from quantmm.cli import help as cli_help
from quantmm.cli import main as cli_main
from quantmm.cli import tables as cli_tables
from quantmm.cli import targets as cli_targets
from quantmm.cli import verify as cli_verify
from quantmm.compiler import linker
from quantmm.formats import problem as problem_module
from quantmm.formats.reference import Bounds
from quantmm.runtime import threads
from quantmm.runtime.kernel_file import contents
from quantmm.targets import verified
from quantmm.targets.verified import Record
from quantmm.versions import SCHEDULE_VERSION
from rich.console import Console

SMALL = ["--n", "20", "--k", "33"]


def test_targets(quantmm):
    status, out, _ = quantmm("targets")
    assert status == 0
    for target in qmm.targets.TARGETS:
        (line,) = [line for line in out.splitlines() if line.startswith(target.name + " ")]
        assert target.instruction.name in line
        assert ("yes" in line) == (qmm.targets.why_not_here(target) is None)
    assert out.count("(host)") == 1
    last = out.splitlines()[-1]
    assert f"up to {threads.default_threads()} threads: {threads.pool_name()}" in last


def record(target, how, schedule=SCHEDULE_VERSION, cpu="Chip 1", date="2026-11-24"):
    return Record(target, how, cpu, 9, date, {"schedule": str(schedule), "tvm": "0"})


def cells(records, width):
    """The table of targets as rows of words, by the first of them; continued lines are joined."""
    console = Console(width=width, file=io.StringIO())
    console.print(cli_targets.targets_table(records))
    head, *lines = console.file.getvalue().splitlines()
    starts = [head.index(word) for word in ("target", "instr", "chips", "runs", "verified")]
    rows = []
    for line in lines:
        parts = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        if parts[0]:
            rows.append(parts)
        else:
            rows[-1] = [f"{a} {b}".strip() for a, b in zip(rows[-1], parts, strict=True)]
    assert max(map(len, lines)) <= width
    return {row[0]: row[1:] for row in rows}


def test_targets_are_readable_on_a_hundred_columns():
    records = [record(target.name, "native") for target in qmm.targets.TARGETS]
    rows = cells(records, 100)
    every = [*qmm.targets.TARGETS, *qmm.targets.CUDA_TARGETS]
    assert list(rows) == [target.name for target in every]
    for target in every:
        assert rows[target.name][:2] == [target.instruction.name, target.description]
    for target in qmm.targets.TARGETS:
        assert rows[target.name][3] == "Chip 1 (2026-11-24)"


def test_targets_say_how_they_were_verified():
    now = SCHEDULE_VERSION
    native = [record("generic", "native"), record("generic", "native", cpu="Chip 2")]
    qemu = record("generic", "qemu-aarch64 7.2 -cpu max")
    instruction = record("generic", "emulated instruction")
    semantics = record("generic", "emulated semantics")
    old = record("generic", "native", now - 1)

    def shown(*records):
        return cells(records, 300)["generic"][3]

    assert shown() == shown(record("x86-avx2", "native")) == "nothing yet"
    assert shown(semantics) == "emulated semantics only (2026-11-24)"
    assert shown(semantics, instruction) == "emulated instruction (2026-11-24)"
    assert shown(semantics, qemu, instruction) == "qemu-aarch64 7.2 -cpu max (2026-11-24)"
    both = "Chip 1 (2026-11-24); Chip 2 (2026-11-24)"
    assert shown(semantics, *native, qemu) == both
    stale = "Chip 1 (2026-11-24, older schedules)"
    assert shown(old) == stale
    assert shown(old, native[1]) == f"Chip 2 (2026-11-24); {stale}"
    # What is older does not stand in the way of what is weaker.
    assert shown(semantics, old, qemu) == f"{stale}; qemu-aarch64 7.2 -cpu max (2026-11-24)"


def test_compile_writes_a_kernel(quantmm, tmp_path):
    path = tmp_path / "k.qmm"
    status, out, _ = quantmm("compile", *SMALL, "--out", "int32", "--m", 3, "-o", path)
    assert status == 0
    assert str(path) in out
    spec = qmm.MatmulSpec(n=20, k=33, out="int32", m=3)
    assert qmm.load(path).spec == spec
    assert f"  {qmm.targets.host().name}: {qmm.targets.host().instruction.name}, " in out
    status, out, _ = quantmm("inspect", path, "--json")
    (kernel,) = json.loads(out)["kernels"]
    assert json.loads(out)["spec"] == spec.to_json()
    assert (kernel["target"], kernel["why_not_here"]) == (qmm.targets.host().name, None)


def test_compile_for_several_targets(quantmm, tmp_path, monkeypatch):
    path = tmp_path / "k.qmm"
    names = list(dict.fromkeys(["generic", qmm.targets.host().name]))
    words = ["compile", *SMALL, "--m", 1, "-o", path, "--target"]
    status, out, _ = quantmm(*words, ",".join(names))
    assert status == 0
    first, *rest = out.splitlines()
    assert first.startswith(f"{path}: {{")
    best_first = [row.name for row in qmm.targets.TARGETS if row.name in names]
    assert [line.split(":")[0].strip() for line in rest] == best_first
    assert qmm.load(path).info.target == best_first[0]
    status, out, err = quantmm(*words, "generic,generic")
    assert (status, out) == (2, "")
    assert "one kernel per target; given twice: generic" in err
    monkeypatch.setattr(qmm.targets.machine, "architecture", lambda: "s390x")
    status, out, _ = quantmm("inspect", path, "--json")
    assert status == 0
    for kernel in json.loads(out)["kernels"]:
        assert kernel["why_not_here"].endswith(", this machine is s390x")


def test_scales_of_groups(quantmm):
    words = ["verify", "--n", 20, "--k", 72, "--m", 3, "--activation-scale", "group"]
    status, out, _ = quantmm(*words, "--group-size", 32, "--input", "float32", "--dynamic")
    assert (status, out.strip()) == (0, "1 of 1 problems agree with the reference")
    status, _, err = quantmm(*words)
    assert status == 2
    assert "activation_scale='group' with group_size=None, which has no groups" in err


def test_verify(quantmm):
    status, out, _ = quantmm("verify", *SMALL, "--m", 7, "--bias", "--group-size", "tensor")
    assert (status, out.strip()) == (0, "1 of 1 problems agree with the reference")
    status, out, _ = quantmm("verify", "--random", 3, "--target", "generic")
    assert (status, out.strip()) == (0, "3 of 3 problems agree with the reference")


@pytest.fixture
def wrong_reference(monkeypatch):
    """Every comparison fails."""
    bounds = problem_module.bounds

    def wrong(*arguments, **keywords):
        found = bounds(*arguments, **keywords)
        return Bounds(found.low + np.int32(1), found.high + np.int32(1))

    with monkeypatch.context() as patch:
        patch.setattr(problem_module, "bounds", wrong)
        yield


@pytest.mark.parametrize("more", [[], ["--emulated"]])
@pytest.mark.usefixtures("wrong_reference")
def test_a_failure_prints_the_line_that_repeats_it(quantmm, more):
    words = ["verify", *SMALL, "--out", "int32", "--activation", "uint8", "--seed", "5", *more]
    status, out, err = quantmm(*words)
    assert status == 2
    assert "320 of 320 differ, the first at [0, 0]: got" in err
    again = shlex.split(out.strip())
    assert again[0] == "quantmm"
    assert ("--emulated" in again) == bool(more)
    assert quantmm(*again[1:])[1:] == (out, err)


def test_random_failures_are_repeated_by_their_line(quantmm, monkeypatch):
    for seed in range(40):
        problem = cli_verify.random_problem(qmm.targets.host(), seed)
        words = shlex.split(problem.line("host"))[1:]
        seen = []
        with monkeypatch.context() as patch:
            patch.setattr(cli_verify, "check", lambda p, kernel, seen=seen: seen.append(p))
            patch.setattr("quantmm.compiler.cpu.build", lambda *_: None)
            assert quantmm(*words)[0] == 0
        assert seen == [problem]


def test_verify_without_the_chip(quantmm, monkeypatch):
    target = next((row for row in qmm.targets.TARGETS if qmm.targets.why_not_here(row)), None)
    if target is None:
        pytest.skip("this machine executes every target")
    status, out, err = quantmm("verify", "--random", 1, "--target", target.name)
    assert (status, out) == (2, "")
    reason = qmm.targets.why_not_here(target)
    assert f"target {target.name} cannot run here: {reason}; with --emulated it is" in err
    status, out, _ = quantmm("verify", "--random", 2, "--target", target.name, "--emulated")
    assert (status, out.strip()) == (0, "2 of 2 problems agree with the reference")


def test_verify_records_what_agreed(quantmm, tmp_path, monkeypatch):
    path = tmp_path / "verified.json"
    words = ["verify", "--target", "generic", "--random"]
    status, out, _ = quantmm(*words, 1, "--record", path)
    assert status == 0
    (first,) = verified.read(path)
    assert out.splitlines() == [
        "1 of 1 problems agree with the reference",
        f"{path}: {first.to_json()}",
    ]
    versions = qmm.compile(qmm.MatmulSpec(n=4, k=4, m=1), "generic").info.versions
    today = datetime.date.today().isoformat()
    assert first == Record("generic", "native", qmm.targets.cpu_name(), 1, today, versions)
    # The same again is one record, another way is another.
    assert quantmm(*words, 2, "--record", path)[0] == 0
    assert quantmm(*words, 1, "--emulated", "--record", path)[0] == 0
    again, emulated = verified.read(path)
    assert again == dataclasses.replace(first, problems=2)
    assert emulated == dataclasses.replace(first, how="emulated semantics")


def test_verify_records_beside_the_targets(quantmm, tmp_path, monkeypatch):
    """Without a FILE, where `quantmm targets` reads it."""
    written = []
    monkeypatch.setattr(verified, "write", lambda *words: written.append(words))
    assert quantmm("verify", "--record", "--random", 1, "--target", "generic")[0] == 0
    ((record, path),) = written
    assert (record.target, path) == ("generic", verified.PATH)


@pytest.mark.usefixtures("wrong_reference")
def test_verify_records_no_failure(quantmm, tmp_path):
    words = ["verify", "--random", 3, "--record", tmp_path / "verified.json"]
    assert quantmm(*words)[0] == 2
    assert list(tmp_path.iterdir()) == []


def test_verify_that_cannot_record_does_not_start(quantmm, tmp_path, monkeypatch):
    monkeypatch.setattr(cli_verify, "verify", lambda *_: pytest.fail("started"))
    words = ["verify", "--random", 3, "--record"]
    status, out, err = quantmm(*words, tmp_path / "no" / "file.json")
    assert (status, out) == (2, "")
    assert "cannot write" in err
    path = tmp_path / "other.json"
    path.write_text('{"precious": 1}')
    status, out, err = quantmm(*words, path)
    assert (status, out) == (2, "")
    assert f"{path} holds no records of quantmm verify" in err
    assert path.read_text() == '{"precious": 1}'


def test_bench(quantmm):
    words = ["bench", "--m", "1,40", "--n", "64", "--k", "128", "--threads", "1"]
    words += ["--rounds", "2"]
    status, out, _ = quantmm(*words)
    assert status == 0
    assert [line.split()[:5] for line in out.splitlines()[2:4]] == [
        ["1", "x", "64", "x", "128"],
        ["40", "x", "64", "x", "128"],
    ]
    status, out, _ = quantmm(*words, "--json", "--activation-scale", "row")
    assert status == 0
    first, second = json.loads(out)["rows"]
    assert (first["measured"]["job"]["m"], first["measured"]["job"]["cold"]) == (1, True)
    assert second["measured"]["job"]["cold"] is False
    for row in (first, second):
        assert row["share"] == pytest.approx(row["floor"] / row["medians"]["quantmm"])
        ratio = row["medians"]["numpy"] / row["medians"]["quantmm"]
        assert row["ratios"]["numpy"]["value"] == pytest.approx(ratio)


@pytest.mark.parametrize(("form", "text"), [("te", "acc"), ("tir", "T.parallel"), ("asm", ".text")])
def test_inspect(quantmm, form, text):
    status, out, _ = quantmm("inspect", *SMALL, "--emit", form)
    assert status == 0
    assert text in out


def test_inspect_reports(quantmm):
    status, out, _ = quantmm("inspect", *SMALL, "--m", 1)
    assert status == 0
    assert json.loads(out)[0]["strategy"] == "gemv"


def test_demo(quantmm):
    status, out, _ = quantmm("demo")
    assert status == 0
    assert "equal to the reference: True" in out
    assert re.search(r"a call takes \d+\.\d+ ms on up to \d+ threads", out)
    assert "{" not in out
    steps = [line.split("   ")[0] for line in out.partition("What next:\n")[2].splitlines()]
    assert [step.split()[1] for step in steps] == ["quantize", "compile", "--help"]


def test_a_demo_that_differs(quantmm, monkeypatch):
    monkeypatch.setattr(cli_demo, "reference", lambda *_: np.zeros((16, 1024), np.float32))
    status, out, err = quantmm("demo")
    assert (status, err) == (2, "quantmm: the kernel differs from the reference\n")
    assert "What next" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compile", "--n", "8", "-o", "k.qmm"], "give --n and --k, or --model"),
        (["compile", "--n", "0", "--k", "8", "-o", "x"], "n=0; expected a whole number"),
        (["compile", *SMALL, "--target", "z80", "-o", "x"], "no target 'z80'"),
        (["compile", *SMALL, "-o", "/nowhere/k.qmm"], "cannot write /nowhere/k.qmm"),
        (["compile", *SMALL, "--weight", "int3", "-o", "x"], "'int3' is not one of"),
        (["compile", *SMALL, "--group-size", "12", "-o", "x"], "multiple of 8"),
        (["compile", *SMALL, "--target", "generic,", "-o", "x"], "expected names such as x86-avx2"),
        (["verify"], "give --n and --k, or --random COUNT"),
        (["verify", *SMALL, "--record"], "--record is for --random COUNT problems"),
        (["verify", *SMALL, "--m", "0"], "m=0; expected a whole number"),
        (["bench", "--m", "1,two"], "expected whole numbers such as 1,16,512"),
        (["inspect"], "give --n and --k, or a kernel file"),
        (["inspect", "/nowhere/k.qmm"], "cannot read /nowhere/k.qmm"),
        (["fly"], "No such command 'fly'"),
        (["verify", *SMALL, "--seed", "-1"], "'--seed': -1 is not in the range"),
        (["tune", *SMALL, "--seed", "-1"], "'--seed': -1 is not in the range"),
        (["verify", *SMALL, "--group-size", "²"], "group_size='²'; expected None, 'tensor' or a"),
        (["verify", *SMALL, "--group-size", "9" * 5000], "expected None, 'tensor' or a multiple"),
        (["bench", "--m", "²"], "'²'; expected whole numbers such as 1,16,512"),
        (["bench", "--m", "9" * 5000], "expected whole numbers such as 1,16,512"),
        (["verify", *SMALL, "--m", "9" * 20], "is not in the range x<=2147483647"),
        (["verify", "--n", "9" * 5000, "--k", "8"], "is not a valid integer"),
        (["tracker", "--host", "bogus..host"], "'bogus..host' is no host name"),
        (["serve", "--tracker", "a:1", "--key", "k", "--host", "x" * 99], "is no host name"),
        (["compile", *SMALL, "-o", "/dev/null"], "cannot write /dev/null: a device, pipe or socke"),
        (["inspect", "k.qmm", "--n", "8"], "give --n and --k, or a kernel file; not both"),
        (["inspect", *SMALL, "--json"], "--json is for a kernel file"),
        (["inspect", "k.qmm", "--emit", "asm"], "--emit asm: a kernel file holds machine code on"),
    ],
)
def test_errors_are_one_line_and_exit_with_2(quantmm, words, message):
    status, out, err = quantmm(*words)
    assert status == 2
    assert out == ""
    assert err.startswith("quantmm: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("of 9 GiB"), "not enough memory: of 9 GiB"),
        (PermissionError(13, "Permission denied", "log"), "log: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("no reason"), "no reason"),
        (UnicodeError("label too long"), "label too long"),
    ],
)
def test_what_the_system_refuses_is_one_line(quantmm, monkeypatch, error, message):
    def fail(*_):
        raise error

    monkeypatch.setattr(cli_targets.verified, "read", fail)
    assert quantmm("targets") == (2, "", f"quantmm: {message}\n")


def test_compile_checks_the_path_first(quantmm, monkeypatch, tmp_path):
    monkeypatch.setattr(cli_compile, "compile", lambda *_: pytest.fail("compiled"))
    status, _, err = quantmm("compile", *SMALL, "-o", tmp_path / "no" / "k.qmm")
    assert status == 2
    assert f"there is no folder {tmp_path / 'no'}" in err


@pytest.mark.parametrize("words", [[], ["logs"]])
def test_without_a_command_there_is_help(quantmm, words):
    status, out, err = quantmm(*words)
    assert (status, out) == (2, "")
    assert err.startswith(f"Usage: {' '.join(['quantmm', *words])} ")
    assert ("\nCommands:\n" if words else "\nSee that it works:\n") in err


def test_help_has_every_command_in_one_task(quantmm):
    named = [name for task in cli_help.TASKS for name in task.commands]
    assert sorted(named) == sorted(cli_main.cli.commands)
    _, out, _ = quantmm("--help")
    for task in cli_help.TASKS:
        assert f"\n{task.title}:\n" in out
        assert f"\n  $ {task.example}\n" in out
        for name, text in task.commands.items():
            assert re.search(rf"\n  {name} +{re.escape(text)}\n", out)
    assert 'eval "$(_QUANTMM_COMPLETE=bash_source quantmm)"' in " ".join(out.split())


@pytest.mark.parametrize("task", cli_help.TASKS, ids=lambda task: task.title)
def test_examples_of_the_help_are_understood(task):
    program, name, *words = shlex.split(task.example)
    assert program == "quantmm"
    assert name in task.commands
    cli_main.cli.commands[name].make_context(name, words)


def test_shells_complete_targets():
    words = {"_QUANTMM_COMPLETE": "bash_complete", "COMP_CWORD": "3"}
    done = in_a_process(**words, COMP_WORDS="quantmm compile --target host,x86-avx5")
    assert done.stdout.split() == [b"plain,host,x86-avx512vnni", b"plain,host,x86-avx512"]


def test_inspect_lists_the_kernels_of_a_file(quantmm, tmp_path):
    path = tmp_path / "k.qmm"
    record = ["--m", 3, "--bias", "--target", "generic"]
    assert quantmm("compile", *SMALL, *record, "-o", path)[0] == 0
    status, out, _ = quantmm("inspect", path)
    assert status == 0
    first, _, line = out.splitlines()
    assert first == f"{path}: Y = X Wᵀ with W of 20 x 33 bias m=3"
    (stored,) = contents(path)
    for words in ("generic ", " yes ", f" {len(stored.content):,} ", " none"):
        assert words in line


def test_compile_names_a_tuned_record(quantmm, tmp_path, monkeypatch):
    path, compiled = tmp_path / "k.qmm", cli_compile.compile

    def with_record(spec, row):
        kernel = compiled(spec, row)
        functions = [dataclasses.replace(each, record="log:3") for each in kernel.info.functions]
        kernel.info = dataclasses.replace(kernel.info, functions=tuple(functions))
        return kernel

    monkeypatch.setattr(cli_compile, "compile", with_record)
    words = ["compile", *SMALL, "--m", 3, "--target", "generic", "-o", path]
    said = "    with the parameters of the tuned record log:3\n"
    assert said in quantmm(*words)[1]
    assert "log:3" in quantmm("inspect", path)[1]


def test_a_linker_that_is_missing_is_said_once(quantmm, tmp_path, monkeypatch):
    monkeypatch.setattr(linker, "native", lambda: None)
    monkeypatch.setattr(cli_compile, "compile", lambda *_: pytest.fail("compiled"))
    status, out, err = quantmm("compile", *SMALL, "--target", "generic", "-o", tmp_path / "k.qmm")
    assert (status, out) == (2, "")
    assert err.count("saving kernel") + err.count("saving a kernel") == 1
    assert err.endswith("or pip install 'quantmm[link]'\n")


def test_targets_say_how_older_records_are_renewed(quantmm, monkeypatch):
    old, new = (record("generic", "native", SCHEDULE_VERSION - i) for i in (1, 0))
    for records, said in (([old], True), ([new], False)):
        monkeypatch.setattr(verified, "read", lambda records=records: records)
        assert (cli_targets.RENEWAL in quantmm("targets")[1]) == said
    assert "quantmm verify --target NAME --random 100 --record" in cli_targets.RENEWAL


def test_targets_on_a_narrow_terminal_lose_nothing(monkeypatch):
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    cli_tables.show(cli_targets.targets_table([record("generic", "native", cpu="Chip 1")]))
    out = sys.stdout.getvalue()
    assert all(word in out for word in ("chips", "runs", "verified", "Chip", "2026-11-24"))


@pytest.mark.parametrize("command", [None, *sorted(cli_main.cli.commands)])
def test_help(quantmm, command):
    status, out, _ = quantmm(*([command] if command else []), "--help")
    assert status == 0
    assert out.startswith("Usage: quantmm")
    assert "--help" in out


def in_a_process(*words, stdout=subprocess.PIPE, **environment):
    code = "from quantmm.cli.main import run; run()"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, **environment},
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
    )


def test_runs_as_a_command():
    done = in_a_process("targets")
    assert done.returncode == 0
    assert b"(host)" in done.stdout


@pytest.mark.parametrize("command", ["--help", "targets"])
def test_output_that_cannot_be_written(command):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        done = in_a_process(command, stdout=full)
    assert (done.returncode, done.stderr) == (2, b"quantmm: No space left on device\n")


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("ascii", ["demo"]),
        ("ascii", ["quantize", "--help"]),
        ("latin-1", ["quantize", "--help"]),
    ],
)
def test_output_in_a_narrow_encoding(encoding, words):
    done = in_a_process(*words, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"X W" in done.stdout
