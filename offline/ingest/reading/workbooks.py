"""Excel workbooks: each sheet of a table is written as CSV; sheets without a table are named and left out."""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import python_calamine

from offline.runtime import DataError

_HEADER_ROWS = 20
MOST_UNPACKED = 2**30
"""Bytes of a workbook after unpacking. A sheet of the most rows that Excel has, and ten columns, takes about half."""
_CHUNK = 2**20


def sheets_to_csv(path: Path, directory: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """(sheet, CSV file) of every sheet that holds a table; and the names of the others.

    A table begins at the first row with at least two texts and as many cells as any of the next rows. Numbers are
    written without a needless `.0`, moments as ISO 8601. Raises DataError for a file that is not a workbook, or that is
    larger than `MOST_UNPACKED`.
    """
    _check_size(path)
    try:
        book = python_calamine.CalamineWorkbook.from_path(str(path))
        sheets = [(name, book.get_sheet_by_name(name).to_python(skip_empty_area=True)) for name in book.sheet_names]
    except (python_calamine.CalamineError, OSError) as error:
        raise DataError(f"{path.name}: cannot be read as an Excel workbook ({error}). Save it again.") from None
    tables, others = [], []
    for number, (name, rows) in enumerate(sheets):
        start = _header(rows)
        if start is None:
            others.append(name)
            continue
        to = directory / f"{len(list(directory.iterdir()))}_{number}.csv"
        with to.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([_text(cell) for cell in row] for row in rows[start:])
        tables.append((name, to))
    return tables, others


def _check_size(path: Path) -> None:
    """Unpack a workbook without keeping it, because the sizes in its directory may be wrong."""
    try:
        left = MOST_UNPACKED
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as stream:
                    while left >= 0 and (chunk := stream.read(_CHUNK)):
                        left -= len(chunk)
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path.name}: cannot be read as an Excel workbook ({error}). Save it again.") from None
    if left < 0:
        raise DataError(f"{path.name}: unpacks to more than {MOST_UNPACKED:,} bytes. Export its sheets as CSV.")


def _header(rows: Sequence[Sequence[Any]]) -> int | None:
    for i, row in enumerate(rows[:_HEADER_ROWS]):
        filled = [cell for cell in row if cell != ""]
        later = max((sum(c != "" for c in r) for r in rows[i + 1 : i + 6]), default=0)
        if len(filled) >= max(2, later) and all(isinstance(cell, str) for cell in filled) and later > 1:
            return i
    return None


def _text(cell: Any) -> str:
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
        return str(int(cell))
    if isinstance(cell, datetime | date | time):
        return cell.isoformat()
    if isinstance(cell, timedelta):
        return str(cell)
    return str(cell)
