"""The report of an evaluation: one HTML page that a person who was not there can read, and the same content as JSON.

The page carries everything in itself: style inline, plots as inline SVG whose colours follow the page's light or dark
theme, no script and no address. It gave up interaction for that: a report is mailed, archived and read years later.
The same evaluation gives the same bytes.
"""

from __future__ import annotations

import html
import io
import json
import math
import os
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from functools import partial
from importlib import resources
from itertools import groupby
from pathlib import Path
from string import Template
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

SCHEMA = 2
HEADLINE = "ndcg@10"
DRAWN = ("all", "warm_users", "cold_users")
"""Slices with plots and remarks of their own; every slice is in the tables."""
RANKER, CEILING = "ranker", "best_possible"
SECTIONS = {
    "data": dict, "windows": dict, "encoder": dict, "ranker": dict, "systems": dict, "intervals": dict,
    "comparisons": list, "examples": list, "quality": list, "steps": list,
}  # fmt: skip

INK, SOFT, ACCENT, SECOND, BAD, PAPER = "#000001", "#000002", "#000003", "#000004", "#000005", "#000006"
THEME = {
    INK: "currentColor", SOFT: "var(--soft)", ACCENT: "var(--accent)", SECOND: "var(--second)", BAD: "var(--bad)",
    PAPER: "var(--paper)",
}  # fmt: skip
"""Stand-ins while matplotlib draws, and the page's own colours that replace them in the SVG."""

STYLE = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": SOFT, "axes.labelcolor": SOFT, "xtick.color": SOFT,
    "ytick.color": SOFT, "text.color": INK, "xtick.labelcolor": SOFT, "ytick.labelcolor": INK, "axes.grid": True,
    "axes.grid.axis": "x", "grid.color": SOFT, "grid.alpha": 0.25, "axes.axisbelow": True, "legend.frameon": False,
}  # fmt: skip
LARGEST_DRAWN = 1e12

Row = tuple[str, float, float | None, float | None, str]
"""A dot of an interval plot: label, value, low, high, colour."""


def significant(comparison: Mapping[str, object]) -> bool:
    """Whether the interval of a comparison excludes zero, on either side.

    comparison: `low` and `high`, the ends of the paired bootstrap interval of the difference. An end that is missing or
    not finite says nothing, so False; an end at zero does not exclude it. Raises ValueError when low is above high.
    """
    low, high = _number(comparison.get("low")), _number(comparison.get("high"))
    if low is None or high is None:
        return False
    if low > high:
        raise ValueError(
            f"comparison of {comparison.get('a')!r} with {comparison.get('b')!r}: low {low} is above high {high}; "
            "swap them where the comparison is made"
        )
    return low > 0 or high < 0


def render(evaluation: Mapping[str, object]) -> str:
    """The evaluation as one self-contained HTML page.

    evaluation: `systems` (system -> slice -> {"lists": int, metric: number}) is needed; `intervals` (system -> slice
    -> metric -> [low, high]), `title`, `created_at`, `release`, `level` (of the intervals, 0.95 is 95%) and the
    sections of `SECTIONS` are left out of the page where they are missing, None or empty. A number that is missing or
    not finite reads "-" and is not drawn. All text is escaped. Raises ValueError for another schema, without systems or
    for a comparison whose interval ends are swapped, TypeError naming the place of a value of the wrong type.
    """
    page = _checked(evaluation)
    parts = [
        _opening(page), _quality_section(page), _gain_section(page), _examples_section(page), _encoder_section(page),
        _ranker_section(page), _data_section(page), _steps_section(page), _figures_section(page),
        f'<p class="meta">evaluation.json beside this page holds the same content (schema {SCHEMA}).</p>',
    ]  # fmt: skip
    skeleton = resources.files("offline").joinpath("report.html").read_text("utf-8")
    title = _text(page.get("title") or "Evaluation")
    return Template(skeleton).substitute(title=title, body="\n".join(p for p in parts if p))


