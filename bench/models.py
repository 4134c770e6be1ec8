"""The linear layers of real models: shapes worth tuning for and measuring.

Every shape stands once per model; the name says which layers have it. N is the number of outputs,
K of inputs. Layers that are multiplied one by one are listed one by one: nothing is fused.

Sources, each beside the `config.json` that its authors published with the weights:

    bert        Devlin and others, "BERT", arXiv 1810.04805, section 3
    llama-7b    Touvron and others, "Llama 2", arXiv 2307.09288; the feed-forward size is 2/3 of
                4 d, rounded up to a multiple of 256 ("LLaMA", arXiv 2302.13971, section 2.2)
    llama-8b, llama-70b
                "The Llama 3 Herd of Models", arXiv 2407.21783, table 3; 128256 tokens
    qwen-7b     "Qwen2.5 Technical Report", arXiv 2412.15115, table 1; Qwen2.5-7B's config.json
    qwen-8b     "Qwen3 Technical Report", arXiv 2505.09388, table 1; Qwen3-8B's config.json
    mixtral-8x7b
                Jiang and others, "Mixtral of Experts", arXiv 2401.04088, table 1; an expert sees
                about a quarter of the tokens (2 of 8 experts per token)
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A weight's shape, and the layers of the model that have it."""

    name: str
    n: int
    k: int


MODELS: dict[str, tuple[Layer, ...]] = {
    "bert-base": (
        Layer("query, key, value, output", 768, 768),
        Layer("up", 3072, 768),
        Layer("down", 768, 3072),
    ),
    "bert-large": (
        Layer("query, key, value, output", 1024, 1024),
        Layer("up", 4096, 1024),
        Layer("down", 1024, 4096),
    ),
    "llama-7b": (
        Layer("q, k, v, o", 4096, 4096),
        Layer("gate, up", 11008, 4096),
        Layer("down", 4096, 11008),
        Layer("head", 32000, 4096),
    ),
    "llama-8b": (
        Layer("q, o", 4096, 4096),
        Layer("k, v", 1024, 4096),
        Layer("gate, up", 14336, 4096),
        Layer("down", 4096, 14336),
        Layer("head", 128256, 4096),
    ),
    "llama-70b": (
        Layer("q, o", 8192, 8192),
        Layer("k, v", 1024, 8192),
        Layer("gate, up", 28672, 8192),
        Layer("down", 8192, 28672),
        Layer("head", 128256, 8192),
    ),
    "qwen-7b": (
        Layer("q, o", 3584, 3584),
        Layer("k, v", 512, 3584),
        Layer("gate, up", 18944, 3584),
        Layer("down", 3584, 18944),
        Layer("head", 152064, 3584),
    ),
    "qwen-8b": (
        Layer("q, o", 4096, 4096),
        Layer("k, v", 1024, 4096),
        Layer("gate, up", 12288, 4096),
        Layer("down", 4096, 12288),
        Layer("head", 151936, 4096),
    ),
    "mixtral-8x7b": (
        Layer("q, o", 4096, 4096),
        Layer("k, v", 1024, 4096),
        Layer("w1, w3 of an expert", 14336, 4096),
        Layer("w2 of an expert", 4096, 14336),
        Layer("head", 32000, 4096),
    ),
}
