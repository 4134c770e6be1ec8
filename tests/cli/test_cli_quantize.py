"""The command `quantmm quantize`."""

from __future__ import annotations

import numpy as np
import pytest
import quantmm as qmm
from safetensors.numpy import save_file

W = np.random.default_rng(0).standard_t(4, (24, 150)).astype(np.float32)
USUAL = [
    ("int8 channel", {}),
    ("int8 g=128", {"group_size": 128}),
    ("int4 channel", {"weight": "int4"}),
    ("int4 g=128", {"weight": "int4", "group_size": 128}),
    ("int4 g=32", {"weight": "int4", "group_size": 32}),
    ("uint4 g=32 zero points", {"weight": "uint4", "group_size": 32, "weight_zero_point": True}),
    ("uint4 g=32 offsets", {"weight": "uint4", "group_size": 32, "weight_offset": True}),
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "layer.npy"
    np.save(path, W)
    return path


def table(out):
    """The rows of the table: the columns are two spaces apart."""
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("weight"))
    rows = []
    for line in lines[start + 1 :]:
        words = [word.strip() for word in line.split("  ") if word.strip()]
        if len(words) == 6:
            rows.append(words)
    return rows


def expected(rows):
    return [
        [
            row.format,
            row.activation,
            f"{row.bytes:,}",
            f"{100 * row.ratio:.1f}%",
            f"{row.snr_db:.1f}",
            f"{100 * row.output_error:.3f}%",
        ]
        for row in rows
    ]


def test_compares_the_usual_formats(quantmm, file):
    status, out, err = quantmm("quantize", file)
    assert (status, err) == (0, "")
    assert "layer of" in out
    assert "N=24, K=150, absmax" in out
    specs = [qmm.MatmulSpec(24, 150, **formats) for _, formats in USUAL]
    assert table(out) == expected(qmm.error_report(W, specs))
    assert [row[0] for row in table(out)] == ["float32", *(label for label, _ in USUAL)]


@pytest.mark.parametrize(
    ("k", "sizes"),
    [
        (128, [None, 128, None, 128, 32, 32, 32]),
        (127, [None, None, 32, 32, 32]),
        (31, [None, None]),
    ],
)
def test_drops_groups_beyond_k(quantmm, tmp_path, k, sizes):
    np.save(tmp_path / "w.npy", W[:, :k])
    labels = [row[0].split()[1] for row in table(quantmm("quantize", tmp_path / "w.npy")[1])[1:]]
    assert labels == [f"g={size}" if size else "channel" for size in sizes]


@pytest.mark.parametrize(
    ("words", "method", "specs"),
    [
        (
            ["--format", "int8", "--weight", "int4", "--group-size", 32, "--group-size", "channel"],
            {},
            [
                {"weight": weight, "group_size": size}
                for weight in ("int8", "int4")
                for size in (32, None)
            ],
        ),
        (
            ["--group-size", "tensor"],
            {},
            [{"group_size": "tensor"}, {**USUAL[2][1], "group_size": "tensor"}],
        ),
        (
            ["--format", "uint4", "--weight-zero-point", "--dynamic", "--input", "float16"],
            {},
            [{"weight": "uint4", "weight_zero_point": True, "dynamic": True, "input": "float16"}],
        ),
        (["--format", "int4", "--method", "mse"], {"method": "mse"}, [{"weight": "int4"}]),
        (
            ["--format", "int4", "--weight-offset", "--method", "mse"],
            {"method": "mse"},
            [{"weight": "int4", "weight_offset": True}],
        ),
        (
            ["--format", "int4", "--method", "percentile", "--percentile", 98.5],
            {"method": "percentile", "percentile": 98.5},
            [{"weight": "int4"}],
        ),
    ],
)
def test_compares_what_is_chosen(quantmm, file, words, method, specs):
    status, out, _ = quantmm("quantize", file, *words)
    assert status == 0
    made = [qmm.MatmulSpec(24, 150, **formats) for formats in specs]
    assert table(out) == expected(qmm.error_report(W, made, **method))


def test_writes_the_weight_with_its_spec(quantmm, tmp_path):
    source, target = tmp_path / "model.safetensors", tmp_path / "q.safetensors"
    save_file({"other": -W, "layer.w": W}, source)
    words = ["--format", "uint4", "--group-size", 16, "--weight-zero-point", "--method", "mse"]
    status, out, _ = quantmm(
        "quantize", source, "--tensor", "layer.w", *words, "--bias", "-o", target
    )
    assert status == 0
    assert f"{target}: layer.w" in out
    assert len(table(out)) == 2
    ((name, (q, spec)),) = qmm.load_weights(target).items()
    assert name == "layer.w"
    assert spec == qmm.MatmulSpec(
        24, 150, weight="uint4", group_size=16, weight_zero_point=True, bias=True
    )
    again = qmm.quantize(W, "uint4", group_size=16, method="mse")
    np.testing.assert_array_equal(q.data, again.data)
    np.testing.assert_array_equal(q.scale, again.scale)
    np.testing.assert_array_equal(q.zero_point, again.zero_point)


