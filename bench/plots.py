"""The report's figures as SVG: inline, in the page's own ink and font. Needs matplotlib."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .row import Row, geometric_mean

#: Stands for the colour of the page's text, which differs in dark mode.
INK = "#123456"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": INK,
    "grid.alpha": 0.15,
}
#: Readable on white and on black (after Okabe and Ito); markers are for who cannot tell them apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#888888")
MARKERS = "osD^vPX<>hd*"
#: Of text in a picture that stands alone, which knows no ink: readable on white and on black.
MIDDLE = "#7a7a7a"
WIDTH = 8.0


@dataclass(frozen=True)
class Series:
    """Points of one kind."""

    label: str
    points: list[tuple[float, float]]
    hollow: bool


@mpl.rc_context(STYLE)
def roofline(rows: Sequence[Row], key: str) -> str:
    """Operations per byte of weight against operations per second, below the measured roofs.

    `rows` share their target and number of threads. The roofs are the highest measured beside any
    of them; the slanted one is for weights that come from memory. `key` tells figures of a page
    apart.
    """
    gops, gbps = max(r.limits.gops for r in rows), max(r.limits.gbps for r in rows)
    figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
    axes = figure.subplots()
    ends = [row.operations / row.weight_bytes for row in rows] + [gops / gbps]
    left, right = min(ends) / 2, max(ends) * 2
    axes.plot([left, gops / gbps, right], [left * gbps, gops, gops], color=INK, linewidth=1.2)
    for name, color, marker in zip(
        dict.fromkeys(row.format for row in rows), itertools.cycle(COLORS), itertools.cycle(MARKERS)
    ):
        for series in series_of(name, [row for row in rows if row.format == name]):
            axes.plot(
                *zip(*series.points, strict=True),
                linestyle="none",
                color=color,
                marker=marker,
                markerfacecolor="none" if series.hollow else color,
                label=series.label,
            )
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(None, gops * 1.6))
    axes.set(xlabel="operations per byte of weight", ylabel="GOPS")
    note: dict[str, Any] = {"textcoords": "offset points", "annotation_clip": False}
    axes.annotate(f"{gops:.0f} GOPS", (right, gops), (-4, 4), ha="right", **note)
    axes.annotate(f"{gbps:.0f} GB/s", (2 * left, 2 * left * gbps), (8, -6), va="top", **note)
    for axis in (axes.xaxis, axes.yaxis):
        plain_numbers(axis)
    axes.grid()
    legend(figure)
    return svg(figure, f"roofline-{key}", "measurements below the machine's limits")


def series_of(name: str, rows: Sequence[Row]) -> list[Series]:
    """Points of quantmm, and those of each row's best peer."""
    found = {
        name: [at(row, row.ours.median) for row in rows if row.ours],
        f"{name}, best peer": [
            at(row, row.times[row.best_peer].median) for row in rows if row.best_peer
        ],
    }
    return [
        Series(label, points, hollow=label != name) for label, points in found.items() if points
    ]


def at(row: Row, seconds: float) -> tuple[float, float]:
    """A point of the roofline."""
    return row.operations / row.weight_bytes, row.operations / seconds / 1e9


