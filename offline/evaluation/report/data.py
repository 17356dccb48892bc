"""The data and run sections: counts, time windows, import results, and time and memory by step."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from offline.evaluation.report.formatting import count, decimal, display_name, finite, moment
from offline.evaluation.report.plots import bars, drawable, plot

_COUNTS = {name: name for name in ("items", "events", "users", "lists")}
_COUNTS["lists_without_gain"] = "lists without gain (not scored: every order of them is equally good)"


def data(page: Mapping[str, Any]) -> dict[str, Any]:
    """Contents of the data set, its time windows, the share of items with each column, and the import result."""
    facts = page["data"]
    kinds, filled = (facts.get(k) if isinstance(facts.get(k), dict) else {} for k in ("kinds", "filled"))
    counts = [[label, count(facts[key])] for key, label in _COUNTS.items() if facts.get(key) is not None]
    return {
        "span": [moment(facts.get(end)) for end in ("from", "to") if facts.get("from") and facts.get("to")],
        "lists_source": facts.get("lists_source"),
        "counts": counts + [[f"events: {display_name(k)}", count(n)] for k, n in kinds.items()],
        "notes": facts.get("notes") or [],
        "windows": [
            [name, moment(w.get("from")), moment(w.get("to")), count(w.get("lists"))]
            for name, w in page["windows"].items()
            if isinstance(w, dict)
        ],
        "filled": [
            [name, "-" if (share := finite(value)) is None else f"{share:.0%}"] for name, value in filled.items()
        ],
        **_import_result(page["quality"]),
    }


def _import_result(quality: list[Any]) -> dict[str, Any]:
    """`imported`, rows of a table; `rejected` and `total`, numbers of rows of the source files."""
    rows = [[*row, None, None, None, None][:4] for row in quality if isinstance(row, list)]
    known = [(status, number) for _, status, _, n in rows if (number := finite(n)) is not None]
    return {
        "imported": [[file, status, reason, count(n)] for file, status, reason, n in rows],
        "rejected": sum(n for status, n in known if status == "quarantined"),
        "total": sum(n for _, n in known),
    }


def steps(page: Mapping[str, Any]) -> dict[str, Any]:
    """Time and peak memory of each step, as a plot and as rows of a table."""
    found = page["steps"]
    times = [(display_name(s.get("name")), t) for s in found if (t := drawable(s.get("seconds"))) is not None]
    draw = partial(bars, rows=times, xlabel="seconds", form="{:.1f}")
    rows = [[display_name(s.get("name")), decimal(s.get("seconds"), 1), decimal(s.get("peak_mb"), 0)] for s in found]
    return {
        "plot": plot("steps", len(times), draw) if times else None,
        "rows": rows and [*rows, ["total", decimal(sum(t for _, t in times), 1), ""]],
    }
