"""How an item's attributes are read: as the configuration says, else by the type of their column."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from offline.config import ITEM_COLUMNS, AttributeKind
from offline.runtime import DataError

_SEPARATOR = r"\s*[,;|]\s*"


def convert_attributes(items: pa.Table, kinds: Mapping[str, AttributeKind], file: str) -> pa.Table:
    """The table with the named attributes as numbers, texts (category), lists of texts (tags) or timestamps (date).

    A text read as tags is cut at commas, semicolons and bars; one read as a date is ISO 8601. `ignore` leaves the
    column out. Raises DataError for a name that is no attribute of the table, and for a value that cannot be so read,
    with the first such row.
    """
    own = [n for n in items.column_names if n not in ITEM_COLUMNS]
    for name, kind in kinds.items():
        if name not in own:
            known = f"its attributes are {', '.join(own)}" if own else "it has no attributes"
            raise DataError(f"features.attributes.{name}: {file} has no such attribute; {known}")
        place = items.schema.get_field_index(name)
        items = (
            items.remove_column(place)
            if kind == "ignore"
            else items.set_column(place, name, _convert(items[name], kind, f"{file}, column {name!r}"))
        )
    return items


def _convert(column: pa.ChunkedArray, kind: AttributeKind, where: str) -> pa.ChunkedArray:
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if is_list and kind != "tags":
        raise DataError(f"{where}: is a list of values, which can only be read as tags")
    if kind == "tags":
        return column if is_list else pc.split_pattern_regex(column.cast(pa.string()), _SEPARATOR)
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if kind == "date" and is_text:
        moments = pd.to_datetime(column.to_pandas(), utc=True, format="ISO8601", errors="coerce")
        _refuse(column, moments.isna().to_numpy(), kind, where)
        return pa.chunked_array([pa.Array.from_pandas(moments.dt.as_unit("us"))])
    if kind == "number" and is_text:
        numbers = pd.to_numeric(column.to_pandas(), errors="coerce")
        _refuse(column, numbers.isna().to_numpy(), kind, where)
        return pa.chunked_array([pa.array(numbers, pa.float64(), from_pandas=True)])
    try:
        return column.cast({"number": pa.float64(), "category": pa.string(), "date": pa.timestamp("us", "UTC")}[kind])
    except pa.ArrowException as e:
        raise DataError(f"{where}: is {column.type}, which cannot be read as a {kind}") from e


def _refuse(column: pa.ChunkedArray, missing: np.ndarray, kind: str, where: str) -> None:
    """Raises DataError naming the first row that held something and is missing now."""
    lost = np.flatnonzero(missing & column.is_valid().to_numpy())
    if len(lost):
        row = int(lost[0])
        raise DataError(
            f"{where}: cannot be read as a {kind}: row {row} holds {column[row].as_py()!r}; correct it, or read the "
            "attribute as something else"
        )
