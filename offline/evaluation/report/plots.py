"""Plots as inline SVG whose colours follow the page's theme: intervals, bars, lines, calibration, and swarms.

matplotlib draws with stand-in colours, which are then replaced by the page's CSS variables: one drawing works in both
themes. The same plot gives the same bytes. No plot relies on colour alone, and the page gives each a caption that says
what to look for.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator, PercentFormatter

from offline.evaluation.report.formatting import decimal, finite, truncate

INK, SOFT, ACCENT, SECOND, BAD, PAPER = "#000001", "#000002", "#000003", "#000004", "#000005", "#000006"
SCALE = ("#000010", "#000011", "#000012", "#000013", "#000014")
"""Colours of a swarm, from low to high values."""
THEME = {
    INK: "currentColor",
    SOFT: "var(--soft)",
    ACCENT: "var(--accent)",
    SECOND: "var(--second)",
    BAD: "var(--bad)",
    PAPER: "var(--paper)",
    **{c: f"color-mix(in srgb, var(--second) {25 * i}%, var(--accent))" for i, c in enumerate(SCALE)},
}
"""Stand-in colour -> the CSS that replaces it in the SVG."""

STYLE = {
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), SOFT),
    **dict.fromkeys(("text.color", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon", "text.parse_math"), False),
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "font.size": 9,
    "grid.alpha": 0.25,
    "svg.fonttype": "none",
}
LARGEST_DRAWN = 1e12
"""Axes cannot be divided into ticks much beyond this."""

Row = tuple[str, float, float | None, float | None, str]
"""A row of an interval plot: label, value, low, high, colour."""
Points = Sequence[tuple[float | None, float | None]]
"""x, y; a point with None is not drawn."""
Band = Sequence[tuple[float | None, float | None, float | None]]
"""x, low, high."""
Trade = tuple[float, tuple[float, float, float], tuple[float, float, float]]
"""Weight, and two changes as (value, low, high), in percent."""
Limits = tuple[float, float]
Marks = Sequence[float | None]


class Plot(NamedTuple):
    """The view box and the content of an svg element. wide: over both columns of the page, for long labels."""

    view_box: str
    body: str
    wide: bool


def plot(name: str, rows: int, draw: Callable[[Axes], None], wide: bool = False) -> Plot:
    """The plot that `draw` draws, tall enough for this many rows. name: unique on the page."""
    svg = re.sub(r"<[^>]*>", lambda tag: _themed(tag.group()), _draw(name, 6.4 if wide else 4.4, rows, draw))
    element = re.search(r'<svg[^>]* viewBox="([^"]*)"[^>]*>(.*)</svg>', svg, re.DOTALL)
    assert element, "matplotlib writes one svg element"
    return Plot(element[1], re.sub(r"<style.*?</style>", "", element[2], flags=re.DOTALL), wide)


def _draw(name: str, width: float, rows: int, draw: Callable[[Axes], None]) -> str:
    """The SVG as matplotlib writes it. width: in inches. Text stays text, which the browser sets in its own fonts."""
    out = io.StringIO()
    settings = {**STYLE, "svg.hashsalt": name}
    with matplotlib.style.context(["default", settings]), warnings.catch_warnings():
        # matplotlib only measures the text, and its font lacks the letters of many scripts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width, 0.65 + 0.23 * rows), layout="constrained")
        draw(figure.subplots())
        no_metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(out, format="svg", transparent=True, metadata=no_metadata)
    return out.getvalue()


def _themed(tag: str) -> str:
    """A tag in the page's colours and fonts, without the ids of groups, which repeat from plot to plot."""
    for stand_in, colour in THEME.items():
        tag = tag.replace(stand_in, colour)
    # Hundredths of a point are finer than any screen.
    tag = re.sub(r"(\.\d\d)\d+", r"\1", tag)
    tag = re.sub(r" ?font-family: [^;\"]*;", "", tag)
    return re.sub(r'<g id="[^"]*"', "<g", tag)


def drawable(value: object) -> float | None:
    """The value as a number that an axis can show; None for anything else."""
    number = finite(value)
    return None if number is None or abs(number) > LARGEST_DRAWN else number


def interval_row(label: str, entry: Mapping[str, object], colour: str) -> Row | None:
    """A row of `value`, `low` and `high`; None where the value cannot be drawn."""
    value, low, high = (drawable(entry.get(k)) for k in ("value", "low", "high"))
    return None if value is None else (label, value, low, high, colour)


def limits(rows: Iterable[Row]) -> Limits:
    """The ends of an axis that shows the whole interval of every row."""
    ends = [end for row in rows for end in row[1:4] if end is not None] or [0.0, 1.0]
    margin = max(0.05 * (max(ends) - min(ends)), 1e-3 * max(1.0, *map(abs, ends)))
    return min(ends) - margin, max(ends) + margin


