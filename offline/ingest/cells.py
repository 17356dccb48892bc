"""Converts columns of any type to text, IDs, numbers, flags and timestamps.

Each function takes a whole column, rejects the rows it cannot convert, and returns a column of the same length.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from features.arrays import F64, I64
from features.bounds import ID_BYTES, MAX_NUMBER, PLACEHOLDER_IDS, TEXT_CHARACTERS, IdError, clean_id
from offline.ingest.quarantine import Mask, Rows

_ZONE = r"[Zz]$|[Tt ]\d.*[+-]\d{2}:?(?:\d{2})?$"
_PLAIN_ID = r"^[!-~]+(?: +[!-~]+)*$"
_PLACEHOLDERS = pa.array(sorted(PLACEHOLDER_IDS), pa.string())
_NUMERAL = r"^[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?$"


@dataclass(frozen=True)
class Limits:
    """Settings of the whole import: spellings of missing values, and the accepted range of timestamps in Unix us."""

    missing: Sequence[str]
    earliest_us: int
    latest_us: int


@dataclass(frozen=True)
class Moments:
    """Timestamp format of a source.

    unit: `auto`, `s`, `ms`, `us` or `iso`. form: a `strptime` format. zone: time zone of timestamps without an offset.
    """

    unit: str
    form: str | None
    zone: ZoneInfo


def decode_dictionary(array: pa.Array) -> pa.Array:
    """The column as one array, without chunks or dictionary encoding."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    return array.dictionary_decode() if isinstance(array, pa.DictionaryArray) else array


def null_mask(array: pa.Array) -> Mask:
    """bool[n], with null as False."""
    return np.asarray(pc.fill_null(array, False))


