"""Logs in day partitions, `events/date=2026-01-31/*.parquet`, on the local disk or any file system of `pyarrow.fs`.

A row belongs to the day of its own time (UTC), however late it is written. A log is never read as a whole: it is split
into spans of time with about the same number of rows, based on the time bounds in the Parquet statistics of each row
group, and read one span at a time. A single file next to the folders, `events.parquet`, adds its row groups to theirs.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
"""Approximate number of rows of a span, and so of the rows in memory at a time."""
GROUP_ROWS = SPAN_ROWS
"""Rows per row group in the files that this module writes."""
_BATCH_ROWS = 65_536
_WHOLE_ON_CLOSE = ("s3", "gcs", "abfs")
"""File systems where an object becomes visible only when it is complete and closed, and where renaming is a copy."""
EARLIEST, LATEST = -(2**62), 2**62
"""Unix microseconds before and after every possible event."""


@dataclass(frozen=True)
class Storage:
    """A directory on a file system. The names that methods take are relative paths with `/` as separator."""

    fs: pafs.FileSystem
    root: str

    @classmethod
    def of(cls, where: Storage | Path | str) -> Storage:
        """The storage at a path, or at a URI such as `s3://bucket/shop`, `gs://bucket/shop` or `file:///srv/shop`.

        Raises DataError for a URI of an unknown file system.
        """
        if isinstance(where, Storage):
            return where
        if isinstance(where, Path) or "://" not in where:
            return cls(pafs.LocalFileSystem(), str(Path(where).absolute()))
        try:
            fs, root = pafs.FileSystem.from_uri(where)
        except (pa.ArrowException, OSError) as e:
            raise DataError(f"{where}: {_reason(e)}; give a directory, or a URI such as s3://bucket/shop") from e
        return cls(fs, root)

    def path(self, name: str) -> str:
        """The full path of a name, for the file system and for messages."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        """True if a file exists."""
        return bool(self.fs.get_file_info(self.path(name)).type == pafs.FileType.File)

    def parts(self, folder: str) -> list[str]:
        """Names of the Parquet files in the day partitions of a folder, sorted by day and name."""
        infos = self.fs.get_file_info(pafs.FileSelector(self.path(folder), allow_not_found=True, recursive=True))
        names = [f"{folder}/" + f.path.rpartition(f"/{folder}/")[2] for f in infos if f.type == pafs.FileType.File]
        return sorted(
            n for n in names if "/date=" in n and n.endswith(".parquet") and n.rpartition("/")[2][0] not in "._"
        )

    def entries(self, folder: str, kind: pafs.FileType = pafs.FileType.File) -> dict[str, float]:
        """Sorted names of the files directly in a folder, or of its folders, with the times of change in Unix seconds.

        Empty if the folder does not exist. The time is 0 where the file system has none.
        """
        infos = self.fs.get_file_info(pafs.FileSelector(self.path(folder), allow_not_found=True))
        found = {f"{folder}/{i.base_name}": (i.mtime_ns or 0) / 1e9 for i in infos if i.type == kind}
        return {name.lstrip("/"): found[name] for name in sorted(found)}

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None if it does not exist, or another process deletes it meanwhile."""
        if not self.exists(name):
            return None
        try:
            with self.fs.open_input_stream(self.path(name)) as file:
                return bytes(file.read())
        except FileNotFoundError:
            return None

    def checksum(self, name: str) -> str:
        """SHA-256 of a file."""
        digest = hashlib.sha256()
        with self.fs.open_input_stream(self.path(name)) as file:
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a Parquet file as a whole. Raises DataError if it cannot be read."""
        with self.parquet(name) as file:
            return file.read(columns=columns)

    @contextmanager
    def parquet(self, name: str) -> Iterator[pq.ParquetFile]:
        """Open a Parquet file. Raises DataError if it cannot be read, now or anywhere in the block."""
        try:
            with self.fs.open_input_file(self.path(name)) as stream, pq.ParquetFile(stream, pre_buffer=False) as file:
                yield file
        except (pa.ArrowException, OSError) as e:
            if isinstance(e, FileNotFoundError) or getattr(e, "errno", None) in (
                errno.ENOSPC,
                errno.EDQUOT,
                errno.EFBIG,
            ):
                raise
            fix = "recreate the data set with `shelfwise import` or `shelfwise simulate`, or restore it from a backup"
            raise DataError(f"{self.path(name)}: cannot be read as Parquet ({_reason(e)}); {fix}") from e

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a table as a Parquet file, atomically."""
        self.write_tables(name, table.schema, (table,))

    def write_tables(self, name: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        """Write tables, one after the other, as one Parquet file, atomically."""
        with self._open_atomic(name) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table, row_group_size=GROUP_ROWS)

    def write(self, name: str, content: bytes, *, shared: bool = False) -> None:
        """Write a small file, atomically. shared: other processes may write the same file at the same time."""
        with self._open_atomic(name, f".{secrets.token_hex(4)}" if shared else "") as file:
            file.write(content)

    @contextmanager
    def _open_atomic(self, name: str, writer: str = "") -> Iterator[pa.NativeFile]:
        """A file to write to. It is synced before it gets its name: after a power failure it is complete or absent.

        writer: part of the temporary name. By default, what a killed process leaves over is overwritten by the next.
        """
        path = self.path(name)
        if self.fs.type_name in _WHOLE_ON_CLOSE:
            # A stream closed after an error would leave a partial object, so buffer everything before opening it.
            content = pa.BufferOutputStream()
            yield content
            with self.fs.open_output_stream(path) as file:
                file.write(content.getvalue())
            return
        parent, _, last = path.rpartition("/")
        self.fs.create_dir(parent, recursive=True)
        temporary = f"{parent}/.{last}{writer}.new"
        with self.fs.open_output_stream(temporary) as file:
            yield file
        self._sync(temporary)
        self.fs.move(temporary, path)
        self._sync(parent)

    def remove(self, name: str) -> None:
        """Delete a file. Does nothing if it does not exist, or another process deletes it meanwhile."""
        if self.exists(name):
            with suppress(FileNotFoundError):
                self.fs.delete_file(self.path(name))

    def _sync(self, path: str) -> None:
        if self.fs.type_name == "local":
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def day_name(folder: str, day: int, file: str) -> str:
    """The name of a file in the partition of a day. day: days since 1970."""
    return f"{folder}/date={np.datetime64(day, 'D')}/{file}"