def write(evaluation: Mapping[str, object], directory: Path) -> Path:
    """The path of `report.html`, written with `evaluation.json` beside it; the directory is made if need be.

    Each file is replaced whole, and neither is touched when the evaluation cannot be rendered. In the JSON, numbers
    that are not finite are null. Raises what `render` raises, and OSError.
    """
    files = {
        "evaluation.json": json.dumps(_plain(evaluation), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "report.html": render(evaluation),
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        aside = directory / f".{name}.{os.getpid()}"
        try:
            with aside.open("w", encoding="utf-8", newline="\n") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(directory / name)
        finally:
            aside.unlink(missing_ok=True)
    return directory / "report.html"


# What came in


def _plain(value: object, where: str = "evaluation") -> Any:
    """The value as JSON can hold it: numpy gone, dates as ISO 8601, not finite as None, lone surrogates replaced."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode() if not value.isascii() else value
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Mapping):
        odd = [key for key in value if not isinstance(key, str)]
        if odd:
            raise TypeError(f"{where}: key {odd[0]!r} is a {type(odd[0]).__name__}, expected str")
        return {_plain(key): _plain(inner, f"{where}[{key!r}]") for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(inner, f"{where}[{i}]") for i, inner in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}, expected text, a number, a list or a mapping")


def _checked(evaluation: Mapping[str, object]) -> dict[str, Any]:
    page: dict[str, Any] = _plain(evaluation)
    if page.get("schema", SCHEMA) != SCHEMA:
        raise ValueError(f"schema {page['schema']!r}: this report reads schema {SCHEMA}; evaluate again")
    for name, kind in SECTIONS.items():
        if page.get(name) is None:
            page[name] = kind()
        _expect(page[name], kind, f"evaluation[{name!r}]")
    for name in ("comparisons", "examples", "steps"):
        for i, entry in enumerate(page[name]):
            _expect(entry, dict, f"evaluation[{name!r}][{i}]")
    for name, slices in page["systems"].items():
        _expect(slices, dict, f"evaluation['systems'][{name!r}]")
        for part, entry in slices.items():
            _expect(entry, dict, f"evaluation['systems'][{name!r}][{part!r}]")
            slices[part] = _with_intervals(entry, page["intervals"], name, part)
    if not page["systems"]:
        raise ValueError("evaluation['systems'] is missing or empty: there is nothing to report; evaluate first")
    return page


def _with_intervals(entry: dict[str, Any], intervals: Any, name: str, part: str) -> dict[str, Any]:
    """One slice of one system with each number beside its interval, as the page's sections read it."""
    ends = intervals
    for key in (name, part):
        ends = ends.get(key) or {}
        _expect(ends, dict, f"evaluation['intervals'][{name!r}]")
    out: dict[str, Any] = {}
    for metric, value in entry.items():
        held = ends.get(metric) or []
        _expect(held, list, f"evaluation['intervals'][{name!r}][{part!r}][{metric!r}]")
        low, high = [*held, None, None][:2]
        out[metric] = value if metric == "lists" else {"value": value, "low": low, "high": high}
    return out


def _expect(value: object, kind: type, where: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{where} is a {type(value).__name__}, expected a {kind.__name__}")


def _number(value: object) -> float | None:
    """A finite float, or None for whatever is not one."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _cut(value: object, cells: int) -> str:
    """Text on one line, without control characters, at most so many columns wide (an East Asian letter takes two)."""
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]+", " ", str(value)[: 4 * cells])
    line, width = line[: cells + 1], 0
    for i, letter in enumerate(line):
        width += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if width > cells:
            return line[: max(i - 1, 0)] + "…"
    return line


def _text(value: object) -> str:
    return "-" if value is None else html.escape(_cut(value, 300))


def _words(name: object) -> str:
    return _cut(name, 34).replace("_", " ")


def _figure(value: object, digits: int = 3, signed: bool = False) -> str:
    number = _number(value)
    if number is None:
        return "-"
    plain = number == 0 or 10.0**-digits <= abs(number) < 1e6
    return f"{number:{'+' if signed else ''},.{digits}{'f' if plain else 'e'}}".replace("-", "−")


def _interval(entry: Mapping[str, Any], digits: int = 3, signed: bool = False) -> str:
    return f"[{_figure(entry.get('low'), digits, signed)}, {_figure(entry.get('high'), digits, signed)}]"


def _gain(comparison: Mapping[str, Any]) -> str:
    return f"{_figure(comparison.get('difference'), 4, True)} {_interval(comparison, 4, True)}"


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and abs(value) < 10**15 else _figure(value, 0)


def _moment(value: object) -> str:
    """An ISO 8601 moment to the minute, UTC named; anything else as it came."""
    try:
        at = datetime.fromisoformat(str(value))
    except ValueError:
        return _text(value)
    zone = "" if at.tzinfo is None else " UTC" if at.utcoffset() == timedelta(0) else at.strftime(" %z")
    return at.strftime("%Y-%m-%d %H:%M") + zone


def _of(page: Mapping[str, Any], system: str, part: str, metric: str = HEADLINE) -> dict[str, Any]:
    entry = page["systems"].get(system, {}).get(part, {}).get(metric)
    return entry if isinstance(entry, dict) else {}


def _slices(page: Mapping[str, Any]) -> list[str]:
    """Every slice of every system, "all" first."""
    found = dict.fromkeys(part for slices in page["systems"].values() for part in slices)
    return sorted(found, key=lambda part: part != "all")


# What is said


def _standing(comparison: Mapping[str, Any]) -> str:
    """ "better", "worse" or "undecided": which side of zero the whole interval is on."""
    if not significant(comparison):
        return "undecided"
    return "better" if comparison["low"] > 0 else "worse"


def _rivals(page: Mapping[str, Any], part: str) -> list[dict[str, Any]]:
    """The headline comparisons of the ranker in a slice, the strongest baseline first."""
    found = [
        c for c in page["comparisons"]
        if (c.get("a"), c.get("metric"), c.get("slice")) == (RANKER, HEADLINE, part)
        and c.get("b") != CEILING and _number(c.get("difference")) is not None
    ]  # fmt: skip
    return sorted(found, key=lambda c: (c["difference"], str(c.get("b"))))


SAYING = {
    "better": ("better than", "the interval excludes zero"),
    "worse": ("worse than", "the interval excludes zero"),
    "undecided": ("not to be told from", "the interval does not exclude zero"),
}


def _verdict(page: Mapping[str, Any]) -> tuple[str, str]:
    """Standing against the strongest baseline, and the sentence that says it."""
    own = _of(page, RANKER, "all").get("value")
    rivals = _rivals(page, "all")
    if RANKER not in page["systems"]:
        return "undecided", "No ranker was evaluated: the figures are those of the baselines alone."
    if not rivals:
        return (
            "undecided",
            f"The ranker reaches {HEADLINE} {_figure(own)}; it was compared with nothing, so no more is claimed.",
        )
    first = rivals[0]
    standing, name = _standing(first), _words(first.get("b"))
    which = f", the strongest of the {len(rivals)} baselines it was compared with" if len(rivals) > 1 else ""
    saying, reading = SAYING[standing]
    return standing, (
        f"The ranker is {saying} {name}{which}: {HEADLINE} {_figure(own)} against "
        f"{_figure(_of(page, str(first.get('b')), 'all').get('value'))}, a difference of "
        f"{_gain(first)} over {_count(first.get('lists'))} lists; {reading}."
    )


def _remarks(page: Mapping[str, Any]) -> list[str]:
    """What belongs beside the verdict: the other baselines, the other slices, what was not compared, the ceiling."""
    said, rivals = [], _rivals(page, "all")
    for standing, (saying, _) in SAYING.items():
        names = [_words(c.get("b")) for c in rivals[1:] if _standing(c) == standing]
        if names:
            said.append(f"Overall: {saying} {', '.join(names)}.")
    for part in DRAWN:
        if part != "all" and (found := _rivals(page, part)):
            first = found[0]
            said.append(
                f"{_words(part).capitalize()}: {SAYING[_standing(first)][0]} {_words(first.get('b'))}, the strongest "
                f"there, {_gain(first)}, {_count(first.get('lists'))} lists."
            )
    own, compared = _number(_of(page, RANKER, "all").get("value")), {c.get("b") for c in rivals}
    for name in page["systems"]:
        value = _number(_of(page, name, "all").get("value"))
        if own is not None and value is not None and value > own and name not in {RANKER, CEILING} | compared:
            said.append(f"{_words(name)} scores higher ({_figure(value)}) and was not compared with the ranker.")
    for base, share in _shares(page, "all").items():
        if share is not None:
            said.append(f"From {_words(base)} to the best possible order, the ranker goes {share:.0%} of the way.")
    return said


def _shares(page: Mapping[str, Any], part: str) -> dict[str, float | None]:
    """baseline -> (ranker - baseline) / (best possible - baseline); None where that has no meaning."""
    top, own = (_number(_of(page, name, part).get("value")) for name in (CEILING, RANKER))
    shares: dict[str, float | None] = {}
    for base in ("popularity", "item_click_rate"):
        low = _number(_of(page, base, part).get("value"))
        if low is not None and top is not None and own is not None:
            shares[base] = (own - low) / (top - low) if top - low > 1e-9 else None
    return shares


def _opening(page: Mapping[str, Any]) -> str:
    data = page["data"]
    meta = [f"made {_moment(page['created_at'])}"] if page.get("created_at") else []
    meta += [f"release {_text(page['release'])}"] if page.get("release") else []
    standing, verdict = _verdict(page)
    parts = [
        f"<header><h1>{_text(page.get('title') or 'Evaluation')}</h1>",
        f'<p class="meta">{", ".join(meta)}</p></header>' if meta else "</header>",
        f'<p class="verdict {standing}">{html.escape(verdict)}</p>',
    ]
    if data.get("lists_source") == "rebuilt":
        parts.append(
            '<p class="warning"><strong>The lists were rebuilt, not logged.</strong> No shown list was recorded in '
            "this data: at each purchase the retrieval sources, as of that moment, gave the candidates, and the "
            "purchase is the gain. The figures say how well these candidates are ordered, not how shoppers would "
            "have answered.</p>"
        )
    remarks = _remarks(page)
    if remarks:
        parts.append("<ul>" + "".join(f"<li>{html.escape(r)}</li>" for r in remarks) + "</ul>")
    test = page["windows"].get("test")
    if isinstance(test, dict):
        parts.append(
            f"<p>Measured on {_count(test.get('lists'))} test lists, {_moment(test.get('from'))} to "
            f"{_moment(test.get('to'))}.</p>"
        )
    return "\n".join(parts)


# What is shown


def _quality_section(page: Mapping[str, Any]) -> str:
    drawn = [(part, rows) for part in DRAWN if (rows := _systems_rows(page, part))]
    limits = _limits([row for _, rows in drawn for row in rows])
    plots = []
    for part, rows in drawn:
        lists = [n for s in page["systems"].values() if isinstance(n := s.get(part, {}).get("lists"), int)]
        caption = (
            f"<b>{_text(_words(part))}</b>, {_count(max(lists))} lists" if lists else f"<b>{_text(_words(part))}</b>"
        )
        draw = partial(_dots, rows=rows, about=HEADLINE, limits=limits)
        plots.append(_plot(f"quality {part}", caption, len(rows), draw))
    if not plots:
        return ""
    note = f"Dot: mean {HEADLINE} over the lists; bar: its {_level(page)}bootstrap interval. "
    if CEILING in page["systems"]:
        note += "Best possible is the order by the hidden utility of the simulated shop, the ceiling of any ranker. "
    if "shown_order" in page["systems"]:
        note += "Shown order may be flattered: what stands at the top is also clicked for standing there. "
    return f"<h2>How good each order is</h2>{_plots(plots)}" + f'<p class="note">{note}</p>' + _share_table(page)


def _systems_rows(page: Mapping[str, Any], part: str) -> list[Row]:
    """One row a system, worst first; the order is that of "all" in every slice, so that plots can be read across."""

    def standing(name: str) -> tuple[bool, float, str]:
        value = _number(_of(page, name, "all").get("value"))
        return name == CEILING, -math.inf if value is None else value, name

    rows = []
    for name in sorted(page["systems"], key=standing):
        entry = _of(page, name, part)
        value, low, high = (_drawable(entry.get(k)) for k in ("value", "low", "high"))
        if value is not None:
            rows.append((_words(name), value, low, high, ACCENT if name == RANKER else SOFT))
    return rows


def _share_table(page: Mapping[str, Any]) -> str:
    found = {part: shares for part in _slices(page) if (shares := _shares(page, part))}
    if not found:
        return ""
    bases = list(dict.fromkeys(base for shares in found.values() for base in shares))
    rows = [
        [_words(part), *("-" if (s := shares.get(base)) is None else f"{s:.0%}" for base in bases)]
        for part, shares in found.items()
    ]
    caption = f"Share of the way to the best possible order that the ranker goes, by {HEADLINE}"
    return _table(caption, ["slice", *(f"from {_words(base)}" for base in bases)], rows)


def _gain_section(page: Mapping[str, Any]) -> str:
    found = [
        c for c in page["comparisons"]
        if c.get("metric") == HEADLINE and c.get("slice") in DRAWN and _drawable(c.get("difference")) is not None
    ]  # fmt: skip
    order = {part: i for i, part in enumerate(DRAWN)}
    found.sort(
        key=lambda c: (c.get("a") != RANKER, str(c.get("a")), order.get(str(c.get("slice")), 99), str(c.get("slice")))
    )
    drawn = [
        (a, part, [_gain_row(c) for c in sorted(group, key=lambda c: -c["difference"])])
        for (a, part), group in groupby(found, key=lambda c: (str(c.get("a")), str(c.get("slice"))))
    ]
    limits = _limits([*(row for *_, rows in drawn for row in rows), ("", 0.0, None, None, "")])
    plots = []
    for a, part, rows in drawn:
        draw = partial(_dots, rows=rows, about=f"difference in {HEADLINE}", limits=limits, zero=True)
        caption = f"<b>{_text(_words(a))}</b> over each, {_text(_words(part))}"
        plots.append(_plot(f"gain {a} {part}", caption, len(rows), draw))
    note = (
        f"Mean difference paired by list, with its {_level(page)}bootstrap interval by user. Filled: the interval "
        "excludes zero; hollow: it does not. Each interval stands alone: of many, some exclude zero by chance."
    )
    return f'<h2>What is gained</h2>{_plots(plots)}<p class="note">{note}</p>' if plots else ""


def _gain_row(comparison: Mapping[str, Any]) -> Row:
    colour = {"better": ACCENT, "worse": BAD, "undecided": SOFT}[_standing(comparison)]
    low, high = _drawable(comparison.get("low")), _drawable(comparison.get("high"))
    return _words(comparison.get("b")), float(comparison["difference"]), low, high, colour


def _examples_section(page: Mapping[str, Any]) -> str:
    parts = []
    for example in page["examples"]:
        liked = ", ".join(f"<bdi>{_text(t)}</bdi>" for t in example.get("liked") or [])
        parts.append(
            f"<h3>Shopper <bdi>{_text(example.get('user'))}</bdi></h3>" + (f"<p>Liked: {liked}</p>" if liked else "")
        )
        columns = [(head, example.get(head)) for head in ("before", "after") if example.get(head)]
        parts.append('<div class="pair">' + "".join(_ordered(head, rows) for head, rows in columns) + "</div>")
    return "<h2>Lists before and after</h2>" + "\n".join(parts) if parts else ""


def _ordered(head: str, rows: Iterable[Any]) -> str:
    lines = []
    for row in rows:
        title, note = [*row, None][:2] if isinstance(row, list) and row else (row, None)
        lines.append(
            f"<li><bdi>{_text(title)}</bdi>" + (f' <bdi class="note">{_text(note)}</bdi>' if note else "") + "</li>"
        )
    return f'<section><p class="note">{head.capitalize()}</p><ol>{"".join(lines)}</ol></section>'


def _encoder_section(page: Mapping[str, Any]) -> str:
    encoder = page["encoder"]
    if not encoder:
        return ""
    labels = {"model": "model", "mode": "mode", "stopped_by": "stopped by"}
    said = [f"{label} {_text(encoder[key])}" for key, label in labels.items() if encoder.get(key) is not None]
    said += [f"{_count(encoder['examples'])} examples"] if encoder.get("examples") is not None else []
    curve = [point for point in encoder.get("curve") or [] if isinstance(point, dict)]
    names = list(dict.fromkeys(name for point in curve for name in point if name != "epoch"))
    plots = []
    for title, shown in (("training loss", ["loss"]), ("on lists held out", [n for n in names if n != "loss"])):
        series = {n: [(_drawable(p.get("epoch")), _drawable(p.get(n))) for p in curve] for n in shown}
        plots += _curve(f"encoder {title}", f"<b>Text encoder</b>, {title} by epoch", series, "epoch")
    return f"<h2>Text encoder</h2><p>{'; '.join(said)}.</p>" + _plots(plots)


def _ranker_section(page: Mapping[str, Any]) -> str:
    ranker = page["ranker"]
    if not ranker:
        return ""
    curve = [(float(tree), _drawable(value)) for tree, value in enumerate(ranker.get("curve") or [], 1)]
    series = {HEADLINE: curve}
    plots = _curve(
        "ranker", f"<b>Ranker</b>, {HEADLINE} on validation by tree", series, "trees", _drawable(ranker.get("trees"))
    )
    rows = [[*row, None, None, None][:3] for row in ranker.get("importance") or [] if isinstance(row, list)]
    total = sum(max(_number(gain) or 0.0, 0.0) for _, _, gain in rows) or 1.0
    bars = [(_cut(name, 34), 100 * max(g, 0.0) / total) for name, _, gain in rows if (g := _number(gain)) is not None][
        :20
    ]
    if bars:
        caption = f"<b>Features</b>, the first {len(bars)} of {len(rows)} by share of the trees' gain"
        plots.append(_plot("importance", caption, len(bars), lambda ax: _bars(ax, bars, "% of gain", "{:.1f}")))
    table = _table(
        "What each feature is, by gain", ["feature", "about", "gain"],
        [[name, about, _figure(gain, 1)] for name, about, gain in rows], text_columns=2,
    )  # fmt: skip
    said = f"<p>{_count(ranker['trees'])} trees.</p>" if ranker.get("trees") is not None else ""
    return (
        "<h2>Ranker</h2>" + said + _plots(plots) + _folded("Every feature, with what it means", table if rows else "")
    )


def _data_section(page: Mapping[str, Any]) -> str:
    data = page["data"]
    labels = {"items": "items", "events": "events", "users": "users", "lists": "lists",
              "lists_without_gain": "lists without a gain, not scored: no order of them is better"}  # fmt: skip
    rows = [[label, _count(data[key])] for key, label in labels.items() if data.get(key) is not None]
    span = f", {_moment(data['from'])} to {_moment(data['to'])}" if data.get("from") and data.get("to") else ""
    source = f"; lists {_text(data['lists_source'])}" if data.get("lists_source") else ""
    parts = [_table(f"The data{span}{source}", ["", "count"], rows)] if rows else []
    notes = "".join(f"<li>{_text(note)}</li>" for note in data.get("notes") or [])
    parts.append(f"<ul>{notes}</ul>" if notes else "")
    windows = [
        [name, _moment(w.get("from")), _moment(w.get("to")), _count(w.get("lists"))]
        for name, w in page["windows"].items() if isinstance(w, dict)
    ]  # fmt: skip
    if windows:
        head = ["window", "from", "to", "lists"]
        parts.append(_table("Windows, split by time for everyone at once", head, windows, text_columns=3))
    quality = [[*row, None, None, None, None][:4] for row in page["quality"] if isinstance(row, list)]
    if quality:
        lines = [[source, status, reason, _count(count)] for source, status, reason, count in quality]
        parts.append(
            _table("What happened to every row read", ["source", "status", "reason", "rows"], lines, text_columns=3)
        )
    body = "".join(parts)
    return f"<h2>Data</h2>{body}" if body else ""


def _steps_section(page: Mapping[str, Any]) -> str:
    steps = page["steps"]
    bars = [(_words(s.get("name")), t) for s in steps if (t := _drawable(s.get("seconds"))) is not None]
    if not steps:
        return ""
    plots = (
        [_plot("steps", "<b>Time by step</b>", len(bars), lambda ax: _bars(ax, bars, "seconds", "{:.1f}"))]
        if bars
        else []
    )
    rows = [[_words(s.get("name")), _figure(s.get("seconds"), 1), _figure(s.get("peak_mb"), 0)] for s in steps]
    rows.append(["together", _figure(sum(t for _, t in bars), 1), ""])
    table = _table("Time and the highest memory of each step", ["step", "seconds", "peak MB"], rows)
    return f'<h2>The run</h2><div class="plots">{"".join(plots)}{table}</div>'


def _figures_section(page: Mapping[str, Any]) -> str:
    parts = []
    for part in _slices(page):
        entries = {name: slices[part] for name, slices in page["systems"].items() if part in slices}
        metrics = list(dict.fromkeys(m for e in entries.values() for m, v in e.items() if isinstance(v, dict)))
        rows = [
            [_words(name), _count(entry.get("lists")), *(_metric(entry.get(m)) for m in metrics)]
            for name, entry in entries.items()
        ]
        parts.append(_table(f"Slice: {_words(part)}", ["system", "lists", *metrics], rows))
    if page["comparisons"]:
        rows = [
            [f"{_words(c.get('a'))} − {_words(c.get('b'))}", _words(c.get("slice")), c.get("metric"), _standing(c),
             _gain(c), _count(c.get("lists"))]
            for c in page["comparisons"]
        ]  # fmt: skip
        head = ["comparison", "slice", "metric", "the first is", "difference", "lists"]
        parts.append(_table("Comparisons, paired by list", head, rows, text_columns=4))
    return "<h2>All figures</h2>" + _folded("Every metric of every system, and every comparison", "".join(parts))


def _metric(entry: object) -> str:
    return f"{_figure(entry.get('value'))} {_interval(entry)}" if isinstance(entry, dict) else "-"


def _level(page: Mapping[str, Any]) -> str:
    level = _number(page.get("level"))
    return "" if level is None else f"{100 * level:g}% "


# Tables and plots


def _table(caption: str, head: Sequence[object], rows: Iterable[Sequence[object]], text_columns: int = 1) -> str:
    """A table whose first `text_columns` columns are text, the first of them the row's header, the rest numbers."""
    kinds = ["" if i < text_columns else ' class="number"' for i in range(len(head))]
    top = "".join(f'<th scope="col"{kind}>{_text(cell)}</th>' for kind, cell in zip(kinds, head, strict=True))
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td{kind}>{_text(cell)}</td>" for kind, cell in zip(kinds[1:], rest, strict=True))
        lines.append(f'<tr><th scope="row">{_text(first)}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table><caption>{_text(caption)}</caption><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _folded(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>{body}</details>" if body else ""


def _plots(plots: Sequence[str]) -> str:
    return f'<div class="plots">{"".join(plots)}</div>' if plots else ""


def _plot(name: str, caption: str, rows: int, draw: Callable[[Axes], None]) -> str:
    """A figure element with the SVG of what `draw` draws, high enough for so many rows. caption: HTML."""
    label = html.escape(html.unescape(re.sub(r"<[^>]*>", "", caption)))
    ours = {**STYLE, "svg.hashsalt": name}
    out = io.StringIO()
    with matplotlib.style.context(["default", ours]), warnings.catch_warnings():
        # The browser sets the text, in its own fonts; matplotlib only measures, and lacks letters of half the world.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(4.4, 0.65 + 0.23 * rows), layout="constrained")
        draw(figure.subplots())
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    return f"<figure><figcaption>{caption}</figcaption>{_inline(out.getvalue(), label)}</figure>"


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
    tag = re.sub(r" ?font-family: [^;\"]*;", "", tag)
    return re.sub(r'<g id="[^"]*"', "<g", tag)


def _drawable(value: object) -> float | None:
    number = _number(value)
    return None if number is None or abs(number) > LARGEST_DRAWN else number


def _limits(rows: Iterable[Row]) -> tuple[float, float]:
    ends = [end for row in rows for end in row[1:4] if end is not None] or [0.0, 1.0]
    margin = max(0.05 * (max(ends) - min(ends)), 1e-3 * max(1.0, *map(abs, ends)))
    return min(ends) - margin, max(ends) + margin


def _dots(ax: Axes, rows: Sequence[Row], about: str, limits: tuple[float, float], zero: bool = False) -> None:
    if zero:
        ax.axvline(0.0, color=INK, linewidth=1)
    for y, (_, value, low, high, colour) in enumerate(rows):
        if low is not None and high is not None:
            ax.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        hollow = zero and colour == SOFT
        ax.plot([value], [y], marker="o", markersize=6, color=colour, markerfacecolor=PAPER if hollow else colour)
        shown = _figure(value, 3, signed=zero)
        ax.text(
            1.02, y, shown, transform=ax.get_yaxis_transform(), va="center_baseline", color=INK if hollow else colour
        )
    _label_rows(ax, [row[0] for row in rows])
    ax.set_xlim(*limits)
    ax.set_xlabel(about)


def _bars(ax: Axes, rows: Sequence[tuple[str, float]], about: str, form: str) -> None:
    rows = rows[::-1]
    ax.barh(range(len(rows)), [value for _, value in rows], color=ACCENT, height=0.65)
    for y, (_, value) in enumerate(rows):
        ax.text(1.02, y, form.format(value), transform=ax.get_yaxis_transform(), va="center_baseline")
    _label_rows(ax, [name for name, _ in rows])
    ax.set_xlim(0.0, max(1e-3, *(1.03 * value for _, value in rows)))
    ax.set_xlabel(about)


def _label_rows(ax: Axes, labels: Sequence[str]) -> None:
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(-0.6, len(labels) - 0.4)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def _curve(
    name: str, caption: str, series: Mapping[str, Sequence[tuple[float | None, float | None]]], about: str,
    kept: float | None = None,
) -> list[str]:  # fmt: skip
    """A plot of lines, or no plot where there is no point. kept: where training was cut, marked on the axis."""
    points = {n: [(x, y) for x, y in line if x is not None and y is not None] for n, line in series.items()}
    points = {n: line for n, line in points.items() if line}

    def draw(ax: Axes) -> None:
        for (label, line), colour in zip(points.items(), (ACCENT, SECOND, INK, SOFT) * len(points), strict=False):
            x, y = zip(*line, strict=True)
            ax.plot(x, y, color=colour, marker="o" if len(x) < 30 else None, markersize=4, label=_cut(label, 34))
        if kept is not None:
            ax.axvline(kept, color=SOFT, linestyle="--", linewidth=1, label="trees kept")
        ax.grid(True, axis="y")
        ax.set_xlabel(about)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(points) > 1 or kept is not None:
            ax.legend(labelcolor=INK)

    return [_plot(name, caption, 8, draw)] if points else []
