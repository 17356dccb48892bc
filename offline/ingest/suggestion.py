"""Drafts a column mapping for files in an unknown layout, from column names and a sample of rows.

The draft is for a person to review: every uncertain entry has a comment that says so. It is never imported unseen.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import yaml

from features.log import GA4, KINDS
from offline.config import DROP
from offline.ingest.readers import Batch, column_names, file_format, open_binary, read_csv, read_jsonl, read_parquet
from offline.runtime import DataError

SAMPLE = 200_000
"""Maximum number of sampled rows: enough to include rare values, and read in seconds."""

_ENDINGS = (".csv", ".csv.gz", ".parquet", ".jsonl", ".jsonl.gz")
_DELIMITERS = (",", ";", "\t", "|")
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

_FORMS = tuple(
    f"{day} {clock}".strip()
    for day in ("%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%d/%m/%y", "%m/%d/%y")
    for clock in ("%H:%M:%S", "%H:%M", "%I:%M:%S %p", "%I:%M %p", "")
)


@dataclass(frozen=True)
class _Sample:
    """The first rows of a file as text, `""` for an empty cell, with the encoding and delimiter of the file."""

    path: Path
    columns: Mapping[str, list[str]]
    encoding: str = "utf-8"
    delimiter: str = ","

    @property
    def how(self) -> Iterator[str]:
        if self.encoding != "utf-8":
            yield f"encoding: {self.encoding}  # not UTF-8; check that the titles look right"
        if self.delimiter != ",":
            yield f"delimiter: {_scalar(self.delimiter)}"


def suggest(source: Path) -> str:
    """Draft of an `import` section, as YAML, for a file or for the files of a folder, with comments on guesses.

    Relative paths are kept. Raises DataError if a file cannot be read, if no column looks like an item ID, or if no
    file looks like events. The message lists the columns or files that were found.
    """
    if not source.exists():
        raise DataError(f"{source}: there is no such file or folder.")
    paths = [source] if source.is_file() else sorted(p for p in source.iterdir() if p.name.endswith(_ENDINGS))
    events: list[str] = []
    items: list[str] = []
    samples: list[tuple[_Sample, dict[str, str]]] = []
    for path in paths:
        if (form := file_format(path)) in ("metarank", "ga4"):
            events += [f"- path: {_scalar(str(path))}  # {form} events need no mapping"]
        else:
            samples.append((sample := _read_sample(path, form), _map_columns(sample)))
    described = any("user_id" not in columns for _, columns in samples)
    for sample, columns in samples:
        if "user_id" in columns:
            events += _entry([*_event_lines(sample, columns, described)])
        else:
            items += _entry([*_common(sample), *_column_lines(sample, columns)])
    if not events:
        raise DataError(
            f"{source}: no customer ID column found, so there are no events."
            f" Skipped: {', '.join(p.name for p in paths) or 'no files'}. {_BY_HAND}"
        )
    known = "" if described or any("items_from_events" in e for e in events) or not samples else "  unknown_items: keep"
    lines = [
        "# Column mapping, canonical columns on the left. Guessed from column names and sample rows: review it first.",
        "import:",
        known,
        *(_not_products(sample, columns) for sample, columns in samples),
        *(["  items:", *(f"    {line}" for line in items)] if items else []),
        "  events:",
        *(f"    {line}" for line in events),
    ]
    return "\n".join(line for line in lines if line) + "\n"


_BY_HAND = "Write the `import` section by hand; docs/data.md describes every key."


def _read_sample(path: Path, form: str) -> _Sample:
    encoding, delimiter = _encoding(path) if form == "csv" else "utf-8", ","
    if form == "csv":
        delimiter = max(_DELIMITERS, key=lambda d: len(column_names(path, form, encoding, d) or []))
    names = column_names(path, form, encoding, delimiter)
    batches: Iterator[Batch]
    if form == "csv":
        batches = read_csv(path, names or [], encoding, delimiter)
    else:
        batches = read_parquet(path, names or []) if form == "parquet" else read_jsonl(path, None, frozenset())
    columns: dict[str, list[str]] = {name: [] for name in names or []}
    rows = 0
    for batch in batches:
        for name, array in batch.columns.items():
            columns.setdefault(name, [""] * rows).extend(_cells(array))
        rows += len(batch.row)
        for cells in columns.values():
            # In JSON lines, each batch has only the keys of its own lines.
            cells += [""] * (rows - len(cells))
        if rows >= SAMPLE:
            break
    return _Sample(path, columns, encoding, delimiter)


def _encoding(path: Path) -> str:
    with open_binary(path) as (stream, _):
        start = stream.read(4 * 2**20)
    try:
        # The last character may be cut in two.
        start[: start.rfind(b"\n") + 1].decode("utf-8")
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"


def _cells(array: pa.Array) -> list[str]:
    return [
        "" if v is None else (v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v)).strip()
        for v in array.to_pylist()
    ]


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
            f"{sample.path.name}: no column looks like {lacking[0]}. It has: {', '.join(sample.columns)}. {_BY_HAND}"
        )
    return out


def _event_lines(sample: _Sample, columns: Mapping[str, str], described: bool) -> Iterator[str]:
    yield from _common(sample)
    kept = dict(columns)
    if "event" in columns:
        yield from _kinds(sample.columns[columns["event"]])
    else:
        yield "event: purchase  # kind of every row; or view, click, cart, impression"
    if not described and {"title", "price"} & set(columns):
        yield "items_from_events: true  # no item file: items are created from their events"
    elif described:
        # Item texts come from the item file.
        kept = {ours: theirs for ours, theirs in kept.items() if ours == "item_id" or ours not in _ITEM}
    yield from _time(sample.columns[columns["timestamp"]])
    floats = [ours for ours in ("user_id", "item_id") if _is_float(sample.columns[columns[ours]])]
    if floats:
        example = next(c for c in sample.columns[columns[floats[0]]] if c)
        yield f"float_ids: [{', '.join(floats)}]  # {example} is read as {example[:-2]}"
    yield from _column_lines(sample, kept)


def _common(sample: _Sample) -> Iterator[str]:
    yield f"path: {_scalar(str(sample.path))}"
    yield from sample.how


def _column_lines(sample: _Sample, columns: Mapping[str, str]) -> Iterator[str]:
    different = {ours: theirs for ours, theirs in columns.items() if ours != theirs}
    if different:
        yield "columns:"
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
    yield "event_values:"
    for word in words:
        kind = _WORDS.get(word.lower().replace(" ", "_").replace("-", "_"))
        unsure = "" if kind else f"  # unknown: use one of {', '.join(KINDS)}, or {DROP}"
        yield f"  {_scalar(word)}: {kind or DROP}{unsure}"


def _time(cells: Sequence[str]) -> Iterator[str]:
    """YAML lines for the timestamp format and time zone, if they cannot be detected on import."""
    seen = pd.Series(list(dict.fromkeys(c for c in cells if c))[:5000], dtype=object)
    if not len(seen) or seen.str.fullmatch(r"[+-]?\d+(\.\d*)?").all():
        return

    def share(form: str) -> float:
        return float(pd.to_datetime(seen, format=form, errors="coerce", utc=True).notna().mean())

    if share("ISO8601") < 0.99:
        shares = {form: share(form) for form in _FORMS}
        best = max(shares, key=lambda form: shares[form])
        if shares[best] < 0.5:
            yield f"# timestamp_format: ...  # {seen[0]!r} is not ISO 8601: set its strptime format"
            return
        also = next((f for f in _FORMS if f != best and shares[f] == shares[best]), None)
        yield f"timestamp_format: {_scalar(best)}" + (
            f"  # or {also}: the rows do not show whether day or month is first" if also else ""
        )
    if not seen.str.contains(r"(?:[Zz]|[+-]\d{2}:?\d{2})$").all():
        yield "timezone: UTC  # timestamps have no offset: set your shop's time zone, such as Europe/London"


def _is_float(cells: Sequence[str]) -> bool:
    filled = [c for c in cells if c]
    return bool(filled) and all(c.endswith(".0") and c[:-2].isdigit() for c in filled)


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
