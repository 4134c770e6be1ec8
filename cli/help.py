"""The help of the command: its subcommands by task, with an example for each task."""

from __future__ import annotations

from dataclasses import dataclass

import click


@dataclass(frozen=True)
class Task:
    """What somebody may want to do.

    Attributes
    ----------
    commands : that serve it, and what each does.
    example : a command line.
    """

    title: str
    commands: dict[str, str]
    example: str


TASKS = (
    Task(
        "See that it works",
        {
            "demo": "Quantize, compile, multiply and compare a small example.",
            "doctor": "Say what quantmm finds on this machine, and what is missing.",
            "targets": "List the chips, which of them run here, how each was verified.",
        },
        "quantmm demo",
    ),
    Task(
        "Quantize weights and models",
        {
            "quantize": "Compare formats on a weight, and write it or a model quantized.",
            "evaluate": "Compare formats of a whole model on a text: perplexity, bytes.",
            "inspect": "List what a model or a kernel file holds, or show code.",
        },
        "quantmm quantize model.safetensors --tensor w",
    ),
    Task(
        "Compile kernels",
        {
            "compile": "Write a kernel file, for one target or several.",
            "cache": "Show or remove the kernels that were kept.",
        },
        "quantmm compile --n 4096 --k 1024 --weight int4 --group-size 128 -o linear.qmm",
    ),
    Task(
        "Check kernels",
        {"verify": "Compare kernels with the reference, on given or random problems."},
        "quantmm verify --random 100",
    ),
    Task(
        "Measure",
        {"bench": "Time kernels beside the machine's limits and other libraries."},
        "quantmm bench --m 1,16,512 --n 4096 --k 4096",
    ),
    Task(
        "Tune",
        {
            "tune": "Search parameters that are faster here, and keep them in a log.",
            "logs": "List, check, merge, prune and export logs.",
        },
        "quantmm tune --m 1,16 --n 4096 --k 4096 --log tuned/",
    ),
    Task(
        "Use machines elsewhere",
        {
            "tracker": "Run what servers and users of other machines meet at.",
            "serve": "Measure on this machine for tune --rpc and bench --rpc.",
        },
        "quantmm serve --tracker desk:9190 --key pi5",
    ),
)

COMPLETION = """\
Completion in bash: eval "$(_QUANTMM_COMPLETE=bash_source quantmm)" in ~/.bashrc; zsh and fish have
zsh_source and fish_source.\
"""


class ByTask(click.Group):
    """A group whose help lists its commands by task."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """A list for each task, and its example."""
        width = max(map(len, self.commands))
        for task in TASKS:
            with formatter.section(task.title):
                formatter.write_dl(
                    [(f"{name:{width}}", text) for name, text in task.commands.items()]
                )
                formatter.write(f"{'':{formatter.current_indent}}$ {task.example}\n")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """How shells complete commands and options."""
        formatter.write_paragraph()
        formatter.write_text(COMPLETION)
