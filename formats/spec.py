"""`MatmulSpec`: everything that decides what a kernel computes, and nothing else."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import operator
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import SpecError
from .integers import INTEGERS

INT32_MAX = 2**31 - 1
FLOAT_TYPES = ("float32", "float16", "bfloat16")

#: The values that each field of a spec may have.
CHOICES: dict[str, tuple[Any, ...]] = {
    "weight": ("int8", "int4", "uint4", "uint8", "int7"),
    "activation": ("int8", "uint8", "int4"),
    "activation_scale": ("tensor", "row", "group"),
    "input": (None, *FLOAT_TYPES),
    "out": (*FLOAT_TYPES, "int32", "int8", "uint8"),
    "activation_fn": (None, "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"),
}
FLAGS = (
    "weight_zero_point",
    "weight_offset",
    "weight_order",
    "activation_zero_point",
    "dynamic",
    "bias",
    "residual",
    "gated",
)


Spec = TypeVar("Spec", bound=type)


def with_known_fields(spec: Spec) -> Spec:
    """A dataclass that refuses a field that it lacks, or is not given, with a `SpecError`."""
    construct = spec.__init__  # type: ignore[misc]
    fields = dataclasses.fields(spec)
    names = [field.name for field in fields]
    needed = [field.name for field in fields if field.default is dataclasses.MISSING]

    @functools.wraps(construct)
    def checked(self: Any, *values: Any, **given: Any) -> None:
        check_names(given, names)
        there = {*names[: len(values)], *given}
        if missing := [name for name in needed if name not in there]:
            raise SpecError(f"a spec needs {missing[0]!r}")
        construct(self, *values, **given)

    spec.__init__ = checked  # type: ignore[misc]
    return spec


def check_names(given: Iterable[str], known: Sequence[str]) -> None:
    """Refuse names of fields that a spec does not have."""
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            expected = f"did you mean {close[0]!r}?" if close else f"expected {', '.join(known)}"
            raise SpecError(f"no field {name!r} in a spec; {expected}")


@with_known_fields
@dataclass(frozen=True)
class MatmulSpec:
    """Y = X Wᵀ with X of M x K and W of N x K, both quantized; see `reference` for the meaning.

    Attributes
    ----------
    n, k : rows and columns of W; like the other whole numbers of any integer type.
    weight : "int8", "int4", "uint4", "uint8" or "int7" (-64 to 63, stored as int8).
    activation : "int8", "uint8" or "int4"; the integers that are multiplied.
    group_size : None for one weight scale per row of W, "tensor" for one in all, or the number of
        consecutive k that share a scale (a multiple of 8; the last group may be shorter).
    weight_zero_point, activation_zero_point : whether zero points are subtracted.
    weight_offset : whether a float is added instead: w = scale q + offset, an offset for each
        weight scale.
    activation_scale : "row", "group" or "tensor": what one activation scale (and zero point)
        covers. With "row" a call takes a number for each row of X, or one for all of them; with
        "group" one for each row and each of the weight's groups of k, or one for all; with
        "tensor" one. "group" needs a `group_size` that is a number.
    dynamic : X is quantized inside the call, each row or group from its own range (needs `input`,
        and "row" or "group" scales).
    input : None when X arrives quantized, else the float type in which it arrives.
    out : float type of Y, "int8" or "uint8" (requantized), or "int32" (the bare accumulator).
    bias, residual : whether a float32 bias[n] and a residual[m, n] are added.
    activation_fn : None, "relu", "gelu" (the erf form), "gelu_tanh" (its approximation through
        tanh), "silu", "tanh" or "sigmoid", applied after the bias.
    gated : W has 2 n rows, those of a gate and then those of "up", and Y is the activation function
        of X Wgateᵀ times X Wupᵀ; the bias has 2 n numbers too.
    m : the only number of rows that will be called, or None for any.
    weight_order : whether columns of W are stored in another order than those of X, see
        `QTensor.order`. Not with packed int4 activations or with groups of X.
    experts : None for one weight, or how many weights of n x k stand one behind the other. Each
        multiplies some rows of X, which are sorted by it; a call says where the rows of each end.

    Raises
    ------
    SpecError
        On construction: a value that is not among the choices, a combination without a meaning,
        or K so large that an exact sum could leave int32.
    """

    n: int
    k: int
    weight: str = "int8"
    activation: str = "int8"
    group_size: int | str | None = None
    weight_zero_point: bool = False
    activation_zero_point: bool = False
    activation_scale: str = "row"
    dynamic: bool = False
    input: str | None = None
    out: str = "float32"
    bias: bool = False
    activation_fn: str | None = None
    residual: bool = False
    gated: bool = False
    m: int | None = None
    weight_offset: bool = False
    weight_order: bool = False
    experts: int | None = None

    def __post_init__(self) -> None:
        for name in ("n", "k", "m", "experts"):
            value = getattr(self, name)
            if name in ("n", "k") or value is not None:
                object.__setattr__(self, name, as_size(name, value))
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, str | None) or value not in allowed:
                raise SpecError(f"{name}={value!r}; expected one of {', '.join(map(str, allowed))}")
        for name in FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise SpecError(f"{name}={getattr(self, name)!r}; expected True or False")
        object.__setattr__(self, "group_size", as_group_size(self.group_size))
        self._check_combination()
        self._check_exact()

    def _check_combination(self) -> None:
        if self.dynamic and self.input is None:
            raise SpecError("dynamic=True quantizes X in the call; it needs input='float32' or so")
        if self.dynamic and self.activation_scale == "tensor":
            raise SpecError(
                f"activation_scale={self.activation_scale!r} with dynamic=True, which finds one "
                "for each row of X, or for each group of it; expected 'row' or 'group'"
            )
        if self.activation_scale == "group" and not isinstance(self.group_size, int):
            raise SpecError(
                f"activation_scale='group' with group_size={self.group_size!r}, which has no "
                "groups; expected a group_size that is a multiple of 8"
            )
        if self.weight_offset and self.weight_zero_point:
            raise SpecError(
                "weight_offset=True and weight_zero_point=True; expected one of them, because "
                "either says which weight the integer 0 is"
            )
        if self.weight_order and self.packed_activation:
            raise SpecError(
                "weight_order=True with packed int4 activations, two of which share a byte; "
                "expected activation='int8' or 'uint8', or an input of floats"
            )
        if self.weight_order and self.activation_scale == "group":
            raise SpecError(
                "weight_order=True with activation_scale='group', whose groups are of columns side "
                "by side in X; expected 'row' or 'tensor'"
            )
        if self.out == "int32":
            if isinstance(self.group_size, int) and self.group_size < self.k:
                raise SpecError(
                    f"out='int32' has one accumulator per output, group_size={self.group_size} "
                    f"has {self.groups}; expected group_size None or 'tensor'"
                )
            for name in ("weight_offset", "bias", "residual", "activation_fn", "gated"):
                if getattr(self, name):
                    raise SpecError(
                        f"out='int32' is the bare accumulator; {name} needs a float or int8 out"
                    )

    def _check_exact(self) -> None:
        if self.k_of_group > self.k_limit:
            raise SpecError(
                f"k={self.k} sums {self.k_of_group} products in one int32; "
                f"{self.activation} x {self.weight} is exact up to {self.k_limit} of them"
            )

    @property
    def matrices(self) -> int:
        """Of n rows each, that W is made of."""
        return 2 if self.gated else 1

    @property
    def w_rows(self) -> int:
        """Rows of W, of one expert where there are several."""
        return self.matrices * self.n

    @property
    def weight_rows(self) -> int:
        """Rows of W, of all experts."""
        return self.w_rows * (self.experts or 1)

    @property
    def of_one(self) -> MatmulSpec:
        """The spec of one expert: what is tuned, and a record is for."""
        return self if self.experts is None else dataclasses.replace(self, experts=None)

    def rows_of_each(self, m: int) -> int:
        """How many rows of X a weight multiplies where `m` are shared out evenly."""
        return -(-m // (self.experts or 1))

    @property
    def four_bit_weight(self) -> bool:
        """Whether the weight is stored two values to a byte."""
        return INTEGERS[self.weight].packed

    @property
    def packed_activation(self) -> bool:
        """Whether X arrives two values to a byte."""
        return INTEGERS[self.activation].packed and self.input is None

    @property
    def x_dtype(self) -> str:
        """The format in which X arrives, two values to a byte as uint8."""
        return "uint8" if self.packed_activation else self.input or self.activation

    @property
    def x_columns(self) -> int:
        """The numbers that a row of X has as it arrives."""
        return -(-self.k // 2) if self.packed_activation else self.k

    @property
    def requantized(self) -> bool:
        """Whether Y is rounded to integers with a scale and zero point of its own."""
        return self.out in ("int8", "uint8")

    @property
    def residual_dtype(self) -> str:
        """The format in which the residual arrives: that of a float out, else float32."""
        return self.out if self.out in FLOAT_TYPES else "float32"

    @property
    def k_of_group(self) -> int:
        """The number of products that one int32 accumulator sums."""
        return min(self.k, self.group_size) if isinstance(self.group_size, int) else self.k

    @property
    def groups(self) -> int:
        """The number of groups along K."""
        return -(-self.k // self.k_of_group)

    @property
    def x_group_size(self) -> int | str | None:
        """What one activation scale covers, as `quantize` takes it."""
        return {"tensor": "tensor", "row": None, "group": self.group_size}[self.activation_scale]

    @property
    def x_groups(self) -> int:
        """The number of activation scales that a row of X has."""
        return self.groups if self.activation_scale == "group" else 1

    @property
    def k_limit(self) -> int:
        """The greatest number of products whose sum is sure to stay within int32."""
        x = magnitude(self.activation, self.activation_zero_point)
        w = magnitude(self.weight, self.weight_zero_point)
        return INT32_MAX // (x * w)

    def to_json(self) -> str:
        """The spec as one line of JSON.

        Fields at their default are left out, but for activation_scale, whose default was another
        one: see `from_json`.
        """
        return json.dumps(
            {
                field.name: getattr(self, field.name)
                for field in dataclasses.fields(self)
                if getattr(self, field.name) != field.default or field.name == "activation_scale"
            }
        )

    @classmethod
    def from_json(cls, text: str) -> MatmulSpec:
        """The spec that `to_json` wrote.

        A text without activation_scale is of the time when "tensor" was the default, and "row" what
        dynamic=True made of it.

        Raises
        ------
        SpecError
            `text` is not JSON, or not a spec.
        """
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise SpecError(f"not a spec in JSON: {error}") from None
        if not isinstance(fields, dict):
            raise SpecError(f"a spec is a JSON object, not {type(fields).__name__}")
        fields.setdefault("activation_scale", "row" if fields.get("dynamic") else "tensor")
        return cls(**fields)


def check_spec(spec: object) -> MatmulSpec:
    """`spec`, if it is one.

    Raises
    ------
    SpecError
        It is something else.
    """
    if not isinstance(spec, MatmulSpec):
        given = repr(spec)
        if len(given) > 60:
            given = type(spec).__name__
        raise SpecError(f"spec is {given}; expected a MatmulSpec, as in MatmulSpec(n=4096, k=1024)")
    return spec


def say_short_groups(group_size: int | str | None, k: int) -> None:
    """Warn of groups that are longer than K: there is one, as with group_size=None."""
    if isinstance(group_size, int) and group_size > k:
        message = (
            f"group_size={group_size} is more than K={k}: every row has one group, as with "
            "group_size=None"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=3)


def stored_as(dtype: str) -> str:
    """The dtype under which a kernel takes an array of `dtype`.

    NumPy hands neither packed nibbles nor bfloat16 over, and not every CPU reads float16: those are
    passed as the unsigned integers that they occupy.
    """
    if dtype in INTEGERS:
        return INTEGERS[dtype].stored
    return {"float16": "uint16", "bfloat16": "uint16"}.get(dtype, dtype)


def as_size(name: str, value: Any, *, least: int = 1) -> int:
    """`value`, a whole number of any type but bool, as an int.

    Raises
    ------
    SpecError
        It is something else, or less than `least`.
    """
    whole = as_whole(value)
    if whole is None or whole < least:
        raise SpecError(f"{name}={value!r}; expected a whole number of at least {least}")
    return whole


def as_whole(value: Any) -> int | None:
    """`value` as an int; None where it is no whole number."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def as_group_size(group_size: Any) -> int | str | None:
    """`group_size` as an int where it is a number.

    Raises
    ------
    SpecError
        It is neither None, "tensor" nor a positive multiple of 8.
    """
    if group_size is None or (isinstance(group_size, str) and group_size == "tensor"):
        return group_size
    size = as_whole(group_size)
    if size is None:
        raise SpecError(f"group_size={group_size!r}; expected None, 'tensor' or a multiple of 8")
    if size < 8 or size % 8:
        raise SpecError(f"group_size={group_size}; expected a positive multiple of 8")
    return size


def magnitude(dtype: str, has_zero_point: bool) -> int:
    """The greatest |q - z| of a format; z may be any value that the format holds."""
    least, greatest = INTEGERS[dtype].range
    return greatest - least if has_zero_point else max(-least, greatest)