def _decoded(rows: Rows, column: str, array: pa.Array) -> pa.Array:
    """The column decoded from UTF-8; rejects cells that are not UTF-8."""
    raw = array.cast(pa.binary())
    try:
        return raw.cast(pa.string())
    except pa.ArrowInvalid:
        pass
    cells: list[str | None] = []
    bad = np.zeros(len(raw), np.bool_)
    for i, cell in enumerate(raw.to_pylist()):
        try:
            cells.append(None if cell is None else cell.decode())
        except UnicodeDecodeError:
            cells.append(None)
            bad[i] = True
    rows.refuse(bad, column, raw, "bad_encoding")
    return pa.array(cells, pa.string())


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def is_text_list(kind: pa.DataType) -> bool:
    """True for lists of elements that can be converted to text."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind)) and not pa.types.is_nested(kind.value_type)


def is_numeric(kind: pa.DataType) -> bool:
    """True for integers, floats, decimals and booleans."""
    types = pa.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_boolean(kind))


def as_text(rows: Rows, column: str, array: pa.Array, limits: Limits) -> pa.Array:
    """Trimmed text, null for missing. Whole numbers in a float column lose their `.0`."""
    array = decode_dictionary(array)
    if _is_text(array.type):
        text = _decoded(rows, column, array)
    elif is_text_list(array.type):
        text = pc.binary_join(array.cast(pa.list_(pa.string())), "|")
    elif pa.types.is_floating(array.type):
        number = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
        whole = np.isfinite(number) & (np.abs(number) < 2**63) & (number == np.trunc(number))
        as_int = pa.array(np.where(whole, number, 0).astype(np.int64)).cast(pa.string())
        nan = pc.if_else(pa.array(np.isnan(number)), None, array.cast(pa.string()))
        text = pc.if_else(pa.array(whole), as_int, nan)
    else:
        try:
            text = array.cast(pa.string())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            rows.refuse(np.asarray(array.is_valid()), column, array, "wrong_type")
            text = pa.nulls(len(array), pa.string())
    text = pc.utf8_trim_whitespace(text)
    return pc.if_else(pc.is_in(text, pa.array(limits.missing, pa.string())), pa.scalar(None, pa.string()), text)


def as_id(rows: Rows, column: str, array: pa.Array, limits: Limits, missing: str | None = None) -> pa.Array:
    """IDs as text. Rejects long IDs, control characters and missing IDs (with reason `missing`; allowed if None)."""
    array = decode_dictionary(array)
    if pa.types.is_boolean(array.type) or pa.types.is_temporal(array.type) or pa.types.is_nested(array.type):
        rows.refuse(np.asarray(array.is_valid()), column, array, "wrong_type")
        text = pa.nulls(len(array), pa.string())
    else:
        text = as_text(rows, column, array, limits)
    if missing is not None:
        rows.refuse(np.asarray(text.is_null()), column, array, missing)
    return _clean_ids(rows, column, array, text)


def _clean_ids(rows: Rows, column: str, array: pa.Array, text: pa.Array) -> pa.Array:
    """IDs in canonical form; rejects invalid ones. Only IDs that may need it go through `clean_id`, once each."""
    values = pc.unique(text).drop_null()
    plain = pc.and_(pc.match_substring_regex(values, _PLAIN_ID), pc.less_equal(pc.binary_length(values), ID_BYTES))
    special = values.filter(pc.or_(pc.invert(plain), pc.is_in(values, _PLACEHOLDERS)))
    if not len(special):
        return text
    cleaned: list[str | None] = []
    reasons: list[str] = []
    for value in special.to_pylist():
        try:
            cleaned.append(clean_id(value))
            reasons.append("")
        except IdError as e:
            cleaned.append(None)
            reasons.append(e.code)
    at = pc.index_in(text, special)
    reason = np.array([*reasons, ""])[pc.fill_null(at, len(reasons)).to_numpy(zero_copy_only=False)]
    for code in sorted(set(reasons) - {""}):
        rows.refuse(reason == code, column, array, code)
    return pc.if_else(at.is_valid(), pa.array(cleaned, pa.string()).take(at), text)


def as_words(rows: Rows, column: str, array: pa.Array, limits: Limits, most: int) -> pa.Array:
    """Short text such as a query, null for missing. Rejects control characters, and more than `most` characters."""
    array = decode_dictionary(array)
    if pa.types.is_boolean(array.type) or pa.types.is_temporal(array.type) or pa.types.is_nested(array.type):
        rows.refuse(np.asarray(array.is_valid()), column, array, "wrong_type")
        return pa.nulls(len(array), pa.string())
    text = as_text(rows, column, array, limits)
    rows.refuse(null_mask(pc.match_substring_regex(text, r"\p{Cc}")), column, array, "control_character")
    rows.refuse(null_mask(pc.greater(pc.utf8_length(text), most)), column, array, f"{column}_too_long")
    return text


def as_number(rows: Rows, column: str, array: pa.Array, limits: Limits) -> F64:
    """float64, NaN for missing (NaN in the file counts as missing). Rejects other text, and numbers too large."""
    array = decode_dictionary(array)
    if pa.types.is_null(array.type):
        return np.full(len(array), np.nan)
    if is_numeric(array.type):
        out: F64 = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)
    else:
        text = as_text(rows, column, array, limits)
        out = np.asarray(pd.to_numeric(text.to_pandas().astype(object), errors="coerce"), np.float64)
        rows.refuse(np.isnan(out) & np.asarray(text.is_valid()), column, array, "not_a_number")
    rows.refuse(np.isinf(out), column, array, "not_finite")
    rows.refuse(np.isfinite(out) & (np.abs(out) > MAX_NUMBER), column, array, "number_too_large")
    return out


def as_flag(rows: Rows, column: str, array: pa.Array, limits: Limits) -> pa.Array:
    """Booleans, null for missing. Accepts true or false, 1 or 0, yes or no."""
    array = decode_dictionary(array)
    if pa.types.is_boolean(array.type):
        return array
    text = pc.utf8_lower(as_text(rows, column, array, limits))
    yes, no = (pc.is_in(text, pa.array(words)) for words in (["true", "1", "yes"], ["false", "0", "no"]))
    rows.refuse(null_mask(pc.and_(text.is_valid(), pc.invert(pc.or_(yes, no)))), column, array, "wrong_type")
    return pc.if_else(pc.or_(yes, no), yes, pa.scalar(None, pa.bool_()))


def bounded_text(rows: Rows, column: str, array: pa.Array, limits: Limits) -> pa.Array:
    """Text with HTML entities decoded and whitespace collapsed. Rejects more than `TEXT_CHARACTERS` characters."""
    text = as_text(rows, column, array, limits)
    escaped = null_mask(pc.match_substring_regex(text, r"&#?\w+;"))
    if escaped.any():
        plain_text = [html.unescape(t) for t in text.filter(pa.array(escaped)).to_pylist()]
        text = pc.replace_with_mask(text, pa.array(escaped), pa.array(plain_text, pa.string()))
    text = pc.utf8_trim_whitespace(pc.replace_substring_regex(text, r"\s+", " "))
    rows.refuse(
        null_mask(pc.greater(pc.utf8_length(text), TEXT_CHARACTERS)), column, decode_dictionary(array), "text_too_long"
    )
    return text


# --- timestamps -----------------------------------------------------------------------------------------------------

_UNITS = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
NO_MOMENT = np.iinfo(np.int64).min


def _from_numbers(number: F64, unit: str) -> I64:
    """Unix us from Unix time in a unit, or in the unit that fits its size: 1e11 s is the year 5138, 1e11 ms is 1973."""
    size = np.abs(number)
    auto = np.select([size < 1e11, size < 1e14, size < 1e17], [1e6, 1e3, 1.0], 1e-3)
    with np.errstate(over="ignore", invalid="ignore"):
        us = np.rint(number * (auto if unit in ("auto", "iso") else _UNITS[unit]))
    good = np.isfinite(us) & (np.abs(us) < 2.5e17)
    out: I64 = np.where(good, np.where(good, us, 0).astype(np.int64), NO_MOMENT)
    return out


def _us(series: Any) -> I64:
    out: I64 = series.dt.tz_convert("UTC").dt.tz_localize(None).astype("datetime64[us]").to_numpy().astype(np.int64)
    return out


def _localize(naive: Any, zone: ZoneInfo) -> Any:
    # The hour repeated in autumn is read as the second (winter) one; times in the hour skipped in spring shift forward.
    return naive.dt.tz_localize(zone, ambiguous=np.zeros(len(naive), np.bool_), nonexistent="shift_forward")


def _from_text(text: pa.Array, how: Moments) -> I64:
    out: I64 = np.full(len(text), NO_MOMENT)
    valid = np.asarray(text.is_valid())
    numeral = null_mask(pc.match_substring_regex(text, _NUMERAL)) & (how.unit != "iso") & (how.form is None)
    if numeral.any():
        number = np.asarray(pd.to_numeric(text.filter(pa.array(numeral)).to_pandas(), errors="coerce"), np.float64)
        out[numeral] = _from_numbers(number, how.unit)
    form, values = how.form or "ISO8601", text.to_pandas().astype(object)
    zoned = (null_mask(pc.match_substring_regex(text, _ZONE)) | ("%z" in form.lower())) & ~numeral & valid
    if zoned.any():
        out[zoned] = _us(pd.to_datetime(values[zoned], format=form, errors="coerce", utc=True))
    rest = ~numeral & ~zoned & valid
    if rest.any():
        naive = pd.to_datetime(values[rest], format=form, errors="coerce", utc=True).dt.tz_localize(None)
        out[rest] = _us(_localize(naive, how.zone))
    return out


def as_moments(rows: Rows, column: str, array: pa.Array, limits: Limits, how: Moments, required: bool) -> I64:
    """int64 microseconds since 1970 UTC, `NO_MOMENT` for missing. Rejects values that are not timestamps."""
    array = decode_dictionary(array)
    kind = array.type
    if pa.types.is_date(kind):
        array = array.cast(pa.timestamp("ms"))
        kind = array.type
    if pa.types.is_timestamp(kind):
        number = array.cast(pa.int64()).to_numpy(zero_copy_only=False).astype(np.float64)
        out = _from_numbers(number, kind.unit)
        if kind.tz is None and how.zone.key != "UTC":
            naive = pd.Series(
                pd.to_datetime(np.where(out == NO_MOMENT, np.datetime64("NaT", "us"), out.astype("datetime64[us]")))
            )
            out = _us(_localize(naive, how.zone))
        present = np.asarray(array.is_valid())
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        number = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)
        out, present = _from_numbers(number, how.unit), ~np.isnan(number)
    else:
        text = as_text(rows, column, array, limits)
        out, present = _from_text(text, how), np.asarray(text.is_valid())
    if required:
        rows.refuse(~present, column, array, "missing_timestamp")
    rows.refuse(present & (out == NO_MOMENT), column, array, "bad_timestamp")
    return out
