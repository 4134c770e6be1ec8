"""Kernels for other machines: compiled and saved here, not run; what LLVM would not survive."""

from __future__ import annotations

import dataclasses
import functools
import platform

import numpy as np
import pytest
import quantmm as qmm
from quantmm import targets
from quantmm.compiler import linker
from quantmm.compiler.cpu import emit_code
from quantmm.compiler.llvm import llvm_target
from quantmm.errors import TargetError, ToolError
from quantmm.runtime import kernel_file
from quantmm.targets import machine

SPEC = qmm.MatmulSpec(n=16, k=64, m=2, out="int32")

FOREIGN = [
    pytest.param(row, id=row.name)
    for row in targets.TARGETS
    if row.architecture not in (None, machine.architecture())
]
#: ELF's numbers for architectures, e_machine.
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}

WIDE = qmm.targets.find("x86-avx512vnni")
X86 = {"x86_64": {}}.get(machine.architecture(), {"mtriple": "x86_64-linux-gnu"})


@functools.cache
def compiled(row):
    return qmm.compile(SPEC, row.name)


def why_no_linker(architecture):
    try:
        linker.command(architecture)
    except ToolError as error:
        return str(error)
    return None


@pytest.mark.parametrize("row", FOREIGN)
def test_a_kernel_for_another_architecture_is_never_run(row, monkeypatch):
    kernel = compiled(row)
    assert kernel.info.architecture == row.architecture
    assert kernel.report()[0]["target"] == row.name
    linear = kernel.bind(qmm.quantize(np.ones((16, 64))))

    class Untouched:
        def __getitem__(self, name):
            raise AssertionError(f"{name} was to be run")

    monkeypatch.setattr(kernel, "code", Untouched())
    message = rf"this kernel \({row.name}\) cannot run here: needs {row.architecture}, this machine"
    with pytest.raises(TargetError, match=message):
        linear(np.ones((2, 64), np.int8))


@pytest.mark.parametrize("row", FOREIGN)
def test_a_kernel_for_another_architecture_is_saved(row, tmp_path):
    if reason := why_no_linker(row.architecture):
        pytest.skip(reason)
    path = tmp_path / "k.qmm"
    compiled(row).save(path)
    (stored,) = kernel_file.contents(path)
    assert stored.info == compiled(row).info
    assert stored.content.startswith(b"\x7fELF")
    assert int.from_bytes(stored.content[18:20], "little") == ELF_MACHINES[row.architecture]
    with pytest.raises(TargetError, match=f"{row.name} cannot run here: needs {row.architecture}"):
        qmm.load(path)
    # In one file with this machine's own, the other is found.
    qmm.compile(SPEC).save(path, compiled(row))
    assert qmm.load(path).info.target == targets.host().name


@pytest.mark.parametrize("row", FOREIGN)
@pytest.mark.parametrize("form", ["tir", "asm"])
def test_code_for_another_architecture_is_shown(row, form):
    assert "gemv_" in emit_code(SPEC, row, 2, form)


def refused(message, **changes):
    """A row that LLVM must not see, whose machine code would be of its own process's last."""
    row = dataclasses.replace(WIDE, **changes)
    with pytest.raises(TargetError, match=message):
        qmm.compile(SPEC, row)


def test_an_instruction_that_the_options_lack():
    name, feature = WIDE.instruction.name, WIDE.instruction.llvm_feature
    assert feature == "avx512vnni"
    refused(
        rf"x86-avx512vnni uses {name}, which needs LLVM's feature 'avx512vnni'; "
        r"mcpu='x86-64-v4' lacks it",
        llvm={**X86, "mcpu": "x86-64-v4"},
    )
    refused(
        r"mcpu='x86-64-v4', mattr=\['-avx512vnni'\] lacks it",
        llvm={**X86, "mcpu": "x86-64-v4", "mattr": ["-avx512vnni"]},
    )
    refused("the x86_64 baseline lacks it", llvm=X86)


def test_a_cpu_that_llvm_does_not_know():
    refused(
        "has mcpu='znver9', which LLVM does not know for x86_64", llvm={**X86, "mcpu": "znver9"}
    )
    refused("has mcpu='neoverse-n1', which LLVM does not", llvm={**X86, "mcpu": "neoverse-n1"})


def test_attributes_that_llvm_ignores():
    refused(
        r"has mattr '\+nonsense', which has no effect",
        llvm={**X86, "mcpu": "x86-64-v4", "mattr": ["+nonsense"]},
    )
    refused(
        r"has mattr 'avx512vnni'; expected '\+' or '-' before the name",
        llvm={**X86, "mcpu": "x86-64-v4", "mattr": ["avx512vnni"]},
    )


