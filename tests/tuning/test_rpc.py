"""Machines elsewhere: a tracker and servers on this one. No test asserts a time."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import commands
import psutil
import pytest
import quantmm as qmm
import tuning_faults
from quantmm import targets
from quantmm.bench.contenders import Job
from quantmm.bench.roofline import Limits
from quantmm.errors import QuantmmError, RpcError
from quantmm.schedules import records
from quantmm.schedules.cpu.plan import plan_for
from quantmm.targets import machine
from quantmm.tuning import candidate, keeping, messages, rpc, stage
from quantmm.tuning import server as rpc_server
from quantmm.tuning import tracker as trackers
from quantmm.tuning.log import Database
from quantmm.tuning.on_cpu import default_choice
from quantmm.tuning.stage import DEFAULT, Stage

SPEC = qmm.MatmulSpec(n=64, k=64)
#: Weights of fewer rows would be rotated through memory, many thousands of this size.
M, KEY = 20, "board"


class Process:
    """A tracker or a server, which says in its first line where it is."""

    def __init__(self, *words):
        self.process = commands.start(*words)
        self.first_line = self.process.stdout.readline()
        # What is said later must not fill the pipes.
        self.readers = [
            threading.Thread(target=stream.read, daemon=True)
            for stream in (self.process.stdout, self.process.stderr)
        ]
        for reader in self.readers:
            reader.start()

    @property
    def address(self):
        return self.first_line.split(" at ")[1].split()[0]

    def end(self, how=signal.SIGKILL):
        """End it; none of its children may stay."""
        if self.process.poll() is None:
            children = psutil.Process(self.process.pid).children(recursive=True)
            self.process.send_signal(how)
            self.process.wait(20)
            _, alive = psutil.wait_procs(children, timeout=10)
            assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []
        for reader in self.readers:
            reader.join()
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture(scope="module")
def tracker():
    process = Process("tracker", "--port", 0)
    assert process.first_line.startswith("tracker at 127.0.0.1:")
    yield process.address
    process.end()


@pytest.fixture(scope="module")
def start(tracker):
    """Start a server, whose children find these tests' modules."""
    started = []

    def one(key=KEY):
        started.append(Process("serve", "--tracker", tracker, "--key", key))
        assert started[-1].first_line.startswith(f"serving {key!r} at 127.0.0.1:")
        return started[-1]

    here = str(Path(__file__).parent.parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
        yield one
        for process in started:
            process.end(signal.SIGINT)


@pytest.fixture(scope="module")
def server(start):
    """The server that all tests share."""
    return start()


def test_two_servers_tune_and_one_is_killed(tracker, server, start, tmp_path):
    other = start()
    words = ["--m", M, "--n", 64, "--k", 64, "--threads", 1, "--trials", 50, "--log", tmp_path]
    process = commands.start("tune", "--rpc", tracker, "--key", KEY, *words)
    commands.wait_for_trials(tmp_path, 10)
    other.end(signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    (first, *_) = err.splitlines()
    assert sorted(first.removeprefix("measuring on ").split(", ")) == sorted(
        [server.address, other.address]
    )
    assert f"quantmm: server {other.address} was lost: " in err
    assert f"; going on with {server.address}\n" in err
    (path,) = records.databases(tmp_path)
    tried = [trial.choice for trial in Database(path).trials() if trial.seconds]
    assert len(set(tried)) == len(tried) == 50
    assert records.read_header(path)["cpu"] == machine.cpu_model()
    assert keeping.check(tmp_path) == []
    assert f"{path}:1" in out or "the defaults stay" in out


def test_bench_measures_on_a_server(tracker, server, quantmm):
    words = ["--m", M, "--n", 32, "--k", 64, "--rounds", 1, "--json"]
    status, out, err = quantmm("bench", "--rpc", tracker, "--key", KEY, *words)
    assert status == 0, err
    (row,) = json.loads(out)["rows"]
    assert set(row["measured"]["times"]) == {"quantmm", "numpy"}
    assert row["measured"]["job"]["threads"] == targets.physical_cores()
    assert row["share"] > 0


def test_a_kernel_that_crashes_or_hangs_costs_only_itself(tracker, server, monkeypatch):
    row = targets.host()
    content = candidate.Builder().candidate(SPEC, row, default_choice(plan_for(SPEC, row), M))
    crashing = f"few_tiles {tuning_faults.CRASHES} "
    hanging = f"few_tiles {tuning_faults.HANGS} "
    (board,) = rpc.connect(tracker, KEY, bench="tuning_faults:Bench")
    try:
        assert board.name == server.address
        on = Stage(board.bench, SPEC, M, 0, 1)
        assert on.load(DEFAULT, content) is None
        assert on.load(crashing, content).startswith("SIGSEGV")
        assert on.load(hanging, content) is None
        monkeypatch.setattr(stage, "RUN_SECONDS", 5.0)
        times, failed = on.race([DEFAULT, hanging], 2)
        assert failed == {hanging: "not done after 5 s"}
        assert len(times[DEFAULT]) == 2
        assert "wrong" not in str(on.load("other", content[:-5]))
        # Who comes meanwhile hears that nobody is free.
        monkeypatch.setattr(trackers, "FREE_SECONDS", 0.0)
        with pytest.raises(RpcError, match=f"all 1 servers with key '{KEY}' at {tracker} are busy"):
            rpc.connect(tracker, KEY)
    finally:
        board.bench.close()
    monkeypatch.undo()
    (again,) = rpc.connect(tracker, KEY)
    try:
        assert again.machine.describe()["cpu"] == targets.cpu_name()
    finally:
        again.bench.close()


def test_a_server_that_says_nothing_is_lost(tracker, start, monkeypatch):
    silent = start("silent")
    (board,) = rpc.connect(tracker, "silent")
    assert board.machine.default_threads() >= 1
    for process in psutil.Process(silent.process.pid).children(recursive=True):
        process.suspend()
    monkeypatch.setattr(rpc, "SILENCE_SECONDS", 2.0)
    with pytest.raises(RpcError, match=f"server {board.name} was lost: not done after 2 s"):
        board.machine.default_threads()
    silent.end()


def test_what_is_sent_arrives():
    job = Job(SPEC, M, 1, False)
    values = [SPEC, job, targets.host(), Limits(1, 2.0, 3.0, 4.0), b"\0\xff", None, 0.1, "text"]
    assert messages.unpacked(messages.packed(values)) == values
    assert messages.unpacked(messages.packed({"cpu": "a", "quantmm.unknown": 1}))["cpu"] == "a"
    with pytest.raises(TypeError, match="a complex cannot be sent"):
        messages.packed(1j)


def test_what_a_server_does_not_know_is_an_answer():
    row = dataclasses.replace(targets.host(), name="mine")
    asked = {"place": "tuning_faults:Bench", "call": ["header", [row, 1]], "seconds": 1.0}
    children, text = rpc_server.Children(), messages.packed(asked)
    while not (answer := children.ask(text)):
        text = ""
    answered = messages.unpacked(answer)
    assert not answered["fine"]
    assert answered["answer"].startswith("TargetError: no target 'mine'")


# Errors are one line.


def failing(quantmm, *words):
    status, out, err = quantmm(*words)
    assert (status, out) == (2, "")
    assert err.startswith("quantmm: ")
    assert err.count("\n") == 1
    return err


TUNE = ["tune", "--n", 8, "--k", 8, "--m", 1]


@pytest.mark.parametrize(
    "text", ["localhost", ":9190", "board:", "board:rpc", "board:0", "b:65536"]
)
def test_what_is_no_address(quantmm, text):
    err = failing(quantmm, *TUNE, "--rpc", text, "--key", KEY)
    assert f"{text!r} is no address; expected HOST:PORT such as" in err


@pytest.mark.parametrize("command", [[*TUNE, "--rpc"], ["serve", "--tracker"]])
def test_what_is_no_key(quantmm, command):
    for key in ("", "two words"):
        err = failing(quantmm, *command, "127.0.0.1:9190", "--key", key)
        assert f"key {key!r} cannot be; expected a word such as pi5" in err


@pytest.mark.parametrize("command", [TUNE, ["bench"]])
def test_half_of_an_address(quantmm, command):
    err = failing(quantmm, *command, "--rpc", "board:9190")
    assert "rpc is 'board:9190' and there is no key; give the one that the servers have" in err
    err = failing(quantmm, *command, "--key", KEY)
    assert f"key is '{KEY}' and there is no rpc; give the tracker's HOST:PORT" in err


@pytest.mark.parametrize(
    "command", [[*TUNE, "--rpc"], ["bench", "--rpc"], ["serve", "--tracker"]], ids=lambda w: w[0]
)
def test_no_tracker(quantmm, command):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    err = failing(quantmm, *command, f"127.0.0.1:{port}", "--key", KEY)
    assert f"no tracker answers at 127.0.0.1:{port}: Connection refused; `quantmm tracker`" in err


@pytest.mark.parametrize(
    ("answer", "message"),
    [(b"HTTP/1.1 400", "is no tracker of TVM's RPC"), (None, "no tracker answers at .*timed out")],
)
def test_something_else_than_a_tracker(answer, message, monkeypatch):
    monkeypatch.setattr(trackers, "TRACKER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as sock:

        def reply():
            connection, _ = sock.accept()
            with connection, contextlib.suppress(ConnectionError):
                if answer:
                    connection.sendall(answer)
                while connection.recv(100):
                    pass

        thread = threading.Thread(target=reply)
        thread.start()
        with pytest.raises(RpcError, match=message):
            rpc.connect(f"127.0.0.1:{sock.getsockname()[1]}", KEY)
        thread.join()


def test_no_server_with_the_key(tracker, server, quantmm, monkeypatch):
    monkeypatch.setattr(trackers, "FREE_SECONDS", 0.0)
    err = failing(quantmm, *TUNE, "--rpc", tracker, "--key", "oven")
    assert f"the tracker at {tracker} has no server with key 'oven', its keys: {KEY}; " in err


def test_a_server_of_another_version(tracker, server, monkeypatch):
    here = messages.identity()
    monkeypatch.setattr(rpc, "identity", lambda: {**here, "schedule": "0"})
    message = f"server {server.address} has schedule {here['schedule']}, here 0; install the same"
    with pytest.raises(RpcError, match=message):
        rpc.connect(tracker, KEY)


def test_a_server_without_quantmm(tracker):
    code = (
        "import socket, sys; from tvm.rpc import server; "
        "sock = socket.create_server(('127.0.0.1', 0)); host, port = sys.argv[1].split(':'); "
        "server._listen_loop(sock, sock.getsockname()[1], 'plain', (host, int(port)), None, None)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tracker], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):  # until it has started
            with pytest.raises(RpcError) as refused:
                rpc.connect(tracker, "plain")
            if "cannot be used" in str(refused.value):
                break
            time.sleep(0.5)
        assert re.search(r"cannot be used: .*it is a server without quantmm", str(refused.value))
    finally:
        process.kill()
        process.wait()


def test_a_target_that_the_server_cannot_execute(tracker, server, tmp_path):
    message = f"server {server.address}: TargetError: arm-i8mm cannot run here: needs aarch64"
    with pytest.raises(QuantmmError, match=message):
        qmm.tune(SPEC, "arm-i8mm", rpc=tracker, key=KEY, log=tmp_path)


def test_a_port_that_is_taken(tracker, quantmm):
    host, port = tracker.split(":")
    err = failing(quantmm, "tracker", "--port", port)
    assert f"cannot listen at {host}:{port}: Address already in use" in err
    err = failing(quantmm, "serve", "--tracker", tracker, "--key", KEY, "--host", "192.0.2.1")
    assert "cannot listen at 192.0.2.1:0: Cannot assign requested address" in err


def test_a_tracker_needs_tornado():
    code = "import sys; sys.modules['tornado'] = None; from quantmm.cli.main import run; run()"
    command = [sys.executable, "-c", code, "tracker", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    message = "a tracker needs tornado: pip install 'quantmm[rpc]'"
    assert done.stderr == f"quantmm: {message}\n"
