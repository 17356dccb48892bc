"""Item text: the input of the encoder, a template filled with the columns of an item.

The nightly run and the embedding worker both use `catalogue_texts`, so an item that is written again without changes
has exactly the same text. A prompt that a model needs ("passage: ") is part of the template, and therefore of the
encoder's fingerprint.
"""

from __future__ import annotations

import datetime
import math
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from features.catalogue import STANDARD_COLUMNS
from features.text.tokens import MARKS
from text_encoder.errors import EncoderError

DEFAULT_TEMPLATE = "{title}. {brand}. {category}. {description}"

MAX_CHARACTERS = 10_000
"""Longer values are truncated. More than any encoder reads, and not enough to make the tokenizer slow."""

_NAME = re.compile(rf"[^\W\d][\w{MARKS} -]*")
_SEPARATORS = " \t\n.,;:!?|/-–—·"
_END_PUNCTUATION = ".,;:!?。，；：！？।،؛؟"


class _Field(NamedTuple):
    """An attribute in a template, with the literal text between it and the attribute before it."""

    literal: str
    attribute: str


class _Template(NamedTuple):
    prefix: str
    fields: tuple[_Field, ...]
    suffix: str


def _parse(template: str) -> _Template:
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise EncoderError(
            f"text template {template!r}: {error}; write attributes in braces, as in {{title}}"
        ) from None
    fields, literal, prefix = [], "", None
    for text, attribute, spec, conversion in parsed:
        literal += text
        if attribute is None:
            continue
        if spec or conversion or not _NAME.fullmatch(attribute):
            raise EncoderError(
                f"text template {template!r}: '{attribute}' is not a plain attribute name; "
                "write {name}, without an index, format or conversion"
            )
        if prefix is None:
            prefix, literal = literal, ""
        fields.append(_Field(literal, attribute))
        literal = ""
    if prefix is None:
        raise EncoderError(f"text template {template!r} contains no attribute; use for example {DEFAULT_TEMPLATE!r}")
    return _Template(prefix, tuple(fields), literal)


def attributes(template: str) -> tuple[str, ...]:
    """The distinct attributes in a template, in order. Raises `EncoderError` for an invalid template."""
    return tuple(dict.fromkeys(field.attribute for field in _parse(template).fields))


def _fold_white_space(value: str) -> str:
    # The tokenizer fails on lone surrogates, which come from broken UTF-16.
    return " ".join(value[:MAX_CHARACTERS].encode("utf-8", "replace").decode("utf-8").replace("\0", " ").split())


def _number(value: float) -> str:
    if not math.isfinite(value):
        return ""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.6g}"


def _value_text(value: object) -> str:
    """A value as text, "" if missing."""
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]")  # tolist() would turn nanoseconds into an integer
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    # Missing values of pandas, identified by name to avoid importing pandas.
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return ""
    if isinstance(value, str):
        return _fold_white_space(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(float(value))
    if isinstance(value, datetime.date):
        return value.isoformat()[:10]
    if isinstance(value, Iterable) and not isinstance(value, bytes | Mapping):
        return _fold_white_space(", ".join(text for text in map(_value_text, value) if text))
    raise TypeError(f"{type(value).__name__} {str(value)[:60]!r}: expected text, a number, a date or a list of these")


def _fill(template: _Template, values: Sequence[str]) -> str:
    out = ""
    for field, value in zip(template.fields, values, strict=True):
        if not value:
            continue
        literal = field.literal if out else field.literal.lstrip(_SEPARATORS)
        # "Hammer!" + ". " + "Acme" becomes "Hammer! Acme", because the first value ends in punctuation.
        if out and out[-1] in _END_PUNCTUATION and literal[:1] in tuple(_END_PUNCTUATION):
            literal = literal[1:]
        out += literal + value
    return f"{template.prefix}{out}{template.suffix}".strip() if out else ""


def item_texts(template: str, columns: Mapping[str, Sequence[object]]) -> list[str]:
    """The text of every item: the template filled with its attributes; "" if all of these are missing.

    template: attributes in braces; `{{` for a literal brace. Text before the first attribute starts every item text.
    Text between two attributes belongs to the second one and is left out if that is missing. If it would start the item
    text, its leading punctuation is left out.

    columns: attribute name to one value per item: text, a number, a date, or a list of these, which is joined with ",
    ". None, NaN, infinity, NA, NaT, blank text and empty lists are missing. White space is folded.

    Raises `EncoderError` for an invalid template and an unknown attribute, `ValueError` for columns of different
    lengths, and `TypeError`, naming attribute and row, for a value of another type.
    """
    parsed = _parse(template)
    unknown = [field.attribute for field in parsed.fields if field.attribute not in columns]
    if unknown:
        raise EncoderError(
            f"text template {template!r}: unknown attribute '{unknown[0]}'; the items have {', '.join(sorted(columns))}"
        )
    lengths = {field.attribute: len(columns[field.attribute]) for field in parsed.fields}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"text template {template!r}: columns have different lengths: {lengths}")
    column_texts = []
    for field in parsed.fields:
        texts = []
        for row, value in enumerate(columns[field.attribute]):
            try:
                texts.append(_value_text(value))
            except TypeError as error:
                raise TypeError(f"attribute '{field.attribute}', row {row}: {error}") from None
        column_texts.append(texts)
    return [_fill(parsed, values) for values in zip(*column_texts, strict=True)]


def catalogue_texts(template: str, items: pa.Table) -> list[str]:
    """The text of every row of an items table; "" if all attributes of the template are missing.

    template: as in `item_texts`. A column that the table does not have is missing for all items. `{attributes}` stands
    for the values of all text and text-list columns that are not standard columns, ordered by column name and then by
    value. The order and repeats of the values in a list do not matter: each distinct value is used once, as text, in
    ascending order.

    Raises ValueError for an invalid template, and TypeError if a column in the template contains anything except text,
    numbers, dates and lists of these.
    """
    named = attributes(template)
    missing: list[object] = [None] * len(items)
    columns = {n: _canonical(items[n]) if n in items.column_names else missing for n in named}
    if "attributes" in named:
        columns["attributes"] = _attribute_values(items)
    return item_texts(template, columns)


def _attribute_values(items: pa.Table) -> list[object]:
    """Values of each item in the text and text-list columns that are not standard columns."""
    own = [f.name for f in items.schema if f.name not in STANDARD_COLUMNS and _holds_text(f.type)]
    rows: list[list[object]] = [[] for _ in range(len(items))]
    for name in sorted(own):
        for row, value in zip(rows, _canonical(items[name]), strict=True):
            row += value if isinstance(value, list) else [value]
    return list(rows)


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _canonical(column: pa.ChunkedArray) -> list[object]:
    """Values of a column. Each list is replaced by its distinct values in ascending order."""
    values = column.to_pylist()
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return list(values)
    return [v if v is None else sorted({text for text in map(_value_text, v) if text}) for v in values]
