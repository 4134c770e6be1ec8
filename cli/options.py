"""Options that several commands share; those of a spec come from `MatmulSpec` itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from ..formats.spec import CHOICES, FLAGS, MatmulSpec
from ..targets import CUDA_TARGETS, TARGETS

#: No size of a matrix is larger: kernels compute offsets in int32.
MOST = 2**31 - 1

Command = TypeVar("Command", bound=Callable[..., Any])

HELP = {
    "weight": "Format of the weight.",
    "activation": "Format in which activations are multiplied.",
    "group_size": "k per weight scale: a multiple of 8, 'tensor', or 'channel'.",
    "activation_scale": "What one activation scale covers: a row of X, a group of its k as the "
    "weight has groups, or all of it.",
    "input": "Float type in which activations arrive; without it they arrive quantized.",
    "out": "Format of the result.",
    "activation_fn": "Activation function after the bias.",
    "weight_zero_point": "The weight has zero points.",
    "weight_offset": "The weight has offsets: floats that are added.",
    "weight_order": "The weight has its columns in another order than X.",
    "activation_zero_point": "The activation has zero points.",
    "dynamic": "Quantize each row, or group, from its own range.",
    "bias": "Add a bias.",
    "residual": "Add a residual.",
    "experts": "As many weights, each for some rows of X.",
    "gated": "W is a gate and up, 2 n rows: the result is the function of one times the other.",
}


def whole(word: str) -> int | None:
    """The number from 1 to `MOST` that a word is, None for any other."""
    # Python converts no more than a few thousand digits, and has digits that are no decimals.
    if not word.isdecimal() or len(word) > len(str(MOST)):
        return None
    number = int(word)
    return number if 0 < number <= MOST else None


class GroupSize(click.ParamType[Any]):
    """A group size as the command line writes it."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | str | None:
        """'channel' is None; digits are a number."""
        if value is None or value == "channel":
            return None
        return whole(str(value)) or str(value)


#: `MatmulSpec` says what is too small.
SIZE = click.IntRange(max=MOST)


class Whole(click.ParamType[Any]):
    """Whole numbers separated by commas, each at least 1."""

    name = "numbers"

    def convert(self, value: Any, param: Any, ctx: Any) -> list[int]:
        """A list of the numbers."""
        numbers = [whole(word.strip()) for word in str(value).split(",")]
        if not all(numbers):
            self.fail(f"{value!r}; expected whole numbers such as 1,16,512", param, ctx)
        return [number for number in numbers if number]


class Names(click.ParamType[Any]):
    """Names separated by commas."""

    name = "names"

    def convert(self, value: Any, param: Any, ctx: Any) -> list[str]:
        """A list of the names."""
        names = [word.strip() for word in str(value).split(",")]
        if not all(names):
            self.fail(f"{value!r}; expected names such as x86-avx2,x86-avx512vnni", param, ctx)
        return names


def format_options(
    command: Command, but: Collection[str] = (), unsaid: Collection[str] = ()
) -> Command:
    """One option per field of `MatmulSpec`, but for the sizes and those named.

    Those of `unsaid` have no default.
    """
    for field in reversed(dataclasses.fields(MatmulSpec)):
        if field.name in but:
            continue
        option = "--" + field.name.replace("_", "-")
        if field.name == "experts":
            decorate = click.option(option, type=SIZE, help=HELP[field.name])
        elif field.name in FLAGS:
            decorate = click.option(option, is_flag=True, help=HELP[field.name])
        elif field.name == "group_size":
            decorate = click.option(option, type=GroupSize(), help=HELP[field.name])
        elif field.name in CHOICES:
            values = [value for value in CHOICES[field.name] if value is not None]
            default = None if field.name in unsaid else field.default
            decorate = click.option(
                option,
                type=click.Choice(values),
                default=default,
                show_default=default is not None,
                help=HELP[field.name],
            )
        else:
            continue
        command = decorate(command)
    return command


def is_given(context: click.Context, name: str) -> bool:
    """Whether a command line says a parameter itself."""
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def target_names(ctx: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """What a shell completes the last of several targets to."""
    before, comma, last = begun.rpartition(",")
    names = ["host", "cuda", *(row.name for row in TARGETS), *(row.name for row in CUDA_TARGETS)]
    return [before + comma + name for name in names if name.startswith(last)]


def target_option(command: Command) -> Command:
    """--target."""
    return click.option(
        "--target",
        default="host",
        show_default=True,
        help="A name that `quantmm targets` lists.",
        shell_complete=target_names,
    )(command)


def targets_option(command: Command) -> Command:
    """--target, for one or several."""
    return click.option(
        "--target",
        type=Names(),
        default="host",
        show_default=True,
        help="Names that `quantmm targets` lists, separated by commas.",
        shell_complete=target_names,
    )(command)


def threads_option(command: Command) -> Command:
    """--threads."""
    return click.option(
        "--threads", type=click.IntRange(1), help="Threads; by default one per physical core."
    )(command)


def rpc_options(command: Command) -> Command:
    """--rpc and --key."""
    command = click.option("--key", help="Of the servers to measure on.")(command)
    return click.option(
        "--rpc",
        metavar="HOST:PORT",
        help="Measure on machines elsewhere: the tracker that knows their servers.",
    )(command)


def make_spec(n: int, k: int, formats: dict[str, Any], m: int | None = None) -> MatmulSpec:
    """A spec from a command line's words."""
    return MatmulSpec(n=n, k=k, m=m, **formats)
