"""Reading the machine code of a kernel."""

from __future__ import annotations

import re

LABEL = re.compile(r"\.?\w+:$")
#: Jumps of x86-64, and branches of aarch64, with where they go.
JUMP = re.compile(r"\s+(?:j\w+|b\.\w+|b|cbn?z\s+\w+,|tbn?z\s+\w+, #\d+,)\s+(\S+)$")


def inner_loop(assembly: str, mnemonic: str) -> list[str]:
    """The lines of the innermost loop with the instruction: from its label to the jump back.

    Raises
    ------
    ValueError
        No loop has it.
    """
    lines = [line.partition("//")[0].rstrip() for line in assembly.splitlines()]
    labels = {line[:-1]: i for i, line in enumerate(lines) if LABEL.match(line)}
    loops = []
    for i, line in enumerate(lines):
        jump = JUMP.match(line)
        if jump and labels.get(jump[1], i) < i:
            body = lines[labels[jump[1]] : i + 1]
            if any(mnemonic in text for text in body):
                loops.append(body)
    if not loops:
        raise ValueError(f"no loop with {mnemonic}")
    return min(loops, key=len)
