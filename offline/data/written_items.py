"""Items that were written through the service, laid over the imported catalogue for the next night.

A row an item: its id, the time of its last write, and the fields that were written, as JSON. Importing a catalogue anew
begins without: what the shop exports then is what holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from offline.runtime import DataError
from serving.store import ItemFields

FILE = "written_items.parquet"
SCHEMA = pa.schema([("item_id", pa.string()), ("at", pa.float64()), ("fields", pa.string())])
_NOT_COLUMNS = ("available",)
_STANDING = object()


def read_written_items(directory: Path) -> dict[str, ItemFields]:
    """What was written, by item id; nothing where there is no such file. Raises DataError where it cannot be read."""
    path = directory / FILE
    if not path.is_file():
        return {}
    try:
        rows = pq.read_table(path, schema=SCHEMA).to_pylist()
        return {r["item_id"]: ItemFields(r["at"], msgspec.json.decode(r["fields"], type=dict[str, Any])) for r in rows}
    except (pa.ArrowException, OSError, msgspec.MsgspecError) as e:
        raise DataError(f"{path}: cannot be read ({' '.join(str(e).split())[:200]}); restore it from a copy") from e


def to_table(written: Mapping[str, ItemFields]) -> pa.Table:
    """The same as the file holds it."""
    ids = sorted(written)
    fields = [msgspec.json.encode(written[i].fields).decode() for i in ids]
    return pa.table({"item_id": ids, "at": [written[i].at for i in ids], "fields": fields}, SCHEMA)


def overlay_written(items: pa.Table, written: Mapping[str, ItemFields]) -> pa.Table:
    """The catalogue with what was written: changed cells, and new rows at the end.

    An attribute that is no column of the catalogue, or a value that its column cannot hold, is left out.
    """
    if not written:
        return items
    touched = pc.is_in(items["item_id"].cast(pa.string()), pa.array(list(written), pa.string()))
    before = {row["item_id"]: row for row in items.filter(touched).to_pylist()}
    rows = []
    for item_id, held in written.items():
        row = before.get(item_id, {"item_id": item_id, "available_from": datetime.fromtimestamp(held.at, UTC)})
        given = {k.removeprefix("a:"): v for k, v in held.fields.items() if k not in _NOT_COLUMNS}
        for field in items.schema:
            if field.name in given and (value := _cell(given[field.name], field.type)) is not _STANDING:
                row[field.name] = value
        rows.append({field.name: row.get(field.name) for field in items.schema})
    return pa.concat_tables([items.filter(pc.invert(touched)), pa.Table.from_pylist(rows, items.schema)])


def _cell(value: object, kind: pa.DataType) -> object:
    """A written value as a column holds it, `_STANDING` where it cannot."""
    if value is None:
        return None
    if pa.types.is_timestamp(kind):
        return _moment(value)
    if pa.types.is_boolean(kind):
        return value if isinstance(value, bool) else _STANDING
    if pa.types.is_floating(kind):
        return float(value) if isinstance(value, int | float) else _STANDING
    if pa.types.is_integer(kind):
        return int(value) if isinstance(value, int | float) and value == int(value) else _STANDING
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return value if isinstance(value, str) else _STANDING
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return value if isinstance(value, list) else [value] if isinstance(value, str) else _STANDING
    return _STANDING


def _moment(value: object) -> object:
    if isinstance(value, str):
        try:
            when = datetime.fromisoformat(value)
        except ValueError:
            return _STANDING
        return when if when.tzinfo else when.replace(tzinfo=UTC)
    return datetime.fromtimestamp(value, UTC) if isinstance(value, int | float) else _STANDING
