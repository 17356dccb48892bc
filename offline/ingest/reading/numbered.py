"""Lists from numbered columns: `line_1_sku`, `line_1_quantity`, `line_2_sku`, ... become one nested column."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from offline.ingest.reading.library import Library, literal, quoted

_DIGITS = re.compile(r"\d+")
_SEPARATORS = re.compile(r"[\W_]*")
NUMBER, FIELD = "{number}", "{field}"


class Numbered(NamedTuple):
    """A list that numbered columns may be. name: for the list. template: of the columns. fields: [] of a plain list."""

    name: str
    template: str
    fields: Sequence[str]


def matching(columns: Sequence[str], template: str) -> dict[int, dict[str, str]]:
    """Columns that fit a template, by number and field, which is "" without `{field}`. In the order of the numbers."""
    parts = [
        {NUMBER: r"(?<!\d)(?P<number>\d{1,6})(?!\d)", FIELD: r"(?P<field>.+)"}.get(part, re.escape(part))
        for part in re.split(r"(\{number\}|\{field\})", template)
    ]
    found: dict[int, dict[str, str]] = {}
    for column in columns:
        if match := re.fullmatch("".join(parts), column):
            found.setdefault(int(match["number"]), {}).setdefault(match.groupdict().get("field") or "", column)
    return dict(sorted(found.items()))


def make_lists(library: Library, name: str, lists: Mapping[str, str]) -> None:
    """Replace numbered columns of a table by lists. lists: name of the list to template of its columns.

    An element is an object of the fields, or a text if the template has none. Numbers without any value are left out.
    Raises DataError if no column fits, or a list has the name of a column.
    """
    for new, template in lists.items():
        table = library.tables[name]
        found = matching(list(table.columns), template)
        used = [column for fields in found.values() for column in fields.values()]
        if not found:
            raise table.error(f"no column fits {template!r} of the list {new!r}")
        if new.lower() in {column.lower() for column in table.columns if column not in used}:
            raise table.error(f"the list {new!r} has the name of a column", "Give it another name under `lists`.")
        listed = ", ".join(map(_element, found.values()))
        elements = f"nullif(list_filter([{listed}], lambda x: x IS NOT NULL), [])"
        kept = "".join(f"{quoted(column)}, " for column in table.columns if column not in used)
        library.sql.execute(
            f"CREATE OR REPLACE TABLE {quoted(name)} AS SELECT {kept}to_json({elements}) AS {quoted(new)},"
            f" _file, _row, _seq FROM {quoted(name)} ORDER BY _seq"
        )
        library.add(table)


def _element(fields: Mapping[str, str]) -> str:
    """Expression of one element, null if all of its cells are missing."""
    filled = " OR ".join(f"tidy(CAST({quoted(column)} AS VARCHAR)) IS NOT NULL" for column in fields.values())
    if list(fields) == [""]:
        value = f"to_json({quoted(fields[''])})"
    else:
        value = f"json_object({', '.join(f'{literal(field)}, {quoted(c)}' for field, c in fields.items())})"
    return f"CASE WHEN {filled} THEN {value} END"


def find_numbered(columns: Sequence[str]) -> Iterator[Numbered]:
    """Lists that columns may be: at least two numbers with a field of one name, or with nothing but the number."""
    templates = Counter(template for column in columns for template in dict.fromkeys(_templates(column)))
    for template in (t for t, count in templates.items() if count > 1):
        found = matching(columns, template)
        fields = dict.fromkeys(field for of_number in found.values() for field in of_number)
        repeated = [f for f in fields if sum(f in of_number for of_number in found.values()) > 1]
        if repeated:
            rest = template.replace(NUMBER, " ").replace(FIELD, " ")
            called = re.sub(r"[\W_]+", "_", rest).strip("_") or "lines"
            taken = {c for c in columns if c not in {c for of in found.values() for c in of.values()}}
            while called in taken:
                called += "_list"
            yield Numbered(called, template, [] if repeated == [""] else repeated)


def _templates(column: str) -> Iterator[str]:
    """Templates of a column: `line_1_sku` may be `line_{number}_{field}`, `sku_1` `{field}_{number}`."""
    for digits in _DIGITS.finditer(column):
        before, after = column[: digits.start()], column[digits.end() :]
        separator = _match(_SEPARATORS, after)
        if len(after) > len(separator):
            yield f"{before}{NUMBER}{separator}{FIELD}"
        separator = _match(re.compile(r"(?<=[^\W_])[\W_]*$"), before)
        if len(before) > len(separator) and not _DIGITS.search(after):
            yield f"{FIELD}{separator}{NUMBER}{after}"
            yield f"{before}{NUMBER}{after}"


def _match(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[0] if found else ""
