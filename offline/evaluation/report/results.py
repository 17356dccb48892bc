"""What came out: how good each order is, what is gained over which, for whom, and what it looks like."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from offline.evaluation.report.conclusions import remarks, rivals, shares, standing, verdict
from offline.evaluation.report.content import CEILING, DRAWN, HEADLINE, RANKER, level, slices, value_of
from offline.evaluation.report.formatting import (
    count,
    decimal,
    display_name,
    escape,
    gain,
    interval,
    moment,
    slice_name,
)
from offline.evaluation.report.markup import collapsed, grid, note, table
from offline.evaluation.report.plots import ACCENT, BAD, SOFT, Row, dots, drawable, limits, plot


def opening(page: Mapping[str, Any]) -> str:
    """The title, the verdict and what belongs beside it."""
    meta = [f"made {moment(page['created_at'])}"] if page.get("created_at") else []
    meta += [f"release {escape(page['release'])}"] if page.get("release") else []
    side, said = verdict(page)
    parts = [
        f"<header><h1>{escape(page.get('title') or 'Evaluation')}</h1>",
        f'<p class="meta">{", ".join(meta)}</p></header>' if meta else "</header>",
        f'<p class="verdict {side}">{html.escape(said)}</p>',
    ]
    if page["data"].get("lists_source") == "rebuilt":
        parts.append(
            '<p class="warning"><strong>The lists were rebuilt, not logged.</strong> No shown list was recorded in '
            "this data: at each purchase the retrieval sources, as of that moment, gave the candidates, and the "
            "purchase is the gain. The figures say how well these candidates are ordered, not how shoppers would "
            "have answered.</p>"
        )
    if beside := remarks(page):
        parts.append("<ul>" + "".join(f"<li>{html.escape(r)}</li>" for r in beside) + "</ul>")
    test = page["windows"].get("test")
    if isinstance(test, dict):
        parts.append(
            f"<p>Measured on {count(test.get('lists'))} test lists, {moment(test.get('from'))} to "
            f"{moment(test.get('to'))}. Nothing was trained or chosen on them.</p>"
        )
    return "\n".join(parts)


_ORDERS = {
    "random": "the same items shuffled: what no knowledge reaches",
    "shown_order": "as people saw them",
    "popularity": "most engaged with so far",
    "recency_popularity": "most engaged with lately",
    "item_click_rate": "clicked most often for how often it was shown, so far",
    "cooccurrence": "engaged with by those who engaged with what this shopper did",
    "ease": "the same learned by a linear model (EASE, Steck 2019)",
    "text_zero_shot": "texts nearest to those the shopper engaged with, by the encoder as it came",
    "text": "the same, by the fine-tuned encoder",
    "ranker": "what is published: trees over all features",
    "best_possible": "by the hidden utility that only a simulated shop has: the ceiling of any ranker",
}


def quality(page: Mapping[str, Any]) -> str:
    """Each system's headline metric with its interval, for everyone, for known and for unknown shoppers."""
    drawn = [(name, rows) for name in DRAWN if (rows := _systems_rows(page, name))]
    ends = limits([row for _, rows in drawn for row in rows])
    plots = []
    for name, rows in drawn:
        lists = [n for s in page["systems"].values() if isinstance(n := s.get(name, {}).get("lists"), int)]
        many = f", {count(max(lists))} lists" if lists else ""
        draw = partial(dots, rows=rows, about=HEADLINE, limits=ends)
        plots.append(plot(f"quality {name}", f"<b>{escape(slice_name(name))}</b>{many}", len(rows), draw))
    if not plots:
        return ""
    said = (
        f"Each dot is the mean {HEADLINE} of one order over the lists, 0 to 1, higher is better; the bar is its "
        f"{level(page)}bootstrap interval. See how far the ranker, in blue, stands right of the others, and whether it "
        "does so for cold users, of whom nothing was known before the list. Bars that overlap decide nothing: the "
        "paired differences below do. "
    )
    if "shown_order" in page["systems"]:
        said += "Shown order may be flattered: what stands at the top is also clicked for standing there. "
    orders = [[display_name(name), about] for name, about in _ORDERS.items() if name in page["systems"]]
    glossary = collapsed("What each order is", table("Orders of the same items", ["order", "by"], orders, 2))
    return "<h2>How good each order is</h2>" + note(said) + grid(plots) + glossary + _share_table(page)


