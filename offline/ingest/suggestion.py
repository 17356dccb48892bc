"""Drafts a column mapping for files in an unknown layout, from column names and a sample of rows.

The draft is for a person to review: every uncertain entry has a comment that says so. It is never imported unseen.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from features.log import GA4, KINDS
from offline.config import DROP, ImportConfig
from offline.ingest.presets import Preset, bind, find_preset
from offline.ingest.reading import Library, Peek, find_files, peek
from offline.ingest.reading.library import quoted
from offline.runtime import DataError

SAMPLE = 200_000
"""Maximum number of sampled rows: enough to include rare values, and read in seconds."""

_MOST_KINDS = 30
"""A column with more distinct values than this is not an event kind."""
_MOST_ODD = 30

_USER_AND_TIME: Mapping[str, str] = {
    "user_id": "userid customerid visitorid shopperid clientid buyerid memberid accountid personid reviewerid uid"
    " userpseudoid customerno customernumber customer user visitor shopper client buyer member",
    "timestamp": "timestamp eventtime eventtimestamp datetime invoicedate orderdate purchasedate transactiondate"
    " eventdate createdat occurredat orderdatetime time date ts",
}
_EVENT: Mapping[str, str] = {
    "event": "event eventtype eventname action behavior behaviour activity kind type",
    "session_id": "sessionid usersession session visitid basketid orderid invoice invoiceno invoicenumber invoiceid"
    " transactionid ordernumber orderno receiptid",
    "value": "value quantity qty units amount rating stars",
    "request_id": "requestid impressionid listid rankingid queryid",
    "position": "position rank slot",
    "event_id": "eventid",
    "device": "device devicetype devicecategory",
}
_ITEM: Mapping[str, str] = {
    "item_id": "itemid productid sku stockcode articleid productcode itemcode asin parentasin variantid productsku"
    " gtin ean movieid item product article",
    "title": "title productname itemname producttitle itemtitle name",
    "description": "description productdescription longdescription",
    "category": "category categorycode categoryname productcategory maincategory department producttype",
    "brand": "brand manufacturer vendor",
    "price": "price unitprice listprice saleprice",
}
"""Canonical columns and their common names, letters and digits only. The first name that a file has is used."""

_WORDS: Mapping[str, str] = {
    **{kind: kind for kind in KINDS},
    **GA4,
    "transaction": "purchase",
    "buy": "purchase",
    "bought": "purchase",
    "order": "purchase",
    "sale": "purchase",
    "review": "purchase",
    "addtocart": "cart",
    "add_to_basket": "cart",
    "basket": "cart",
    "pageview": "view",
    "page_view": "view",
    "pv": "view",
    "product_view": "view",
    "select": "click",
    "show": "impression",
    "shown": "impression",
    "rate": "rating",
    "remove_from_cart": DROP,
    "removefromcart": DROP,
    "refund": DROP,
    "return": DROP,
}
"""Common names of event kinds."""


@dataclass(frozen=True)
class _Sample:
    """The first rows of a table as text, `""` for an empty cell. file: relative to the folder."""

    file: str
    columns: Mapping[str, list[str]]
    said: Sequence[str]


def suggest(source: Path) -> str:
    """Draft of an `import` section, as YAML, for a file or for the files of a folder, with comments on guesses.

    It is the mapping of the preset that fits the files, if one does. Raises DataError if no file can be read, if no
    column looks like an item ID, or if no file looks like events. The message lists the columns or files that were
    found.
    """
    if not source.exists():
        raise DataError(f"{source}: there is no such file or folder.")
    folder = source if source.is_dir() else source.parent
    with TemporaryDirectory(prefix="shelfwise-suggest-") as directory:
        peeks, said = _peeks(source, Path(directory))
        found = find_preset(peeks)
        if found is not None:
            return _of_preset(bind(found, folder), found.preset)
        samples = [_read_sample(p, folder, Path(directory)) for p in peeks]
    return _of_samples(source, folder, [(sample, _map_columns(sample)) for sample in samples], said)


def _of_preset(config: ImportConfig, preset: Preset) -> str:
    mapping = yaml.safe_dump({"import": dict(config.to_mapping())}, sort_keys=False, width=110, allow_unicode=True)
    return f"# The mapping of the preset {preset.name}: {preset.title}.\n{mapping}"


def _peeks(source: Path, directory: Path) -> tuple[list[Peek], list[str]]:
    out, said = list[Peek](), list[str]()
    (directory / "copies").mkdir()
    for path in find_files(source):
        try:
            out += peek(path, directory / "copies")
        except DataError as error:
            said.append(f"# left out: {_remark(str(error))}")
    return out, said


def _of_samples(
    source: Path, folder: Path, samples: Sequence[tuple[_Sample, dict[str, str]]], said: Sequence[str]
) -> str:
    events: list[str] = []
    items: list[str] = []
    described = any("user_id" not in columns for _, columns in samples)
    for sample, columns in samples:
        if "user_id" in columns:
            events += _entry([*_event_lines(sample, columns, described)])
        else:
            items += _entry([*_common(sample), *_column_lines(sample, columns, {})])
    if not events:
        raise DataError(
            f"{source}: no customer ID column found, so there are no events."
            f" Skipped: {', '.join(s.file for s, _ in samples) or 'no files'}. {_BY_HAND}"
        )
    known = "" if described or any("items_from_events" in e for e in events) else "  unknown_items: keep"
    lines = [
        "# Column mapping, canonical columns on the left. Guessed from column names and sample rows: review it first.",
        *said,
        "import:",
        f"  folder: {_scalar(str(folder))}",
        known,
        *(_not_products(sample, columns) for sample, columns in samples),
        *(["  items:", *(f"    {line}" for line in items)] if items else []),
        "  events:",
        *(f"    {line}" for line in events),
    ]
    return "\n".join(line for line in lines if line) + "\n"


_BY_HAND = "Write the `import` section by hand; docs/data.md describes every key."


def _read_sample(found: Peek, folder: Path, directory: Path) -> _Sample:
    library = Library(directory)
    try:
        table = library.load("sample", [found])
        cells = ", ".join(f"CAST({quoted(name)} AS VARCHAR)" for name in table.columns)
        rows = library.rows(f"SELECT {cells} FROM sample ORDER BY _seq LIMIT {SAMPLE}")
    finally:
        library.close()
    columns = {name: [(row[i] or "").strip() for row in rows] for i, name in enumerate(table.columns)}
    return _Sample(found.source.relative_to(folder).as_posix(), columns, table.said)


def _map_columns(sample: _Sample) -> dict[str, str]:
    """Mapping from canonical columns to the file's columns. Raises DataError if none looks like an item ID."""
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in reversed(list(sample.columns))}

    def found(known: Mapping[str, str]) -> dict[str, str]:
        first = {ours: next((plain[n] for n in names.split() if n in plain), None) for ours, names in known.items()}
        return {ours: theirs for ours, theirs in first.items() if theirs is not None}

    user_and_time = found(_USER_AND_TIME)
    # In a catalogue, columns such as type or rating have a different meaning than in an event file.
    out = {**user_and_time, **found(_EVENT)} if "user_id" in user_and_time else {}
    out |= found(_ITEM)
    if "item_id" not in out and "user_id" not in out:
        out |= next(({"item_id": plain[n]} for n in ("id", "handle") if n in plain), {})
    if "title" not in out and "description" in out:
        out["title"] = out.pop("description")
    if lacking := [
        name for name in ("item_id", "timestamp") if name not in out and ("user_id" in out or name == "item_id")
    ]:
        raise DataError(
            f"{sample.file}: no column looks like {lacking[0]}. It has: {', '.join(sample.columns)}. {_BY_HAND}"
        )
    return out


