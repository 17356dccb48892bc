"""Plots as inline SVG whose colours follow the page's theme: intervals, bars, lines, calibration, and swarms.

matplotlib draws with stand-in colours, which are then replaced by the page's own, so that one drawing serves light and
dark. The same plot gives the same bytes. No plot rests on colour alone, nor on its reader's knowing what to look for:
each has a caption that says it.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence

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
"""From low to high values."""
THEME = {
    INK: "currentColor",
    SOFT: "var(--soft)",
    ACCENT: "var(--accent)",
    SECOND: "var(--second)",
    BAD: "var(--bad)",
    PAPER: "var(--paper)",
    **{c: f"color-mix(in srgb, var(--second) {25 * i}%, var(--accent))" for i, c in enumerate(SCALE)},
}
"""Stand-ins while matplotlib draws, and the page's own colours that replace them in the SVG."""

STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "text.color": INK,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "grid.color": SOFT,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
LARGEST_DRAWN = 1e12

Row = tuple[str, float, float | None, float | None, str]
"""A dot of an interval plot: label, value, low, high, colour."""
Points = Sequence[tuple[float | None, float | None]]
Band = Sequence[tuple[float | None, float | None, float | None]]
"""x, low, high."""


def plot(name: str, caption: str, rows: int, draw: Callable[[Axes], None], wide: bool = False) -> str:
    """A figure element with the SVG of what `draw` draws, high enough for so many rows.

    caption: HTML. wide: over both columns of the page, for long labels.
    """
    label = html.escape(html.unescape(re.sub(r"<[^>]*>", "", caption)))
    ours = {**STYLE, "svg.hashsalt": name}
    out = io.StringIO()
    with matplotlib.style.context(["default", ours]), warnings.catch_warnings():
        # The browser sets the text, in its own fonts; matplotlib only measures, and lacks letters of half the world.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(6.4 if wide else 4.4, 0.65 + 0.23 * rows), layout="constrained")
        draw(figure.subplots())
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}><figcaption>{caption}</figcaption>{_inline(out.getvalue(), label)}</figure>"


def _inline(svg: str, label: str) -> str:
    """The svg element alone, fit for a page: sized by it, in its colours and fonts, without ids that repeat."""
    svg = re.sub(r"<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<[^>]*>", lambda tag: _themed(tag.group()), svg)
    return re.sub(
        r'<svg([^>]*?) width="[^"]*" height="[^"]*"', r'<svg role="img" aria-label="@"\1', svg, count=1
    ).replace('aria-label="@"', f'aria-label="{label}"', 1)


def _themed(tag: str) -> str:
    for stand_in, colour in THEME.items():
        tag = tag.replace(stand_in, colour)
    # Hundredths of a point are finer than any screen.
    tag = re.sub(r"(\.\d\d)\d+", r"\1", tag)
    tag = re.sub(r" ?font-family: [^;\"]*;", "", tag)
    return re.sub(r'<g id="[^"]*"', "<g", tag)


def drawable(value: object) -> float | None:
    """A number that an axis can hold, else None."""
    found = finite(value)
    return None if found is None or abs(found) > LARGEST_DRAWN else found


def limits(rows: Iterable[Row]) -> tuple[float, float]:
    """The ends of an axis that holds all intervals of these rows."""
    ends = [end for row in rows for end in row[1:4] if end is not None] or [0.0, 1.0]
    margin = max(0.05 * (max(ends) - min(ends)), 1e-3 * max(1.0, *map(abs, ends)))
    return min(ends) - margin, max(ends) + margin


def dots(
    ax: Axes,
    rows: Sequence[Row],
    about: str,
    limits: tuple[float, float],
    zero: bool = False,
    marks: Sequence[float | None] = (),
) -> None:
    """A dot with its interval a row, from the bottom up.

    zero: signed values, with a line at 0. marks: a second value of each row, as a diamond.
    """
    if zero:
        ax.axvline(0.0, color=INK, linewidth=1)
    for y, (_, value, low, high, colour) in enumerate(rows):
        if low is not None and high is not None:
            ax.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        hollow = zero and colour == SOFT
        ax.plot([value], [y], marker="o", markersize=6, color=colour, markerfacecolor=PAPER if hollow else colour)
        # As many decimals in every row, so that they stand under each other.
        shown = decimal(round(value, 3) or 0.0, 3, signed=zero)
        ax.text(
            1.02, y, shown, transform=ax.get_yaxis_transform(), va="center_baseline", color=INK if hollow else colour
        )
    for y, mark in enumerate(marks):
        if mark is not None:
            ax.plot([mark], [y], marker="D", markersize=5, color=SECOND, markerfacecolor=PAPER)
    _label_rows(ax, [row[0] for row in rows])
    ax.set_xlim(*limits)
    ax.set_xlabel(about)


