"""A first mapping for files that nobody has described yet, guessed from column names and a sample of rows.

It is a start for a person to read: whatever may be wrong carries a remark that says so. Nothing is imported by a guess
that nobody has seen.
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
"""Rows looked at: enough to meet what is rare, and read in seconds."""

_ENDINGS = (".csv", ".csv.gz", ".parquet", ".jsonl", ".jsonl.gz")
_DELIMITERS = (",", ";", "\t", "|")
_MOST_KINDS = 30
"""A column of more words than this says something else than what was done."""
_MOST_ODD = 30

_SHOPPER_AND_TIME: Mapping[str, str] = {
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
"""Our columns and what others call them, letters and digits only; the first that a file has is taken."""

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
"""What others call a kind of event."""

_FORMS = tuple(
    f"{day} {clock}".strip()
    for day in ("%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%d/%m/%y", "%m/%d/%y")
    for clock in ("%H:%M:%S", "%H:%M", "%I:%M:%S %p", "%I:%M %p", "")
)


@dataclass(frozen=True)
class _Sample:
    """The first rows of a file as text, `""` where a cell is empty, and how it has to be read."""

    path: Path
    columns: Mapping[str, list[str]]
    encoding: str = "utf-8"
    delimiter: str = ","

    @property
    def how(self) -> Iterator[str]:
        if self.encoding != "utf-8":
            yield f"encoding: {self.encoding}  # not UTF-8; look for broken letters in the titles"
        if self.delimiter != ",":
            yield f"delimiter: {_scalar(self.delimiter)}"


def suggest(source: Path) -> str:
    """The YAML of an `import` section for a file, or for the tables of a folder, with remarks where it is a guess.

    Relative paths stay as they were given. Raises DataError for what cannot be read, and where no column looks like an
    item's id or no file like events, naming what there is.
    """
    if not source.exists():
        raise DataError(f"{source}: there is no such file or folder.")
    paths = [source] if source.is_file() else sorted(p for p in source.iterdir() if p.name.endswith(_ENDINGS))
    events: list[str] = []
    items: list[str] = []
    samples: list[tuple[_Sample, dict[str, str]]] = []
    for path in paths:
        if (form := file_format(path)) in ("metarank", "ga4"):
            events += [f"- path: {_scalar(str(path))}  # {form}'s events: they need no mapping"]
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
            f"{source}: no file with a column of shoppers is here, so there are no events"
            f" (looked at: {', '.join(p.name for p in paths) or 'nothing'}). {_BY_HAND}"
        )
    known = "" if described or any("items_from_events" in e for e in events) or not samples else "  unknown_items: keep"
    lines = [
        "# What each column means, ours on the left. Guessed from names and rows: read it first.",
        "import:",
        known,
        *(_not_products(sample, columns) for sample, columns in samples),
        *(["  items:", *(f"    {line}" for line in items)] if items else []),
        "  events:",
        *(f"    {line}" for line in events),
    ]
    return "\n".join(line for line in lines if line) + "\n"


_BY_HAND = "Write the `import` section by hand: docs/data.md has every key."


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
            # Of JSON lines, each batch has the columns that its lines name.
            cells += [""] * (rows - len(cells))
        if rows >= SAMPLE:
            break
    return _Sample(path, columns, encoding, delimiter)


def _encoding(path: Path) -> str:
    with open_binary(path) as (stream, _):
        start = stream.read(4 * 2**20)
    try:
        # The last letter may be cut in two.
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
    """Our columns to the file's. Raises DataError where nothing looks like an item's id."""
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in reversed(list(sample.columns))}

    def found(known: Mapping[str, str]) -> dict[str, str]:
        first = {ours: next((plain[n] for n in names.split() if n in plain), None) for ours, names in known.items()}
        return {ours: theirs for ours, theirs in first.items() if theirs is not None}

    whose = found(_SHOPPER_AND_TIME)
    # A catalogue has columns, as type or rating, that would mean something else of an event.
    out = {**whose, **found(_EVENT)} if "user_id" in whose else {}
    out |= found(_ITEM)
    if "item_id" not in out and "user_id" not in out:
        out |= next(({"item_id": plain[n]} for n in ("id", "handle") if n in plain), {})
    if "title" not in out and "description" in out:
        out["title"] = out.pop("description")
    if lacking := [
        name for name in ("item_id", "timestamp") if name not in out and ("user_id" in out or name == "item_id")
    ]:
        raise DataError(
            f"{sample.path.name}: no column looks like our {lacking[0]}."
            f" It has: {', '.join(sample.columns)}. {_BY_HAND}"
        )
    return out


def _event_lines(sample: _Sample, columns: Mapping[str, str], described: bool) -> Iterator[str]:
    yield from _common(sample)
    kept = dict(columns)
    if "event" in columns:
        yield from _kinds(sample.columns[columns["event"]])
    else:
        yield "event: purchase  # every row is one; or view, click, cart, impression"
    if not described and {"title", "price"} & set(columns):
        yield "items_from_events: true  # no file of products: each is made from its rows"
    elif described:
        # What a product is called is the catalogue's to say.
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
            f"  # empty in {empty:.1%} of the rows, which are refused" if needed else ""
        )


def _kinds(cells: Sequence[str]) -> Iterator[str]:
    """How the file's words for what was done are read."""
    words = [w for w, _ in Counter(c for c in cells if c).most_common()]
    if len(words) > _MOST_KINDS:
        raise DataError(
            f"the column taken for the kind of event holds {len(words)} different values, as {words[0]!r}. {_BY_HAND}"
        )
    if all(w.lower() in KINDS or w.lower() in GA4 for w in words):
        return
    yield "event_values:"
    for word in words:
        kind = _WORDS.get(word.lower().replace(" ", "_").replace("-", "_"))
        unsure = "" if kind else f"  # not understood: one of {', '.join(KINDS)}, or {DROP}"
        yield f"  {_scalar(word)}: {kind or DROP}{unsure}"