def _event_lines(sample: _Sample, columns: Mapping[str, str], described: bool) -> Iterator[str]:
    yield from _common(sample)
    kept = dict(columns)
    if not described and {"title", "price"} & set(columns):
        yield "items_from_events: true  # no item file: items are created from their events"
    elif described:
        # Item texts come from the item file.
        kept = {ours: theirs for ours, theirs in kept.items() if ours == "item_id" or ours not in _ITEM}
    special: dict[str, list[str]] = {}
    if "event" not in columns:
        special["event"] = ["value: purchase  # kind of every row; or view, click, cart, impression"]
    elif kinds := list(_kinds(sample.columns[columns["event"]])):
        special["event"] = [f"path: {_scalar(columns['event'])}", *kinds]
    if how := list(_time(sample.columns[columns["timestamp"]])):
        special["timestamp"] = [f"path: {_scalar(columns['timestamp'])}", *how]
    yield from _column_lines(sample, kept, special)


def _common(sample: _Sample) -> Iterator[str]:
    yield f"from: {_scalar(sample.file)}"
    yield from (f"# {_remark(text)}" for text in sample.said)


def _column_lines(sample: _Sample, columns: Mapping[str, str], special: Mapping[str, Sequence[str]]) -> Iterator[str]:
    different = {ours: theirs for ours, theirs in columns.items() if ours != theirs and ours not in special}
    if different or special:
        yield "columns:"
    for ours, lines in special.items():
        yield f"  {ours}:"
        yield from (f"    {line}" for line in lines)
    for ours, theirs in different.items():
        cells = sample.columns[theirs]
        empty = sum(not c for c in cells) / max(1, len(cells))
        needed = empty >= 0.001 and ours in ("user_id", "item_id", "timestamp")
        yield f"  {ours}: {_scalar(theirs)}" + (
            f"  # empty in {empty:.1%} of the rows, which are rejected" if needed else ""
        )