def bars(ax: Axes, rows: Sequence[tuple[str, float]], about: str, form: str) -> None:
    """A bar a row, the first on top, with its value at the end."""
    rows = rows[::-1]
    ax.barh(range(len(rows)), [value for _, value in rows], color=ACCENT, height=0.65)
    for y, (_, value) in enumerate(rows):
        ax.text(1.02, y, form.format(value), transform=ax.get_yaxis_transform(), va="center_baseline")
    _label_rows(ax, [name for name, _ in rows])
    ax.set_xlim(0.0, max(1e-9, *(1.03 * value for _, value in rows)))
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel(about)


def _label_rows(ax: Axes, labels: Sequence[str]) -> None:
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(-0.6, len(labels) - 0.4)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def curve(
    name: str,
    caption: str,
    series: Mapping[str, Points],
    about: str,
    kept: float | None = None,
    band: Band = (),
    whole: bool = True,
) -> list[str]:
    """A plot of lines, or no plot where there is no point.

    kept: where training was cut, marked on the axis. band: of the first line. whole: only whole numbers on the x axis.
    """
    points = {n: [(x, y) for x, y in line if x is not None and y is not None] for n, line in series.items()}
    points = {n: line for n, line in points.items() if line}
    held = [(x, low, high) for x, low, high in band if x is not None and low is not None and high is not None]

    def draw(ax: Axes) -> None:
        if held:
            x, low, high = zip(*held, strict=True)
            ax.fill_between(x, low, high, color=ACCENT, alpha=0.15, linewidth=0)
        for (label, line), colour in zip(points.items(), (ACCENT, SECOND, INK, SOFT) * len(points), strict=False):
            x, y = zip(*line, strict=True)
            ax.plot(x, y, color=colour, marker="o" if len(x) < 30 else None, markersize=4, label=truncate(label, 34))
        if kept is not None:
            ax.axvline(kept, color=SOFT, linestyle="--", linewidth=1, label="trees kept")
        ax.grid(True, axis="y")
        ax.set_xlabel(about)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=whole))
        if len(points) > 1 or kept is not None:
            ax.legend(labelcolor=INK)

    return [plot(name, caption, 8, draw)] if points else []


def calibration(ax: Axes, bins: Sequence[tuple[float, float]]) -> None:
    """Observed over predicted rates, with the line on which both agree."""
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


def swarm(ax: Axes, rows: Sequence[tuple[str, Sequence[tuple[float, float | None]]]], about: str) -> None:
    """A row of points for each name, the first on top: (x, level from 0 to 1, None where the value is missing).

    Points that fall together are stacked about the row's middle, so that its thickness shows how many there are.
    """
    ax.axvline(0.0, color=INK, linewidth=1)
    ends = [x for _, points in rows for x, _ in points] or [0.0]
    step = max(max(ends) - min(ends), 1e-9) / 90
    ax.set_xlim(min(*ends, 0.0) - 4 * step, max(*ends, 0.0) + 4 * step)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    for y, (_, points) in enumerate(rows[::-1]):
        x = np.array([p[0] for p in points])
        up = y + _stacked(np.round(x / step).astype(np.int64))
        band = np.array([-1 if level is None else min(int(5 * level), 4) for _, level in points])
        for of, colour in enumerate((SOFT, *SCALE), -1):
            if (band == of).any():
                ax.add_patch(_specks(x[band == of], up[band == of], colour))
    _label_rows(ax, [name for name, _ in rows[::-1]])
    ax.set_xlabel(about)


def _specks(x: np.ndarray, y: np.ndarray, colour: str) -> PathPatch:
    """A round speck at each place: one path, a tenth of the bytes of as many markers."""
    path = Path(np.repeat(np.column_stack([x, y]), 2, axis=0), [Path.MOVETO, Path.LINETO] * len(x))
    # A speck is a line of no length with round ends, which simplification would take away.
    path.should_simplify = False
    return PathPatch(path, edgecolor=colour, facecolor="none", linewidth=3, capstyle="round")


def _stacked(cell: np.ndarray) -> np.ndarray:
    """Offsets within 0.38 of a row's middle: of each cell the first point in the middle, the next above, below, ..."""
    order = np.argsort(cell, kind="stable")
    first = np.searchsorted(cell[order], cell[order])
    nth = np.empty(len(cell))
    nth[order] = np.arange(len(cell)) - first
    away = np.where(nth % 2 == 1, 1, -1) * np.ceil(nth / 2)
    out: np.ndarray = 0.38 * away / max(float(np.abs(away).max(initial=0)), 4.0)
    return out
