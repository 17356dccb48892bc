"""The result sections: the conclusion, metrics by system, paired differences, and example lists."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from offline.evaluation.report.conclusions import gap_shares, outcome, remarks, rivals, verdict
from offline.evaluation.report.content import CEILING, DRAWN, HEADLINE, RANKER, slices, value_of
from offline.evaluation.report.formatting import (
    count,
    decimal,
    difference,
    display_name,
    finite,
    interval,
    moment,
    slice_name,
)
from offline.evaluation.report.plots import ACCENT, BAD, SOFT, Plot, Row, dots, drawable, interval_row, limits, plot

_SYSTEMS = {
    "random": "random order",
    "shown_order": "the order that users saw",
    "popularity": "most engagements so far",
    "recency_popularity": "most engagements recently",
    "item_click_rate": "highest click rate so far",
    "own_history": "most often engaged with by this user",
    "cooccurrence": "engaged with by users who share this user's engagements",
    "sessions": "engaged with in sessions together with this user's latest items",
    "ease": "linear item-to-item model (EASE, Steck 2019)",
    "text_zero_shot": "text similarity to the user's history, pretrained encoder",
    "text": "text similarity to the user's history, fine-tuned encoder",
    "blend": "co-occurrence and fine-tuned text similarity, added with fixed weights",
    "ranker": "the published model: boosted trees over all features, or a simple order where these win nothing",
    "trained": "boosted trees over all features, which are not published",
    "best_possible": "the hidden utility of the simulated shop: the upper bound for any ranker",
}


def opening(page: Mapping[str, Any]) -> dict[str, Any]:
    """The facts above the first section: dates, verdict, remarks and test window."""
    created_at, test = page.get("created_at"), page["windows"].get("test")
    facts = {"created": created_at and moment(created_at), "release": page.get("release")}
    result, sentence = verdict(page)
    return {
        "facts": [f"{label} {value}" for label, value in facts.items() if value],
        "outcome": result,
        "verdict": sentence,
        "rebuilt": page["data"].get("lists_source") == "rebuilt",
        "kinds": _kinds(page),
        "remarks": remarks(page),
        "test": {k: test.get(k) for k in ("lists", "from", "to")} if isinstance(test, dict) else None,
    }


def _kinds(page: Mapping[str, Any]) -> dict[str, Any] | None:
    """The test lists by kind, if there are logged and rebuilt ones: the judged kind, and figures of each kind."""
    facts = page.get("lists")
    kinds = facts.get("kinds") if isinstance(facts, dict) else None
    if not isinstance(facts, dict) or not isinstance(kinds, dict) or len(kinds) < 2:
        return None
    rows = []
    for kind, figures in kinds.items():
        values = {s: v for s, v in figures.get(HEADLINE, {}).items() if finite(v[0]) is not None}
        own, others = values.pop(RANKER, [None]), {s: v for s, v in values.items() if s not in (CEILING, "shown_order")}
        best = max(others, key=lambda s: float(others[s][0]), default=None)
        rival = f"{display_name(best)} {_with_interval(others[best])}" if best else "-"
        rows.append([f"{kind} lists", count(figures.get("lists")), _with_interval(own), rival])
    return {"judged": facts.get("judged"), "rows": rows}


def _with_interval(value: list[Any]) -> str:
    mean, low, high = [*value, None, None][:3]
    return f"{decimal(mean)} {interval({'low': low, 'high': high})}"


def quality(page: Mapping[str, Any]) -> dict[str, Any] | None:
    """The headline metric of each system with its interval, for all, known and new users; None without a value."""
    drawn = {name: rows for name in DRAWN if (rows := _system_rows(page, name))}
    if not drawn:
        return None
    ends = limits([row for rows in drawn.values() for row in rows])
    plots = []
    for name, rows in drawn.items():
        lists = [n for s in page["systems"].values() if isinstance(n := s.get(name, {}).get("lists"), int)]
        draw = partial(dots, rows=rows, xlabel=HEADLINE, limits=ends)
        plots.append((slice_name(name), max(lists, default=None), plot(f"quality {name}", len(rows), draw)))
    by_slice = {name: by for name in slices(page) if (by := gap_shares(page, name))}
    listed = [*(s for s in _SYSTEMS if s in page["systems"]), *(s for s in page["systems"] if s not in _SYSTEMS)]
    baselines = list(dict.fromkeys(name for by in by_slice.values() for name in by))
    return {
        "plots": plots,
        "has_shown_order": "shown_order" in page["systems"],
        "systems": [[display_name(s), _SYSTEMS.get(s, "ranking by another system, from a file")] for s in listed],
        "gap_head": ["slice", *(f"from {display_name(name)}" for name in baselines)],
        "gap_rows": [
            [_starred(page, name), *("-" if (s := by.get(b)) is None else f"{s:.0%}" for b in baselines)]
            for name, by in by_slice.items()
        ],
    }


def _system_rows(page: Mapping[str, Any], name: str) -> list[Row]:
    """One row per system, worst first. Every slice has the order of "all", so that its plots can be compared by eye."""

    def place(system: str) -> tuple[bool, float, str]:
        value = drawable(value_of(page, system, "all").get("value"))
        return system == CEILING, -math.inf if value is None else value, system

    rows = (
        interval_row(display_name(system), value_of(page, system, name), ACCENT if system == RANKER else SOFT)
        for system in sorted(page["systems"], key=place)
    )
    return [row for row in rows if row]


def _starred(page: Mapping[str, Any], name: str) -> str:
    """The slice's name, with a star if it has few lists."""
    return slice_name(name) + (" *" if name in page["small_slices"] else "")


