"""Who imports torch, and what they hear who have none or an old one. Runs without torch too."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

PYPROJECT = Path(__file__).parent.parent.parent / "pyproject.toml"


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def heard(torch):
    """What importing `quantmm.nn` says where this is torch."""
    return run(f"""
import sys, types
import quantmm
sys.modules["torch"] = {torch}
try:
    import quantmm.nn
except quantmm.QuantmmError as error:
    print(type(error).__name__, error)
""")


def test_quantmm_does_not_import_torch():
    code = "import sys, quantmm; print('torch' in sys.modules, 'quantmm.nn' in sys.modules)"
    assert run(code) == "False False"


def test_without_torch():
    assert heard(None) == (
        "ToolError quantmm.nn needs torch, which is not installed: pip install 'quantmm[torch]'"
    )


@pytest.mark.parametrize("version", ["1.13.1", "2.3.0+cpu", "2.12.9"])
def test_too_old(version):
    said = heard(f"types.SimpleNamespace(__version__={version!r})")
    assert said == (
        f"ToolError quantmm.nn found torch {version}; expected 2.13 or later: "
        "pip install 'quantmm[torch]'"
    )
    assert '\ntorch = ["torch>=2.13"]\n' in PYPROJECT.read_text(encoding="utf-8")


@pytest.mark.parametrize("version", ["2.13.0", "2.13.0+cpu", "2.14.0a0+git123", "3.0"])
def test_new_enough(version, torch):
    from quantmm.nn import requirement

    requirement.check_version(version)


@pytest.mark.parametrize("first", ["quantmm.nn", "transformers.quantizers.auto"])
def test_transformers_knows_the_quantizer_in_any_order_of_imports(first, torch):
    pytest.importorskip("transformers", reason="transformers is not installed")
    said = run(f"""
import sys
import {first}
import quantmm.nn
print("transformers" in sys.modules)
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
print(AUTO_QUANTIZER_MAPPING["quantmm"].__module__)
""")
    assert said.split() == [str(first != "quantmm.nn"), "quantmm.nn.pretrained"]


def test_transformers_that_is_too_old_is_told_of(monkeypatch, torch):
    from quantmm.nn import registration

    old = types.SimpleNamespace(__version__="4.57.1")
    monkeypatch.setitem(sys.modules, "transformers", old)
    monkeypatch.setitem(sys.modules, registration.TABLE, types.ModuleType(registration.TABLE))
    with pytest.warns(RuntimeWarning, match="does not read models that quantmm saved: .* 4.57.1;"):
        registration.register()
