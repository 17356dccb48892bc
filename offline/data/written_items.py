"""Items written through the service, applied on top of the imported catalogue in the next nightly run.

The file has one row per item: its ID, the time of its last write and the written fields as JSON. A new import removes
it, so that the exported catalogue takes precedence.
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

from features.catalogue import STANDARD_COLUMNS
from offline.data.attributes import UNCHANGED, convert_value
from offline.runtime import DataError
from serving.store import ItemFields

FILE = "written_items.parquet"
SCHEMA = pa.schema([("item_id", pa.string()), ("at", pa.float64()), ("fields", pa.string())])


def read_written_items(directory: Path) -> dict[str, ItemFields]:
    """Written fields by item ID; empty without a file. Raises DataError if the file cannot be read."""
    path = directory / FILE
    if not path.is_file():
        return {}
    try:
        rows = pq.read_table(path, schema=SCHEMA).to_pylist()
        return {r["item_id"]: ItemFields(r["at"], msgspec.json.decode(r["fields"], type=dict[str, Any])) for r in rows}
    except (pa.ArrowException, OSError, msgspec.MsgspecError) as e:
        raise DataError(f"{path}: cannot be read ({' '.join(str(e).split())[:200]}); restore it from a backup") from e


def to_table(written: Mapping[str, ItemFields]) -> pa.Table:
    """The written items as the table of the file."""
    ids = sorted(written)
    fields = [msgspec.json.encode(written[i].fields).decode() for i in ids]
    return pa.table({"item_id": ids, "at": [written[i].at for i in ids], "fields": fields}, SCHEMA)


def overlay_written(items: pa.Table, written: Mapping[str, ItemFields]) -> pa.Table:
    """The catalogue with the written fields: changed cells, and new items as rows at the end.

    Ignored are fields without a column in the catalogue, values that do not fit the type of their column, and withdrawn
    items that the catalogue does not have. The columns `group_id` and `available` are added if only written items have
    them.
    """
    if not written:
        return items
    if "group_id" not in items.column_names and any(entry.fields.get("group_id") for entry in written.values()):
        items = items.append_column("group_id", pa.nulls(len(items), pa.string()))
    if "available" not in items.column_names and not all(entry.available for entry in written.values()):
        items = items.append_column("available", pa.nulls(len(items), pa.bool_()))
    touched = pc.is_in(items["item_id"].cast(pa.string()), pa.array(list(written), pa.string()))
    before = {row["item_id"]: row for row in items.filter(touched).to_pylist()}
    rows = []
    for item_id, entry in written.items():
        if item_id not in before and not entry.available:
            continue
        row = before.get(item_id, {"item_id": item_id, "available_from": datetime.fromtimestamp(entry.at, UTC)})
        for field in items.schema:
            key = field.name if field.name in STANDARD_COLUMNS else f"a:{field.name}"
            if key in entry.fields and (value := convert_value(entry.fields[key], field)) is not UNCHANGED:
                row[field.name] = value
        row["title"] = row.get("title") or ""  # as in an import, a missing title is empty
        rows.append({field.name: row.get(field.name) for field in items.schema})
    return pa.concat_tables([items.filter(pc.invert(touched)), pa.Table.from_pylist(rows, items.schema)])