def dots(ax: Axes, rows: Sequence[Row], xlabel: str, limits: Limits, zero: bool = False, marks: Marks = ()) -> None:
    """A dot with its interval per row, from the bottom up.

    zero: the values are signed, and a line marks 0. marks: a second value of each row, drawn as a diamond.
    """
    if zero:
        ax.axvline(0.0, color=INK, linewidth=1)
    for y, (_, value, low, high, colour) in enumerate(rows):
        if low is not None and high is not None:
            ax.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        hollow = zero and colour == SOFT
        ax.plot([value], [y], marker="o", markersize=6, color=colour, markerfacecolor=PAPER if hollow else colour)
        _label_value(ax, y, decimal(value, 3, signed=zero), INK if hollow else colour)
    for y, mark in enumerate(marks):
        if mark is not None:
            ax.plot([mark], [y], marker="D", markersize=5, color=SECOND, markerfacecolor=PAPER)
    _label_rows(ax, [row[0] for row in rows])
    ax.set_xlim(*limits)
    ax.set_xlabel(xlabel)


def bars(ax: Axes, rows: Sequence[tuple[str, float]], xlabel: str, form: str) -> None:
    """A bar per row, the first on top, with its value at the right."""
    rows = rows[::-1]
    ax.barh(range(len(rows)), [value for _, value in rows], color=ACCENT, height=0.65)
    for y, (_, value) in enumerate(rows):
        _label_value(ax, y, form.format(value), INK)
    _label_rows(ax, [name for name, _ in rows])
    ax.set_xlim(0.0, max(1e-9, *(1.03 * value for _, value in rows)))
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel(xlabel)


def _label_value(ax: Axes, y: float, text: str, colour: str) -> None:
    """Text to the right of a row, outside the axes."""
    ax.text(1.02, y, text, transform=ax.get_yaxis_transform(), va="center_baseline", color=colour)


def _label_rows(ax: Axes, labels: Sequence[str]) -> None:
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(-0.6, len(labels) - 0.4)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def curve(
    name: str, series: Mapping[str, Points], xlabel: str, cutoff: float | None = None, band: Band = ()
) -> Plot | None:
    """A plot of lines over whole numbers; None marks a missing point.

    cutoff: where training was cut, marked by a vertical line. band: interval around the first line, shaded.
    """
    points = {n: [(x, y) for x, y in line if x is not None and y is not None] for n, line in series.items()}
    points = {n: line for n, line in points.items() if line}
    shaded = [(x, low, high) for x, low, high in band if x is not None and low is not None and high is not None]

    def draw(ax: Axes) -> None:
        if shaded:
            x, low, high = zip(*shaded, strict=True)
            ax.fill_between(x, low, high, color=ACCENT, alpha=0.15, linewidth=0)
        for (label, line), colour in zip(points.items(), (ACCENT, SECOND, INK, SOFT) * len(points), strict=False):
            x, y = zip(*line, strict=True)
            ax.plot(x, y, color=colour, marker="o" if len(x) < 30 else None, markersize=4, label=truncate(label, 34))
        if cutoff is not None:
            ax.axvline(cutoff, color=SOFT, linestyle="--", linewidth=1, label="trees kept")
        ax.grid(True, axis="y")
        ax.set_xlabel(xlabel)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len(points) > 1 or cutoff is not None:
            ax.legend(labelcolor=INK)

    return plot(name, 8, draw) if points else None


def calibration(ax: Axes, bins: Sequence[tuple[float, float]]) -> None:
    """Observed against predicted rates, with a dashed line where they are equal."""
    predicted, observed = zip(*bins, strict=True)
    top = max(1e-6, 1.08 * max(*predicted, *observed))
    ax.plot([0, top], [0, top], color=SOFT, linestyle="--", linewidth=1)
    ax.plot(predicted, observed, color=ACCENT, marker="o", markersize=5)
    ax.set_xlim(0, top)
    ax.set_ylim(0, top)
    ax.grid(True, axis="both")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(PercentFormatter(1.0))
    ax.set_xlabel("predicted click rate")
    ax.set_ylabel("observed click rate")


def reliability(ax: Axes, lines: Mapping[str, Sequence[tuple[float, float]]], outcome: str) -> None:
    """Observed against predicted rates of each slice, with a dashed line where they are equal."""
    top = max(1e-6, 1.08 * max(max(pair) for line in lines.values() for pair in line))
    ax.plot([0, top], [0, top], color=SOFT, linestyle="--", linewidth=1)
    for (label, line), colour, marker in zip(lines.items(), (ACCENT, SECOND, INK), "osD", strict=False):
        predicted, observed = zip(*line, strict=True)
        ax.plot(predicted, observed, color=colour, marker=marker, markersize=4, linewidth=1, label=label)
    ax.set_xlim(0, top)
    ax.set_ylim(0, top)
    ax.grid(True, axis="both")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(PercentFormatter(1.0))
    ax.set_xlabel(f"predicted {outcome} rate")
    ax.set_ylabel(f"observed {outcome} rate")
    if len(lines) > 1:
        ax.legend(labelcolor=INK)


