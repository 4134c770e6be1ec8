"""Damage to files, for readers that must answer every one of them with an error of their own."""

from __future__ import annotations

import json
import random
import re
import struct

from hypothesis import settings

#: What a number or a word in JSON becomes.
ODD = ("0", "-1", "1", "3", "7", "4294967296", "9223372036854775808", "1e300", "true", "null", "[]")
ODD_WORDS = ('"x"', '{"a": 1}', '["I32"]', '"I8"', '"F32"', '"BF16"', '"gptq_v2"', '""', '"U8"')


def count(few: int, many: int = 10_000) -> int:
    """How many mutations a test makes: `many` in the profile "deep"."""
    return many if settings.get_current_profile_name() == "deep" else few


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Bytes changed, taken out, doubled or cut off."""
    kind = rng.randrange(5)
    place, length = rng.randrange(len(content) + 1), rng.choice((1, 1, 2, 8, 40))
    before, after = content[:place], content[place + length :]
    if kind == 0:
        return before
    if kind == 1:
        return before + after
    if kind == 2:
        return before + content[place : place + length] * 2 + after
    if kind == 3:
        other = rng.randrange(len(content) + 1)
        return before + content[other : other + length] + after
    return before + rng.randbytes(min(length, len(content) - place)) + after


def damaged_json(rng: random.Random, text: str) -> str:
    """One number or word of JSON changed into something else, or two exchanged."""
    found = list(re.finditer(r'-?\d+|"[^"]*"|true|false|null', text))
    if not found:
        return text
    one, other = rng.choice(found), rng.choice(found)
    word = rng.choice((*ODD, *ODD_WORDS, other.group()))
    if one.group().isdigit() and rng.random() < 0.5:
        word = str(int(one.group()) + rng.choice((-8, -1, 1, 8, 64)))
    return text[: one.start()] + word + text[one.end() :]


def damaged_safetensors(rng: random.Random, content: bytes) -> bytes:
    """A .safetensors file whose header lies, or of which bytes are damaged."""
    if rng.random() < 0.4:
        return damaged(rng, content)
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    if rng.random() < 0.2 and len(header) > 1:
        one, other = rng.sample(sorted(header), 2)
        header[one], header[other] = header[other], header[one]
    text = json.dumps(header)
    if rng.random() < 0.8:
        text = damaged_json(rng, text)
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded + content[8 + length :]