def day_of(name: str) -> int:
    """Day of a file, in days since 1970, from its folder name. Raises DataError if the folder name is not a date."""
    date = name.partition("/date=")[2].partition("/")[0]
    try:
        # The pattern excludes names such as "today", which NumPy accepts as dates.
        return int(np.datetime64(date if re.fullmatch(r"-?\d+-\d\d-\d\d", date) else "no day", "D").astype(np.int64))
    except ValueError:
        raise DataError(f"{name}: the folder name is not a date; rename it like date=2026-01-31") from None


def split_by_day(table: pa.Table, time_column: str) -> Iterator[tuple[int, pa.Table]]:
    """Split a table by day. Yields (days since 1970, rows) in ascending order. time_column: has the time of a row."""
    day = np.floor_divide(to_microseconds(table[time_column]), DAY_US)
    for d in np.unique(day).tolist():
        yield d, table.filter(pa.array(day == d))


def to_microseconds(column: pa.ChunkedArray | pa.Array) -> I64:
    """int64: timestamps as Unix microseconds. The column must not have nulls."""
    out: I64 = column.cast(UTC_US, safe=False).cast(pa.int64()).to_numpy()
    return out


class Group(NamedTuple):
    """A row group of a file. number: index in the file. rows: number of rows. row: number of its first row in the file.
    first, last: Unix microseconds of the earliest and latest row."""

    name: str
    number: int
    rows: int
    row: int
    first: int
    last: int


class Partitions:
    """The files of one log: day partitions, single files, or both."""

    def __init__(self, sources: Sequence[tuple[Storage, str]], form: Form) -> None:
        """sources: storage and name of each file."""
        self.form = form
        self.sources = sources
        self._groups = [(storage, g) for storage, name in sources for g in _groups(storage, name, form)]

    @property
    def bounds(self) -> tuple[int, int] | None:
        """Unix microseconds of the earliest and the latest row; None without rows."""
        groups = [g for _, g in self._groups if g.rows]
        return (min(g.first for g in groups), max(g.last for g in groups)) if groups else None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(g.rows for _, g in self._groups)

    @property
    def columns(self) -> list[str]:
        """Columns that exist in any of the files."""
        out: dict[str, None] = {}
        for storage, name in self.sources:
            with storage.parquet(name) as file:
                out |= dict.fromkeys(file.schema_arrow.names)
        return list(out)

    def files(self, begin: int = EARLIEST, end: int = LATEST) -> list[tuple[Storage, str]]:
        """The files that may have rows from `begin` (inclusive) to `end` (exclusive), in Unix microseconds."""
        selected = {(id(s), g.name) for s, g in self._groups if g.rows and g.first < end and g.last >= begin}
        return [(s, n) for s, n in self.sources if (id(s), n) in selected]

    def spans(
        self, columns: Sequence[str], begin: int = EARLIEST, end: int = LATEST, rows: int = SPAN_ROWS
    ) -> Iterator[pa.Table]:
        """Read the log from `begin` (inclusive) to `end` (exclusive), in Unix microseconds, one span of time at a time.

        Each span is a table of about `rows` rows, in the order of the sources, with those of the columns that exist.
        Rows with equal times are in the same span. Raises DataError, naming file, row and column, if a file breaks the
        rules of `form`.
        """
        inside = [(s, g) for s, g in self._groups if g.rows and g.first < end and g.last >= begin]
        for low, high in _split_time([g for _, g in inside], begin, end, rows):
            parts = [
                table
                for s, g in inside
                if g.first < high and g.last >= low
                for table in _read(s, g, self.form, columns, low, high)
            ]
            if parts:
                yield pa.concat_tables(parts, promote_options="permissive")


