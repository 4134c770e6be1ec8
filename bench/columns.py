"""The columns that tables of rows are made of: what each holds, and how it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .contenders import OURS
from .row import Compared, Ratio, Row
from .timing import Time


@dataclass(frozen=True)
class Entry:
    """A contender in a row; nobody where its name is None."""

    row: Compared
    name: str | None

    @property
    def time(self) -> Time | None:
        """Its times; None where it took no part."""
        return self.row.compared.get(self.name or "")

    @property
    def named(self) -> tuple[str, float] | None:
        """Its name, and the median of its times."""
        return (self.name, self.time.median) if self.name and self.time else None

    @property
    def ratio(self) -> Ratio | None:
        """Its time over quantmm's, which itself has none."""
        return None if self.name == OURS.name else self.row.ratio(self.name)


@dataclass(frozen=True)
class Beside(Entry):
    """A contender in a row of processes of their own."""

    row: Row

    @property
    def kind(self) -> str:
        """What it is to quantmm."""
        if self.time is None:
            return "absent"
        if self.name == OURS.name:
            return "quantmm"
        return "baseline" if self.name in self.row.baselines else "peer"

    @property
    def reason(self) -> str | None:
        """Why it took no part."""
        return self.row.absent.get(self.name or "")

    @property
    def remarks(self) -> str:
        """What there is to say of it, and of quantmm in words whether it is slower."""
        words = [self.row.about.get(self.name or "", "")]
        best = self.row.ratio(self.row.best_peer)
        if self.name == OURS.name and best and best.slower:
            words.append(f"slower than {self.row.best_peer}")
        return ", ".join(filter(None, words))

    @property
    def share(self) -> float | None:
        """The share of the limit that it reached."""
        return self.row.floor / self.time.median if self.time else None

    @property
    def spread(self) -> tuple[float, ...] | None:
        """The quartiles around the median, in percent."""
        if self.time is None:
            return None
        return tuple((each / self.time.median - 1) * 100 for each in self.time.quartiles)

    @property
    def gops(self) -> float | None:
        """Its operations per second, in thousand millions."""
        return self.row.operations / self.time.median / 1e9 if self.time else None

    @property
    def gbps(self) -> float | None:
        """The bytes of the weight that it takes per second, in thousand millions."""
        return self.row.weight_bytes / self.time.median / 1e9 if self.time else None


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes
    ----------
    attribute : of an `Entry`, or of what an attribute of it holds, such as "time.median"; times
        are in seconds.
    text : how it is written.
    words : whether it is read rather than compared.
    """

    attribute: str
    text: Callable[[Any], str] = str
    words: bool = False

    @property
    def of_row(self) -> bool:
        """Whether all contenders of a row have the same in it."""
        return self.attribute.startswith("row.")

    def cell(self, entry: Entry) -> str:
        """What an entry has; nothing where it has none."""
        value: Any = entry
        for name in self.attribute.split("."):
            value = None if value is None else getattr(value, name)
        return "" if value is None else self.text(value)


def milliseconds(seconds: float) -> str:
    """With the four places of docs/performance.md."""
    return f"{seconds * 1e3:.4f}"


def share_of_limit(share: float) -> str:
    """In percent; above 100 % with a *, as the limit was measured too low then."""
    text = f"{share:.0%}"
    return text if share <= 1 or text == "100%" else f"{text}*"


def rounded(cores: float) -> str:
    """Without digits that mean nothing."""
    return str(round(cores, 3))


def shown(ratio: Ratio) -> str:
    """A ratio, with a ~ where it is within the spread."""
    return f"{'' if ratio.certain else '~'}{ratio.value:.2f}"


def cells(table: Mapping[str, Column], entry: Entry, first: bool = True) -> list[str]:
    """A line of a table; what belongs to the row stands in the `first` of its lines only."""
    return ["" if each.of_row and not first else each.cell(entry) for each in table.values()]


def page_line(texts: Iterable[str]) -> str:
    """A line of a table in Markdown."""
    return "| " + " | ".join(texts) + " |"


def page_header(*names: str) -> str:
    """The first two lines of one."""
    return f"{page_line(names)}\n|{'---|' * len(names)}"


SHAPE, FORMAT = Column("row.title", words=True), Column("row.format", words=True)
LAYER, CONTENDER = Column("row.job.layer", words=True), Column("name", words=True)
THREADS, FLOOR = Column("row.job.threads"), Column("row.floor", milliseconds)
MEDIAN, LEAST = Column("time.median", milliseconds), Column("time.least", milliseconds)
SHARE = Column("share", share_of_limit)
RATIO = Column("ratio", shown)

# The tables, by the headings of their columns.
#: On the terminal: what is said of quantmm, and of its best peer.
OURS_TABLE = {
    "M x N x K": SHAPE,
    "format": FORMAT,
    "threads": THREADS,
    "floor ms": FLOOR,
    "median ms": MEDIAN,
    "quartiles": Column("spread", lambda both: "{:+.0f} {:+.0f} %".format(*both)),
    "GOPS": Column("gops", "{:.0f}".format),
    "GB/s": Column("gbps", "{:.1f}".format),
    "limit": SHARE,
}
PEER_TABLE = {"best peer": Column("name"), "ms": MEDIAN, "ratio": RATIO}
#: In docs/performance.md: what is said of quantmm, and of another.
OURS_PAGE = {
    "M x N x K": SHAPE,
    "threads": THREADS,
    "floor ms": FLOOR,
    "quantmm ms": MEDIAN,
    "least ms": LEAST,
    "share": SHARE,
}
PEER_PAGE = {
    "best peer ms": Column("named", lambda named: f"{named[0]} {milliseconds(named[1])}"),
    "ratio": RATIO,
}
#: In the report.
REPORT = {
    "M x N x K": SHAPE,
    "layer": LAYER,
    "format": FORMAT,
    "threads": THREADS,
    "contender": CONTENDER,
    "ms": MEDIAN,
    "quartiles": Column("time.quartiles", lambda both: " to ".join(map(milliseconds, both))),
    "least": LEAST,
    "floor": FLOOR,
    "share": SHARE,
    "ratio": RATIO,
    "its range": Column("ratio", lambda ratio: f"{ratio.low:.2f} to {ratio.high:.2f}"),
    "remarks": Column("remarks", words=True),
}
#: In the CSV: every figure in full, times in seconds.
CSV = {
    "format": FORMAT,
    "target": Column("row.target"),
    "layer": LAYER,
    "m": Column("row.job.m"),
    "n": Column("row.job.n"),
    "k": Column("row.job.k"),
    "weights": Column("row.job.cold", lambda cold: "cold" if cold else "hot"),
    "threads": THREADS,
    "floor": Column("row.floor"),
    "share": Column("share"),
    "contender": CONTENDER,
    "kind": Column("kind"),
    "median": Column("time.median"),
    "least": Column("time.least"),
    "quartile_1": Column("time.quartiles.low"),
    "quartile_3": Column("time.quartiles.high"),
    "ratio": Column("ratio.value"),
    "ratio_low": Column("ratio.low"),
    "ratio_high": Column("ratio.high"),
    "absent": Column("reason"),
    "busy_cores": Column("row.busy_cores", rounded),
    "stolen_cores": Column("row.stolen_cores", rounded),
}