def test_options_that_tvm_refuses():
    refused("which TVM refuses: .*'speed'", llvm={**X86, "speed": 11})
    refused("which TVM refuses: .*'mattr'", llvm={**X86, "mattr": "+avx512vnni"})


def test_an_architecture_that_does_not_fit_the_options():
    refused("is for x86_64; its mtriple is 'nonsense'", llvm={"mtriple": "nonsense"})
    refused("is for x86_64; its mtriple is 'aarch64-linux", llvm={"mtriple": "aarch64-linux-gnu"})
    refused("is for z80, which LLVM does not know", architecture="z80", llvm={})


def test_options_that_allow_more_than_the_row_asks_for():
    refused(
        r"lets LLVM use .*avx512vbmi.* \(mcpu='sapphirerapids'\), which its features do not name",
        llvm={**X86, "mcpu": "sapphirerapids"},
    )
    features = WIDE.features - {"avx512_vnni"}
    refused(r"lets LLVM use avx512vnni \(", features=features)


def test_every_row_has_options_that_llvm_knows(row):
    target = llvm_target(row)
    foreign = row.architecture not in (None, machine.architecture())
    assert not foreign or str(target.attrs["mtriple"]).startswith(row.architecture)
    llvm_target(targets.emulated(row))


@pytest.mark.parametrize(
    ("name", "architecture"),
    [("arm64", "aarch64"), ("AMD64", "x86_64"), ("x86_64", "x86_64"), ("riscv64", "riscv64")],
)
def test_architectures_have_one_name(monkeypatch, name, architecture):
    monkeypatch.setattr(platform, "machine", lambda: name)
    assert machine.architecture() == architecture


def test_the_other_architecture_compiles_for_this_one(monkeypatch):
    """What a machine of another architecture does: rows without a triple get one."""
    monkeypatch.setattr(machine, "architecture", lambda: "s390x")
    assert llvm_target(WIDE).attrs["mtriple"] == "x86_64-linux-gnu"


def test_features_that_the_system_does_not_list(monkeypatch):
    registers = {(0, 0): (7, 0, 0, 0), (7, 0): (1, 0, 0, 0), (7, 1): (0, 0, 0, 1 << 4)}

    def fake():
        return lambda leaf, subleaf=0: registers[leaf, subleaf]

    monkeypatch.setattr(machine, "CPUID", fake)
    assert machine.cpuid_features() == {"avx_vnni_int8"}
    registers[7, 1] = 0, 0, 0, 0
    assert machine.cpuid_features() == frozenset()
    registers[7, 0] = 0, 0, 0, 0
    del registers[7, 1]
    assert machine.cpuid_features() == frozenset()

    def forbidden():
        raise PermissionError

    monkeypatch.setattr(machine, "CPUID", forbidden)
    assert machine.cpuid_features() == frozenset()


def test_features_of_arm_come_from_the_auxiliary_vector(monkeypatch):
    class Process:
        @staticmethod
        def getauxval(entry):
            return {16: 1 << 20, 26: 1 << 13}[entry]

    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: Process)
    assert machine.hwcap_features() == {"asimddp", "i8mm"}


def test_tiles_that_the_system_refuses(monkeypatch):
    features = machine.cpu_features() | {"amx_tile"}
    monkeypatch.setattr(machine, "cpu_features", lambda: features)
    asked = []

    def answer(*words):
        asked.append(words)
        return len(asked) - 1

    class Process:
        syscall = staticmethod(answer)

    monkeypatch.setattr(machine.ctypes, "CDLL", lambda *_, **__: Process)
    machine.require("it", None, {"amx_tile"})
    assert asked == [(158, 0x1023, 18)]
    with pytest.raises(TargetError, match="it cannot run here: the system refuses AMX's tiles"):
        machine.require("it", None, {"amx_tile"})
    machine.require("it", None, set())
    assert len(asked) == 2


def test_bench_refuses_what_cannot_run_here(monkeypatch):
    from quantmm.bench import limits

    monkeypatch.setattr(limits, "dot_gops", lambda *_: pytest.fail("was run"))
    row = dataclasses.replace(targets.host(), name="future", features=frozenset(["avx2048"]))
    with pytest.raises(TargetError, match="future cannot run here: this CPU lacks avx2048"):
        limits.measure(row, 1)