def _groups(storage: Storage, name: str, form: Form) -> list[Group]:
    """The row groups of a file, from its footer."""
    out, row = [], 0
    with storage.parquet(name) as file:
        existing = file.schema_arrow.names
        for column in form.required:
            if column not in existing:
                raise DataError(f"{storage.path(name)}: has no column {column!r}; {form.fix}")
        for k in range(file.num_row_groups):
            rows = file.metadata.row_group(k).num_rows
            out.append(Group(name, k, rows, row, *_bounds(file, k, form.moment)))
            row += rows
    return out


def _bounds(file: pq.ParquetFile, number: int, time_column: str) -> tuple[int, int]:
    """Unix microseconds of the earliest and the latest row of a group, from its statistics if it has them."""
    group = file.metadata.row_group(number)
    s: Any = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == time_column).statistics
    if s is not None and s.has_min_max and pa.types.is_timestamp(file.schema_arrow.field(time_column).type):
        return pa.scalar(s.min, UTC_US).value, pa.scalar(s.max, UTC_US).value
    at = to_microseconds(file.read_row_group(number, [time_column])[time_column].drop_null())
    return (int(at.min()), int(at.max())) if len(at) else (EARLIEST, LATEST)


def _split_time(groups: Sequence[Group], begin: int, end: int, rows: int) -> Iterator[tuple[int, int]]:
    """Spans of time with about `rows` rows each, ascending, assuming that the rows of a group are evenly spread."""
    if not groups:
        return
    low = max(begin, min(g.first for g in groups))
    high = min(end, max(g.last for g in groups) + 1)
    edges = np.unique(np.clip([e for g in groups for e in (g.first, g.last + 1)], low, high))
    if len(edges) < 2:
        return
    first, last = (np.array([getattr(g, n) for g in groups], np.float64) for n in ("first", "last"))
    density = np.array([g.rows for g in groups], np.float64) / (last - first + 1)
    # Estimated rows before each edge: piecewise linear in time.
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
    """The rows of a group from `low` (inclusive) to `high` (exclusive), batch by batch, checked against `form`."""
    with storage.parquet(group.name) as file:
        existing = [c for c in columns if c in file.schema_arrow.names]
        row = group.row
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group.number], columns=existing):
            table = pa.Table.from_batches([batch])
            _check_rows(table, form, storage.path(group.name), row)
            row += len(table)
            at = to_microseconds(table[form.moment])
            inside = (at >= low) & (at < high)
            if inside.all():
                yield table
            elif inside.any():
                yield table.filter(pa.array(inside))


def _check_rows(table: pa.Table, form: Form, file: str, row: int) -> None:
    """Raise DataError for the first cell that breaks the rules. row: number of the table's first row in the file."""
    for name in form.never_null:
        if name in table.column_names and table[name].null_count:
            k = int(np.flatnonzero(table[name].is_null().to_numpy(zero_copy_only=False))[0])
            raise DataError(f"{file}, row {row + k}, column {name!r}: is null, but a value is required; {form.fix}")
    for name, allowed in form.allowed.items():
        if name in table.column_names:
            good = pc.is_in(table[name].cast(pa.string()), pa.array(allowed)).to_numpy(zero_copy_only=False)
            if not good.all():
                k = int(np.flatnonzero(~good)[0])
                problem = f"{table[name][k].as_py()!r} is not one of {', '.join(allowed)}"
                raise DataError(f"{file}, row {row + k}, column {name!r}: {problem}; {form.fix}")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