def _kinds(cells: Sequence[str]) -> Iterator[str]:
    """YAML lines that map the file's event names to event kinds."""
    words = [w for w, _ in Counter(c for c in cells if c).most_common()]
    if len(words) > _MOST_KINDS:
        raise DataError(
            f"the column that looks like the event kind has {len(words)} values, such as {words[0]!r}. {_BY_HAND}"
        )
    if all(w.lower() in KINDS or w.lower() in GA4 for w in words):
        return
    yield "values:"
    for word in words:
        kind = _WORDS.get(word.lower().replace(" ", "_").replace("-", "_"))
        unsure = "" if kind else f"  # unknown: use one of {', '.join(KINDS)}, or {DROP}"
        yield f"  {_scalar(word)}: {kind or DROP}{unsure}"


def _time(cells: Sequence[str]) -> Iterator[str]:
    """YAML line for the time zone, if moments have no offset. Their format is found on import."""
    seen = list(dict.fromkeys(c for c in cells if c))[:5000]
    if not seen or all(re.fullmatch(r"[+-]?\d+(\.\d*)?", c) for c in seen):
        return
    if not all(re.search(r"(?:[Zz]|UTC|GMT|[+-]\d{2}:?\d{2})$", c) for c in seen):
        yield "zone: UTC  # moments have no offset: set your shop's time zone, such as Europe/London"


def _not_products(sample: _Sample, columns: Mapping[str, str]) -> str:
    """A line that excludes IDs such as POST: if nearly all IDs have a digit, those without are rarely products."""
    cells = sample.columns[columns["item_id"]]
    ids = Counter(c for c in cells if c)
    odd = [i for i, _ in ids.most_common() if not any(c.isdigit() for c in i)][:_MOST_ODD]
    if "user_id" not in columns or not odd or len(odd) > 0.05 * len(ids):
        return ""
    titles = sample.columns[columns["title"]] if "title" in columns else []
    title = {i: t for i, t in zip(reversed(cells), reversed(titles), strict=False) if t}
    called = [_remark(f"{i} ({title[i][:40]})" if i in title else i) for i in odd]
    listing = [f"  #   {', '.join(called[k : k + 4])}," for k in range(0, len(called), 4)]
    pattern = "|".join(re.escape(i).replace(r"\ ", " ") for i in odd)
    remark = "  # IDs without a digit: postage, fees, tests? Remove actual products from the pattern:"
    return "\n".join([remark, *listing, f"  not_products: {_scalar(pattern)}"])


def _entry(lines: Sequence[str]) -> list[str]:
    """Lines indented as one entry of a YAML list."""
    return [*(f"{'- ' if k == 0 else '  '}{line}" for k, line in enumerate(lines))]


def _remark(text: str) -> str:
    """Cell text on one line, with characters that YAML cannot hold replaced."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def _scalar(value: Any) -> str:
    """A value as one line of YAML."""
    return yaml.safe_dump(value, width=10**9, allow_unicode=True).removesuffix("\n").removesuffix("\n...")
