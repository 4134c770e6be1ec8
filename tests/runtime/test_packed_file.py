"""Packed layers of a model in one file: what comes back, what is refused, what is damaged."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import quantmm as qmm
from quantmm import targets
from quantmm.runtime import packed_file

#: Every damage that a file may come to is one byte that changed, or many that are missing.
CHANGED = "is damaged: its checksum does not match its header"


@pytest.fixture(scope="module")
def layers():
    """Two layers of one kernel and one of another, with numbers that were bound."""
    rng = np.random.default_rng(0)
    w = [qmm.quantize(rng.standard_normal((70, 96)), "int4", group_size=32) for _ in range(2)]
    float_in = qmm.compile(w[0].spec(input="float32", dynamic=True, bias=True, m=3))
    integers = qmm.compile(qmm.MatmulSpec(n=400, k=300, activation_scale="tensor", m=3))
    bias = rng.standard_normal(70).astype(np.float32)
    big = qmm.quantize(rng.standard_normal((400, 300)))
    return {
        "a.first": float_in.bind(w[0], bias),
        "a.second": float_in.bind(w[1], bias),
        "b": integers.bind(big, x_scale=0.25),
    }


@pytest.fixture(scope="module")
def written(layers, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "model.packed"
    qmm.save_packed(path, layers)
    return path


@pytest.fixture
def damaged(written, tmp_path):
    """Writes the file with one change."""

    def write(change):
        path = tmp_path / "model.packed"
        path.write_bytes(change(bytearray(written.read_bytes())))
        return path

    return write


def inputs(linear):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, linear.kernel.spec.k)).astype(np.float32)
    return x if linear.kernel.spec.input else np.clip(x * 40, -128, 127).astype(np.int8)


def test_kernels_with_the_same_code_keep_their_specs(tmp_path):
    rng, linears = np.random.default_rng(0), {}
    for weight in ("int8", "int7"):
        path = tmp_path / f"{weight}.qmm"
        qmm.compile(qmm.MatmulSpec(n=20, k=64, m=2, weight=weight), "generic").save(path)
        w = qmm.quantize(rng.standard_normal((20, 64)), weight)
        linears[weight] = qmm.load(path).bind(w)
    assert linears["int8"].kernel.code is linears["int7"].kernel.code
    qmm.save_packed(tmp_path / "model.packed", linears)
    found = qmm.load_packed(tmp_path / "model.packed")
    assert [linear.kernel.spec.weight for linear in found.values()] == ["int8", "int7"]


@pytest.mark.parametrize("copied", [False, True])
def test_layers_compute_what_they_did(layers, written, copied):
    found = qmm.load_packed(written, copy=copied)
    assert list(found) == list(layers)
    assert "b" in found
    assert "c" not in found
    assert len(found) == 3
    for name, linear in layers.items():
        x = inputs(linear)
        np.testing.assert_array_equal(found[name](x), linear(x))
        assert found[name] is found[name]
    assert found["a.first"].kernel is found["a.second"].kernel
    for array in (a for linear in found.values() for a in linear._arrays.values()):
        assert array.ctypes.data % 64 == 0
    memory = np.frombuffer(found._memory, np.uint8)
    assert np.shares_memory(found["b"]._arrays["w"], memory) == (not copied)


def test_what_is_loaded_can_be_pickled_and_written_again(layers, written, tmp_path):
    found = qmm.load_packed(written)
    again = pickle.loads(pickle.dumps(found["b"]))
    x = inputs(again)
    np.testing.assert_array_equal(again(x), layers["b"](x))
    qmm.save_packed(tmp_path / "again", found)
    assert (tmp_path / "again").read_bytes() == written.read_bytes()


def test_calls_do_not_change_the_file(layers, written):
    before = written.read_bytes()
    found = qmm.load_packed(written)
    found["b"]._arrays["w"][...] = 0
    assert written.read_bytes() == before


def test_numbers_that_changed_are_found_when_a_layer_is_asked_for(layers, written, damaged):
    found = qmm.load_packed(written)
    start = found._layers["b"]["arrays"]["w"]["start"]
    at = written.stat().st_size - len(found._memory) + start
    found = qmm.load_packed(damaged(flipped(at)))
    x = inputs(layers["a.first"])
    np.testing.assert_array_equal(found["a.first"](x), layers["a.first"](x))
    with pytest.raises(qmm.errors.KernelFileError, match="the checksum of b does not match"):
        found["b"]


def test_blocks_that_were_exchanged_are_found():
    array = np.random.default_rng(0).integers(0, 256, 3 * packed_file.BLOCK + 5).astype(np.uint8)
    blocks = array[: 2 * packed_file.BLOCK].reshape(2, -1)
    other = np.concatenate([blocks[::-1].reshape(-1), array[2 * packed_file.BLOCK :]])
    assert packed_file.checksum([array]) == packed_file.checksum([array.copy()])
    assert packed_file.checksum([array]) != packed_file.checksum([other])
    for at in (0, packed_file.BLOCK, len(array) - 1):
        other = array.copy()
        other[at] ^= 128
        assert packed_file.checksum([array]) != packed_file.checksum([other])


def flipped(at):
    def change(content):
        content[at] ^= 1
        return content

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: b"", "holds no layers that quantmm.save_packed wrote"),
        (flipped(0), "holds no layers that quantmm.save_packed wrote"),
        (flipped(8), "has format version 0; this quantmm reads 1"),
        (flipped(12), CHANGED),
        (flipped(15), CHANGED),
        (flipped(20), CHANGED),
        (flipped(60), CHANGED),
        (lambda content: content[:100], CHANGED),
        (lambda content: content[:-1], "is damaged: it has .* bytes; expected"),
        (lambda content: content + b"\0", "is damaged: it has .* bytes; expected"),
    ],
)
def test_files_that_are_damaged(damaged, change, message):
    with pytest.raises(qmm.errors.KernelFileError, match=message):
        qmm.load_packed(damaged(change))


def test_kernels_that_are_damaged(damaged, written):
    content = written.read_bytes()
    at = content.index(b"quantmm\0") + 100
    with pytest.raises(qmm.errors.KernelFileError, match="checksum does not match its content"):
        qmm.load_packed(damaged(flipped(at)))


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(qmm.errors.KernelFileError, match=r"cannot read .*: No such file"):
        qmm.load_packed(tmp_path / "nothing")
    with pytest.raises(qmm.errors.KernelFileError, match=r"cannot read .*: Is a directory"):
        qmm.load_packed(tmp_path)
    with pytest.raises(qmm.errors.KernelFileError, match="the path is None; expected the name of"):
        qmm.load_packed(None)
    with pytest.raises(qmm.errors.KernelFileError, match=r"cannot read .*: embedded null byte"):
        qmm.load_packed("a\0b")


def test_what_is_no_layer(tmp_path, layers):
    with pytest.raises(qmm.errors.ArrayError, match="layers is dict; expected one or more name"):
        qmm.save_packed(tmp_path / "a", {})
    with pytest.raises(qmm.errors.ArrayError, match="'a' is int; expected a name and a Linear"):
        qmm.save_packed(tmp_path / "a", {"a": 3})
    with pytest.raises(qmm.errors.KernelFileError, match="cannot write"):
        qmm.save_packed(tmp_path / "no" / "a", layers)


def test_one_target(tmp_path, layers):
    other = copy.copy(layers["b"].kernel)
    other.info = dataclasses.replace(other.info, target="another")
    mixed = {"a": layers["b"], "b": layers["b"].for_kernel(other)}
    with pytest.raises(qmm.errors.KernelFileError, match=r"packed for .*another.*; expected one"):
        qmm.save_packed(tmp_path / "a", mixed)


def test_another_target(written, monkeypatch):
    monkeypatch.setattr(targets.machine, "why_not", lambda *_: "it lacks what it needs")
    with pytest.raises(qmm.errors.TargetError, match="cannot run here: it lacks what it needs"):
        qmm.load_packed(written)
