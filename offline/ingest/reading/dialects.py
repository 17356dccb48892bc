"""Dialect of a delimited text: delimiter, quote, header, found by parsing its first lines with each candidate."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from offline.runtime import DataError

SAMPLE_BYTES = 2**18
SAMPLE_LINES = 500
MOST_COLUMNS = 2000
_LONGEST_CELL = 64 * 2**20
"""Characters of one cell that are read in search of a closing quote. Python's own bound is 131,072."""
csv.field_size_limit(_LONGEST_CELL)
_DELIMITERS = ("\t", ",", ";", "|", "::", "\x01", "^")
_VALUE = re.compile(r"[+-]?[\d.,]*\d[\d.,]*(?:[eE][+-]?\d+)?|\d{4}-\d\d-\d\d[T ]?.*|\d\d?[./]\d\d?[./]\d{2,4}.*")
_SEP = re.compile(r"sep=(.+)", re.IGNORECASE)


@dataclass(frozen=True)
class Dialect:
    """Dialect of a delimited text.

    quote: "" for none. given: whether the quote is configured rather than guessed. header: whether the first row (after
    `skip` lines) has the column names. names: of the columns.
    """

    delimiter: str
    quote: str
    header: bool
    names: Sequence[str]
    skip: int = 0
    given: bool = False


def column_names(cells: Sequence[str]) -> list[str]:
    """Names of columns from a header: trimmed, `column_3` for a blank one, `name (2)` for a repeated one."""
    out: list[str] = []
    seen: Counter[str] = Counter()
    for i, cell in enumerate(cells, 1):
        name = cell.strip().strip("\ufeff") or f"column_{i}"
        # DuckDB compares names without regard to case.
        seen[name.lower()] += 1
        while seen[name.lower()] > 1:
            name = f"{cell.strip() or f'column_{i}'} ({seen[name.lower()]})"
            seen[name.lower()] += 1
        out.append(name)
    return out


def split_line(line: str, delimiter: str, quote: str = '"') -> list[str]:
    """Cells of one record."""
    if not quote or len(delimiter) > 1:
        return line.rstrip("\r\n").split(delimiter)
    return next(csv.reader([line], delimiter=delimiter, quotechar=quote), [])


def beginning(path: Path) -> str:
    """The first lines of a UTF-8 file, at most `SAMPLE_BYTES`. A first line that is longer is cut off."""
    with path.open("rb") as file:
        raw = file.read(SAMPLE_BYTES)
        whole = not file.read(1)
    text = raw.decode("utf-8-sig", "replace")
    return text if whole else text[: text.rfind("\n") + 1] or text


def sniff(path: Path, delimiter: str | None = None, quote: str | None = None, header: bool | None = None) -> Dialect:
    """The dialect of a UTF-8 file; given parts are not guessed. Raises DataError for an empty file.

    A file of more than `MOST_COLUMNS` columns is an error too, before any table is made of them.
    """
    text = beginning(path)
    skip, given = 0, quote is not None
    if found := _SEP.fullmatch(text.split("\n", 1)[0].strip()):
        delimiter, skip = delimiter or found[1].replace("\\t", "\t"), 1
        text = text.split("\n", 1)[1] if "\n" in text else ""
    lines = [line for line in text.splitlines(keepends=True) if line.strip()][:SAMPLE_LINES]
    if not lines:
        raise DataError(f"{path.name}: is empty. A table needs at least one row.")
    delimiter = delimiter or max(_DELIMITERS, key=lambda d: _fitness(lines, d))
    if quote is None:
        quote = "" if len(delimiter) > 1 or _quotes_are_text(lines, delimiter) else '"'
    rows = _rows(lines, delimiter, quote)
    if header is None:
        header = not any(_VALUE.fullmatch(cell.strip()) for cell in rows[0])
    if len(rows[0]) > MOST_COLUMNS:
        raise DataError(
            f"{path.name}: has more than {MOST_COLUMNS} columns. If it has not, set `delimiter`; else export fewer."
        )
    names = column_names(rows[0]) if header else [f"column_{i}" for i in range(1, len(rows[0]) + 1)]
    return Dialect(delimiter, quote, header, names, skip, given)


def _rows(lines: Sequence[str], delimiter: str, quote: str) -> list[list[str]]:
    if not quote or len(delimiter) > 1:
        return [line.rstrip("\r\n").split(delimiter) for line in lines]
    return [row for row in csv.reader(lines, delimiter=delimiter, quotechar=quote) if row]


def _fitness(lines: Sequence[str], delimiter: str) -> tuple[float, int]:
    """Share of rows with the most common number of columns, 0 for one column; and that number."""
    counts = Counter(len(row) for row in _rows(lines, delimiter, '"'))
    most, times = counts.most_common(1)[0]
    return (0.0 if most == 1 else round(times / counts.total(), 1), most)


def _quotes_are_text(lines: Sequence[str], delimiter: str) -> bool:
    """True if a cell of one line opens a quote that it does not close, in a table that has no other quoted cells."""
    if delimiter != "\t":
        return False
    cells = [cell for line in lines for cell in line.rstrip("\r\n").split(delimiter) if cell.startswith('"')]
    return not all(len(cell) > 1 and cell.endswith('"') for cell in cells)


def unclosed_quote(path: Path, dialect: Dialect) -> tuple[int, str] | None:
    """Record (the first line is 1) and its first characters where a quote is opened and never closed, else None."""
    if not dialect.quote or _count(path, dialect.quote.encode()) % 2 == 0:
        return None
    record, first = dialect.skip, ""

    def lines(file: Iterable[str]) -> Iterator[str]:
        nonlocal first
        for line in islice(file, dialect.skip, None):
            first = first or line
            yield line

    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(lines(file), delimiter=dialect.delimiter, quotechar=dialect.quote, strict=True)
        while True:
            first, record = "", record + 1
            try:
                next(reader)
            except StopIteration:
                return None
            except csv.Error as error:
                if "end of data" in str(error) or "field limit" in str(error):
                    return record, first.strip()[:80]


def _count(path: Path, byte: bytes) -> int:
    with path.open("rb") as file:
        return sum(chunk.count(byte) for chunk in iter(lambda: file.read(2**20), b""))
