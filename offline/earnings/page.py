"""The page of earnings: one self-contained HTML file, made from the content of `earnings.json`.

It says the same as the operator's page, for readers without access to the service.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from offline.evaluation import report
from offline.runtime import write_text
from serving.release import EARNINGS

PAGE, TABLES = "report.html", "earnings.json"
LINES = 3
"""Placements that are drawn, those with the most revenue."""
_KEYS = ("experiment", "arm", "placement", "release")
_VALUES = {
    "amount": "Revenue is the amount that each purchase event has (value), else the price of the catalogue.",
    "quantity": "Revenue is the number of pieces of each purchase event (value), else one, at the price of the "
    "catalogue.",
    "ignored": "Revenue is one piece of each purchase at today's price of the catalogue: earnings.value is not set. "
    "Set it if events have amounts or quantities.",
}

Line = Sequence[tuple[str, float | None]]
"""(ISO date, value) by day."""


def write(tables: Mapping[str, Any], directory: Path) -> Path:
    """Write `report.html` and `earnings.json` to a directory, which is created if needed; the path of the page.

    Raises OSError.
    """
    files = {TABLES: encoded(tables), PAGE: render(tables)}
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_text(directory / name, content)
    return directory / PAGE


def publish(tables: Mapping[str, Any], releases: Path) -> None:
    """Replace the tables that the operator's page shows. releases: the directory of the releases."""
    releases.mkdir(parents=True, exist_ok=True)
    write_text(releases / EARNINGS, encoded(tables))


def encoded(tables: Mapping[str, Any]) -> str:
    """The tables as JSON."""
    return json.dumps(tables, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def render(tables: Mapping[str, Any]) -> str:
    """The tables as one self-contained page. All text is escaped."""
    money = partial(amount, currency=tables["currency"])
    return (
        report.environment("offline.earnings")
        .get_template("earnings.html")
        .render(
            title="Earnings",
            tables=tables,
            total=tables["all"][0]["total"] if tables["all"] else None,
            window=span(tables["attribution_s"]),
            money=money,
            experiments=[_experiment(e, money) for e in tables["experiments"]],
            plots=list(_plots(tables)),
            groups={
                name: _rows(tables[name], money, tables["shop"]["total"]["returns"] > 0)
                for name in ("placements", "releases", "arms")
            },
            value=_VALUES[tables["value"]],
        )
    )


def amount(value: float | None, sign: bool = False, currency: str | None = None) -> str:
    """An amount with its currency, without the cents of large ones; "–" if it is unknown."""
    if value is None:
        return "–"
    digits = 0 if abs(value) >= 1000 else 2
    text = report.formatting.decimal(value, digits, sign) if abs(value) < 1e6 else f"{value:{'+' if sign else ''},.0f}"
    return f"{text} {currency}" if currency else text


def span(seconds: float) -> str:
    """A duration in words, in the largest unit that it is a whole number of."""
    for unit, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds % unit == 0:
            count = round(seconds / unit)
            return f"{count:,} {name}" if count == 1 else f"{count:,} {name}s"
    return f"{seconds:g} seconds"


def _experiment(found: Mapping[str, Any], money: Callable[..., str]) -> dict[str, Any]:
    estimates = []
    for treated in found["treated"]:
        for outcome, days in treated["outcomes"].items():
            known = [d for d in days if d["low"] is not None]
            last = known[-1] if known and known[-1] is days[-1] else None
            title = f"{found['experiment']}, {treated['arm']}: incremental {outcome}"
            figures = {n: money(last[n], n != "of_holdout") for n in last if n not in ("day", "users")} if last else {}
            estimates.append(
                {
                    "arm": treated["arm"],
                    "outcome": outcome,
                    "users": last["users"] if last else None,
                    "verdict": _verdict(last) if last else "",
                    "figures": figures,
                    "plot": report.plots.plot(title, 8, partial(_draw_estimate, days=known)) if known else None,
                }
            )
    where = ", ".join(p or "lists without a placement" for p in found["placements"])
    return {**found, "where": where, "estimates": estimates}


def _verdict(estimate: Mapping[str, Any]) -> str:
    if estimate["low"] > 0:
        return "More was bought because of these lists."
    if estimate["high"] < 0:
        return "Less was bought because of these lists."
    return "The interval includes zero: no clear effect yet."


def _plots(tables: Mapping[str, Any]) -> Sequence[tuple[str, Any]]:
    """(title, plot) of the figures by day of the placements with the most revenue."""
    known = [p for p in tables["placements"] if p["total"]["revenue"] is not None]
    most = sorted(known, key=lambda p: -p["total"]["revenue"])[:LINES]
    names = [n for n in ("revenue", "margin", "purchases", "lists") if most and n in most[0]["total"]]
    out = []
    for name in names:
        lines = {p["placement"] or "no placement": [(d["day"], d[name]) for d in p["days"]] for p in most}
        draw = partial(_draw_days, lines=lines, complete=tables["complete_to"])
        out.append((name, report.plots.plot(f"last touch {name}", 8, draw)))
    return out


def _rows(entries: Sequence[Mapping[str, Any]], money: Callable[..., str], has_returns: bool) -> dict[str, Any]:
    """The head and the rows of a table, and how many columns are text."""
    if not entries:
        return {"head": [], "rows": [], "text": 1}
    keys = [k for k in _KEYS if k in entries[0]]
    names = [n for n in entries[0]["total"] if not n.startswith("without") and (n != "returns" or has_returns)]
    rows = [
        [e[k] or "–" for k in keys]
        + [money(e["total"][n]) if n in ("revenue", "margin") else f"{e['total'][n]:,}" for n in names]
        for e in entries
    ]
    return {"head": [*keys, *names], "rows": rows, "text": len(keys)}


def _draw_estimate(ax: Axes, days: Sequence[Mapping[str, Any]]) -> None:
    x = [_ordinal(d["day"]) for d in days]
    low, high = ([float(d[end]) for d in days] for end in ("low", "high"))
    ax.axhline(0.0, color=report.plots.INK, linewidth=1)
    ax.fill_between(x, low, high, color=report.plots.ACCENT, alpha=0.15, linewidth=0)
    ax.plot(x, [float(d["value"]) for d in days], color=report.plots.ACCENT, marker="o", markersize=3)
    _time_axis(ax)


def _draw_days(ax: Axes, lines: Mapping[str, Line], complete: str | None) -> None:
    colours = (report.plots.ACCENT, report.plots.SECOND, report.plots.INK)
    for (name, line), colour, marker in zip(lines.items(), colours, "osD", strict=False):
        points = [(_ordinal(day), value) for day, value in line if value is not None]
        if points:
            x, y = zip(*points, strict=True)
            ax.plot(x, y, color=colour, marker=marker, markersize=3, label=report.formatting.truncate(name, 34))
    if complete is not None:
        ax.axvline(_ordinal(complete) + 0.5, color=report.plots.SOFT, linestyle="--", linewidth=1)
    ends = [value for line in lines.values() for _, value in line if value is not None]
    ax.set_ylim(1.08 * min(0.0, *ends), 1.08 * max(1e-9, *ends))
    if len(lines) > 1:
        ax.legend(labelcolor=report.plots.INK)
    _time_axis(ax)


def _ordinal(day: str) -> float:
    return float(date.fromisoformat(day).toordinal())


def _time_axis(ax: Axes) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.xaxis.set_major_formatter(lambda x, _: date.fromordinal(round(x)).strftime("%m-%d"))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.grid(True, axis="y")
