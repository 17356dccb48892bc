"""A log in day partitions, `events/date=2026-01-31/*.parquet`, on this machine or wherever `pyarrow.fs` reaches.

The day is that of a row's own moment (UTC), so what comes late stands where it belongs. A log is never read whole: it
is cut into spans of time of about as many rows each, by the bounds that Parquet keeps of every row group, and a span is
read at a time. A single file beside the folders (`events.parquet`) is one more source of row groups, not another way.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from features.arrays import F64, I64
from offline.data.schema import UTC_US, Form
from offline.runtime import DataError

DAY_US = 86_400_000_000
SPAN_ROWS = 131_072
"""Rows of a span, about: what is held in memory at once."""
GROUP_ROWS = SPAN_ROWS
"""Rows of a row group, in files that are written here."""
_BATCH_ROWS = 65_536
_WHOLE_ON_CLOSE = ("s3", "gcs", "abfs")
"""File systems on which an object appears whole when its writer closes it, and renaming is a copy."""
EARLIEST, LATEST = -(2**62), 2**62
"""Unix microseconds before and after everything."""


@dataclass(frozen=True)
class Storage:
    """A directory on some file system. Names below are paths under it, with `/` between."""

    fs: pafs.FileSystem
    root: str

    @classmethod
    def of(cls, where: Storage | Path | str) -> Storage:
        """From a path, or a URI such as `s3://bucket/shop`, `gs://bucket/shop` or `file:///srv/shop`.

        Raises DataError for a URI that no file system is known for.
        """
        if isinstance(where, Storage):
            return where
        if isinstance(where, Path) or "://" not in where:
            return cls(pafs.LocalFileSystem(), str(Path(where).absolute()))
        try:
            fs, root = pafs.FileSystem.from_uri(where)
        except (pa.ArrowException, OSError) as e:
            raise DataError(f"{where}: {_reason(e)}; give a directory, or a URI as s3://bucket/shop") from e
        return cls(fs, root)

    def path(self, name: str) -> str:
        """A name as the file system knows it, and as messages say it."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        return bool(self.fs.get_file_info(self.path(name)).type == pafs.FileType.File)

    def parts(self, folder: str) -> list[str]:
        """Names of the Parquet files in the day partitions of a folder, ascending by day and name."""
        found = self.fs.get_file_info(pafs.FileSelector(self.path(folder), allow_not_found=True, recursive=True))
        names = [f"{folder}/" + f.path.rpartition(f"/{folder}/")[2] for f in found if f.type == pafs.FileType.File]
        return sorted(
            n for n in names if "/date=" in n and n.endswith(".parquet") and n.rpartition("/")[2][0] not in "._"
        )

    def read(self, name: str) -> bytes | None:
        """What a small file holds; None where there is none."""
        if not self.exists(name):
            return None
        with self.fs.open_input_stream(self.path(name)) as file:
            return bytes(file.read())

    def checksum(self, name: str) -> str:
        """SHA-256 of a file."""
        digest = hashlib.sha256()
        with self.fs.open_input_stream(self.path(name)) as file:
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A whole file, one day's part at most. Raises DataError where it cannot be read."""
        with self.parquet(name) as file:
            return file.read(columns=columns)

    @contextmanager
    def parquet(self, name: str) -> Iterator[pq.ParquetFile]:
        """A Parquet file, open. Raises DataError for one that cannot be read, here or in what is done with it."""
        try:
            with self.fs.open_input_file(self.path(name)) as opened, pq.ParquetFile(opened, pre_buffer=False) as file:
                yield file
        except (pa.ArrowException, OSError) as e:
            if isinstance(e, FileNotFoundError) or getattr(e, "errno", None) in (
                errno.ENOSPC,
                errno.EDQUOT,
                errno.EFBIG,
            ):
                raise
            again = "make the data set again with `shelfwise import` or `shelfwise simulate`, or restore it from a copy"
            raise DataError(f"{self.path(name)}: cannot be read as Parquet ({_reason(e)}); {again}") from e

    def write_table(self, name: str, table: pa.Table) -> None:
        """A Parquet file, whole or not at all."""
        self.write_tables(name, table.schema, (table,))

    def write_tables(self, name: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        """Tables one after the other as a Parquet file, whole or not at all."""
        with self._whole(name) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table, row_group_size=GROUP_ROWS)

    def write(self, name: str, content: bytes) -> None:
        """A small file, whole or not at all."""
        with self._whole(name) as file:
            file.write(content)

    @contextmanager
    def _whole(self, name: str) -> Iterator[pa.NativeFile]:
        """A file to write; whole and kept first, then it has its name: after a power cut it is there or not."""
        path = self.path(name)
        if self.fs.type_name in _WHOLE_ON_CLOSE:
            # Closed after an error, a stream would leave what it has; so all is there before it is opened.
            content = pa.BufferOutputStream()
            yield content
            with self.fs.open_output_stream(path) as file:
                file.write(content.getvalue())
            return
        parent, _, last = path.rpartition("/")
        self.fs.create_dir(parent, recursive=True)
        aside = f"{parent}/.{last}.new"
        with self.fs.open_output_stream(aside) as file:
            yield file
        self._sync(aside)
        self.fs.move(aside, path)
        self._sync(parent)

    def remove(self, name: str) -> None:
        """Takes a file away; nothing where there is none."""
        if self.exists(name):
            self.fs.delete_file(self.path(name))

    def _sync(self, path: str) -> None:
        if self.fs.type_name == "local":
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def day_name(folder: str, day: int, file: str) -> str:
    """The name of a file of a day. day: days since 1970."""
    return f"{folder}/date={np.datetime64(day, 'D')}/{file}"


