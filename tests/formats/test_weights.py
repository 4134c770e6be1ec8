"""Weights from files and to files: round trips, and every way in which a file can be wrong."""

from __future__ import annotations

import dataclasses
import json
import pickle
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest
import quantmm as qmm
from hypothesis import given
from hypothesis import strategies as st
from quantmm.errors import ArrayError, QuantmmError, WeightFileError
from quantmm.formats import weights as weight_files
from quantmm.formats.weights import KEY
from safetensors import safe_open
from safetensors.numpy import save_file

W = np.random.default_rng(0).standard_normal((4, 21)).astype(np.float32)
FLOATS = ["float16", "float32", "float64", ml_dtypes.bfloat16]


@pytest.mark.parametrize("dtype", FLOATS[:3])
@pytest.mark.parametrize("order", ["<", ">"])
def test_npy(tmp_path, dtype, order):
    path = tmp_path / "w.npy"
    stored = W.astype(np.dtype(dtype).newbyteorder(order))
    np.save(path, np.asfortranarray(stored))
    check_read(qmm.read_matrix(path), stored)


def check_read(matrix, stored):
    assert matrix.dtype == np.float32
    assert matrix.dtype.isnative
    assert matrix.flags.c_contiguous
    np.testing.assert_array_equal(matrix, stored.astype(np.float32))


