"""What can be computed in one call in the models that people use, by the names of their classes.

The classes are those of transformers, and any that have their names and attributes. A model's
family needs a row here and nothing else; what no row has is computed linear by linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Together:
    """Linears that a module calls with one X: their rows stand in one W.

    Attributes
    ----------
    parts : attributes of the module, in the order in which it calls them.
    name : of the module that computes all of them, beside them.
    """

    parts: tuple[str, ...]
    name: str


@dataclass(frozen=True)
class Gated:
    """A module that computes down(activation(gate(x)) * up(x)); these are its attributes."""

    gate: str
    up: str
    activation: str
    down: str
    name: str


@dataclass(frozen=True)
class Followed:
    """A linear whose result goes through an activation function of the same module."""

    linear: str
    activation: str


Pattern = Together | Gated | Followed


@dataclass(frozen=True)
class Family:
    """A row: which modules of a model, by the names of their classes, have a pattern."""

    name: str
    patterns: dict[str, Pattern]


QKV = Together(("q_proj", "k_proj", "v_proj"), "qkv_proj")
QUERY_KEY_VALUE = Together(("query", "key", "value"), "query_key_value")
GATE_UP = Gated("gate_proj", "up_proj", "act_fn", "down_proj", "gate_up_proj")
DENSE = Followed("dense", "intermediate_act_fn")


def decoder(name: str) -> Family:
    """A family whose attention and feed-forward parts have the attributes of Llama's."""
    return Family(name, {f"{name}Attention": QKV, f"{name}MLP": GATE_UP})


def encoder(name: str) -> Family:
    """A family whose parts have the attributes of BERT's."""
    return Family(name, {f"{name}SelfAttention": QUERY_KEY_VALUE, f"{name}Intermediate": DENSE})


#: In Phi3 one linear is q, k and v, and another one gate and up, as they come.
FAMILIES = (
    decoder("Llama"),
    decoder("Mistral"),
    decoder("Qwen2"),
    decoder("Qwen3"),
    decoder("Gemma"),
    decoder("Gemma2"),
    decoder("Gemma3"),
    encoder("Bert"),
    encoder("Roberta"),
    encoder("XLMRoberta"),
    encoder("Electra"),
)
PATTERNS = {name: row for family in FAMILIES for name, row in family.patterns.items()}

#: What activation functions that are modules compute, by the names of their classes.
FUNCTIONS = {
    "ReLU": "relu",
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
}


def function_of(module: Any) -> str | None:
    """The activation function that a module computes, as specs call it; None for another one."""
    name = type(module).__name__
    if name == "GELU":
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    return FUNCTIONS.get(name)
