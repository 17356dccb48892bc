"""SQL functions that all cells share: trimmed texts, IDs, HTML to text."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import duckdb
import pyarrow as pa

from features.bounds import CONTROL, PLACEHOLDER_IDS
from offline.ingest.reading.library import literal

_SPACES = "".join(
    map(chr, (*range(9, 14), 28, 29, 30, 31, 32, 133, 160, 5760, *range(8192, 8203), 8232, 8233, 8239, 8287))
)
_SPACES += "\u3000"
_SPACE = r"[\s\x{1c}-\x{1f}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]"
_OUTER_SPACE = literal(f"^{_SPACE}|{_SPACE}$")
_COMMA_AMOUNT = r"^[^,]*\..*,\d+$|^[^.,]*,(\d{1,2}|\d{4,})$"
_TAG = re.compile(r"<(?:/?[a-zA-Z][a-zA-Z0-9]*(?:\s[^<>]*)?/?|!--.*?--)>", re.DOTALL)
_HIDDEN = frozenset({"style", "script", "template", "head"})
_BLOCKS = frozenset(
    {
        "p",
        "div",
        "br",
        "li",
        "ul",
        "ol",
        "tr",
        "td",
        "th",
        "table",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "dt",
        "dd",
        "hr",
    }
)


def create_macros(sql: duckdb.DuckDBPyConnection, missing: Sequence[str]) -> None:
    """Define the SQL functions of this file in a database: `tidy`, `id_text`, `join_key` and others.

    `amount(x)` is a number with a decimal point or comma: the comma is one unless three digits follow it.
    `joined(x, separator)` is the elements of a JSON list as one text, and any other value as a text. missing: texts
    that count as missing.
    """
    words = ", ".join(literal(word) for word in dict.fromkeys(("", *missing)))
    placeholders = ", ".join(literal(word) for word in sorted(PLACEHOLDER_IDS))
    spaces = literal(_SPACES)
    register: Any = sql.create_function
    register("plain_text_of", _plain_texts, ["VARCHAR"], "VARCHAR", type="arrow")
    for macro in (
        # `trim` with a set of characters takes 8 us a cell, so that only cells that need it get it.
        f"tidy(x) AS CASE WHEN x IN ({words}) THEN NULL WHEN regexp_matches(x, {_OUTER_SPACE}) THEN"
        f" (CASE WHEN trim(x, {spaces}) IN ({words}) THEN NULL ELSE trim(x, {spaces}) END)"
        # Spreadsheets write ="00042" for a text that looks like a number.
        """ WHEN starts_with(x, '="') AND ends_with(x, '"') THEN nullif(x[3:-2], '') ELSE x END""",
        # `nfc_normalize` ends a text at its first NUL.
        "id_text(x) AS CASE WHEN contains(x, chr(0)) THEN x ELSE nfc_normalize(x) END",
        # A key of JSON that is an object in any record is a JSON column, which a text cannot be compared with.
        "scalar(x) AS json_extract_string(to_json(x), '$')",
        "as_json(x) AS CASE WHEN json_valid(x) THEN x::JSON END",
        "number_text(x) AS CASE WHEN isnan(x::DOUBLE) THEN NULL WHEN isfinite(x::DOUBLE) AND abs(x::DOUBLE) < 1e18 AND"
        " x::DOUBLE = trunc(x::DOUBLE) THEN x::BIGINT::VARCHAR ELSE x::VARCHAR END",
        # As IDs are compared in joins: if a cell of the column is empty, pandas writes 1001.0 for 1001 and 1e+05 for
        # 100000.
        "join_key(x) AS CASE WHEN regexp_matches(x, '^-?\\d+\\.0+$') THEN regexp_replace(x, '\\.0+$', '')"
        " WHEN regexp_matches(x, '^\\d(\\.\\d+)?e\\+\\d+$') THEN number_text(TRY_CAST(x AS DOUBLE)) ELSE x END",
        f"id_problem(x) AS CASE WHEN x IN ({placeholders}) THEN 'placeholder_id'"
        f" WHEN regexp_matches(x, '{CONTROL}') THEN 'control_character'"
        " WHEN strlen(x) > 256 THEN 'id_too_long' END",
        "plain_text(x) AS CASE WHEN x IS NULL THEN NULL WHEN contains(x, '<') OR contains(x, '&') THEN plain_text_of(x)"
        " ELSE x END",
        "one_line(x) AS nullif(trim(regexp_replace(x, '[\\s\\x{a0}]+', ' ', 'g')), '')",
        "joined(x, separator) AS CASE WHEN json_type(as_json(x::VARCHAR)) = 'ARRAY' THEN"
        " nullif(array_to_string(json_extract_string(as_json(x::VARCHAR), '$[*]'), separator), '')"
        " ELSE tidy(json_extract_string(coalesce(as_json(x::VARCHAR), to_json(x::VARCHAR)), '$')) END",
        f"amount(x) AS TRY_CAST(CASE WHEN regexp_matches(x::VARCHAR, '{_COMMA_AMOUNT}') THEN"
        " replace(replace(x::VARCHAR, '.', ''), ',', '.') ELSE replace(x::VARCHAR, ',', '') END AS DOUBLE)",
        "flag(x) AS CASE WHEN lower(x) IN ('true', '1', 'yes', 'y', 't') THEN true"
        " WHEN lower(x) IN ('false', '0', 'no', 'n', 'f') THEN false END",
    ):
        sql.execute(f"CREATE OR REPLACE MACRO {macro}")


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.hidden += tag in _HIDDEN
        if tag in _BLOCKS:
            self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in _HIDDEN and self.hidden > 0
        if tag in _BLOCKS:
            self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


_NAMES = frozenset(
    _BLOCKS
    | _HIDDEN
    | {"a", "b", "i", "u", "s", "em", "strong", "span", "img", "font", "small", "big", "sub", "sup"}
    | {
        "section",
        "article",
        "header",
        "footer",
        "body",
        "html",
        "tbody",
        "thead",
        "blockquote",
        "pre",
        "code",
        "center",
    }
    | {
        "iframe",
        "video",
        "source",
        "figure",
        "figcaption",
        "button",
        "input",
        "form",
        "label",
        "svg",
        "path",
        "link",
        "meta",
    }
)


def html_to_text(text: str) -> str:
    """Text without HTML tags, styles and scripts, with entities decoded. A `<` that begins no known tag stays."""
    if any(
        m[0][1:2] == "!" or re.split(r"[\s/>]", m[0].lstrip("</"))[0].lower() in _NAMES for m in _TAG.finditer(text)
    ):
        parser = _Text()
        parser.feed(text)
        parser.close()
        text = "".join(parser.parts)
    # Entities may be escaped twice: `&amp;amp;`.
    return html.unescape(html.unescape(text))


def _plain_texts(texts: pa.ChunkedArray) -> pa.Array:
    return pa.array([None if t is None else html_to_text(t) for t in texts.to_pylist()], pa.string())
