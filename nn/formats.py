"""From the name of a format, or a spec, to what a module computes and to the kernel for its input.

A module's spec has float32 on both sides. The kernel that a call takes has the dtype of x instead.
"""

from __future__ import annotations

import dataclasses

import torch

from ..errors import ArrayError, SpecError
from ..formats.named import FORMATS, fields_of, name_of
from ..formats.spec import FLOAT_TYPES, MatmulSpec

#: Names that are short for one of `formats.named.FORMATS`.
SHORT = {"w8a8": "w8a8-dynamic", "w7a8": "w7a8-dynamic"}

#: The dtypes that x may have, by what a spec calls them.
DTYPES: dict[torch.dtype, str] = {getattr(torch, name): name for name in FLOAT_TYPES}


def spec_for(format: str | MatmulSpec, n: int, k: int, bias: bool) -> MatmulSpec:
    """What a module of this shape computes.

    Parameters
    ----------
    format : a name of `formats.named.FORMATS` or `SHORT`, or a spec of this n, k and bias.

    Raises
    ------
    SpecError
        No such name, a spec of something else, or one that no module can have.
    """
    if isinstance(format, str):
        fields = fields_of(SHORT.get(format, format))
        return module_spec(MatmulSpec(n=n, k=k, bias=bias, **fields))
    if not isinstance(format, MatmulSpec):
        raise SpecError(f"format={format!r}; expected a MatmulSpec or one of {', '.join(FORMATS)}")
    given, expected = (format.n, format.k, format.bias), (n, k, bias)
    if given != expected:
        raise SpecError(f"{shown(given)} in the spec; the module has {shown(expected)}")
    return module_spec(format)


def shown(shape: tuple[int, int, bool]) -> str:
    """A module's shape as a spec spells it."""
    return "n={}, k={}, bias={}".format(*shape)


def module_spec(spec: MatmulSpec) -> MatmulSpec:
    """`spec` for float32, once it is known to take x as the only input and to give its dtype."""
    if not spec.dynamic:
        raise SpecError(
            f"input={spec.input!r}, dynamic={spec.dynamic}; expected a float input and "
            "dynamic=True, because modules are called with floats and quantize them in the call"
        )
    if spec.out != spec.input:
        raise SpecError(
            f"out={spec.out!r} with input={spec.input!r}; expected the same, because the result "
            "of a module has the dtype of x"
        )
    if spec.experts is not None:
        raise SpecError(f"experts={spec.experts}; expected None, because a module has one weight")
    if spec.residual:
        raise SpecError("residual=True; expected False, because a module has one input")
    if spec.m is not None:
        raise SpecError(f"m={spec.m}; expected None, because a module takes any number of rows")
    return dataclasses.replace(spec, input="float32", out="float32")


def to_text(spec: MatmulSpec) -> str:
    """A spec as operators take it: JSON with single quotes, since torch writes it into C++."""
    return spec.to_json().replace('"', "'")


def from_text(text: str) -> MatmulSpec:
    """The spec that `to_text` or `MatmulSpec.to_json` wrote.

    Raises
    ------
    SpecError
        It is none.
    """
    return MatmulSpec.from_json(text.replace("'", '"'))


def kernel_spec(text: str, dtype: torch.dtype) -> MatmulSpec:
    """The spec in `text`, for an x of `dtype`.

    Raises
    ------
    ArrayError
        x has another dtype than a kernel reads.
    SpecError
        The text is no spec, or none that a module can have.
    """
    if dtype not in DTYPES:
        raise ArrayError(
            f"x is {str(dtype).removeprefix('torch.')}; expected one of {', '.join(FLOAT_TYPES)}"
        )
    name = DTYPES[dtype]
    return dataclasses.replace(module_spec(from_text(text)), input=name, out=name)


def format_name(spec: MatmulSpec) -> str:
    """The name of a module's format, which says nothing of a bias."""
    return name_of(dataclasses.replace(spec, bias=False))
