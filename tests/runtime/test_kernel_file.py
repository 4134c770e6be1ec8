from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile

import numpy as np
import problems
import pytest
import quantmm as qmm
from quantmm.compiler import linker
from quantmm.errors import KernelFileError, TargetError, ToolError
from quantmm.runtime import code as kernel_code
from quantmm.runtime import kernel_file
from quantmm.targets import machine

SPEC = qmm.MatmulSpec(n=33, k=70, bias=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "linear.qmm"
    qmm.compile(SPEC).save(path)
    return path


def by_pickle(value):
    return pickle.loads(pickle.dumps(value))


def with_header(saved, path, change, whole=False):
    """A copy of a kernel file whose header was changed, with a checksum that fits."""
    content = saved.read_bytes()
    magic, version, length, _ = kernel_file.HEADER.unpack_from(content)
    start = kernel_file.HEADER.size
    header = json.loads(content[start : start + length])
    (entry,) = header["kernels"]
    change(entry if whole else entry["info"])
    payload = json.dumps(header).encode()
    rest = payload + content[start + length :]
    digest = kernel_file.checksum(len(payload), rest)
    path.write_bytes(kernel_file.HEADER.pack(magic, version, len(payload), digest) + rest)
    return path


@pytest.mark.parametrize("m", [1, 6, 50])
def test_computes_the_same(saved, tmp_path, m):
    rng = np.random.default_rng(m)
    again = tmp_path / "again.qmm"
    qmm.load(saved).save(again)
    kernel = qmm.load(again)
    assert kernel.info == qmm.compile(SPEC).info
    w = problems.weight(rng, SPEC)
    x = problems.integers(rng, "int8", (m, 70))
    bind = problems.bind_arguments(rng, SPEC)
    y = kernel.bind(w, **bind)(x, x_scale=0.5)
    problems.assert_agrees(y, qmm.reference(SPEC, x, w, x_scale=0.5, **bind))


def test_carries_what_it_needs(saved):
    info = qmm.load(saved).info
    assert info.spec == SPEC
    assert info.target == qmm.targets.host().name
    assert set(info.features) == qmm.targets.host().features
    assert set(info.versions) == {"tvm", "schedule"}


@pytest.mark.parametrize("keep", [0, 7, 40, 200, -1])
def test_truncated(saved, tmp_path, keep):
    path = tmp_path / "short.qmm"
    path.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(KernelFileError, match=r"is damaged|is not a quantmm kernel file"):
        qmm.load(path)


@pytest.mark.parametrize("at", [0, 8, 12, 14, 20, 100, -1])
def test_altered(saved, tmp_path, at):
    content = bytearray(saved.read_bytes())
    content[at] ^= 1
    path = tmp_path / "altered.qmm"
    path.write_bytes(content)
    with pytest.raises(KernelFileError, match=r"damaged|not a quantmm kernel|format version"):
        qmm.load(path)


def test_of_another_version(saved, tmp_path):
    def older(header):
        header["versions"]["tvm"] = "0.1"

    path = with_header(saved, tmp_path / "old.qmm", older)
    with pytest.raises(KernelFileError, match=r"built with apache-tvm 0\.1; here it is 0\.27"):
        qmm.load(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("length", 5000, r"\d+ bytes of libraries, of which 5000 are some kernel's"),
        ("length", -1, "a library lies at 0 and has -1 bytes"),
        ("length", 10**9, "has 1000000000 bytes; expected it at 0, and to end by"),
        ("length", "9", "unsupported operand"),
        ("start", 8, r"a library lies at 8 and has \d+ bytes; expected it at 0"),
        ("start", None, "no 'start'"),
        ("info", None, "no 'info'"),
        ("info", [], "list indices must be"),
        ("spec", None, "no 'spec'"),
        ("spec", "{}", "a spec needs 'n'"),
        ("layout", {"n": 1}, "missing 4 required positional arguments"),
        ("functions", None, "no 'functions'"),
        ("features", 5, "not iterable"),
        ("colour", "red", "unexpected keyword argument 'colour'"),
    ],
)
def test_headers_that_do_not_fit(saved, tmp_path, field, value, message):
    whole = field in ("length", "start", "info")

    def change(fields):
        if value is None:
            del fields[field]
        else:
            fields[field] = value

    path = with_header(saved, tmp_path / "odd.qmm", change, whole)
    with pytest.raises(
        KernelFileError, match=f"odd.qmm has a header that does not fit: .*{message}"
    ):
        qmm.load(path)