def improvement(page: Mapping[str, Any]) -> dict[str, Any] | None:
    """Plots of paired differences; None without any.

    Over all lists: the ranker minus every other system. By slice: the ranker minus the strongest baseline, and every
    other compared pair, such as fine-tuned minus pretrained text.
    """
    comparisons = [
        c for c in page["comparisons"] if c.get("metric") == HEADLINE and drawable(c.get("difference")) is not None
    ]
    overall = [c for c in comparisons if (c.get("a"), c.get("slice")) == (RANKER, "all")]
    overall.sort(key=lambda c: -c["difference"])
    place = {name: i for i, name in enumerate(slices(page))}

    def by_slice(a: str, b: str) -> tuple[str, str, Plot | None]:
        found = [c for c in comparisons if (c.get("a"), c.get("b")) == (a, b)]
        found.sort(key=lambda c: -place.get(str(c.get("slice")), len(place)))
        labels = [f"{_starred(page, str(c.get('slice')))} ({count(c.get('lists'))})" for c in found]
        return display_name(a), display_name(b), _differences(f"difference {a} {b}", found, labels, wide=True)

    others = sorted({(str(c.get("a")), str(c.get("b"))) for c in comparisons if c.get("a") != RANKER})
    if not overall and not others:
        return None
    return {
        "overall": _differences("difference", overall, [display_name(c.get("b")) for c in overall]),
        "ranker": [by_slice(RANKER, str(c.get("b"))) for c in rivals(page, "all")[:1]],
        "others": [by_slice(a, b) for a, b in others],
        "has_small": bool(page["small_slices"]),
    }


def _differences(name: str, comparisons: list[dict[str, Any]], labels: list[str], wide: bool = False) -> Plot | None:
    """A plot of the comparisons, from the bottom up; None if there are none."""
    colours = {"better": ACCENT, "worse": BAD, "undecided": SOFT}
    rows = [
        (label, float(c["difference"]), drawable(c.get("low")), drawable(c.get("high")), colours[outcome(c)])
        for label, c in zip(labels, comparisons, strict=True)
    ]
    ends = limits([*rows, ("", 0.0, None, None, "")])
    draw = partial(dots, rows=rows, xlabel=f"difference in {HEADLINE}", limits=ends, zero=True)
    return plot(name, len(rows), draw, wide) if rows else None


def examples(page: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each example user: the items they engaged with, and one list ranked by popularity and by the ranker."""
    headings = {"before": "By popularity", "after": "By the ranker"}
    return [
        {
            "user": example.get("user"),
            "liked": example.get("liked") or [],
            "lists": [(heading, _with_engagement(example[k])) for k, heading in headings.items() if example.get(k)],
        }
        for example in page["examples"]
    ]


def _with_engagement(rows: Iterable[Any]) -> list[list[Any]]:
    """Title and what the user did with it, None for nothing, of each item."""
    return [[*row, None][:2] if isinstance(row, list) and row else [row, None] for row in rows]


def metrics(page: Mapping[str, Any]) -> dict[str, Any]:
    """Every metric of every system by slice, and every comparison, as rows of tables."""
    by_slice = []
    for name in slices(page):
        entries = {system: by[name] for system, by in page["systems"].items() if name in by}
        names = list(dict.fromkeys(m for e in entries.values() for m, v in e.items() if isinstance(v, dict)))
        rows = [
            [display_name(system), count(entry.get("lists")), *(_metric(entry.get(m)) for m in names)]
            for system, entry in entries.items()
        ]
        by_slice.append((_starred(page, name), names, rows))
    comparisons = []
    for c in page["comparisons"]:
        pair = f"{display_name(c.get('a'))} − {display_name(c.get('b'))}"
        result = "no clear difference" if outcome(c) == "undecided" else outcome(c)
        row = [pair, slice_name(c.get("slice")), c.get("metric"), result, difference(c), count(c.get("lists"))]
        comparisons.append(row)
    return {"by_slice": by_slice, "comparisons": comparisons}


def _metric(entry: object) -> str:
    return f"{decimal(entry.get('value'))} {interval(entry)}" if isinstance(entry, dict) else "-"
