"""Conversion of item attributes to the types given in the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from features.bounds import ITEM_MOMENTS, MAX_NUMBER, is_within
from features.catalogue import STANDARD_COLUMNS
from offline.config import AttributeKind
from offline.runtime import DataError

_SEPARATOR = r"\s*[,;|]\s*"
_KIND, _SOURCE = b"shelfwise.kind", b"shelfwise.source"
"""Metadata of a converted column: the kind it was converted to, and the type it had before."""
_ALIASES = {str(kind): kind for kind in (pa.string(), pa.large_string(), pa.float64(), pa.int64(), pa.bool_())}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
UNCHANGED = object()
"""Result for a written value that does not fit its column: the cell keeps its value."""


def convert_attributes(items: pa.Table, kinds: Mapping[str, AttributeKind], file: str) -> pa.Table:
    """Convert attributes to numbers (number, value), strings (category), lists of strings (tags) or timestamps (date).

    kinds: by attribute; other attributes are not changed. Tags are split at commas, semicolons and vertical bars, and
    dates are parsed as ISO 8601. `ignore` drops the column. `is_value` tells a value from a number.
    Raises DataError for an unknown attribute, and for a value that cannot be converted, with its row.
    """
    attributes = [n for n in items.column_names if n not in STANDARD_COLUMNS]
    for name, kind in kinds.items():
        if name not in attributes:
            known = f"its attributes are {', '.join(attributes)}" if attributes else "it has no attributes"
            raise DataError(f"features.attributes.{name}: no such attribute in {file}; {known}")
        index = items.schema.get_field_index(name)
        if kind == "ignore":
            items = items.remove_column(index)
            continue
        column = items[name]
        converted = _convert(column, kind, f"{file}, column {name!r}")
        # Stored with the column, including in releases, so that values written later are converted in the same way.
        how = {_KIND: kind, _SOURCE: str(column.type)}
        items = items.set_column(index, pa.field(name, converted.type, metadata=how), converted)
    return items


def convert_value(value: object, field: pa.Field) -> object:
    """A value written to an attribute, converted to the type of its column; `UNCHANGED` if it does not fit.

    field: of the converted table. A value in the type of the original column is converted as the column was; one that
    already has the converted type is not changed.
    """
    how = field.metadata or {}
    source = _ALIASES.get(how.get(_SOURCE, b"").decode())
    if _KIND not in how or source is None:
        return cell(value, field.type)
    raw = cell(value, source)
    if raw is None or raw is UNCHANGED:
        return cell(value, field.type)
    try:
        converted = _convert(pa.chunked_array([pa.array([raw], source)]), how[_KIND].decode(), field.name)
    except DataError:
        return UNCHANGED
    return converted[0].as_py()


def is_value(field: pa.Field) -> bool:
    """True if a column of the converted table is a value, which is not a feature."""
    return bool((field.metadata or {}).get(_KIND) == b"value")


def cell(value: object, kind: pa.DataType) -> object:
    """A value converted to the type of a column; `UNCHANGED` if it does not fit."""
    if value is None:
        return None
    if pa.types.is_timestamp(kind):
        return _timestamp(value)
    if pa.types.is_boolean(kind):
        return value if isinstance(value, bool) else UNCHANGED
    if isinstance(value, int | float) and not abs(value) <= MAX_NUMBER:
        return UNCHANGED
    if pa.types.is_floating(kind):
        return float(value) if isinstance(value, int | float) else UNCHANGED
    if pa.types.is_integer(kind):
        return int(value) if isinstance(value, int | float) and value == int(value) else UNCHANGED
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return value if isinstance(value, str) else UNCHANGED
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return value if isinstance(value, list) else [value] if isinstance(value, str) else UNCHANGED
    return UNCHANGED


def _timestamp(value: object) -> object:
    if isinstance(value, str):
        try:
            when = datetime.fromisoformat(value)
        except ValueError:
            return UNCHANGED
        seconds = ((when if when.tzinfo else when.replace(tzinfo=UTC)) - _EPOCH) / timedelta(seconds=1)
    elif isinstance(value, int | float):
        seconds = value
    else:
        return UNCHANGED
    return _EPOCH + timedelta(seconds=seconds) if is_within(seconds, ITEM_MOMENTS) else UNCHANGED


def _convert(column: pa.ChunkedArray, kind: AttributeKind, where: str) -> pa.ChunkedArray:
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if is_list and kind != "tags":
        raise DataError(f"{where}: lists can only be read as tags, not as a {kind}; use the kind tags")
    if kind == "tags":
        return column if is_list else pc.split_pattern_regex(column.cast(pa.string()), _SEPARATOR)
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if kind == "date" and is_text:
        dates = pd.to_datetime(column.to_pandas(), utc=True, format="ISO8601", errors="coerce")
        _raise_for_invalid(column, dates.isna().to_numpy(), kind, where)
        return pa.chunked_array([pa.Array.from_pandas(dates.dt.as_unit("us"))])
    if kind in ("number", "value") and is_text:
        numbers = pd.to_numeric(column.to_pandas(), errors="coerce")
        _raise_for_invalid(column, numbers.isna().to_numpy(), kind, where)
        return pa.chunked_array([pa.array(numbers, pa.float64(), from_pandas=True)])
    try:
        return column.cast(
            {"number": pa.float64(), "value": pa.float64(), "category": pa.string(), "date": pa.timestamp("us", "UTC")}[
                kind
            ]
        )
    except pa.ArrowException as e:
        raise DataError(f"{where}: values of type {column.type} cannot be read as a {kind}; choose another kind") from e


def _raise_for_invalid(column: pa.ChunkedArray, missing: np.ndarray, kind: str, where: str) -> None:
    """Raise DataError for the first value that could not be converted. missing: bool[n], after the conversion."""
    invalid = np.flatnonzero(missing & column.is_valid().to_numpy())
    if len(invalid):
        row = int(invalid[0])
        raise DataError(
            f"{where}, row {row}: {column[row].as_py()!r} cannot be read as a {kind}; correct the value, or choose "
            "another kind for the attribute"
        )
