"""`quantmm evaluate`: what formats cost a whole model, on a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..errors import ModuleError
from .options import Names
from .tables import show

if TYPE_CHECKING:
    from ..nn.evaluate import Quality


@click.command("evaluate")
@click.argument("model", type=click.Path())
@click.option(
    "--format",
    "formats",
    type=Names(),
    help="Formats side by side, as quantmm.nn.Linear has them; file: the integers of a quantized "
    "file. When left out: file, or w8a8, w4a8-g128 and w4a8-g32 of floats.",
)
@click.option("--text", required=True, type=click.Path(), help="The file with the text, UTF-8.")
@click.option("--characters", type=int, help="Of the text, from its start; all when left out.")
@click.option(
    "--context", type=click.IntRange(2), default=1024, show_default=True, help="Tokens of a window."
)
@click.option("--tokenizer", type=click.Path(), help="The folder of another tokenizer.")
@click.option("--threads", type=click.IntRange(1), help="Of torch, which quantmm keeps to.")
def evaluate_command(
    model: str,
    formats: tuple[str, ...] | None,
    text: str,
    characters: int | None,
    context: int,
    tokenizer: str | None,
    threads: int | None,
) -> None:
    """Compare formats of MODEL: perplexity and bytes.

    MODEL is a .gguf file, or a folder of transformers' with weights in floats, GPTQ, AWQ or
    compressed-tensors. Of encoders, the cosine of hidden states to those of the floats is shown
    instead of the perplexity. Needs quantmm's extra "transformers".
    """
    from ..nn.requirement import require_transformers

    require_transformers()
    import torch
    import transformers

    from ..nn.evaluate import evaluate

    quiet: Any = transformers.utils.logging
    quiet.disable_progress_bar()

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        words = Path(text).read_text(encoding="utf-8")[:characters]
    except UnicodeDecodeError as error:
        raise ModuleError(f"{text}: {error}; expected a text in UTF-8") from None
    rows: list[Quality] = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading", total=None)

        def watch(format: str, done: int, of: int) -> None:
            progress.update(task, description=format, completed=done, total=of)

        given: dict[str, Any] = {"tokenizer": tokenizer, "context": context, "watch": watch}
        rows += evaluate(model, formats or (), text=words, **given)
    table = Table(box=None, pad_edge=False)
    table.add_column("format", no_wrap=True)
    language = rows[0].perplexity is not None
    names = ("perplexity",) if language else ("cosine", "at the worst")
    for name in ("bytes", "of the first", *names, "tokens", "tokens/s"):
        table.add_column(name, justify="right")
    for row in rows:
        numbers = (row.perplexity,) if language else (row.cosine, row.least_cosine)
        table.add_row(
            row.format,
            f"{row.nbytes:,}",
            f"{row.nbytes / rows[0].nbytes:.1%}",
            *(f"{number:.{3 if language else 5}f}" for number in numbers),
            f"{row.tokens:,}",
            f"{row.tokens / row.seconds:.0f}",
        )
    show(table)
