"""Recognises a file from its beginning: format, encoding, dialect, columns and sample cells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from offline.ingest.reading.dialects import MOST_COLUMNS, SAMPLE_LINES, Dialect, beginning, sniff, split_line
from offline.ingest.reading.encodings import detect_encoding, to_utf8
from offline.ingest.reading.feeds import record_paths, records
from offline.ingest.reading.feeds import to_lines as feed_to_lines
from offline.ingest.reading.files import ENDINGS, unpack
from offline.ingest.reading.json_shapes import Shape, find_shape, sample_records, to_lines
from offline.ingest.reading.workbooks import sheets_to_csv
from offline.runtime import DataError

SAMPLE_RECORDS = 200


@dataclass(frozen=True)
class Peek:
    """One table in a file, before it is loaded.

    source: the file as given. name: how messages call it. path: what is loaded, after unpacking and conversion. form:
    csv, json or parquet. columns: names, for JSON also of nested keys (`device.category`). cells: sample texts of each
    column. line: first line of a text. part: sheet, element or member of a file that holds several tables. said: what
    was guessed or left out.
    """

    source: Path
    name: str
    path: Path
    form: str
    columns: Sequence[str]
    cells: Mapping[str, Sequence[str]]
    line: str = ""
    part: str | None = None
    dialect: Dialect | None = None
    shape: Shape = "lines"
    said: Sequence[str] = field(default=())


@dataclass(frozen=True)
class Options:
    """Reading options that are given instead of guessed. columns: names of a table without a header."""

    encoding: str | None = None
    delimiter: str | None = None
    quote: str | None = None
    columns: Sequence[str] = ()


def peek(path: Path, directory: Path, options: Options = Options()) -> list[Peek]:
    """The tables of a file: several for an archive, a workbook or a feed. directory: for converted copies.

    Raises DataError if the file is empty or broken.
    """
    found = [
        (name, t) for name, plain in unpack(path, directory) for t in _of_plain(path, name, plain, directory, options)
    ]
    return [t if name == path.name else replace(t, part=t.part or name) for name, t in found]


def _of_plain(source: Path, name: str, path: Path, directory: Path, options: Options) -> list[Peek]:
    form = next((form for end, form in ENDINGS.items() if name.lower().removesuffix(".gz").endswith(end)), "csv")
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PAR1":
        return [_parquet(source, name, path)]
    if form == "parquet":
        raise DataError(f"{name}: cannot be read as Parquet (it does not begin with PAR1). Export the file again.")
    if form == "xlsx":
        return _workbook(source, name, path, directory)
    if form == "xml":
        return _feed(source, name, path, directory)
    said = []
    encoding = options.encoding
    if encoding is None:
        found = detect_encoding(path)
        encoding = found.name
        if found.wrong:
            said.append(f"{found.wrong} sequences of bytes are not UTF-8 and were replaced by U+FFFD")
        elif found.name not in ("utf-8", "utf-8-sig"):
            said.append(f"encoding {found.name} (guessed)")
        needs_copy = not found.is_utf8
    else:
        needs_copy = encoding.lower().replace("_", "-") not in ("utf-8", "utf8", "utf-8-sig")
    if needs_copy:
        path = to_utf8(path, encoding, _new(directory, path))
    if form == "json" or (form == "csv" and start[:1] in b"{[" and start[:1]):
        return [_json(source, name, path, directory, said)]
    return [_csv(source, name, path, options, said)]


def _new(directory: Path, path: Path, end: str = "") -> Path:
    return directory / f"{len(list(directory.iterdir()))}_{path.name}{end}"


def _csv(source: Path, name: str, path: Path, options: Options, said: Sequence[str], sheet: str = "") -> Peek:
    dialect = sniff(path, options.delimiter, options.quote, False if options.columns else None)
    if options.columns:
        names = list(options.columns)
        if len(names) != len(dialect.names):
            raise DataError(
                f"{name}: has {len(dialect.names)} columns, and `columns` names {len(names)}."
                f" Its first line: {_first_line(path)[:200]}"
            )
        dialect = replace(dialect, header=False, names=names)
    elif not dialect.header:
        said = [*said, f"no header; columns are called column_1 to column_{len(dialect.names)}"]
    if dialect.delimiter != ",":
        said = [*said, f"delimiter {dialect.delimiter!r}"]
    lines = list(islice(StringIO(beginning(path), newline=""), dialect.skip, SAMPLE_LINES))
    rows = [split_line(line, dialect.delimiter, dialect.quote) for line in lines[1 if dialect.header else 0 :]]
    cells = {
        column: [row[i].strip() for row in rows if i < len(row) and row[i].strip()]
        for i, column in enumerate(dialect.names)
    }
    return Peek(
        source, name, path, "csv", dialect.names, cells, lines[0].strip() if lines else "", None, dialect, said=said
    )


def _first_line(path: Path) -> str:
    return beginning(path).split("\n", 1)[0].strip()


def _json(source: Path, name: str, path: Path, directory: Path, said: Sequence[str]) -> Peek:
    shape = find_shape(path)
    if shape in ("object", "bulk", "literals"):
        path, shape = to_lines(path, shape, _new(directory, path, ".jsonl")), "lines"
    found = sample_records(path, shape, SAMPLE_RECORDS)
    return Peek(source, name, path, "json", *_keys(found), shape=shape, said=said)


def _keys(found: Sequence[dict[str, Any]]) -> tuple[list[str], dict[str, list[str]]]:
    """Keys of objects to three levels, lists as their first element; and texts of the scalars."""
    cells: dict[str, list[str]] = {}

    def look(value: Any, at: str, depth: int) -> None:
        if isinstance(value, dict) and depth < 3:
            for key, inner in value.items():
                look(inner, f"{at}.{key}" if at else key, depth + 1)
        if at:
            cells.setdefault(at, [])
            if isinstance(value, list) and value and isinstance(value[0], dict):
                look(value[0], f"{at}[]", depth)
            elif value is not None and not isinstance(value, dict | list):
                cells[at].append(_text(value))

    for record in found:
        look(record, "", 0)
    return list(cells), cells


def _text(value: Any) -> str:
    """A scalar as a raw table shows it in texts: 7.0 of a column with missing values is 7."""
    if isinstance(value, bool):
        return json.dumps(value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _parquet(source: Path, name: str, path: Path) -> Peek:
    try:
        with pq.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            if len(names) > MOST_COLUMNS:
                raise DataError(f"{name}: has {len(names)} columns; the maximum is {MOST_COLUMNS}. Export fewer.")
            part = next(file.iter_batches(SAMPLE_RECORDS), None)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: cannot be read as Parquet ({error}). Export the file again.") from None
    rows = part.to_pylist() if part is not None else []
    columns, cells = _keys(rows)
    return Peek(source, name, path, "parquet", list(dict.fromkeys((*names, *columns))), cells)


def _workbook(source: Path, name: str, path: Path, directory: Path) -> list[Peek]:
    tables, others = sheets_to_csv(path, directory)
    if not tables:
        raise DataError(f"{name}: no sheet holds a table with a header. Its sheets: {', '.join(others)}.")
    left = [f"sheet {other} is left out: it has no table with a header" for other in others]
    called = [(f"{name}[{sheet}]" if len(tables) > 1 else name, file) for sheet, file in tables]
    out = [_csv(source, label, file, Options(delimiter=",", quote='"'), []) for label, file in called]
    sheets = [sheet for sheet, _ in tables]
    return [
        replace(t, said=left if i == 0 else [], part=sheets[i] if len(tables) > 1 else None) for i, t in enumerate(out)
    ]


def _feed(source: Path, name: str, path: Path, directory: Path) -> list[Peek]:
    out = []
    paths = record_paths(path)
    for record in paths:
        file = feed_to_lines(path, record, _new(directory, path, ".jsonl"))
        label = f"{name}[{record[-1]}]" if len(paths) > 1 else name
        found = list(islice(records(path, record), SAMPLE_RECORDS))
        out.append(
            Peek(
                source,
                label,
                file,
                "json",
                *_keys(found),
                line="/".join(record),
                part=record[-1] if len(paths) > 1 else None,
            )
        )
    if not out:
        raise DataError(f"{name}: no repeated element was found, so there are no records.")
    return out
