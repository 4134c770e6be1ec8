"""The kernel cache: what is kept, what is never used, and what other processes do meanwhile."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import problems
import pytest
import quantmm as qmm
from quantmm import targets, versions
from quantmm.compiler import cache, environment, linker
from quantmm.errors import ArrayError, CacheError, TargetError
from quantmm.runtime import code as kernel_code
from quantmm.runtime import kernel_file
from quantmm.schedules.records import Record
from quantmm.targets import machine

SPEC = qmm.MatmulSpec(n=20, k=33, out="int32", m=2)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "quantmm" / "kernels"


@pytest.fixture
def entry(folder):
    """The path of the only entry, a kernel for SPEC."""
    assert compiled().origin == "built"
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def content():
    """What an entry for SPEC holds."""
    return kernel_file.packed([qmm.compile(SPEC)])


def compiled(spec=SPEC, target="host"):
    """With the cache, which has nothing to complain of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return qmm.compile(spec, target, cache=True)


def assert_right(kernel):
    rng = np.random.default_rng(0)
    w, x = problems.weight(rng, SPEC), problems.integers(rng, "int8", (2, 33))
    np.testing.assert_array_equal(kernel(x, w), qmm.reference(SPEC, x, w))


CALL = f"""
import json, sys
import numpy as np
import quantmm as qmm
spec = qmm.MatmulSpec.from_json({SPEC.to_json()!r})
kernel = qmm.compile(spec)
imported = [name for name in ("tvm", "torch") if name in sys.modules]
rng = np.random.default_rng(0)
w = qmm.quantize(rng.standard_normal((20, 33)))
x = rng.integers(-128, 128, (2, 33), dtype=np.int8)
right = np.array_equal(kernel(x, w), qmm.reference(spec, x, w))
"""
SAY = "print(json.dumps([kernel.origin, imported, bool(right)]))"


def start(code):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code], stdout=subprocess.PIPE, text=True
    )


def answer(process):
    output, _ = process.communicate()
    assert process.returncode == 0
    return json.loads(output)


def test_the_next_process_needs_no_compiler(folder):
    assert answer(start(CALL + SAY)) == ["built", ["tvm"], True]
    assert answer(start(CALL + SAY)) == ["cache", [], True]
    # What is not there is built, although TVM's runtime was loaded alone.
    more = "kernel = qmm.compile(qmm.MatmulSpec(n=8, k=8, m=1)); imported.append('tvm')\n"
    assert answer(start(CALL + more + SAY)) == ["built", ["tvm"], True]
    assert len(list(folder.iterdir())) == 2


def test_processes_that_start_at_once(folder):
    for process in [start(CALL + SAY) for _ in range(3)]:
        _, _, right = answer(process)
        assert right
    assert len(list(folder.iterdir())) == 1
    assert compiled().origin == "cache"


def test_a_kernel_from_the_cache_is_the_same(entry):
    built, kept = qmm.compile(SPEC), compiled()
    assert (built.origin, kept.origin) == ("built", "cache")
    assert kept.info == built.info
    assert kept.num_threads == built.num_threads
    assert_right(kept)
    assert qmm.compile(SPEC, num_threads=3, cache=True).num_threads == 3
    with pytest.raises(ArrayError, match="compiled for m=2"):
        kept.plan(3)


def test_it_can_be_saved(entry, tmp_path):
    compiled().save(tmp_path / "k.qmm")
    kernel = qmm.load(tmp_path / "k.qmm")
    assert kernel.origin == "file"
    assert_right(kernel)


def test_without_the_cache(folder, monkeypatch):
    qmm.compile(SPEC, cache=False)
    assert not folder.exists()
    compiled()
    monkeypatch.setattr(cache, "find", lambda *_: pytest.fail("looked"))
    monkeypatch.setattr(cache, "keep", lambda *_: pytest.fail("kept"))
    assert qmm.compile(SPEC, cache=False).origin == "built"


# What decides which entry is used.


