"""The off-policy section: the estimated value of each system's ranking, from lists with logged propensities."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from offline.evaluation.report.content import RANKER
from offline.evaluation.report.formatting import count, decimal, display_name, finite, interval
from offline.evaluation.report.plots import ACCENT, SOFT, dots, drawable, interval_row, limits, plot

_ESTIMATORS = ("ips", "snips", "doubly_robust")


def estimates(page: Mapping[str, Any]) -> dict[str, Any] | None:
    """A plot and a table of the estimates, with true values where they are known. None without estimates."""
    section = page["off_policy"]
    if not isinstance(section.get("systems"), dict):
        return None
    systems = {name: by for name, by in section["systems"].items() if isinstance(by, dict)}
    drawn = [
        (row, drawable(by.get("truth")))
        for name, by in systems.items()
        if isinstance(estimate := by.get("doubly_robust"), dict)
        and (row := interval_row(display_name(name), estimate, ACCENT if name == RANKER else SOFT))
    ]
    if not drawn:
        return None
    rows, truths = zip(*sorted(drawn, key=lambda pair: pair[0][1]), strict=True)
    ends = limits([*rows, *(("", t, None, None, "") for t in truths if t is not None)])
    places = count(section.get("k"))
    xlabel = f"gain per list, first {places} positions"
    left_out = finite(section.get("left_out"))
    return {
        "places": places,
        "lists": section.get("lists"),
        "left_out": round(left_out) if left_out else 0,
        "has_truth": any(t is not None for t in truths),
        "plot": plot("off-policy", len(rows), partial(dots, rows=rows, xlabel=xlabel, limits=ends, marks=truths)),
        "rows": [_cells(name, by) for name, by in systems.items()],
    }


def _cells(name: str, by: Mapping[str, Any]) -> list[str]:
    """A system's row of the table."""
    by_estimator = [e if isinstance(e := by.get(k), dict) else {} for k in _ESTIMATORS]
    values = [f"{decimal(e.get('value'))} {interval(e)}" if e else "-" for e in by_estimator]
    ips, truth = by_estimator[0], decimal(by.get("truth"))
    return [display_name(name), *values, truth, count(ips.get("matches")), decimal(ips.get("weight"), 2)]