def _time(cells: Sequence[str]) -> Iterator[str]:
    """How moments are written, where it is not plain."""
    seen = pd.Series(list(dict.fromkeys(c for c in cells if c))[:5000], dtype=object)
    if not len(seen) or seen.str.fullmatch(r"[+-]?\d+(\.\d*)?").all():
        return

    def share(form: str) -> float:
        return float(pd.to_datetime(seen, format=form, errors="coerce", utc=True).notna().mean())

    if share("ISO8601") < 0.99:
        shares = {form: share(form) for form in _FORMS}
        best = max(shares, key=lambda form: shares[form])
        if shares[best] < 0.5:
            yield f"# timestamp_format: ...  # {seen[0]!r} is not ISO 8601: write its strptime format"
            return
        also = next((f for f in _FORMS if f != best and shares[f] == shares[best]), None)
        yield f"timestamp_format: {_scalar(best)}" + (f"  # or {also}: no row tells day from month" if also else "")
    if not seen.str.contains(r"(?:[Zz]|[+-]\d{2}:?\d{2})$").all():
        yield "timezone: UTC  # the times name none: write your shop's, as Europe/London"


def _is_float(cells: Sequence[str]) -> bool:
    filled = [c for c in cells if c]
    return bool(filled) and all(c.endswith(".0") and c[:-2].isdigit() for c in filled)


def _not_products(sample: _Sample, columns: Mapping[str, str]) -> str:
    """A line that leaves out ids such as POST: where nearly all ids hold a digit, those without are seldom products."""
    cells = sample.columns[columns["item_id"]]
    ids = Counter(c for c in cells if c)
    odd = [i for i, _ in ids.most_common() if not any(c.isdigit() for c in i)][:_MOST_ODD]
    if "user_id" not in columns or not odd or len(odd) > 0.05 * len(ids):
        return ""
    titles = sample.columns[columns["title"]] if "title" in columns else []
    title = {i: t for i, t in zip(reversed(cells), reversed(titles), strict=False) if t}
    called = [_remark(f"{i} ({title[i][:40]})" if i in title else i) for i in odd]
    said = [f"  #   {', '.join(called[k : k + 4])}," for k in range(0, len(called), 4)]
    pattern = "|".join(re.escape(i).replace(r"\ ", " ") for i in odd)
    remark = "  # Ids without a digit: postage, fees, tests? Take what is a product out of the pattern:"
    return "\n".join([remark, *said, f"  not_products: {_scalar(pattern)}"])


def _entry(lines: Sequence[str]) -> list[str]:
    """Lines as one entry of a YAML list."""
    return [*(f"{'- ' if k == 0 else '  '}{line}" for k, line in enumerate(lines))]


def _remark(text: str) -> str:
    """What a cell holds, in one line of what YAML can hold."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def _scalar(value: Any) -> str:
    """A value as YAML writes it in one line."""
    return yaml.safe_dump(value, width=10**9, allow_unicode=True).removesuffix("\n").removesuffix("\n...")