@pytest.mark.parametrize("dtype", FLOATS[:3])
def test_npz(tmp_path, dtype):
    path = tmp_path / "W.NPZ"
    with path.open("wb") as file:
        np.savez_compressed(file, only=W.astype(dtype))
    check_read(qmm.read_matrix(path), W.astype(dtype))
    with path.open("wb") as file:
        np.savez(file, a=W.astype(dtype), b=-W.astype(dtype))
    check_read(qmm.read_matrix(str(path), "b"), -W.astype(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_safetensors(tmp_path, dtype):
    path = tmp_path / "w.safetensors"
    save_file({"only": W.astype(dtype)}, path)
    check_read(qmm.read_matrix(path), W.astype(dtype))
    save_file({"layer.0": W.astype(dtype), "layer.1": -W.astype(dtype)}, path)
    check_read(qmm.read_matrix(path, "layer.1"), -W.astype(dtype))


def test_bfloat16_is_widened_exactly(tmp_path):
    path = tmp_path / "w.safetensors"
    values = np.array([[1.0, -2.5], [3.140625, 2.0**-120]], ml_dtypes.bfloat16)
    save_file({"w": values}, path)
    assert qmm.read_matrix(path).tolist() == [[1.0, -2.5], [3.140625, 2.0**-120]]


@pytest.mark.filterwarnings("error")
def test_float64_beyond_float32_is_refused(tmp_path):
    path = tmp_path / "w.npy"
    np.save(path, np.array([[1.0, -1e300]]))
    message = r"w\.npy: w holds -1e\+300, which is beyond float32; expected numbers up to 3\.40"
    with pytest.raises(ArrayError, match=message):
        qmm.read_matrix(path)
    given = np.array([[np.inf, -np.inf, np.nan, 3.4e38]])
    np.save(path, given)
    np.testing.assert_array_equal(qmm.read_matrix(path), given.astype(np.float32))


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_too_little_memory_is_no_damage(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"w.{suffix}"
    write(path, W if suffix == "npy" else {"w": W})

    def full(*_, **__):
        raise MemoryError("Unable to allocate 8.00 PiB")

    monkeypatch.setattr(np, "load", full)
    monkeypatch.setattr(weight_files, "safe_open", full)
    with pytest.raises(WeightFileError, match=rf"cannot read .*w\.{suffix}: Unable to allocate 8"):
        qmm.read_matrix(path)


def write(path, content):
    """Write `content` as the suffix says: bytes, an array, or arrays by name."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".npy":
        np.save(path, content, allow_pickle=True)
    elif path.suffix == ".npz":
        np.savez(path, **content)
    else:
        save_file(content, path)


MANY = {f"layer{i}": W for i in range(10)}


@pytest.mark.parametrize(
    ("file", "content", "name", "error", "message"),
    [
        ("w.bin", b"", None, WeightFileError, r"cannot read .*w\.bin: expected a file in \.npy"),
        ("w", b"", None, WeightFileError, r"expected a file in \.npy, \.npz or \.safetensors"),
        ("w.npy", W, "a", WeightFileError, "holds one array without a name, no 'a'"),
        ("w.npz", {}, None, WeightFileError, "holds no arrays"),
        ("w.npz", {"a": W, "b": W}, None, WeightFileError, "2 arrays; name one of a, b$"),
        ("w.npz", {"a": W, "b": W}, "c", WeightFileError, r"holds no 'c'; it holds [ab], [ab]$"),
        ("w.safetensors", {}, None, WeightFileError, "holds no arrays"),
        ("w.safetensors", {"a": W}, "", WeightFileError, "holds no ''; it holds a$"),
        ("w.safetensors", MANY, None, WeightFileError, r"10 arrays; name .*layer7 and 2 more$"),
        ("w.safetensors", MANY, "laier3", WeightFileError, r"'laier3'; it holds layer3, .* 2 more"),
        ("w.npy", W[0], None, ArrayError, r"w has shape \(21,\); expected a matrix"),
        ("w.npy", W[:0], None, ArrayError, r"w has shape \(0, 21\); expected a matrix"),
        ("w.npy", W.astype(np.int8), None, ArrayError, "w holds int8; expected one of float32"),
        ("w.npy", W.astype(np.complex64), None, ArrayError, "w holds complex64; expected"),
        ("w.npz", {"a": W[None]}, None, ArrayError, r"a has shape \(1, 4, 21\); expected a matrix"),
        ("w.safetensors", {"a": W[0]}, None, ArrayError, r"a has shape \(21,\); expected a matrix"),
        ("w.safetensors", {"a": W.view(np.int32)}, None, ArrayError, "a holds I32; expected one"),
        ("w.npy", np.array([[None]]), None, WeightFileError, "or holds Python objects"),
        ("w.npz", {"a": np.array([[{}]])}, None, WeightFileError, "or holds Python objects"),
        ("w.npy", pickle.dumps(W), None, WeightFileError, "is damaged or holds Python objects"),
        ("w.npy", b"", None, WeightFileError, "is damaged"),
        ("w.npz", b"PK\3\4rest", None, WeightFileError, "is damaged"),
        ("w.safetensors", b"", None, WeightFileError, "is damaged"),
        ("w.safetensors", b"\xff" * 64, None, WeightFileError, "is damaged"),
    ],
)
def test_read_errors(tmp_path, file, content, name, error, message):
    path = tmp_path / file
    write(path, content)
    with pytest.raises(error, match=message):
        qmm.read_matrix(path, name)


def test_float8_is_refused_by_name(tmp_path):
    path = tmp_path / "w.safetensors"
    header = {"w": {"dtype": "F8_E4M3", "shape": [2, 4], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(ArrayError, match="w holds F8_E4M3; expected one of float32"):
        qmm.read_matrix(path)


def test_a_member_that_is_no_array(tmp_path):
    path = tmp_path / "w.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no array")
    with pytest.raises(QuantmmError, match=r"w\.npz"):
        qmm.read_matrix(path)


@pytest.mark.parametrize("read", [qmm.read_matrix, qmm.load_weights])
def test_not_there(tmp_path, read):
    path = tmp_path / "none.safetensors"
    with pytest.raises(WeightFileError, match=r"cannot read .*none.*: No such file"):
        read(path)
    path.mkdir()
    with pytest.raises(WeightFileError, match=r"cannot read .*: Is a directory"):
        read(path)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """One file of each format, and the function that reads it."""
    folder = tmp_path_factory.mktemp("weights")
    for suffix in ("npy", "npz", "safetensors"):
        write(folder / f"w.{suffix}", W if suffix == "npy" else {"w": W})
    qmm.save_weights(folder / "q.safetensors", {"w": (qmm.quantize(W, "uint4"), spec_of(W))})
    return [
        *((path, qmm.read_matrix) for path in sorted(folder.glob("w.*"))),
        (folder / "q.safetensors", qmm.load_weights),
    ]


def spec_of(w):
    return qmm.MatmulSpec(*w.shape, weight="uint4", weight_zero_point=True)


@given(st.data())
def test_damage_is_a_clear_error_or_other_numbers(originals, tmp_path, data):
    path, read = data.draw(st.sampled_from(originals), label="file")
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1), label="at")
    if data.draw(st.booleans(), label="cut"):
        content = content[:at]
    else:
        content[at] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    damaged = tmp_path / path.name
    damaged.write_bytes(content)
    error = error_of(read, damaged)
    assert error is None or path.name in str(error)


def error_of(read, path):
    """What reading raises on purpose; anything else fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns of headers that look like Python 2
        try:
            read(path)
        except QuantmmError as error:
            return error
    return None


@pytest.mark.parametrize("keep", [0, 5, 60, 200, -1])
def test_cut_short(originals, tmp_path, keep):
    for path, read in originals:
        short = tmp_path / path.name
        short.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(WeightFileError, match="is damaged"):
            read(short)


@st.composite
def weights(draw):
    rows, k = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    x = np.random.default_rng(draw(st.integers(0, 99))).standard_normal((rows, k))
    dtype = draw(st.sampled_from(["int8", "uint8", "int4", "uint4"]))
    symmetric, ordered = draw(st.booleans()), draw(st.booleans())
    q = qmm.quantize(
        x,
        dtype,
        group_size=draw(st.sampled_from([None, "tensor", 8, 32])),
        symmetric=symmetric,
    )
    if ordered:
        q = dataclasses.replace(q, order=np.random.default_rng(k).permutation(k))
    spec = qmm.MatmulSpec(
        n=rows,
        k=k,
        weight=dtype,
        group_size=q.group_size,
        weight_zero_point=not symmetric,
        weight_order=ordered,
        activation=draw(st.sampled_from(["int8", "uint8"])),
        bias=draw(st.booleans()),
        m=draw(st.sampled_from([None, 16])),
    )
    return q, draw(st.sampled_from([None, spec]))


def same(a, b):
    assert (a.dtype, a.group_size, a.shape) == (b.dtype, b.group_size, b.shape)
    for name in ("data", "scale", "zero_point", "order"):
        left, right = getattr(a, name), getattr(b, name)
        if left is None or right is None:
            assert left is right
        else:
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right, strict=True)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@given(st.dictionaries(NAMES, weights(), min_size=1, max_size=4))
def test_round_trip(tmp_path, given_weights):
    path = tmp_path / "q.safetensors"
    qmm.save_weights(path, given_weights)
    again = qmm.load_weights(path)
    assert list(again) == sorted(given_weights)
    for name, (q, spec) in given_weights.items():
        same(again[name][0], q)
        assert again[name][1] == spec


def test_the_file_is_what_the_documentation_says(tmp_path):
    path = tmp_path / "q.safetensors"
    q = qmm.quantize(W, "uint4", group_size=16)
    spec = qmm.MatmulSpec(4, 21, weight="uint4", group_size=16, weight_zero_point=True)
    qmm.save_weights(path, {"a": (q, spec), "b": (qmm.quantize(W), None)})
    with safe_open(path, framework="np") as file:
        assert sorted(file.keys()) == ["a.data", "a.scale", "a.zero_point", "b.data", "b.scale"]
        np.testing.assert_array_equal(file.get_tensor("a.data"), q.data)
        metadata = {key: json.loads(text) for key, text in file.metadata().items()}
    assert metadata == {
        "quantmm:a": {
            "version": 1,
            "dtype": "uint4",
            "group_size": 16,
            "shape": [4, 21],
            "zero_point": True,
            "spec": json.loads(spec.to_json()),
        },
        "quantmm:b": {
            "version": 1,
            "dtype": "int8",
            "group_size": None,
            "shape": [4, 21],
            "zero_point": False,
        },
    }


def test_arrays_are_stored_as_they_read_not_as_they_lie(tmp_path):
    path = tmp_path / "q.safetensors"
    data = np.arange(24, dtype=np.int8).reshape(4, 6).T
    scale = np.arange(1, 13, dtype=np.float32)[::2]
    q = qmm.QTensor(data, scale, None, "int8", None, (6, 4))
    qmm.save_weights(path, {"w": (q, None)})
    same(qmm.load_weights(path)["w"][0], q)


def test_other_tensors_may_lie_beside(tmp_path):
    path = tmp_path / "q.safetensors"
    q = qmm.quantize(W)
    entry = {"version": 1, "dtype": "int8", "shape": [4, 21], "zero_point": False}
    tensors = {"w.data": q.data, "w.scale": q.scale, "norm": W}
    save_file(tensors, path, {KEY + "w": json.dumps(entry), "format": "pt"})
    same(qmm.load_weights(path)["w"][0], q)


ENTRY = {
    "version": 1,
    "dtype": "uint4",
    "group_size": None,
    "shape": [4, 21],
    "zero_point": True,
    "spec": {"n": 4, "k": 21, "weight": "uint4", "weight_zero_point": True},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "w: its metadata is not JSON"),
        ("[1]", "w: its metadata is list; expected a JSON object"),
        ("[" * 100_000, "damaged"),
        ({"version": 3}, "w: version=3; this quantmm reads 1 and 2"),
        ({"version": 2}, "w: offset=None in its metadata; expected bool"),
        ({"version": 2, "offset": True, "order": False}, r"w: no tensor w\.offset"),
        ({"version": 2, "offset": False, "order": 1}, "w: order=1 in its metadata; expected bool"),
        ({"version": 2, "offset": False, "order": True}, r"w: no tensor w\.order"),
        ({"version": None}, "w: version=None"),
        ({"dtype": "int3"}, "w: dtype='int3'; expected one of int8"),
        ({"dtype": ["int8"]}, r"w: dtype=\['int8'\] in its metadata; expected str"),
        ({"dtype": "int8"}, r"w: int8 data of shape \(4, 21\) is stored as int8\(4, 21\), not"),
        ({"group_size": 12}, "w: group_size=12; expected a positive multiple of 8"),
        ({"group_size": [8]}, r"w: group_size=\[8\]; expected None"),
        ({"group_size": 8}, r"w: scale is float32\(4,\); expected float32\(4, 3\)"),
        ({"shape": [4]}, r"w: shape=\[4\] in its metadata; expected two whole numbers"),
        ({"shape": [4, "a"]}, "expected two whole numbers"),
        ({"shape": [True, 21]}, "expected two whole numbers"),
        ({"shape": [4, 0]}, "expected two whole numbers"),
        ({"shape": None}, "shape=None in its metadata"),
        ({"shape": [4, 23]}, r"w: uint4 data of shape \(4, 23\) is stored as uint8\(4, 12\), not"),
        ({"zero_point": 1}, "w: zero_point=1 in its metadata; expected bool"),
        ({"spec": None}, "w: a spec is a JSON object, not NoneType"),
        ({"spec": {"n": 4}}, "w: a spec needs 'k'"),
        ({"spec": {"n": 4, "k": 21}}, r"w: w is uint4\(4, 21\) with .*the spec has int8"),
        ({"spec": {**ENTRY["spec"], "n": 5}}, r"the spec has uint4\(5, 21\) with group_size=None"),
        (
            {"spec": {"n": 4, "k": 21, "weight": "uint4"}},
            "w: w has zero points; the spec has weight_zero_point=False",
        ),
    ],
)
def test_damaged_metadata(tmp_path, change, message):
    path = tmp_path / "q.safetensors"
    q = qmm.quantize(W, "uint4")
    tensors = {"w.data": q.data, "w.scale": q.scale, "w.zero_point": q.zero_point}
    save_file(tensors, path, {KEY + "w": json.dumps(ENTRY)})
    # A spec that does not say what an activation's scale covers is from when that was all of it.
    before = dataclasses.replace(spec_of(W), activation_scale="tensor")
    assert qmm.load_weights(path)["w"][1] == before
    text = change if isinstance(change, str) else json.dumps({**ENTRY, **change})
    save_file(tensors, path, {KEY + "w": text})
    with pytest.raises(WeightFileError, match=message):
        qmm.load_weights(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w.data": None}, r"w: no tensor w\.data"),
        ({"w.scale": None}, r"w: no tensor w\.scale"),
        ({"w.zero_point": None}, r"w: no tensor w\.zero_point"),
        ({"w.data": np.zeros((4, 10), np.uint8)}, r"w: uint4 data .* not uint8\(4, 10\)"),
        ({"w.data": np.zeros((4, 11), np.int8)}, r"w: uint4 data .* not int8\(4, 11\)"),
        ({"w.scale": np.ones(5, np.float32)}, r"w: scale is float32\(5,\); expected float32\(4,\)"),
        (
            {"w.scale": np.full(4, np.nan, np.float32)},
            r"w: scale nan, first at \[0\]; expected finite",
        ),
        ({"w.zero_point": np.zeros(4)}, r"w: zero_point is float64\(4,\)"),
        ({"w.zero_point": np.full(4, 16, np.int32)}, "w: zero_point 16; uint4 holds 0 to 15"),
    ],
)
def test_damaged_tensors(tmp_path, change, message):
    path = tmp_path / "q.safetensors"
    q = qmm.quantize(W, "uint4")
    tensors = {"w.data": q.data, "w.scale": q.scale, "w.zero_point": q.zero_point, **change}
    there = {name: array for name, array in tensors.items() if array is not None}
    save_file(there, path, {KEY + "w": json.dumps(ENTRY)})
    with pytest.raises(WeightFileError, match=message):
        qmm.load_weights(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_file_of_others(tmp_path, metadata):
    path = tmp_path / "model.safetensors"
    save_file({"w": W}, path, metadata)
    with pytest.raises(WeightFileError, match=r"holds no weights that quantmm\.save_weights wrote"):
        qmm.load_weights(path)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "weights is empty"),
        ([qmm.quantize(W)], r"weights is list; expected name: \(QTensor, MatmulSpec or None\)"),
        ({"": (qmm.quantize(W), None)}, "weights has the name ''"),
        ({"\ud800": (qmm.quantize(W), None)}, r"weights has the name '.*ud800"),
        ({3: (qmm.quantize(W), None)}, "weights has the name 3"),
        ({"a": qmm.quantize(W)}, r"a: expected \(QTensor, MatmulSpec or None\), not QTensor"),
        ({"a": (W, None)}, "a: expected"),
        ({"a": (qmm.quantize(W), "int8")}, "a: the spec is 'int8'; expected a MatmulSpec or None"),
        (
            {"a": (qmm.quantize(W), qmm.MatmulSpec(4, 21, group_size=8))},
            r"a: w is int8\(4, 21\) with group_size=None; the spec has .*group_size=8",
        ),
        (
            {"a": (qmm.quantize(W, "uint8"), qmm.MatmulSpec(4, 21, weight="uint8"))},
            "a: w has zero points; the spec has weight_zero_point=False",
        ),
    ],
)
def test_what_cannot_be_saved(tmp_path, weights, message):
    path = tmp_path / "q.safetensors"
    with pytest.raises(ArrayError, match=message):
        qmm.save_weights(path, weights)
    assert not path.exists()


def test_cannot_be_written(tmp_path, monkeypatch):
    weights = {"a": (qmm.quantize(W), None)}
    with pytest.raises(WeightFileError, match=r"cannot write .*: expected a name that ends in"):
        qmm.save_weights(tmp_path / "q.qmm", weights)
    with pytest.raises(WeightFileError, match=r"cannot write .*there is no folder"):
        qmm.save_weights(tmp_path / "no" / "q.safetensors", weights)
    path = tmp_path / "q.safetensors"
    path.write_bytes(b"precious")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WeightFileError, match="No space left on device"):
        qmm.save_weights(path, weights)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]