def day_of(name: str) -> int:
    """Days since 1970 of a partition, by its folder. Raises DataError for one that names no day."""
    said = name.partition("/date=")[2].partition("/")[0]
    try:
        # numpy would take "today" for a day as well.
        return int(np.datetime64(said if re.fullmatch(r"-?\d+-\d\d-\d\d", said) else "no day", "D").astype(np.int64))
    except ValueError:
        raise DataError(f"{name}: the folder names no day: call it date=2026-01-31") from None


def split_by_day(table: pa.Table, moment: str) -> Iterator[tuple[int, pa.Table]]:
    """A table of a log cut by day: (days since 1970, its rows), ascending. moment: the column of a row's time."""
    day = np.floor_divide(to_microseconds(table[moment]), DAY_US)
    for d in np.unique(day).tolist():
        yield d, table.filter(pa.array(day == d))


def to_microseconds(column: pa.ChunkedArray | pa.Array) -> I64:
    """int64: moments as Unix microseconds. The column may have no nulls."""
    out: I64 = column.cast(UTC_US, safe=False).cast(pa.int64()).to_numpy()
    return out


class Group(NamedTuple):
    """A row group of a file: its number, rows, and Unix microseconds of the first and last; `row` is where it begins
    in the file."""

    name: str
    number: int
    rows: int
    row: int
    first: int
    last: int


class Partitions:
    """The files of one log: single ones and those of a folder's day partitions."""

    def __init__(self, sources: Sequence[tuple[Storage, str]], form: Form) -> None:
        """sources: storage and name of each file."""
        self.form = form
        self.sources = sources
        self._groups = [(storage, g) for storage, name in sources for g in _groups(storage, name, form)]

    @property
    def bounds(self) -> tuple[int, int] | None:
        """Unix microseconds of the first and the last row; None where there is none."""
        held = [g for _, g in self._groups if g.rows]
        return (min(g.first for g in held), max(g.last for g in held)) if held else None

    @property
    def columns(self) -> list[str]:
        """Columns that any of the files has."""
        out: dict[str, None] = {}
        for storage, name in self.sources:
            with storage.parquet(name) as file:
                out |= dict.fromkeys(file.schema_arrow.names)
        return list(out)

    def files(self, begin: int = EARLIEST, end: int = LATEST) -> list[tuple[Storage, str]]:
        """The files that may hold a row from one moment up to, not including, another (Unix microseconds)."""
        held = {(id(s), g.name) for s, g in self._groups if g.rows and g.first < end and g.last >= begin}
        return [(s, n) for s, n in self.sources if (id(s), n) in held]

    def spans(
        self, columns: Sequence[str], begin: int = EARLIEST, end: int = LATEST, rows: int = SPAN_ROWS
    ) -> Iterator[pa.Table]:
        """The log from `begin` up to, not including, `end` (Unix microseconds), a span of time after the other.

        Each is a table of the columns that are there, of about `rows` rows in the order of the sources. Rows of one
        moment are of one span. Raises DataError, naming file, row and column, where a file is not of the form.
        """
        inside = [(s, g) for s, g in self._groups if g.rows and g.first < end and g.last >= begin]
        for low, high in _cut([g for _, g in inside], begin, end, rows):
            parts = [
                table
                for s, g in inside
                if g.first < high and g.last >= low
                for table in _read(s, g, self.form, columns, low, high)
            ]
            if parts:
                yield pa.concat_tables(parts, promote_options="permissive")