def trade_off(ax: Axes, lines: Mapping[str, Sequence[Trade]], xlabel: str, ylabel: str, wide: Sequence[str]) -> None:
    """Curves of two changes in percent by weight, with the interval of each; the first is labelled with the weights.

    wide: curves whose intervals may be cut off at the border, so that they do not hide the shape of the others.
    """
    drawn = [(1 if label in wide else 3, x, y) for label, line in lines.items() for _, x, y in line]
    ax.set_xlim(*_around([end for ends, x, _ in drawn for end in x[:ends]]))
    ax.set_ylim(*_around([end for ends, _, y in drawn for end in y[:ends]]))
    for zero in (ax.axhline, ax.axvline):
        zero(0.0, color=SOFT, linewidth=1)
    styles = zip(lines.items(), (ACCENT, SECOND, INK), "osD", strict=False)
    for k, ((label, line), colour, marker) in enumerate(styles):
        x, y = [one[0] for _, one, _ in line], [one[0] for _, _, one in line]
        ax.plot(x, y, color=colour, marker=marker, markersize=4, linewidth=1.2, label=label)
        dashes = ":" if label in wide else "-"  # solid ones from border to border would look like a grid
        for weight, (x0, x1, x2), (y0, y1, y2) in line:
            ax.plot([x1, x2], [y0, y0], color=colour, linewidth=1, alpha=0.4, linestyle=dashes)
            ax.plot([x0, x0], [y1, y2], color=colour, linewidth=1, alpha=0.4, linestyle=dashes)
            if k == 0:
                ax.annotate(f"{weight:g}", (x0, y0), xytext=(4, 4), textcoords="offset points", color=colour)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(6))
        axis.set_major_formatter(PercentFormatter(100.0, decimals=0))
    ax.grid(True, axis="both")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.legend(labelcolor=INK)


def _around(values: Sequence[float]) -> Limits:
    """Limits of an axis that has all values, with a margin."""
    low, high = min(values), max(values)
    margin = 0.08 * max(high - low, 1e-3)
    return low - margin, high + margin


def swarm(ax: Axes, rows: Sequence[tuple[str, Sequence[tuple[float, float | None]]]], xlabel: str) -> None:
    """A row of points per name, the first on top: (x, level from 0 to 1, None where the value is missing).

    Points with nearly equal x are stacked around the row's middle, so that the thickness shows how many there are.
    """
    ax.axvline(0.0, color=INK, linewidth=1)
    ends = [x for _, points in rows for x, _ in points] or [0.0]
    step = max(max(ends) - min(ends), 1e-9) / 90
    ax.set_xlim(min(*ends, 0.0) - 4 * step, max(*ends, 0.0) + 4 * step)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    for row, (_, points) in enumerate(rows[::-1]):
        x = np.array([p[0] for p in points])
        y = row + _stack(np.round(x / step).astype(np.int64))
        colour_index = np.array([-1 if level is None else min(int(5 * level), 4) for _, level in points])
        for index, colour in enumerate((SOFT, *SCALE), -1):
            if (colour_index == index).any():
                ax.add_patch(_round_points(x[colour_index == index], y[colour_index == index], colour))
    _label_rows(ax, [name for name, _ in rows[::-1]])
    ax.set_xlabel(xlabel)


def _round_points(x: np.ndarray, y: np.ndarray, colour: str) -> PathPatch:
    """All points as one path, which takes a tenth of the bytes of separate markers."""
    path = Path(np.repeat(np.column_stack([x, y]), 2, axis=0), [Path.MOVETO, Path.LINETO] * len(x))
    # A point is a line of zero length with round caps. Path simplification would remove it.
    path.should_simplify = False
    return PathPatch(path, edgecolor=colour, facecolor="none", linewidth=3, capstyle="round")


def _stack(cell: np.ndarray) -> np.ndarray:
    """Offsets within 0.38 of a row's middle: in each cell the first point at 0, the next above, the next below, ..."""
    order = np.argsort(cell, kind="stable")
    first = np.searchsorted(cell[order], cell[order])
    index = np.empty(len(cell))
    index[order] = np.arange(len(cell)) - first
    level = np.where(index % 2 == 1, 1, -1) * np.ceil(index / 2)
    out: np.ndarray = 0.38 * level / max(float(np.abs(level).max(initial=0)), 4.0)
    return out