def _systems_rows(page: Mapping[str, Any], name: str) -> list[Row]:
    """One row a system, worst first; the order is that of "all" in every slice, so that plots can be read across."""

    def place(system: str) -> tuple[bool, float, str]:
        value = drawable(value_of(page, system, "all").get("value"))
        return system == CEILING, -math.inf if value is None else value, system

    rows = []
    for system in sorted(page["systems"], key=place):
        entry = value_of(page, system, name)
        value, low, high = (drawable(entry.get(k)) for k in ("value", "low", "high"))
        if value is not None:
            rows.append((display_name(system), value, low, high, ACCENT if system == RANKER else SOFT))
    return rows


def _share_table(page: Mapping[str, Any]) -> str:
    found = {name: by for name in slices(page) if (by := shares(page, name))}
    if not found:
        return ""
    bases = list(dict.fromkeys(base for by in found.values() for base in by))
    rows = [
        [_marked(page, name), *("-" if (s := by.get(base)) is None else f"{s:.0%}" for base in bases)]
        for name, by in found.items()
    ]
    caption = f"Share of the way to the best possible order that the ranker goes, by {HEADLINE}"
    return collapsed(caption, table(caption, ["slice", *(f"from {display_name(base)}" for base in bases)], rows))


def _marked(page: Mapping[str, Any], name: str) -> str:
    return slice_name(name) + (" *" if name in page["small_slices"] else "")


def gained(page: Mapping[str, Any]) -> str:
    """What the ranker, and fine-tuning, gain: over every other system, and slice by slice over the strongest."""
    whole = [c for c in _comparisons(page) if (c.get("a"), c.get("slice")) == (RANKER, "all")]
    whole.sort(key=lambda c: -c["difference"])
    pairs = [(RANKER, str(c.get("b"))) for c in rivals(page, "all")[:1]]
    pairs += sorted({(str(c.get("a")), str(c.get("b"))) for c in _comparisons(page) if c.get("a") != RANKER})
    by_pair = {pair: [c for c in _comparisons(page) if (c.get("a"), c.get("b")) == pair] for pair in pairs}
    plots = []
    if whole:
        rows = [_gain_row(c, display_name(c.get("b"))) for c in whole]
        caption = (
            f"<b>{RANKER} over each, all lists</b>. See whether every bar lies right of zero; what is left of it beats "
            "the ranker."
        )
        plots.append(_gains_plot("gain", caption, rows))
    beside: list[str] = []
    for (a, b), found in by_pair.items():
        place = {name: i for i, name in enumerate(slices(page))}
        found.sort(key=lambda c: -place.get(str(c.get("slice")), len(place)))
        rows = [_gain_row(c, _with_lists(page, c)) for c in found]
        caption = (
            f"<b>{escape(display_name(a))} over {escape(display_name(b))}, slice by slice</b>. See who gains and who "
            "loses; in brackets the lists of the slice."
        )
        (plots if a == RANKER else beside).append(_gains_plot(f"gain {a} {b}", caption, rows, wide=True))
    if not plots + beside:
        return ""
    said = (
        f"Mean difference in {HEADLINE}, paired by list, with its {level(page)}bootstrap interval by user. Filled: the "
        "interval excludes zero; hollow: it does not. Each interval stands alone: of many, some exclude zero by chance."
    )
    if page["small_slices"]:
        said += " Slices with a star hold few lists: read their interval, not their dot."
    return "<h2>What is gained</h2>" + note(said) + grid(plots) + collapsed("What fine-tuning gains", grid(beside))