@mpl.rc_context(STYLE)
def speed_up(rows: Sequence[Row], key: str) -> str:
    """Every contender's time over quantmm's, shape by shape, and the geometric means.

    `rows` share their format, target and number of threads, and at least one has a contender.
    """
    names = list(dict.fromkeys(name for row in rows for name in [*row.peers, *row.baselines]))
    height = len(rows) + 1
    figure = Figure(figsize=(WIDTH, 1.6 + 0.33 * height), layout="constrained")
    axes = figure.subplots()
    axes.axvline(1, color=INK, linewidth=1.2)
    for name, color, marker in zip(names, itertools.cycle(COLORS), itertools.cycle(MARKERS)):
        ratios = [(row.ratio(name), i) for i, row in enumerate(rows)]
        found = [(ratio, i) for ratio, i in ratios if ratio]
        if not found:
            continue
        baseline = any(name in row.baselines for row in rows)
        for ratio, i in found:
            axes.plot([ratio.low, ratio.high], [i, i], color=color, linewidth=1, alpha=0.7)
        values = [(ratio.value, i) for ratio, i in found]
        mean = geometric_mean(ratio for ratio, _ in found)
        axes.plot(
            *zip(*values, (mean, len(rows)), strict=True),
            linestyle="none",
            marker=marker,
            label=name,
            color=color,
            markerfacecolor="none" if baseline else color,
        )
    axes.set_yticks(range(height), [*(row.job.title for row in rows), "geometric mean"])
    axes.set(ylim=(height - 0.5, -0.5), xscale="log")
    axes.axhline(len(rows) - 0.5, color=INK, linewidth=0.5)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.8), max(high, 1.6))
    axes.axvspan(axes.get_xlim()[0], 1, color="#D55E00", alpha=0.08, linewidth=0)
    axes.set_xlabel("time over quantmm's: right of 1, quantmm is faster")
    plain_numbers(axes.xaxis)
    axes.grid()
    legend(figure)
    return svg(figure, f"speed-up-{key}", "time of every contender over quantmm's")


@dataclass(frozen=True)
class Part:
    """Some rows of a picture under one heading: their labels, and times over quantmm's by name."""

    heading: str
    ratios: dict[str, dict[str, float]]


@mpl.rc_context(STYLE)
def picture(parts: Sequence[Part], title: str) -> str:
    """Times of others over quantmm's, as points on one line for each row: an SVG file."""
    labels = [label for part in parts for label in ("", *part.ratios)]
    figure = Figure(figsize=(WIDTH, 1.4 + 0.24 * len(labels)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(1, color=MIDDLE, linewidth=1.2)
    names = dict.fromkeys(
        name for part in parts for found in part.ratios.values() for name in found
    )
    marks = {name: mark for name, *mark in zip(names, itertools.cycle(COLORS), MARKERS)}
    points: dict[str, list[tuple[float, int]]] = {name: [] for name in names}
    height = 0
    for part in parts:
        axes.text(
            0,
            height,
            part.heading,
            weight="bold",
            va="center",
            ha="right",
            transform=axes.get_yaxis_transform(),
        )
        for found in part.ratios.values():
            height += 1
            for name, ratio in found.items():
                points[name].append((ratio, height))
        height += 1
    for name, (color, marker) in marks.items():
        axes.plot(
            *zip(*points[name], strict=True), marker, color=color, label=name, linestyle="none"
        )
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params("y", length=0)
    axes.set(ylim=(len(labels) - 0.5, -0.8), xscale="log", title=title)
    axes.set_xlabel("time over quantmm's: right of the line quantmm is faster")
    plain_numbers(axes.xaxis)
    axes.grid(axis="x")
    legend(figure)
    for text in figure.findobj(Text):
        text.set_color(MIDDLE)
    for spine in axes.spines.values():
        spine.set_color(MIDDLE)
    return saved(figure)


def plain_numbers(axis: Any) -> None:
    """Ticks of a logarithmic axis at 1, 2, 5, 10, ... or at powers of ten, as plain numbers."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 2e3 else (1,), numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend(figure: Figure) -> None:
    """Below the figure, where no point can hide."""
    if any(axes.get_legend_handles_labels()[0] for axes in figure.axes):
        figure.legend(loc="outside lower center", ncols=3, frameon=False)


def svg(figure: Figure, key: str, description: str) -> str:
    """The figure as an element of a page, its ids unlike those of other figures."""
    element = saved(figure).partition("<svg")[2]
    element = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", element)
    element = element.replace(INK, "currentColor")
    return f'<svg role="img" aria-label="{description}"{element}'


def saved(figure: Figure) -> str:
    """The figure as an SVG file."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()
