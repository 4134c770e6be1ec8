"""A language model with quantmm's linears: loaded from a file of weights, and how fast it is.

    python examples/llm.py MODEL [--format w4a8-g32] [--tokens 48] [--eager] [--threads 2]

MODEL is a .gguf file, or a folder with weights in floats (which --format quantizes), GPTQ, AWQ or
compressed-tensors; without it there is a small Llama with random weights. It needs
`pip install 'quantmm[transformers]'`, and a C++ compiler for torch.compile, which takes a minute or
two for the first token of a model and keeps what it made for the next process.

What is between the linears is torch's own, and a token of a small model is little work: called one
by one torch's operations take more time than the matmuls. So a token is one compiled call, which
wants a cache of keys and values of a fixed size.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from quantmm.nn import QuantmmConfig, load_model, quantize_, report
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, StaticCache

#: The shape of the model with random weights.
RANDOM = LlamaConfig(
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
)
PROMPT = "The history of computing began"


def whole(call: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`call` as one compiled graph for tensors of one shape.

    What it relies on is not asked for again in every call, which took two of a token's ten
    milliseconds: nothing of the model may be changed behind its back.
    """
    options: Any = {
        "guard_filter_fn": lambda guards: [False] * len(guards),
        "size_asserts": False,
        "alignment_asserts": False,
    }
    return torch.compile(call, fullgraph=True, dynamic=False, options=options)


class Decoder:
    """Greedy decoding, each token one call of the same shape.

    Parameters
    ----------
    capacity : tokens that the cache has room for.
    compiled : make the call with torch.compile.
    """

    def __init__(self, model: Any, capacity: int, compiled: bool = True) -> None:
        self.model, self.capacity = model, capacity
        self.cache = StaticCache(config=model.config, max_cache_len=capacity)
        self.step: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = self.logits
        if compiled:
            self.step = whole(self.logits)

    def logits(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """(1, vocabulary) of the token behind the last one of `ids` (1, tokens)."""
        given = {"input_ids": ids, "position_ids": positions, "cache": self.cache}
        return self.model(**given, use_cache=True, logits_to_keep=1).logits[:, -1]

    def tokens(
        self, ids: torch.Tensor, count: int, seconds: list[float] | None = None
    ) -> list[int]:
        """The next tokens behind a prompt, (1, tokens); the time of each into `seconds`."""
        length = ids.shape[1]
        if length + count > self.capacity:
            raise ValueError(
                f"{length} + {count} tokens; expected at most {self.capacity}, for which the "
                "cache has room"
            )
        self.cache.reset()
        positions = torch.arange(length + count)[None]
        last = self.logits(ids, positions[:, :length]).argmax(-1)
        found = [int(last)]
        for at in range(length, length + count - 1):
            begun = time.perf_counter()
            last = self.step(last[:, None], positions[:, at : at + 1]).argmax(-1)
            found.append(int(last))
            if seconds is not None:
                seconds.append(time.perf_counter() - begun)
        return found


def load(path: str | None, format: str) -> Any:
    """A model that computes with quantmm; random weights without a path."""
    if path is not None:
        return load_model(path, format)
    torch.manual_seed(0)
    model = LlamaForCausalLM(RANDOM).eval()
    quantize_(model, format)
    return model


def prompt_of(path: str | None, text: str) -> tuple[Any, torch.Tensor]:
    """The tokenizer of a model and the tokens of a prompt; some tokens without a path."""
    if path is None:
        return None, torch.arange(8)[None]
    place = Path(path)
    given = {"gguf_file": place.name} if place.suffix == ".gguf" else {}
    tokenizer = AutoTokenizer.from_pretrained(place.parent if given else place, **given)
    return tokenizer, tokenizer(text, return_tensors="pt").input_ids


def main(words: Sequence[str] | None = None) -> None:
    """Print what the model is made of, what it says, and how fast."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--format", type=lambda name: QuantmmConfig(name).format, default="w8a8")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args(words)
    torch.set_num_threads(chosen.threads)  # which quantmm's modules keep to
    with torch.no_grad():
        model = load(chosen.model, chosen.format)
        rows = report(model)
        print(f"{len(rows)} matmuls of {sum(len(row.computes) for row in rows)} linears:")
        for format in dict.fromkeys(row.format for row in rows):
            size = sum(row.nbytes for row in rows if row.format == format)
            print(f"  {size:>13,} bytes of {format}")
        tokenizer, ids = prompt_of(chosen.model, chosen.prompt)
        decoder = Decoder(model, ids.shape[1] + chosen.tokens, not chosen.eager)
        found = decoder.tokens(ids, chosen.tokens)  # which compiles
        seconds: list[float] = []
        decoder.tokens(ids, chosen.tokens, seconds)
        print(found if tokenizer is None else chosen.prompt + tokenizer.decode(found))
        if seconds:
            print(f"{len(seconds) / sum(seconds):.1f} tokens/s")


if __name__ == "__main__":
    main()
