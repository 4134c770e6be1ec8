"""`evaluate`: what formats cost a model on a text: perplexity, or the cosine to its floats.

The text is cut into windows, each of which begins anew. Perplexity is the exponential of the mean
negative log likelihood of all tokens but the first of each window.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from ..errors import ModuleError, SpecError
from ..models.model import Model
from ..models.open import open_model
from .checkpoint import FLOATS, GGUF, class_of, config_of, load_model
from .pretrained import known
from .replace import linears_of, quantize_
from .report import report

#: What stands for a format: the weights in floats, and the integers of the file.
AS_FLOATS, AS_FILE = "floats", "file"
#: Formats that are compared where nobody chose.
USUAL = ("w8a8", "w4a8-g128", "w4a8-g32")


@dataclass(frozen=True)
class Quality:
    """A format on a text.

    Attributes
    ----------
    format : its name, or one of `AS_FLOATS` and `AS_FILE`.
    nbytes : of the weights of all linears.
    tokens : that were predicted or compared.
    seconds : that the model took for the text.
    perplexity : None for encoders.
    cosine, least_cosine : of the hidden states of a token to those of the floats, in the mean and
        at the worst; None for models of language.
    """

    format: str
    nbytes: int
    tokens: int
    seconds: float
    perplexity: float | None = None
    cosine: float | None = None
    least_cosine: float | None = None


def evaluate(
    path: str | os.PathLike[str],
    formats: Sequence[str] = (),
    *,
    text: str,
    tokenizer: str | os.PathLike[str] | None = None,
    context: int = 1024,
    watch: Callable[[str, int, int], None] | None = None,
) -> Iterator[Quality]:
    """Compare formats of a model, the floats first.

    Parameters
    ----------
    path : what `load_model` opens.
    formats : names of formats, "file" for the integers of a quantized file; () for "file", or for
        some usual ones where the file has floats.
    tokenizer : the folder of another tokenizer than the model's.
    context : tokens of a window; the model's own limit where that is less.
    watch : called with a format, the windows that are done, and how many there are.

    Raises
    ------
    ModuleError
        There is no tokenizer, too little text, or an encoder whose file has no floats.
    SpecError
        No such format, or one for a file whose weights are quantized otherwise.
    WeightFileError, UnsupportedError
        As `load_model`.
    """
    place = Path(path)
    model = open_model(place)
    chosen = formats_of(model, formats)
    config = config_of(place, model)
    ids = tokens_of(place, model, tokenizer, text)
    if len(ids) < 2:
        raise ModuleError(f"the text has {len(ids)} tokens; expected two or more")
    floats = float_model(place, model, config)
    windows = windows_of(ids, min(context, positions_of(config, floats) or context))
    language = class_of(config).__name__.endswith("ForCausalLM")
    if floats is None and not language:
        raise ModuleError(f"{place} is {model.format} of an encoder; expected floats beside it")
    for format in ([AS_FLOATS] if floats is not None else []) + chosen:
        if format == AS_FLOATS:
            tried = floats
        elif format == AS_FILE:
            tried = load_model(place)
        else:
            tried = copy.deepcopy(floats)
            quantize_(tried, format)
        yield measured(format, tried, None if language else floats, windows, watch)


def formats_of(model: Model, formats: Sequence[str]) -> list[str]:
    """The formats that are tried on a file."""
    quantized = any(layer.fields is not None for layer in model.layers.values())
    if not formats:
        return [AS_FILE] if quantized else list(USUAL)
    for format in formats:
        if format == AS_FILE:
            if not quantized:
                raise SpecError(f"{model.path} has floats; expected names of formats, not 'file'")
        elif model.format not in (GGUF, FLOATS):
            raise SpecError(f"{model.path} is {model.format}; expected the format 'file'")
        else:
            known(format)
    return list(dict.fromkeys(formats))


def tokens_of(
    place: Path, model: Model, tokenizer: str | os.PathLike[str] | None, text: str
) -> Tensor:
    """The numbers of a text's tokens."""
    given: dict[str, str] = {}
    folder = Path(tokenizer) if tokenizer is not None else place
    if tokenizer is None and model.format == GGUF:
        folder, given = place.parent, {"gguf_file": place.name}
    try:
        made = transformers.AutoTokenizer.from_pretrained(folder, **given)
        # transformers makes an empty one where a folder has none.
        ids = made(text, verbose=False)["input_ids"] if len(made) > 1 else []
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        reason = str(error).partition("\n")[0].rstrip(": ")
        raise ModuleError(
            f"no tokenizer in {folder}: {reason}; expected the files of one beside the model, or "
            "another folder with them"
        ) from None
    if text and not ids:
        raise ModuleError(
            f"no tokenizer in {folder} that knows the text; expected the files of one beside the "
            "model, or another folder with them"
        )
    return torch.tensor(ids, dtype=torch.long)


def windows_of(ids: Tensor, length: int) -> list[Tensor]:
    """The tokens cut into windows; a last one of one token predicts nothing."""
    return [each for each in ids.split(length) if len(each) > 1]


def positions_of(config: Any, floats: Any) -> int | None:
    """How many tokens a model takes; None where it does not say.

    RoBERTa and its like have a row of the table for padding and count positions behind it.
    """
    for name, module in floats.named_modules() if floats is not None else ():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            return int(module.num_embeddings - padding - 1)
    found = getattr(config, "max_position_embeddings", None)
    return None if found is None else int(found)


def float_model(place: Path, model: Model, config: Any) -> Any:
    """The model in float32; None where transformers cannot tell the floats of a file."""
    if model.format == GGUF:
        made = transformers.AutoModelForCausalLM
        return made.from_pretrained(place.parent, gguf_file=place.name, dtype=torch.float32)
    if any(layer.fields is not None for layer in model.layers.values()):
        return None
    return class_of(config).from_pretrained(place, dtype=torch.float32)


def measured(
    format: str,
    model: Any,
    floats: Any,
    windows: Sequence[Tensor],
    watch: Callable[[str, int, int], None] | None,
) -> Quality:
    """A model on a text; against the hidden states of `floats`, where those are given."""
    total, tokens, least, seconds = 0.0, 0, 1.0, 0.0
    with torch.inference_mode():
        model(windows[0][None, :2])  # which packs the weights
    for done, ids in enumerate(windows):
        if watch is not None:
            watch(format, done, len(windows))
        with torch.inference_mode():
            begun = time.perf_counter()
            found = model(ids[None])
            seconds += time.perf_counter() - begun
            if floats is None:
                logits = found.logits[0, :-1].float()
                loss = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
                total, tokens = total + float(loss), tokens + len(ids) - 1
            else:
                right = floats(ids[None])[0]
                near = torch.nn.functional.cosine_similarity(found[0].double(), right.double(), -1)
                total, tokens = total + float(near.sum()), tokens + near.numel()
                least = min(least, float(near.min()))
    if watch is not None:
        watch(format, len(windows), len(windows))
    given = format, bytes_of(model), tokens, seconds
    if floats is None:
        return Quality(*given, perplexity=math.exp(total / tokens))
    return Quality(*given, cosine=total / tokens, least_cosine=least)


def bytes_of(model: Any) -> int:
    """Of the weights of all linears, quantized or not."""
    plain = sum(module.weight.nbytes for _, module in linears_of(model))
    return plain + sum(row.nbytes for row in report(model))