def test_does_not_replace_what_it_reads(quantmm, tmp_path, monkeypatch):
    source = tmp_path / "model.safetensors"
    save_file({"f": W, "other": -W}, source)
    before = source.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(source)
    monkeypatch.chdir(tmp_path)
    for output in (source, "model.safetensors", "link.safetensors"):
        status, out, err = quantmm(
            "quantize", source, "--tensor", "f", "--weight", "int8", "-o", output
        )
        assert (status, out) == (2, "")
        assert err == f"quantmm: --output {output} is FILE, which it would replace; name another\n"
        assert source.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "notes"),
    [
        ([], []),
        (["--weight", "uint4", "--weight-zero-point"], []),
        (["--weight", "uint4", "--weight-offset"], []),
        (
            ["--weight", "uint4", "--weight", "uint8", "--weight", "int4", "--group-size", "8"],
            [
                f"{name} without --weight-zero-point: negative weights"
                for name in ("uint4", "uint8")
            ],
        ),
        (["--activation", "uint8"], ["uint8 without --activation-zero-point: negative activation"]),
        (["--activation", "uint8", "--activation-zero-point"], []),
    ],
)
def test_tells_what_is_clipped(quantmm, file, words, notes):
    status, out, _ = quantmm("quantize", file, *words)
    assert status == 0
    lines = [line for line in out.splitlines() if "clipped to 0" in line]
    assert len(lines) == len(notes)
    assert all(line.startswith(note) for line, note in zip(lines, notes, strict=True))


def test_has_nothing_to_tell_of_weights_that_are_not_negative(quantmm, tmp_path):
    np.save(tmp_path / "w.npy", abs(W))
    assert "clipped" not in quantmm("quantize", tmp_path / "w.npy", "--weight", "uint4")[1]


def test_a_group_far_longer_than_k(quantmm, file):
    size = 2_147_483_640
    status, out, _ = quantmm("quantize", file, "--weight", "int4", "--group-size", size)
    assert status == 0
    assert table(out)[1][0] == f"int4 g={size}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing argument 'FILE'"),
        (["/nowhere/w.npy"], "cannot read /nowhere/w.npy: No such file"),
        (["w.txt"], "cannot read w.txt: expected a file in .npy, .npz or .safetensors"),
        (["{file}", "--tensor", "a"], "holds one array without a name, no 'a'"),
        (["{file}", "--format", "int3"], "'int3' is not one of"),
        (["{file}", "--group-size", "12"], "group_size=12; expected a positive multiple of 8"),
        (["{file}", "--method", "magic"], "'magic' is not one of"),
        (["{file}", "--percentile", "99"], "percentile=99.0 with method='absmax'"),
        (["{file}", "--method", "percentile", "--percentile", "5"], "more than 50, at most 100"),
        (["{file}", "-o", "q.safetensors"], "--output writes one weight; choose one --weight"),
        (
            ["{file}", "--format", "int8", "--format", "int4", "-o", "q.safetensors"],
            "--output writes one weight; choose one --weight",
        ),
        (["{file}", "--format", "int8", "-o", "q.npz"], "a name that ends in .safetensors"),
        (["{file}", "--format", "int8", "-o", "/nowhere/q.safetensors"], "cannot write /nowhere/q"),
    ],
)
def test_errors_are_one_line_and_exit_with_2(quantmm, file, words, message):
    status, out, err = quantmm("quantize", *(word.format(file=file) for word in words))
    assert (status, out) == (2, "")
    assert err.startswith("quantmm: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_whole_model_has_no_other_options(quantmm, tmp_path):
    (tmp_path / "in").mkdir()
    save_file({"a.weight": np.ones((4, 8), np.float32)}, tmp_path / "in" / "m.safetensors")
    words = ["quantize", tmp_path / "in", "-o", tmp_path / "out", "--format", "w8a8-dynamic"]
    for more in (["--activation", "uint8"], ["--bias"], ["--out", "float16"]):
        status, _, err = quantmm(*words, *more)
        assert status == 2
        assert "--format decides all of a whole model's format" in err
    status, _, err = quantmm("inspect", tmp_path / "in", "--emit", "asm")
    assert (status, "--emit asm: a model holds no code" in err) == (2, True)
