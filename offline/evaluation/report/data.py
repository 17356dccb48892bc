"""What it rests on: the data and what happened to every row of it, the windows, the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offline.evaluation.report.formatting import count, decimal, display_name, escape, finite, moment
from offline.evaluation.report.markup import note, table
from offline.evaluation.report.plots import bars, drawable, plot

_COUNTS = {
    "items": "items",
    "events": "events",
    "users": "users",
    "lists": "lists",
    "lists_without_gain": "lists without a gain, not scored: no order of them is better",
}


def data(page: Mapping[str, Any]) -> str:
    """What the data holds, what it lacks, what was refused on the way in, and how it was split."""
    found = page["data"]
    rows = [[label, count(found[key])] for key, label in _COUNTS.items() if found.get(key) is not None]
    kinds = found.get("kinds")
    rows += [[f"events: {display_name(k)}", count(n)] for k, n in kinds.items()] if isinstance(kinds, dict) else []
    span = f", {moment(found['from'])} to {moment(found['to'])}" if found.get("from") and found.get("to") else ""
    source = f"; lists {escape(found['lists_source'])}" if found.get("lists_source") else ""
    parts = [table(f"The data{span}{source}", ["", "count"], rows)] if rows else []
    notes = "".join(f"<li>{escape(said)}</li>" for said in found.get("notes") or [])
    parts.append(f"<ul>{notes}</ul>" if notes else "")
    windows = [
        [name, moment(w.get("from")), moment(w.get("to")), count(w.get("lists"))]
        for name, w in page["windows"].items()
        if isinstance(w, dict)
    ]
    if windows:
        head = ["window", "from", "to", "lists"]
        parts.append(table("Windows: what each part learned from, and what it is judged on", head, windows, 3))
    parts += [_filled(found.get("filled")), _refused(page["quality"])]
    body = "".join(parts)
    return f"<h2>Data</h2>{body}" if body else ""


def _filled(filled: object) -> str:
    """How many of the items have each column: a feature of a column nobody fills says nothing."""
    if not isinstance(filled, dict) or not filled:
        return ""
    rows = [[name, "-" if (share := finite(s)) is None else f"{share:.0%}"] for name, s in filled.items()]
    return table("Items that have each column", ["column", "items"], rows)


def _refused(quality: list[Any]) -> str:
    """What the import did with each row, and the share it refused."""
    rows = [[*row, None, None, None, None][:4] for row in quality if isinstance(row, list)]
    if not rows:
        return ""
    known = [(str(status), n) for _, status, _, held in rows if (n := finite(held)) is not None]
    total, bad = sum(n for _, n in known), sum(n for status, n in known if status == "quarantined")
    said = (
        f"{count(round(bad))} of {count(round(total))} rows ({bad / total:.2%}) were refused and stand in "
        "quarantine.parquet with file, row and reason; nothing was mended in silence."
        if total > 0
        else ""
    )
    lines = [[file, status, reason, count(held)] for file, status, reason, held in rows]
    head = ["source", "status", "reason", "rows"]
    return note(said) + table("What happened to every row read", head, lines, text_columns=3)


def steps(page: Mapping[str, Any]) -> str:
    """Time and memory of each step."""
    found = page["steps"]
    if not found:
        return ""
    times = [(display_name(s.get("name")), t) for s in found if (t := drawable(s.get("seconds"))) is not None]
    caption = "<b>Time by step</b>. See which step a faster night would begin with."
    drawn = [plot("steps", caption, len(times), lambda ax: bars(ax, times, "seconds", "{:.1f}"))] if times else []
    rows = [[display_name(s.get("name")), decimal(s.get("seconds"), 1), decimal(s.get("peak_mb"), 0)] for s in found]
    rows.append(["together", decimal(sum(t for _, t in times), 1), ""])
    held = table("Time and the highest memory of each step", ["step", "seconds", "peak MB"], rows)
    return f'<h2>The run</h2><div class="plots">{"".join(drawn)}{held}</div>'
