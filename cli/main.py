"""The command `quantmm`. Every error is one line on stderr and exit status 2."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from typing import Any, TextIO

import click

from ..errors import QuantmmError
from ..interrupt import INTERRUPTED
from ..versions import VERSION
from .bench import bench_command
from .cache import cache_command
from .compile import compile_command
from .demo import demo_command
from .doctor import doctor_command
from .evaluate import evaluate_command
from .help import ByTask
from .inspect import inspect_command
from .logs import logs_command
from .quantize import quantize_command
from .rpc import serve_command, tracker_command
from .targets import targets_command
from .tune import tune_command
from .verify import verify_command

FAILURE = 2


@click.group(
    cls=ByTask,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(VERSION)
def cli() -> None:
    """Compile, check and time quantized matrix multiplications Y = X Wᵀ.

    X is M x K (activations), W is N x K (weights); both are integers with scales.
    """


for _command in (
    bench_command,
    cache_command,
    compile_command,
    demo_command,
    doctor_command,
    evaluate_command,
    inspect_command,
    logs_command,
    quantize_command,
    serve_command,
    targets_command,
    tracker_command,
    tune_command,
    verify_command,
):
    cli.add_command(_command)


def run() -> None:
    """The entry point of the command line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Rather a question mark in the output than none of it.
        sys.stdout.reconfigure(errors="replace")
    status = outcome()
    if sys.stdout is not None:
        status = finish(sys.stdout, status)
    sys.exit(status)


def outcome() -> int | None:
    """Do what the command line says; the exit status, None for success."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = warn
            return cli(prog_name="quantmm", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return FAILURE
    except click.ClickException as error:
        return complain(error.format_message())
    except click.Abort as error:
        complain(str(error) or "interrupted")
        return INTERRUPTED
    except MemoryError as error:
        return complain(f"not enough memory: {error}")
    except OSError as error:
        return complain(reason(error))
    except (QuantmmError, UnicodeError) as error:
        return complain(str(error))


def reason(error: OSError) -> str:
    """What the system says, and of which file, without the number of the error."""
    if isinstance(error, QuantmmError) or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def finish(output: TextIO, status: int | None) -> int | None:
    """Write what is still to be written, while its failing can be told; the exit status."""
    try:
        output.flush()
    except OSError as error:
        # Python would try again at its end.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
        return status or complain(reason(error))
    return status


def warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning like an error, but go on."""
    complain(str(message))


def complain(message: str) -> int:
    """Print one line on stderr."""
    click.echo("quantmm: " + " ".join(message.split()), err=True)
    return FAILURE