def key(spec=SPEC, row=None, record=None):
    return cache.key(spec, row or targets.host(), record)


@pytest.mark.parametrize(
    "change",
    [
        {"n": 21},
        {"k": 34},
        {"weight": "int4"},
        {"activation": "uint8"},
        {"group_size": "tensor"},
        {"weight_zero_point": True},
        {"activation_zero_point": True},
        {"activation_scale": "tensor"},
        {"input": "float32"},
        {"input": "float32", "dynamic": True},
        {"out": "float32"},
        {"out": "float32", "bias": True},
        {"out": "float32", "activation_fn": "relu"},
        {"out": "float32", "residual": True},
        {"m": None},
    ],
    ids=str,
)
def test_every_field_of_the_spec_counts(change):
    assert key(dataclasses.replace(SPEC, **change)) != key()


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(targets.Target)])
def test_every_field_of_the_target_counts(name):
    row = targets.find("x86-avx512vnni")
    value = getattr(row, name)
    other = {
        str: lambda: value + "2",
        dict: lambda: {**value, "mcpu": "znver4"},
        frozenset: lambda: value | {"avx2048"},
        int: lambda: value + 1,
        tuple: lambda: value[:1] or (1,),
    }[type(value)]()
    assert key(row=dataclasses.replace(row, **{name: other})) != key(row=row)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(targets.Instruction)])
def test_every_field_of_an_instruction_counts(name):
    row = targets.find("x86-avx512vnni")
    first, *others = row.instructions
    changed = dataclasses.replace(first, **{name: "another value"})
    assert key(row=dataclasses.replace(row, instructions=(changed, *others))) != key(row=row)


def test_an_emulated_target_has_its_own_entry():
    row = targets.host()
    assert key(row=targets.emulated(row)) != key(row=row)
    assert key(row=targets.find(row.name)) == key(row=dataclasses.replace(row))