def _groups(storage: Storage, name: str, form: Form) -> list[Group]:
    """The row groups of a file, by its footer."""
    out, row = [], 0
    with storage.parquet(name) as file:
        there = file.schema_arrow.names
        for column in form.needed:
            if column not in there:
                raise DataError(f"{storage.path(name)}: has no column {column!r}; {form.again}")
        for k in range(file.num_row_groups):
            rows = file.metadata.row_group(k).num_rows
            out.append(Group(name, k, rows, row, *_bounds(file, k, form.moment)))
            row += rows
    return out


def _bounds(file: pq.ParquetFile, number: int, moment: str) -> tuple[int, int]:
    """Unix microseconds of the first and the last row of a group, by its statistics where it has them."""
    group = file.metadata.row_group(number)
    s: Any = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == moment).statistics
    if s is not None and s.has_min_max and pa.types.is_timestamp(file.schema_arrow.field(moment).type):
        return pa.scalar(s.min, UTC_US).value, pa.scalar(s.max, UTC_US).value
    at = to_microseconds(file.read_row_group(number, [moment])[moment].drop_null())
    return (int(at.min()), int(at.max())) if len(at) else (EARLIEST, LATEST)


def _cut(groups: Sequence[Group], begin: int, end: int, rows: int) -> Iterator[tuple[int, int]]:
    """Spans of time, ascending, that hold about `rows` rows each, were those of a group spread evenly over its time."""
    if not groups:
        return
    low = max(begin, min(g.first for g in groups))
    high = min(end, max(g.last for g in groups) + 1)
    edges = np.unique(np.clip([e for g in groups for e in (g.first, g.last + 1)], low, high))
    if len(edges) < 2:
        return
    first, last = (np.array([getattr(g, n) for g in groups], np.float64) for n in ("first", "last"))
    density = np.array([g.rows for g in groups], np.float64) / (last - first + 1)
    # Rows before each edge, by the evenly spread groups: piecewise linear in time.
    before = np.array([(density * np.clip(e - first, 0, last - first + 1)).sum() for e in edges.astype(np.float64)])
    count = max(1, int(np.ceil((before[-1] - before[0]) / rows)))
    inner = np.interp(np.linspace(before[0], before[-1], count + 1)[1:-1], before, _offset(edges))
    cuts = [low, *(int(edges[0]) + inner.astype(np.int64)).tolist(), high]
    yield from pairwise(sorted(set(cuts)))


def _offset(edges: I64) -> F64:
    out: F64 = (edges - edges[0]).astype(np.float64)
    return out


def _read(
    storage: Storage, group: Group, form: Form, columns: Sequence[str], low: int, high: int
) -> Iterator[pa.Table]:
    """The rows of a group from one moment up to another, a batch at a time, each batch held to the form."""
    with storage.parquet(group.name) as file:
        there = [c for c in columns if c in file.schema_arrow.names]
        row = group.row
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group.number], columns=there):
            table = pa.Table.from_batches([batch])
            _check_form(table, form, storage.path(group.name), row)
            row += len(table)
            at = to_microseconds(table[form.moment])
            inside = (at >= low) & (at < high)
            if inside.all():
                yield table
            elif inside.any():
                yield table.filter(pa.array(inside))


def _check_form(table: pa.Table, form: Form, file: str, row: int) -> None:
    """Raises DataError for the first cell that may not be. row: of the table's first, in the file."""
    for name in form.never_null:
        if name in table.column_names and table[name].null_count:
            k = int(np.flatnonzero(table[name].is_null().to_numpy(zero_copy_only=False))[0])
            raise DataError(f"{file}, row {row + k}, column {name!r}: is null, which it may not be; {form.again}")
    for name, allowed in form.allowed.items():
        if name in table.column_names:
            good = pc.is_in(table[name].cast(pa.string()), pa.array(allowed)).to_numpy(zero_copy_only=False)
            if not good.all():
                k = int(np.flatnonzero(~good)[0])
                said = f"{table[name][k].as_py()!r} is not one of {', '.join(allowed)}"
                raise DataError(f"{file}, row {row + k}, column {name!r}: {said}; {form.again}")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
