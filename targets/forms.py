"""Forms: how instructions read their operands, and what they add beside the dot product.

A side is read as one component, its integers, or as two that are made of them. What an instruction
adds for a side alone is subtracted later, by the epilogue.

    BYTES    x w
    SIGNS    |x| (w ^ s), where s is -1 for a negative x and 0 for others: see `instructions.signs`.
             The components of X are |x| and s. Adds the sum of the negative x.
    PAIRED   (x + w') (x' + w), where x and w stand at even k, x' and w' at the odd ones behind: see
             `instructions.paired`. The components of either side are its even and its odd k,
             widened to int16. Adds the sums of x x' and of w w'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Form:
    """A form of the operands of an instruction.

    Attributes
    ----------
    name : which stands for the form in texts and digests.
    x_components, w_components : that are read of a side. Two of W are made for a whole task at a
        time, since the instruction leaves no port of a core free for that.
    x_dtype, w_dtype : in which they are read; None is that of the integers.
    k_per_product : consecutive k that one product covers.
    """

    name: str
    x_components: int = 1
    w_components: int = 1
    x_dtype: str | None = None
    w_dtype: str | None = None
    k_per_product: int = 1

    def product(self, x: list[Any], w: list[Any]) -> Any:
        """One product in int32, of the components of X and of those of W at one place."""
        return PRODUCTS[self.name](x, w)

    @property
    def even_and_odd(self) -> bool:
        """Whether the components of a side are its even and its odd k."""
        return self.k_per_product > 1

    @property
    def adds_x(self) -> bool:
        """Whether sums hold a sum over the activations alone beside the dot product."""
        return self.x_components > 1

    @property
    def adds_w(self) -> bool:
        """Whether sums hold a sum over the weights alone beside the dot product."""
        return self.w_components > 1


def of_bytes(x: list[Any], w: list[Any]) -> Any:
    """The product of two integers."""
    return x[0].astype("int32") * w[0].astype("int32")


def of_signs(x: list[Any], w: list[Any]) -> Any:
    """The product of a magnitude and the weight with the sign."""
    return x[0].astype("int32") * (w[0] ^ x[1].astype("int8")).astype("int32")


def of_pairs(x: list[Any], w: list[Any]) -> Any:
    """The product of two sums."""
    (even_x, odd_x), (even_w, odd_w) = ([each.astype("int32") for each in side] for side in (x, w))
    return (even_x + odd_w) * (odd_x + even_w)


BYTES = Form("bytes")
SIGNS = Form("signs", x_components=2, x_dtype="uint8")
PAIRED = Form(
    "paired products",
    x_components=2,
    w_components=2,
    x_dtype="int16",
    w_dtype="int16",
    k_per_product=2,
)

#: By the names of forms, which are data alone: rows of targets are compared and written as text.
PRODUCTS: dict[str, Callable[[list[Any], list[Any]], Any]] = {
    BYTES.name: of_bytes,
    SIGNS.name: of_signs,
    PAIRED.name: of_pairs,
}