def test_versions_source_and_machine_count(monkeypatch):
    now = key()
    assert key(record=Record("log:1", 64, ())) != now
    for module, name, value in (
        (versions, "SCHEDULE_VERSION", -1),
        (environment, "SOURCE", "other"),
        (versions, "installed", lambda name: f"{name} 0"),
        (kernel_file, "FORMAT_VERSION", 99),
        (machine, "architecture", lambda: "s390x"),
        (environment, "VERSION", "99"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            assert key(row=targets.find("generic")) not in (now, key)
            changed = key(row=targets.find("generic"))
        assert changed != key(row=targets.find("generic"))


def test_the_key_is_the_same_in_every_process():
    code = (
        "import quantmm as qmm; from quantmm.compiler import cache; "
        f"spec = qmm.MatmulSpec.from_json({SPEC.to_json()!r}); "
        "print(cache.key(spec, qmm.targets.host()))"
    )
    names = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert names == {key()}


def test_the_source_is_what_decides_kernels(monkeypatch, tmp_path):
    assert environment.source_digest() == environment.SOURCE
    monkeypatch.setattr(environment, "PACKAGE", tmp_path)
    seen = set()
    for folder in environment.SOURCE_FOLDERS:
        (tmp_path / folder / "below").mkdir(parents=True)
        (tmp_path / folder / "below" / "a.py").write_text("1")
        seen.add(environment.source_digest())
    (tmp_path / "schedules" / "below" / "a.py").write_text("2")
    seen.add(environment.source_digest())
    (tmp_path / "schedules" / "below" / "a.py").rename(tmp_path / "schedules" / "below" / "b.py")
    seen.add(environment.source_digest())
    (tmp_path / "schedules" / ".#b.py").symlink_to("nowhere")  # what an editor leaves
    seen.add(environment.source_digest())
    assert len(seen) == len(environment.SOURCE_FOLDERS) + 3


def test_what_is_built_from_edited_source_is_not_kept(folder, monkeypatch):
    monkeypatch.setattr(cache, "source_digest", lambda: "edited")
    with pytest.warns(RuntimeWarning, match="not kept .*: the source of quantmm has changed since"):
        assert_right(qmm.compile(SPEC, cache=True))
    assert not folder.exists()


def test_a_target_that_is_no_key(folder):
    row = dataclasses.replace(targets.host(), llvm={**targets.host().llvm, "x": object()})
    with pytest.raises(CacheError, match=r"target \S+ cannot be a key: <object .* is not JSON"):
        key(row=row)
    assert cache.find(SPEC, row) is None
    # Neither a spec nor a target that is none gets as far as an entry.
    with pytest.raises(TargetError, match="no target 'z80'"):
        compiled(target="z80")
    assert not folder.exists()


# What is in an entry's place.


def flip(at):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)

    return damage


def truncate(size):
    def damage(path):
        path.write_bytes(path.read_bytes()[:size])

    return damage


def by(make):
    """Something else than a file."""

    def damage(path):
        path.unlink()
        make(path)

    return damage


def another_kernel(path):
    qmm.compile(dataclasses.replace(SPEC, k=34)).save(path)


def another_target(path):
    row = dataclasses.replace(targets.find("generic"), name="mine")
    qmm.compile(SPEC, row).save(path)


def several_kernels(path):
    row = dataclasses.replace(targets.find("generic"), name="mine")
    qmm.compile(SPEC).save(path, qmm.compile(SPEC, row))


def no_library(path):
    kernel = qmm.compile(SPEC)
    kernel.code = kernel_code.Library(b"no shared library")
    kernel.save(path)


def fields_of_another_version(path):
    content = path.read_bytes()
    _, _, length, _ = kernel_file.HEADER.unpack_from(content)
    header = content[kernel_file.HEADER.size :][:length].replace(b"x_offset", b"x_offzet")
    rest = header + content[kernel_file.HEADER.size + length :]
    digest = kernel_file.checksum(len(header), rest)
    head = (kernel_file.MAGIC, kernel_file.FORMAT_VERSION, len(header), digest)
    path.write_bytes(kernel_file.HEADER.pack(*head) + rest)


def a_link(path):
    elsewhere = path.parent.parent / "elsewhere.qmm"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize(
    "damage",
    [
        *[flip(at) for at in (0, 8, 12, 20, 100, -1)],
        *[truncate(size) for size in (0, 7, 40, 200, -1)],
        by(Path.mkdir),
        by(os.mkfifo),
        by(lambda path: path.symlink_to("nowhere")),
        by(lambda path: path.symlink_to(path.name)),
        a_link,
        another_kernel,
        another_target,
        several_kernels,
        no_library,
        fields_of_another_version,
        lambda path: path.chmod(0o620),
        lambda path: path.chmod(0o602),
        lambda path: path.chmod(0),
    ],
    ids=lambda damage: damage.__qualname__,
)
def test_what_is_no_entry_is_replaced(entry, damage):
    content = entry.read_bytes()
    damage(entry)
    root_reads_anything = os.getuid() == 0 and entry.lstat().st_mode & 0o777 == 0
    kernel = compiled()
    assert kernel.origin == ("cache" if root_reads_anything else "built")
    assert_right(kernel)
    assert entry.is_file()
    assert not entry.is_symlink()
    assert len(entry.read_bytes()) == pytest.approx(len(content), abs=4096)
    assert compiled().origin == "cache"


def test_a_folder_with_something_in_an_entrys_place_stays(entry):
    entry.unlink()
    entry.mkdir()
    (entry / "precious").touch()
    with pytest.warns(RuntimeWarning, match="not kept for the next process: .*not empty"):
        assert_right(qmm.compile(SPEC, cache=True))
    assert cache.clear() == []
    assert (entry / "precious").exists()


def test_another_users_entries_are_not_loaded(entry, monkeypatch):
    monkeypatch.setattr(kernel_code, "load_library", lambda _: pytest.fail("loaded"))
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    assert cache.find(SPEC, targets.host()) is None
    with pytest.warns(RuntimeWarning, match=rf"belongs to user {me}, not to {me + 1}"):
        assert qmm.compile(SPEC, cache=True).origin == "built"
    with pytest.raises(CacheError, match="belongs to user"):
        cache.check_own(entry, entry.stat())


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_folder_that_others_can_write_to_is_not_used(entry, mode):
    content = entry.read_bytes()
    entry.parent.chmod(mode)
    with pytest.warns(RuntimeWarning, match=rf"other users can write to .* \(mode {mode:o}\)"):
        assert qmm.compile(SPEC, cache=True).origin == "built"
    assert entry.read_bytes() == content
    entry.parent.chmod(0o700)
    assert compiled().origin == "cache"


@pytest.mark.parametrize("mask", [0, 0o077, 0o777])
def test_nobody_else_can_write(folder, mask):
    before = os.umask(0o022)
    folder.parents[1].mkdir()
    os.umask(mask)
    try:
        if mask == 0o777 and os.getuid():
            pytest.skip("needs root")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_right(qmm.compile(SPEC, cache=True))
    finally:
        os.umask(before)
    for each in (folder, folder.parent, *folder.iterdir()):
        assert each.stat().st_mode & 0o077 == 0


# Where nothing can be kept.


def test_without_a_linker(folder, monkeypatch):
    monkeypatch.setattr(linker.shutil, "which", lambda _: None)
    monkeypatch.setattr(linker.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(environment, "tvm_library", lambda _: None)
    monkeypatch.setattr(kernel_file, "packed", lambda _: pytest.fail("generated code in vain"))
    with pytest.warns(RuntimeWarning, match=r"not kept for the next process: .* needs a linker"):
        kernel = qmm.compile(SPEC, cache=True)
    monkeypatch.undo()
    assert kernel.origin == "built"
    assert_right(kernel)


def test_a_linker_that_fails(folder, monkeypatch):
    monkeypatch.setattr(linker, "command", lambda _: ["false"])
    with pytest.warns(RuntimeWarning, match="linking failed"):
        assert_right(qmm.compile(SPEC, cache=True))
    assert list(folder.iterdir()) == []


def test_a_library_that_does_not_load(folder, monkeypatch):
    """For example where temporary files cannot be executed."""

    def refuse(_):
        raise OSError("failed to map segment from shared object")

    monkeypatch.setattr(kernel_code, "load_library", refuse)
    monkeypatch.setattr(kernel_code, "_libraries", {})  # no kernel of another test shares its own
    with pytest.warns(RuntimeWarning, match="failed to map segment"):
        assert_right(qmm.compile(SPEC, cache=True))
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made(folder):
    folder.parents[1].touch()
    with pytest.warns(RuntimeWarning, match=r"not kept .*(exists|Not a directory)"):
        assert_right(qmm.compile(SPEC, cache=True))
    with pytest.raises(CacheError, match=r"cannot read .*kernels: Not a directory"):
        cache.entries()


def test_a_full_disk(folder, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        assert_right(qmm.compile(SPEC, cache=True))
    assert list(folder.iterdir()) == []


def test_a_user_without_a_home(monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "user_cache_path", lambda *_, **__: Path("~/.cache/quantmm"))
    monkeypatch.chdir(tmp_path)
    with pytest.warns(RuntimeWarning, match=r"would be ~/\.cache/.*; expected an absolute path"):
        assert_right(qmm.compile(SPEC, cache=True))
    assert list(tmp_path.iterdir()) == []


#: Makes this process one of a user who has neither HOME nor a line in /etc/passwd.
NOBODY = """
import os, pwd, sys
for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
    os.environ.pop(name, None)
def unknown(uid):
    raise KeyError(uid)
pwd.getpwuid = unknown
"""


def as_nobody(code, *words):
    command = [sys.executable, "-c", NOBODY + code, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_user_without_a_home_or_a_name_compiles():
    code = f"""
import quantmm as qmm
kernel = qmm.compile(qmm.MatmulSpec.from_json({SPEC.to_json()!r}))
print(kernel.origin, "XDG_CACHE_HOME" in os.environ)
"""
    done = as_nobody(code)
    assert done.stdout == "built False\n", done.stderr
    assert "is not kept for the next process: this user has no cache folder" in done.stderr


@pytest.mark.parametrize("words", [("cache",), ("cache", "--clear"), ("logs", "list")])
def test_a_user_without_a_home_or_a_name_reads_why(words):
    done = as_nobody("from quantmm.cli.main import run\nrun()", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("quantmm: this user has no ")
    assert "Traceback" not in done.stderr


# Other machines.


def test_a_kernel_for_another_machine(folder, monkeypatch):
    monkeypatch.setattr(machine, "cpu_features", frozenset)
    row = targets.find("x86-avx2" if machine.architecture() == "x86_64" else "arm-dotprod")
    monkeypatch.setattr(kernel_code, "load_library", lambda _: pytest.fail("loaded"))
    assert compiled(target=row).origin == "built"
    kernel = compiled(target=row)
    assert (kernel.origin, kernel.info.target) == ("cache", row.name)
    with pytest.raises(TargetError, match="cannot run here: this CPU lacks"):
        assert_right(kernel)


def test_another_architectures_kernel_is_saved_from_the_cache(folder, tmp_path, monkeypatch):
    name = "arm-dotprod" if machine.architecture() == "x86_64" else "x86-avx2"
    if linker.foreign(targets.find(name).architecture) is None:
        pytest.skip("no linker for another architecture")
    assert compiled(target=name).origin == "built"
    kernel = compiled(target=name)
    assert kernel.origin == "cache"
    kernel.save(tmp_path / "k.qmm")
    (stored,) = kernel_file.contents(tmp_path / "k.qmm")
    assert stored.info == kernel.info == qmm.compile(SPEC, name).info


# How much is kept.


def put(folder, name, size, used):
    path = folder / name
    path.write_bytes(bytes(size))
    os.utime(path, (used, used))
    return path


def test_the_least_recently_used_go(entry, monkeypatch):
    size = entry.stat().st_size
    names = [f"{i:064x}.qmm" for i in range(3)]
    oldest, old, young = (put(entry.parent, name, 1000, i + 1) for i, name in enumerate(names))
    others = [
        put(entry.parent, name, 10**6, 0)
        for name in ("notes.txt", "x.qmm", f"{0:064x}.qmm.bak", "A" * 64 + ".qmm")
    ]
    monkeypatch.setattr(cache, "LIMIT", size + 2000)
    cache.evict(but=entry)
    assert not oldest.exists()
    assert all(path.exists() for path in (old, young, entry, *others))
    # A hit is a use; what was just written stays even if its clock is behind.
    os.utime(entry, (0, 0))
    compiled()
    assert entry.stat().st_mtime > 3
    os.utime(young, (0, 0))
    monkeypatch.setattr(cache, "LIMIT", 1)
    cache.evict(but=young)
    assert sorted(entry.parent.iterdir()) == sorted([young, *others])
    compiled()
    assert sorted(entry.parent.iterdir()) == sorted([entry, *others])


def test_what_interrupted_writes_left_goes(entry, monkeypatch):
    stale = put(entry.parent, f"{entry.name}.{0:016x}.part", 10, 1)
    fresh = put(entry.parent, f"{entry.name}.{1:016x}.part", 10, 2**40)
    other = put(entry.parent, "download.part", 10, 1)
    cache.evict(but=entry)
    assert not stale.exists()
    assert fresh.exists()
    cache.clear()
    assert list(entry.parent.iterdir()) == [other]


def test_writing_clearing_and_reading_at_once(content, monkeypatch):
    """Whoever looks finds a whole kernel or none."""
    row = targets.host()
    path = cache.entry_path(SPEC, row)
    cache.make_room(path)
    done = threading.Event()

    def write():
        for _ in range(100):
            cache.write_whole(path, content, CacheError, mode=cache.ENTRY_MODE)
            cache.evict(but=path)

    def clear():
        while not done.is_set():
            for each in cache.entries():
                each.path.unlink(missing_ok=True)

    def read():
        count = 0
        while not done.is_set():
            try:
                (stored,) = cache.stored_in(path)
            except FileNotFoundError:
                continue
            assert stored.info.spec == SPEC
            count += 1
        return count

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read), pool.submit(read)]
        writer, clearer = pool.submit(write), pool.submit(clear)
        concurrent.futures.wait([writer])
        done.set()
        writer.result()
        clearer.result()
        assert sum(reader.result() for reader in readers) > 0


# The command.


def test_the_command_shows_and_clears(quantmm, entry):
    other = put(entry.parent, "notes.txt", 5, 0)
    broken = put(entry.parent, f"{7:064x}.qmm", 5, 86400 * 365)
    newer = compiled(dataclasses.replace(SPEC, weight="int4", out="float32", bias=True, m=None))
    assert newer.origin == "built"
    status, out, _ = quantmm("cache")
    assert status == 0
    head, titles, *rows = out.splitlines()
    sizes = [each.size for each in cache.entries()]
    assert head == f"{entry.parent}: 3 kernels, {sum(sizes):,} bytes of at most 536,870,912"
    assert titles.split() == ["target", "spec", "bytes", "last", "use"]
    cells = [re.split(r" {2,}", row.strip()) for row in rows]
    name = targets.host().name
    specs = ["20 x 33 weight=int4 bias", "20 x 33 out=int32 m=2"]
    assert [(a, b) for a, b, _, _ in cells[:2]] == [(name, spec) for spec in specs]
    assert cells[2][0] == "(unused)"
    assert "is not a quantmm kernel file" in rows[2]
    assert [int(size.replace(",", "")) for _, _, size, _ in cells[:2]] == sizes[:2]
    assert re.fullmatch(r"1970-12-31 .*|1971-01-01 .*", cells[2][-1])
    # Looking is no use.
    assert broken.stat().st_mtime == 86400 * 365
    status, out, _ = quantmm("cache", "--clear")
    assert (status, out) == (0, f"{entry.parent}: removed 3 kernels, {sum(sizes):,} bytes\n")
    assert list(entry.parent.iterdir()) == [other]
    assert quantmm("cache")[1] == f"{entry.parent}: 0 kernels, 0 bytes of at most 536,870,912\n"


def test_the_command_where_nothing_was_kept(quantmm, folder):
    for words in (["cache"], ["cache", "--clear"]):
        status, out, _ = quantmm(*words)
        assert status == 0
        assert "0 kernels, 0 bytes" in out
    assert not folder.exists()


def test_what_cannot_be_removed_is_named(quantmm, entry, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    status, out, err = quantmm("cache", "--clear")
    assert (status, out) == (2, "")
    assert err == f"quantmm: cannot remove {entry}: Permission denied\n"


def test_warnings_of_commands_are_one_line(quantmm, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(qmm.compile.__kwdefaults__, "cache", True)
    folder.parents[1].touch()
    words = ["compile", "--n", 20, "--k", 33, "--m", 2, "-o", tmp_path / "k.qmm"]
    status, out, err = quantmm(*words)
    assert status == 0
    assert out.startswith(f"{tmp_path / 'k.qmm'}: ")
    assert err.startswith("quantmm: this kernel is not kept for the next process: ")
    assert err.count("\n") == 1


def test_verify_and_demo_build_what_they_judge(quantmm, monkeypatch):
    verify = ["verify", "--n", 20, "--k", 33, "--m", 2, "--out", "int32"]
    with monkeypatch.context() as patch:
        patch.setattr(cache, "find", lambda *_: pytest.fail("looked"))
        patch.setattr(cache, "keep", lambda *_: pytest.fail("kept"))
        patch.setitem(qmm.compile.__kwdefaults__, "cache", True)
        for words in (verify, ["demo"]):
            assert quantmm(*words)[0] == 0