def _comparisons(page: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [c for c in page["comparisons"] if c.get("metric") == HEADLINE and drawable(c.get("difference")) is not None]


def _gains_plot(name: str, caption: str, rows: list[Row], wide: bool = False) -> str:
    ends = limits([*rows, ("", 0.0, None, None, "")])
    draw = partial(dots, rows=rows, about=f"difference in {HEADLINE}", limits=ends, zero=True)
    return plot(name, caption, len(rows), draw, wide)


def _with_lists(page: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    return f"{_marked(page, str(comparison.get('slice')))} ({count(comparison.get('lists'))})"


def _gain_row(comparison: Mapping[str, Any], label: str) -> Row:
    colour = {"better": ACCENT, "worse": BAD, "undecided": SOFT}[standing(comparison)]
    low, high = drawable(comparison.get("low")), drawable(comparison.get("high"))
    return label, float(comparison["difference"]), low, high, colour


def examples(page: Mapping[str, Any]) -> str:
    """Lists of a few shoppers before and after the ranker."""
    parts = []
    for example in page["examples"]:
        liked = ", ".join(f"<bdi>{escape(t)}</bdi>" for t in example.get("liked") or [])
        parts.append(
            f"<h3>Shopper <bdi>{escape(example.get('user'))}</bdi></h3>" + (f"<p>Liked: {liked}</p>" if liked else "")
        )
        columns = [(head, example.get(head)) for head in ("before", "after") if example.get(head)]
        parts.append('<div class="pair">' + "".join(_ordered(head, rows) for head, rows in columns) + "</div>")
    said = (
        "The first test lists of shoppers of whom something was known: the same items by popularity, as a shop would "
        "show them to anybody, and by the ranker. Marked is what the shopper went on to choose; see whether it rises, "
        "and whether the list takes after what was liked. They were not picked for looking well."
    )
    return "<h2>Lists before and after</h2>" + note(said) + "\n".join(parts) if parts else ""


def _ordered(head: str, rows: Iterable[Any]) -> str:
    names = {"before": "Before: by popularity", "after": "After: by the ranker"}
    lines = []
    for row in rows:
        title, chosen = [*row, None][:2] if isinstance(row, list) and row else (row, None)
        mark = f' <bdi class="chosen">{escape(chosen)}</bdi>' if chosen else ""
        lines.append(f"<li><bdi>{escape(title)}</bdi>{mark}</li>")
    return f'<section><p class="note">{names[head]}</p><ol>{"".join(lines)}</ol></section>'


def figures(page: Mapping[str, Any]) -> str:
    """Every number there is, folded away."""
    parts = []
    for name in slices(page):
        entries = {system: by[name] for system, by in page["systems"].items() if name in by}
        metrics = list(dict.fromkeys(m for e in entries.values() for m, v in e.items() if isinstance(v, dict)))
        rows = [
            [display_name(system), count(entry.get("lists")), *(_metric(entry.get(m)) for m in metrics)]
            for system, entry in entries.items()
        ]
        parts.append(table(f"Slice: {_marked(page, name)}", ["system", "lists", *metrics], rows))
    if page["comparisons"]:
        rows = [
            [
                f"{display_name(c.get('a'))} − {display_name(c.get('b'))}",
                slice_name(c.get("slice")),
                c.get("metric"),
                standing(c),
                gain(c),
                count(c.get("lists")),
            ]
            for c in page["comparisons"]
        ]
        head = ["comparison", "slice", "metric", "the first is", "difference", "lists"]
        parts.append(table("Comparisons, paired by list", head, rows, text_columns=4))
    return "<h2>All figures</h2>" + collapsed("Every metric of every system, and every comparison", "".join(parts))


def _metric(entry: object) -> str:
    return f"{decimal(entry.get('value'))} {interval(entry)}" if isinstance(entry, dict) else "-"
