"""Columns of an order or product that stand on its first row only: found, and filled down as the draft says."""

from __future__ import annotations

from offline.ingest.reading.library import quoted
from offline.ingest.suggestion.roles import candidates, choose
from offline.ingest.suggestion.tables import Facts, Table, Tables

_OF_ORDERS = ("user_id", "timestamp", "clock", "status", "flag", "device", "currency")
_LEAST_FILLED = 0.5


def fill_headers(tables: Tables, table: Table) -> None:
    """Fill columns of orders whose empty cells mostly follow a filled one of the same order.

    If the order itself stands on its first row only, the other columns must do so too.
    """
    roles = choose(table, ("item_id", "order_id", *_OF_ORDERS))
    own = {role: path for role, path in roles.items() if path in table.raw.columns}
    if table.raw.form != "csv" or not {"item_id", "order_id"} <= own.keys():
        return
    order = own["order_id"]
    found = [own[role] for role in _OF_ORDERS if role in own and table.columns[own[role]].filled < 1]
    has_gaps = table.columns[order].filled < 1
    if not found or (has_gaps and _has_values_without(tables, table, order, found)):
        return
    columns = [path for path in found if _filled(tables, table, order, path, has_gaps) >= _LEAST_FILLED]
    if columns:
        _fill(tables, table, [*([order] if has_gaps else []), *columns], order)


def fill_products(tables: Tables, table: Table) -> None:
    """Fill columns of products whose further rows are variants: they have an ID of their own, and no product ID.

    The title is empty in exactly the rows without the product ID, as are the other columns that are filled.
    """
    roles = choose(table, ("user_id", "order_id", "title", "description", "category", "brand"))
    if table.raw.form != "csv" or "title" not in roles or {"user_id", "order_id"} & roles.keys():
        return
    ids = [c.path for c in candidates(table, "item_id") if tables.is_unique(table.name, c.path)]
    if not any(table.columns[path].filled == 1 for path in ids):
        return
    columns = [roles[role] for role in ("title", "description", "category", "brand") if role in roles]
    for key in (path for path in ids if table.columns[path].filled < 1):
        filled = [path for path in columns if path in table.raw.columns and not _without(tables, table, key, path)]
        if roles["title"] in filled and not _without(tables, table, roles["title"], key):
            _fill(tables, table, [key, *filled], key)
            return


def _without(tables: Tables, table: Table, key: str, path: str) -> int:
    """Number of rows that have a value in a column, but not the key."""
    query = f"SELECT count(*) FROM {quoted(table.name)} WHERE {quoted(key)} IS NULL AND {quoted(path)} IS NOT NULL"
    return int(tables.library.rows(query)[0][0])


def _fill(tables: Tables, table: Table, columns: list[str], key: str) -> None:
    table.fill_down, table.key = columns, key
    tables.library.fill_down(table.name, columns, key)
    table.columns = {**table.columns, **{path: _facts(tables, table, path) for path in columns}}


def _has_values_without(tables: Tables, table: Table, order: str, columns: list[str]) -> bool:
    """True if a row without an order has a value in any of some columns."""
    some = " OR ".join(f"{quoted(path)} IS NOT NULL" for path in columns)
    query = f"SELECT count(*) FROM {quoted(table.name)} WHERE {quoted(order)} IS NULL AND ({some})"
    return bool(tables.library.rows(query)[0][0])


def _filled(tables: Tables, table: Table, order: str, path: str, has_gaps: bool) -> float:
    """Share of the empty cells of a column that follow a filled one of the same order."""
    key = f"last_value({quoted(order)} IGNORE NULLS) OVER (ORDER BY _seq)" if has_gaps else quoted(order)
    rows = f"SELECT {key} AS k, {quoted(path)} AS v, _seq FROM {quoted(table.name)}"
    above = "last_value(v IGNORE NULLS) OVER (PARTITION BY k ORDER BY _seq)"
    query = f"SELECT count(*), count(f) FROM (SELECT v, CASE WHEN k IS NOT NULL THEN {above} END AS f FROM ({rows}))"
    empty, filled = tables.library.rows(f"{query} WHERE v IS NULL")[0]
    return filled / empty if empty else 0.0


def _facts(tables: Tables, table: Table, path: str) -> Facts:
    old = table.columns[path]
    cells = tables.library.rows(f"SELECT {quoted(path)} FROM {quoted(table.name)} ORDER BY _seq LIMIT {old.rows}")
    return Facts(path, old.rows, [str(cell) for (cell,) in cells if cell is not None])
