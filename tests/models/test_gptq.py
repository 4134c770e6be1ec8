"""How GPTQ's two ways to store zero points are told apart, and files that lie."""

from __future__ import annotations

import warnings

import model_files
import numpy as np
import pytest
import quantmm as qmm
from quantmm.errors import WeightFileError


def drawn(condition=lambda each: True, **words):
    return model_files.example(model_files.gptq(**words), condition)


def opened(folder):
    """A model and what is warned of."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = qmm.open_model(folder)
    assert [str(each.message) for each in told] == [f"{folder}: {note}" for note in model.notes]
    return model


def check(model, written):
    np.testing.assert_array_equal(qmm.dequantize(model["a"]), written.matrix.astype(np.float32))


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("label", ["gptq", "gptq_v2", None])
def test_symmetric_files_say_themselves_which_they_are(tmp_path, version, label):
    written = drawn(version=version, symmetric=True)
    written.settings["checkpoint_format"] = label
    if label is None:
        del written.settings["checkpoint_format"]
    model = opened(written.save(tmp_path))
    check(model, written)
    assert model.layers["a"].fields["weight_zero_point"] is False
    told = f"labelled {label}, but all zero points are those of a symmetric {version}; read as that"
    assert model.notes == ((told,) if label not in (None, version) else ())


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_nothing_is_said(tmp_path, version):
    written = drawn(
        lambda each: len(np.unique(each.tensors["a.qzeros"])) > 1, version=version, symmetric=False
    )
    written.settings.clear()
    model = opened(written.save(tmp_path))
    assert model.notes == (
        "nothing says whether zero points are stored as gptq or as gptq_v2 has them; read as gptq, "
        "so that each is one more than is stored",
    )
    if version == "gptq":
        check(model, written)


def test_settings_without_a_label_are_of_gptq(tmp_path):
    written = drawn(version="gptq", symmetric=False)
    del written.settings["checkpoint_format"]
    model = opened(written.save(tmp_path))
    check(model, written)
    assert model.notes == ()


def test_settings_may_lie_in_a_file_of_their_own(tmp_path):
    written = drawn(version="gptq_v2", symmetric=False)
    settings, written.settings = written.settings, {}
    written.save(tmp_path)
    (tmp_path / "quantize_config.json").write_text(model_files.json.dumps(settings))
    check(opened(tmp_path), written)


def test_a_model_with_floats_beside(tmp_path):
    written = drawn(version="gptq", symmetric=True)
    head = np.ones((3, 5), np.float16)
    written.tensors |= {"lm_head.weight": head, "a.bias": head[0], "embed_tokens.weight": head}
    model = opened(written.save(tmp_path))
    assert list(model) == ["a", "lm_head"]
    assert sorted(model.tensors) == ["a.bias", "embed_tokens.weight"]
    assert model.format == "gptq"
    assert model["lm_head"].dtype == np.float16


def lies(tensors, settings):
    """What is changed, and what is said."""
    n = tensors["a.scales"].shape[1]
    g_idx = tensors["a.g_idx"]
    yield {"a.g_idx": g_idx + 1}, {}, r"a\.g_idx names the group \d+; expected 0 to"
    yield {"a.g_idx": -g_idx}, {}, r"a\.g_idx names the group -\d+; expected 0 to"
    yield {"a.g_idx": 0 * g_idx}, {}, r"a\.g_idx has \d+ columns in group 0; expected groups of"
    yield {"a.g_idx": g_idx[1:]}, {}, r"a\.g_idx is int32\(\d+,\); expected int32 or int64\("
    yield {"a.scales": tensors["a.scales"].astype(np.int32)}, {}, r"a\.scales is int32.*float16 or"
    yield {"a.scales": tensors["a.scales"][:, 1:]}, {}, rf"a\.scales is .*any, {n}\)"
    yield {"a.qzeros": tensors["a.qzeros"][1:]}, {}, r"a\.qzeros is int32.*expected int32\("
    yield {"a.qzeros": np.tile(tensors["a.qzeros"], 5)}, {}, r"expected \(K bits / 32, N\) and \(G"
    yield {}, {"bits": 5}, r"a has \d bits; expected 5, as the settings say"
    yield {}, {"group_size": 2**40}, r"a has \d+ rows of scales; expected 1, for K="
    yield {}, {"group_size": "x"}, "group_size='x' in the settings of the quantizer; expected a who"
    yield (
        {},
        {"checkpoint_format": "marlin"},
        "checkpoint_format='marlin'; expected gptq or g",
    )


def test_files_that_lie(tmp_path):
    written = drawn(lambda each: len(each.tensors["a.scales"]) > 1 and "a.g_idx" in each.tensors)
    for number, (tensors, settings, message) in enumerate(lies(written.tensors, written.settings)):
        folder = tmp_path / str(number)
        folder.mkdir()
        lying = model_files.Written(
            written.tensors | tensors, written.settings | settings, written.matrix
        )
        with pytest.raises(WeightFileError, match=message):
            qmm.open_model(lying.save(folder))


def test_groups_that_no_kernel_has(tmp_path):
    written = drawn(lambda each: each.matrix.shape[1] == 16 and len(each.tensors["a.scales"]) > 1)
    written.tensors["a.scales"] = np.repeat(written.tensors["a.scales"], 2, axis=0)
    written.tensors["a.qzeros"] = np.repeat(written.tensors["a.qzeros"], 2, axis=0)
    written.tensors.pop("a.g_idx", None)
    written.settings["group_size"] = 4
    model = qmm.open_model(written.save(tmp_path))
    message = r"model\.safetensors: a: group_size=4; expected a positive multiple of 8"
    with pytest.raises(WeightFileError, match=message):
        model["a"]
