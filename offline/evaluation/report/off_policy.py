"""What each order would have been worth, had it been shown: off-policy, where chance had a part in the log."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from offline.evaluation.report.content import RANKER, level
from offline.evaluation.report.formatting import count, decimal, display_name, finite, interval
from offline.evaluation.report.markup import grid, note, table
from offline.evaluation.report.plots import ACCENT, SOFT, Row, dots, drawable, limits, plot

_ESTIMATORS = {"ips": "IPS", "snips": "SNIPS", "doubly_robust": "doubly robust"}


def worth(page: Mapping[str, Any]) -> str:
    """The value of each system's order with its interval, beside the truth where it is known."""
    found = page["off_policy"]
    systems = found.get("systems")
    if not isinstance(systems, dict):
        return ""
    held = {name: by for name, by in systems.items() if isinstance(by, dict)}
    drawn = sorted((row for name, by in held.items() if (row := _row(name, by))), key=lambda pair: pair[0][1])
    if not drawn:
        return ""
    rows, truths = [row for row, _ in drawn], [truth for _, truth in drawn]
    ends = limits([*rows, *(("", t, None, None, "") for t in truths if t is not None)])
    known = any(t is not None for t in truths)
    caption = (
        "<b>Value of each order, doubly robust</b>. See whether the ranker's bar lies right of the shown order's."
        + (" A diamond is the truth, which only a simulated shop knows: it should lie within the bar." if known else "")
    )
    draw = partial(
        dots, rows=rows, about=f"gain a list, first {count(found.get('k'))} places", limits=ends, marks=truths
    )
    said = (
        f"What people would have chosen a list, had these orders been shown: the gain (1 for a click, 2 for a cart, 3 "
        f"for a purchase) of the first {count(found.get('k'))} places, estimated from {count(found.get('lists'))} "
        f"lists that were shown in a partly random order, with {level(page)}intervals. Unlike the metrics above, this "
        "does not reward an order for repeating what was shown at the top. Intervals are honest only while the log's "
        "propensities are; a mean weight far from 1 says they are not. Wide bars: the order seldom agrees with what "
        "was shown; shuffle more lists."
    )
    if left := finite(found.get("left_out")):
        said += f" {count(round(left))} lists without whole propensities were left out."
    return (
        "<h2>What it would be worth if shown</h2>"
        + note(said)
        + grid([plot("off-policy", caption, len(rows), draw)])
        + _table(held)
    )


def _row(name: str, by: Mapping[str, Any]) -> tuple[Row, float | None] | None:
    estimate = by.get("doubly_robust")
    if not isinstance(estimate, dict):
        return None
    value, low, high = (drawable(estimate.get(k)) for k in ("value", "low", "high"))
    if value is None:
        return None
    return (display_name(name), value, low, high, ACCENT if name == RANKER else SOFT), drawable(by.get("truth"))


def _table(held: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, by in held.items():
        estimates = [e if isinstance(e := by.get(k), dict) else {} for k in _ESTIMATORS]
        cells = [f"{decimal(e.get('value'))} {interval(e)}" if e else "-" for e in estimates]
        ips = estimates[0]
        rows.append(
            [
                display_name(name),
                *cells,
                decimal(by.get("truth")),
                count(ips.get("matches")),
                decimal(ips.get("weight"), 2),
            ]
        )
    head = ["order", *_ESTIMATORS.values(), "truth", "agreements", "mean weight"]
    return table("Value of each order by three estimators", head, rows)