def test_a_file_without_kernels(tmp_path):
    payload = b'{"kernels": []}'
    digest = kernel_file.checksum(len(payload), payload)
    head = kernel_file.HEADER.pack(
        kernel_file.MAGIC, kernel_file.FORMAT_VERSION, len(payload), digest
    )
    (tmp_path / "empty.qmm").write_bytes(head + payload)
    with pytest.raises(KernelFileError, match=r"does not fit: 0 bytes of libraries"):
        qmm.load(tmp_path / "empty.qmm")


def test_for_another_machine(saved, tmp_path, monkeypatch):
    def never(_):
        raise AssertionError("code for another machine was loaded")

    monkeypatch.setattr(kernel_code, "load_library", never)

    def future(header):
        header["features"].append("avx2048")

    message = r"no kernel for this machine: \S+ cannot run here: this CPU lacks avx2048"
    with pytest.raises(TargetError, match=message):
        qmm.load(with_header(saved, tmp_path / "future.qmm", future))

    def elsewhere(header):
        header["architecture"] = "s390x"

    with pytest.raises(TargetError, match="cannot run here: needs s390x, this machine is"):
        qmm.load(with_header(saved, tmp_path / "elsewhere.qmm", elsewhere))


def test_not_there(tmp_path):
    with pytest.raises(KernelFileError, match=r"cannot read .*No such file"):
        qmm.load(tmp_path / "none.qmm")
    with pytest.raises(KernelFileError, match=r"cannot read .*directory"):
        qmm.load(tmp_path)


def test_cannot_be_written(saved, tmp_path, monkeypatch):
    kernel = qmm.load(saved)
    for path in (tmp_path, tmp_path / "no" / "folder.qmm"):
        with pytest.raises(KernelFileError, match="cannot write"):
            kernel.save(path)
    path = tmp_path / "kernel.qmm"
    path.write_bytes(b"precious")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KernelFileError, match="No space left"):
        kernel.save(path)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing(saved, tmp_path, monkeypatch):
    kernel = qmm.load(saved)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kernel.save(tmp_path / "kernel.qmm")
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_cannot_be_loaded_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(KernelFileError, match=r"see TMPDIR: .*Failed to load dynamic shared"):
        kernel_code.load_library(b"no library")
    assert list(tmp_path.iterdir()) == []


def test_a_full_folder_for_temporary_files(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        with pytest.raises(KernelFileError, match=r"see TMPDIR: .*File too large"):
            qmm.load(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_links_are_followed_and_only_files_replaced(saved, tmp_path):
    kernel = qmm.load(saved)
    real, link, dangling = tmp_path / "real.qmm", tmp_path / "link.qmm", tmp_path / "dangling.qmm"
    real.write_bytes(b"old")
    link.symlink_to(real)
    dangling.symlink_to("new.qmm")
    kernel.save(link)
    kernel.save(dangling)
    assert link.is_symlink()
    assert dangling.is_symlink()
    assert qmm.load(real).spec == qmm.load(tmp_path / "new.qmm").spec == SPEC
    pipe, loop = tmp_path / "pipe", tmp_path / "loop"
    os.mkfifo(pipe)
    loop.symlink_to("loop")
    (tmp_path / "to_pipe").symlink_to(pipe)
    for name in ("pipe", "to_pipe", "loop"):
        path = tmp_path / name
        message = "a link that leads to itself" if name == "loop" else "a device, pipe or socket"
        with pytest.raises(KernelFileError, match=f"cannot write {path}: {message}"):
            kernel.save(path)
    assert pipe.is_fifo()
    assert loop.is_symlink()
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, by_pickle], ids=lambda f: f.__name__)
def test_copies_compute_the_same(saved, copied):
    rng = np.random.default_rng(0)
    w, bind = problems.weight(rng, SPEC, rare=False), problems.bind_arguments(rng, SPEC)
    x = problems.integers(rng, "int8", (5, 70))
    built = qmm.compile(SPEC, num_threads=2)
    for kernel in (built, qmm.load(saved)):
        again = copied(kernel)
        assert (again.info, type(again)) == (kernel.info, qmm.Kernel)
        assert again.num_threads == kernel.num_threads
        linear = kernel.bind(w, **bind, x_scale=0.5)
        expected = linear(x)
        np.testing.assert_array_equal(again.bind(w, **bind, x_scale=0.5)(x), expected)
        same = copied(linear)
        linear._arrays["w"][...] = 0  # shared only where it should be
        if copied is copy.copy:
            assert not np.array_equal(same(x), expected)
        else:
            np.testing.assert_array_equal(same(x), expected)
            np.testing.assert_array_equal(same(x, x_scale=0.5), expected)


