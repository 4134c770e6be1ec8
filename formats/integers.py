"""The formats of integers: what numbers of a name may be, and how they are stored."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Integers:
    """A row of the table.

    Attributes
    ----------
    bits : of a stored number, 1, 2, 4 or 8. Several of fewer than 8 lie in one byte, the first of
        them in its low bits.
    least, greatest : what a number may be. They may be fewer than the bits hold.
    """

    name: str
    bits: int
    least: int
    greatest: int

    def __post_init__(self) -> None:
        if self.bits not in (1, 2, 4, 8) or self.greatest - self.least >= 1 << self.bits:
            raise ValueError(f"{self.name}: {self.least} to {self.greatest} in {self.bits} bits")

    @property
    def range(self) -> tuple[int, int]:
        """The least and the greatest number."""
        return self.least, self.greatest

    @property
    def signed(self) -> bool:
        """Whether numbers may be negative."""
        return self.least < 0

    @property
    def holes(self) -> bool:
        """Whether some stored bits are no number."""
        return self.greatest - self.least + 1 < 1 << self.bits

    @property
    def packed(self) -> bool:
        """Whether a byte holds several numbers."""
        return self.bits < 8

    @property
    def stored(self) -> str:
        """The dtype of the bytes in which an array holds such numbers."""
        return "int8" if self.signed and not self.packed else "uint8"


INTEGERS = {
    row.name: row
    for row in (
        Integers("int8", 8, -128, 127),
        Integers("uint8", 8, 0, 255),
        Integers("int4", 4, -8, 7),
        Integers("uint4", 4, 0, 15),
        # ONNX Runtime's reduce_range: two products with bytes fit into int16, see `pmaddubsw`.
        Integers("int7", 8, -64, 63),
    )
}
