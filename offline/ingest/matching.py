"""Item IDs of events that no catalogue row has: what they differ by, and the catalogue's ID where that is certain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from offline.config import ImportConfig
from offline.ingest.reading import Library
from offline.ingest.reading.library import quoted
from offline.runtime import DataError

_CERTAIN = 0.5
"""Least share of the unknown IDs that one form must match before they are read as the catalogue's."""
_FEWEST = 2


class _Form(NamedTuple):
    """A difference between two spellings of an ID. sql: the spelling without it, of an ID `x`."""

    called: str
    sql: str


_FORMS = (
    _Form("leading zeros", "regexp_replace(x, '^0+([0-9])', '\\1')"),
    _Form("upper and lower case", "lower(x)"),
    _Form("accents", "strip_accents(x)"),
    _Form("a decimal fraction such as .0", "join_key(x)"),
    _Form("a prefix that ends in / or :", "regexp_extract(x, '([^/:]+)$', 1)"),
)
_ALL = _Form(
    "leading zeros, case, accents, .0 and a prefix together",
    "regexp_replace(lower(strip_accents(join_key(regexp_extract(x, '([^/:]+)$', 1)))), '^0+([0-9])', '\\1')",
)


@dataclass(frozen=True)
class _Match:
    """Unknown IDs that one form matches with exactly one catalogue ID. events: rows of them."""

    form: _Form
    ids: int
    events: int


def match_items(library: Library, config: ImportConfig) -> list[str]:
    """Give events the catalogue's spelling of their item's ID where one is certain. Returns notes.

    A spelling is certain if the form of it that matches is that of one catalogue item only, and at least two and half
    of the unknown IDs have such a form. Raises DataError if afterwards more than `most_unknown` of the events have no
    catalogue entry. Events of sources with `items_from_events` are not looked at.
    """
    described = [str(i) for i, s in enumerate(config.events) if not s.items_from_events]
    if not described or not library.rows("SELECT count(*) FROM shop.items")[0][0]:
        return []
    ours = f"source IN ({', '.join(described)})"
    library.sql.execute(
        "CREATE OR REPLACE TEMP TABLE _unknown AS SELECT item_id AS x, count(*) AS events FROM shop.events"
        f" WHERE {ours} AND item_id NOT IN (SELECT item_id FROM shop.items) GROUP BY item_id"
    )
    total = library.rows(f"SELECT count(*) FROM shop.events WHERE {ours}")[0][0]
    ids, unknown = library.rows("SELECT count(*), coalesce(sum(events), 0) FROM _unknown")[0]
    if not unknown:
        return []
    best = max((_match(library, form) for form in (*_FORMS, _ALL)), key=lambda m: (m.ids, m.form is not _ALL))
    notes = []
    if config.match_items and best.ids >= max(_FEWEST, _CERTAIN * ids):
        notes.append(_rename(library, best, ours))
        unknown -= best.events
        best = _Match(best.form, 0, 0)
    if unknown > config.most_unknown * total:
        raise DataError(_message(library, best, unknown, total, config))
    return notes


def _pairs(form: _Form) -> str:
    """Query of the unknown IDs `x` and the catalogue's, for forms that one item has."""
    items = (
        f"SELECT {form.sql} AS form, any_value(x) AS item_id FROM (SELECT item_id AS x FROM shop.items) GROUP BY form"
        " HAVING count(*) = 1"
    )
    unknown = f"SELECT x, {form.sql} AS form, events FROM _unknown"
    return f"SELECT u.x, i.item_id, u.events FROM ({unknown}) AS u JOIN ({items}) AS i USING (form)"


def _match(library: Library, form: _Form) -> _Match:
    ids, events = library.rows(f"SELECT count(*), coalesce(sum(events), 0) FROM ({_pairs(form)})")[0]
    return _Match(form, ids, events)


def _rename(library: Library, match: _Match, ours: str) -> str:
    library.sql.execute(f"CREATE OR REPLACE TEMP TABLE _renamed AS {_pairs(match.form)}")
    library.sql.execute(
        "UPDATE shop.events SET item_id = r.item_id FROM _renamed AS r"
        f" WHERE shop.events.item_id = r.x AND shop.events.{ours}"
    )
    old, new = library.rows("SELECT x, item_id FROM _renamed ORDER BY x LIMIT 1")[0]
    return (
        f"item IDs of {match.events} events differ from the catalogue's by {match.form.called}:"
        f" {old!r} is read as {new!r}. Set `match_items: false` if they are different items"
    )


def _message(library: Library, best: _Match, unknown: int, total: int, config: ImportConfig) -> str:
    theirs = library.rows("SELECT x FROM _unknown ORDER BY events DESC, x LIMIT 1")[0][0]
    item = library.rows("SELECT item_id FROM shop.items ORDER BY item_id LIMIT 1")[0][0]
    if column := _column_with(library):
        cause = f"The column {column} of the catalogue has them: map it as `item_id`."
    elif best.ids:
        cause = (
            f"{best.ids} of the IDs differ by {best.form.called}; write them alike with `sql`, such as"
            " `item_id: {sql: lower(product)}`."
        )
    else:
        cause = (
            "The two have no spelling in common: map columns with the same IDs as `item_id`, or add the missing items."
        )
    return (
        f"{unknown / total:.0%} of the events ({unknown} of {total}) are of items without a catalogue entry, such as"
        f" {theirs!r}; an ID of the catalogue is {item!r}. {cause} If the catalogue is incomplete, set"
        f" `most_unknown` higher than {config.most_unknown:g}. Nothing was imported."
    )


def _column_with(library: Library) -> str | None:
    """A text attribute of the items that has at least half of the unknown IDs."""
    columns: Mapping[str, str] = {row[0]: row[1] for row in library.rows("DESCRIBE shop.items")}
    ids = library.rows("SELECT count(*) FROM _unknown")[0][0]
    for name in (n for n, kind in columns.items() if n != "item_id" and kind in ("VARCHAR", "DOUBLE")):
        cell = quoted(name) if columns[name] == "VARCHAR" else f"number_text({quoted(name)})"
        found = library.rows(f"SELECT count(*) FROM _unknown WHERE x IN (SELECT {cell} FROM shop.items)")[0][0]
        if found >= max(_FEWEST, _CERTAIN * ids):
            return name
    return None