def test_a_module_that_holds_a_linear_is_copied(saved, torch):

    class Layer(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.linear = linear

        def forward(self, x):
            return self.linear(x)

    rng = np.random.default_rng(0)
    bind = problems.bind_arguments(rng, SPEC)
    layer = Layer(qmm.load(saved).bind(problems.weight(rng, SPEC), **bind, x_scale=0.5))
    x = torch.from_numpy(problems.integers(rng, "int8", (5, 70)))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_what_was_pickled_may_not_run_here(saved, monkeypatch):
    content = pickle.dumps(qmm.load(saved))
    monkeypatch.setattr(machine, "architecture", lambda: "s390x")
    with pytest.raises(TargetError, match="what was pickled has no kernel for this machine: "):
        pickle.loads(content)


@pytest.fixture(scope="module")
def three():
    """Kernels of one spec: this machine's, one that it cannot execute, and one for any."""
    host = qmm.compile(SPEC)
    better = qmm.compile(SPEC, "generic")
    better.info = dataclasses.replace(
        better.info, target=qmm.targets.TARGETS[0].name, features=("avx2048",)
    )
    return host, better, qmm.compile(SPEC, "generic")


def test_the_best_kernel_of_a_file_is_taken(three, tmp_path, monkeypatch):
    host, better, generic = three
    if host.info.target in (better.info.target, "generic"):
        pytest.skip(f"{host.info.target} is this machine's target")
    path = tmp_path / "fat.qmm"
    generic.save(path, better, host)
    assert [stored.info for stored in kernel_file.contents(path)] == [
        kernel.info for kernel in (better, host, generic)
    ]
    kernel = qmm.load(path)
    assert kernel.info == host.info
    rng = np.random.default_rng(0)
    w, bind = problems.weight(rng, SPEC), problems.bind_arguments(rng, SPEC)
    x = problems.integers(rng, "int8", (5, 70))
    y = kernel.bind(w, **bind)(x, x_scale=0.5)
    problems.assert_agrees(y, qmm.reference(SPEC, x, w, x_scale=0.5, **bind))
    monkeypatch.setattr(qmm.targets.machine, "cpu_features", frozenset)
    assert qmm.load(path).info == generic.info
    # Saved again, it is alone.
    qmm.load(path).save(tmp_path / "one.qmm")
    assert len(kernel_file.contents(tmp_path / "one.qmm")) == 1


def test_a_file_without_a_kernel_for_this_machine_says_why(three, tmp_path, monkeypatch):
    host, better, _ = three
    if host.info.target == better.info.target:
        pytest.skip(f"{host.info.target} is this machine's target")
    path = tmp_path / "fat.qmm"
    host.save(path, better)
    monkeypatch.setattr(machine, "architecture", lambda: "s390x")
    names = sorted({host.info.target, better.info.target})
    message = "no kernel for this machine: .* cannot run here: needs .*; .* cannot run here: needs"
    with pytest.raises(TargetError, match=message) as caught:
        qmm.load(path)
    assert all(name in str(caught.value) for name in names)


def test_kernels_that_do_not_belong_together(three, tmp_path):
    host, _, generic = three
    other = qmm.compile(dataclasses.replace(SPEC, k=71), "generic")
    path = tmp_path / "k.qmm"
    with pytest.raises(KernelFileError, match=r"one spec; the one for .* has .*70.* generic .*71"):
        host.save(path, other)
    with pytest.raises(KernelFileError, match="one kernel per target; given twice: generic"):
        generic.save(path, qmm.compile(SPEC, "generic"))
    assert list(tmp_path.iterdir()) == []


def test_of_the_format_before(saved, tmp_path):
    content = bytearray(saved.read_bytes())
    content[8] = 2
    path = tmp_path / "old.qmm"
    path.write_bytes(content)
    with pytest.raises(KernelFileError, match="has format version 2; this quantmm reads 6"):
        qmm.load(path)


def test_arguments_that_had_other_names():
    info = qmm.compile(SPEC, "x86-avx2").info
    fields = info.to_dict()
    before = [{"w_extra": "w_own"}.get(name, name) for name in fields["arguments"]]
    assert "w_own" in before
    assert kernel_file.info_from({**fields, "arguments": before}) == info


def test_others_may_read_a_file(saved):
    assert saved.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_without_a_linker(monkeypatch, tmp_path):
    monkeypatch.setattr(linker.shutil, "which", lambda _: None)
    monkeypatch.setattr(linker.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ToolError, match=r"needs a linker: .* or pip install 'quantmm\[link\]'"):
        qmm.compile(qmm.MatmulSpec(n=4, k=4, m=1)).save(tmp_path / "k.qmm")
    message = r"a linker for m68k: install m68k-linux-gnu-gcc, or clang with lld, or pip install"
    with pytest.raises(ToolError, match=message):
        linker.command("m68k")
    assert list(tmp_path.iterdir()) == []


def test_with_the_packaged_linker(monkeypatch, tmp_path):
    pytest.importorskip("ziglang", reason="ziglang is not installed")
    monkeypatch.setattr(linker.shutil, "which", lambda _: None)
    spec = qmm.MatmulSpec(n=5, k=9, out="int32", m=2)
    qmm.compile(spec).save(tmp_path / "k.qmm")
    rng = np.random.default_rng(0)
    w, x = problems.weight(rng, spec), problems.integers(rng, "int8", (2, 9))
    y = qmm.load(tmp_path / "k.qmm")(x, w)
    np.testing.assert_array_equal(y, qmm.reference(spec, x, w))


def test_a_failing_linker_is_quoted(monkeypatch, tmp_path):
    monkeypatch.setattr(linker, "command", lambda _: ["false"])
    with pytest.raises(ToolError, match="linking failed"):
        linker.link(str(tmp_path / "x.so"), str(tmp_path / "none.o"))


FULL = """
import os, sys, warnings
import quantmm as qmm
from quantmm.errors import QuantmmError
try:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kernel = qmm.compile(qmm.MatmulSpec(n=20, k=33, m=2), cache=True)
    assert "not kept for the next process" in str(caught[0].message), caught
    kernel.save(sys.argv[1])
except QuantmmError as error:
    print(error)
print(os.listdir(os.environ["TMPDIR"]))
"""


@pytest.mark.parametrize("size", ["16k", "56k"])
def test_compiling_with_a_full_folder_for_temporary_files(tmp_path, size):
    small = tmp_path / "small"
    small.mkdir()
    # A file system of its own, for this process alone.
    mount = f'mount -t tmpfs -o size={size} tmpfs "$0" && exec env TMPDIR="$0" "$@"'
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, str(small)]
    try:
        subprocess.run([*words, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system lets nobody mount a file system")
    done = subprocess.run(
        [*words, sys.executable, "-c", FULL, str(tmp_path / "k.qmm")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *message, left = done.stdout.splitlines()
    assert "No space left on device" in done.stdout
    assert "see TMPDIR" in message[0] or "linking failed" in message[0]
    assert left == "[]"


def test_linkers_for_another_architecture(monkeypatch):
    monkeypatch.setattr(machine, "architecture", lambda: "m68k")
    there = {"cc", "aarch64-linux-gnu-gcc", "clang", "ld.lld"}
    monkeypatch.setattr(linker.shutil, "which", lambda name: name if name in there else None)
    assert linker.command("m68k") == linker.command() == ["cc"]
    assert linker.command("aarch64") == ["aarch64-linux-gnu-gcc"]
    clang = ["clang", "--target=x86_64-linux-gnu", "-fuse-ld=lld", "-nostdlib"]
    assert linker.command("x86_64") == clang
    # Without lld clang has only this machine's linker.
    there.remove("ld.lld")
    monkeypatch.setattr(linker.importlib.util, "find_spec", lambda name: name)
    words = " ".join(linker.command("x86_64")[1:])
    assert words == "-m ziglang cc -O2 -target x86_64-linux-gnu"
