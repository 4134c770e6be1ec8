"""Reading a cubin without a GPU: what a kernel's machine code consists of, and what it occupies.

nvdisasm, from PyPI's nvidia-cuda-nvdisasm or a CUDA toolkit, disassembles; registers, stack and
shared memory are read from the file, which is an ELF file with sections of NVIDIA's.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import ToolError
from ..extras import install

INSTRUCTION_BYTES = 16

#: Records of the section .nv.info whose content is a symbol and a number.
REGISTERS, FRAME_SIZE = 0x2F, 0x11


@dataclass(frozen=True)
class Instruction:
    """One instruction: "LDG.E.128.CONSTANT" and "R4,desc[UR6][R2.64]", as nvdisasm prints them."""

    opcode: str
    operands: str

    def has(self, *parts: str) -> bool:
        """Whether the opcode begins with the first part and has all others: "LDG", "128"."""
        mnemonic, *modifiers = self.opcode.split(".")
        return mnemonic == parts[0] and set(parts[1:]) <= set(modifiers)


@dataclass(frozen=True)
class MachineCode:
    """The machine code of one kernel.

    Attributes
    ----------
    registers : of a thread.
    stack_bytes : of a thread: arrays that are indexed at run time, and spilled registers.
    shared_bytes : of a block, without the dynamic ones; from sm_90 on it includes 1 KB of the
        system's where the kernel has shared memory.
    """

    name: str
    instructions: tuple[Instruction, ...]
    registers: int
    stack_bytes: int
    shared_bytes: int

    def count(self, *parts: str) -> int:
        """How many instructions have the mnemonic and modifiers: "IMMA", "16832"."""
        return sum(instruction.has(*parts) for instruction in self.instructions)

    def inner_loop(self, *parts: str) -> tuple[Instruction, ...]:
        """The shortest loop with the instruction: from where a branch back goes to the branch.

        Raises
        ------
        ValueError
            No loop has it.
        """
        loops = []
        for end, instruction in enumerate(self.instructions):
            target = instruction.operands.rpartition(",")[2].strip()
            if not instruction.has("BRA") or not target.startswith("0x"):
                continue
            start = int(target, 16) // INSTRUCTION_BYTES
            body = self.instructions[start : end + 1]
            if any(inside.has(*parts) for inside in body):
                loops.append(body)
        if not loops:
            raise ValueError(f"no loop of {self.name} with {'.'.join(parts)}")
        return min(loops, key=len)


def read(cubin: bytes) -> dict[str, MachineCode]:
    """The kernels of a cubin, by name.

    Raises
    ------
    ToolError
        nvdisasm is not there, or cannot read this.
    """
    sections = {name: (content, size) for name, content, size in elf_sections(cubin)}
    symbols = [*symbol_names(sections[".symtab"][0], sections[".strtab"][0])]
    numbers = {
        (symbols[symbol], attribute): value
        for attribute, symbol, value in records(sections[".nv.info"][0])
    }
    return {
        name: MachineCode(
            name=name,
            instructions=instructions,
            registers=numbers[name, REGISTERS],
            stack_bytes=numbers.get((name, FRAME_SIZE), 0),
            shared_bytes=sections.get(f".nv.shared.{name}", (b"", 0))[1],
        )
        for name, instructions in disassembled(cubin)
    }


def disassembled(cubin: bytes) -> Iterator[tuple[str, tuple[Instruction, ...]]]:
    """The instructions of every function, in order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run(
            [disassembler(), "--emit-json", str(path)], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise ToolError(f"nvdisasm: {(done.stderr or done.stdout).strip()[-500:]}")
    _, functions = json.loads(done.stdout)
    for function in functions:
        yield (
            function["function-name"],
            tuple(
                Instruction(line["opcode"], line.get("operands", ""))
                for line in function["sass-instructions"]
            ),
        )


@functools.cache
def disassembler() -> str:
    """Where nvdisasm is: in its package, or on the PATH."""
    spec = importlib.util.find_spec("nvidia")
    for place in list(spec.submodule_search_locations or []) if spec else []:
        for path in Path(place).glob("cu*/bin/nvdisasm"):
            return str(path)
    if found := shutil.which("nvdisasm"):
        return found
    raise ToolError(f"reading a cubin needs nvdisasm: {install('cuda')}")


def elf_sections(content: bytes) -> Iterator[tuple[str, bytes, int]]:
    """Name, content and size of every section of a 64-bit ELF file (elf(5))."""
    if content[:5] != b"\x7fELF\x02":
        raise ToolError(f"this is no cubin: it begins with {content[:5]!r}")
    (offset,) = struct.unpack_from("<Q", content, 0x28)
    entry_size, count, names_index = struct.unpack_from("<HHH", content, 0x3A)
    headers = [
        struct.unpack_from("<IIQQQQIIQQ", content, offset + i * entry_size) for i in range(count)
    ]
    names = content[headers[names_index][4] :]
    for name, _, _, _, start, size, *_ in headers:
        yield text_at(names, name), content[start : start + size], size


def symbol_names(table: bytes, names: bytes) -> Iterator[str]:
    """The names of a symbol table."""
    for (name,) in struct.iter_unpack("<I20x", table):
        yield text_at(names, name)


def text_at(names: bytes, offset: int) -> str:
    """A string of a string table."""
    return names[offset : names.index(b"\0", offset)].decode()


def records(info: bytes) -> Iterator[tuple[int, int, int]]:
    """Attribute, symbol and number of the records of .nv.info that are such."""
    position = 0
    while position < len(info):
        form, attribute, value = struct.unpack_from("<BBH", info, position)
        position += 4
        if form != 4:  # the number is in the record itself
            continue
        if value == 8:
            yield (attribute, *struct.unpack_from("<II", info, position))
        position += value


def text(cubin: bytes) -> str:
    """The kernels of a cubin, one instruction a line."""
    kernels = read(cubin).items()
    return "\n\n".join(
        "\n".join([name, *(f"  {each.opcode} {each.operands}" for each in code.instructions)])
        for name, code in kernels
    )
