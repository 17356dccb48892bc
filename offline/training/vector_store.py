"""Store of base vectors: vectors of texts by an encoder without its projection, kept between nightly runs.

Vectors are in segments: Arrow files of up to `SEGMENT_ROWS` vectors, in a directory for each encoder, in the workspace
or on any file system of `pyarrow.fs`. A segment is written once, and named by the SHA-256 of its content. A segment
whose content has another SHA-256, for example because its writer was killed, is ignored, and its texts are read again.
Several processes may read and write at the same time.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.fs import FileType

from features.arrays import F32, U8, Bool
from offline.data import Storage
from offline.runtime import console

SEGMENT_ROWS = 32_768
_KEY = pa.binary(16)
_SUFFIX = ".arrow"
_UNFINISHED_S = 86_400.0
"""Age at which a file that has not got its name is left over from a killed process."""


class _Segment(NamedTuple):
    """Content of a segment: keys, vectors (fixed-size lists), and the times of writing in Unix seconds, row by row."""

    name: str
    rows: pa.Table


class VectorStore:
    """A store of base vectors, see `text_encoder.reading.BaseVectors`."""

    def __init__(self, where: Path | str, clock: Callable[[], float] = time.time) -> None:
        """where: a directory, or a URI such as `s3://bucket/vectors`. Raises DataError for an unknown URI."""
        self._storage, self._clock = Storage.of(where), clock

    def read(self, model: str, keys: Sequence[bytes], dimension: int) -> tuple[F32, Bool]:
        """See `BaseVectors`. One segment is in memory at a time."""
        vectors, known = np.full((len(keys), dimension), np.nan, np.float32), np.zeros(len(keys), bool)
        wanted = pa.array(keys, _KEY)
        # Equal keys have equal vectors; `index_in` finds the first.
        first = pc.index_in(wanted, value_set=wanted).to_numpy()
        for segment in self._segments(model, dimension) if len(keys) else ():
            row = pc.index_in(segment.rows["key"].combine_chunks(), value_set=wanted).fill_null(-1).to_numpy()
            row, found = row[row >= 0], np.flatnonzero(row >= 0)
            vectors[row], known[row] = _vectors(segment.rows)[found], True
        return vectors[first], known[first]

    def write(self, model: str, keys: Sequence[bytes], vectors: F32) -> None:
        """See `BaseVectors`. All vectors are in the store when the call returns."""
        for start in range(0, len(keys), SEGMENT_ROWS):
            block = vectors[start : start + SEGMENT_ROWS]
            flat = pa.array(np.ascontiguousarray(block, np.float32).ravel())
            columns = {
                "key": pa.array(keys[start : start + SEGMENT_ROWS], _KEY),
                "vector": pa.FixedSizeListArray.from_arrays(flat, block.shape[1]),
                "written": pa.array(np.full(len(block), self._clock())),
            }
            self._write(model, pa.table(columns))

    def rows(self, model: str) -> int:
        """Number of vectors of a model, including duplicates."""
        return sum(segment.rows.num_rows for segment in self._segments(model))

    def tidy(self, used: Mapping[str, U8], keep_s: float) -> int:
        """Number of vectors deleted. Deletes unused vectors and damaged segments, and merges small segments.

        used: uint8[n, 16], keys by model. A vector is deleted if its key is not among them and it was written more than
        `keep_s` seconds ago.
        """
        models = self._storage.entries("", FileType.Directory)
        return sum(self._tidy(model, used.get(model, np.empty((0, 16), np.uint8)), keep_s) for model in models)

    def _tidy(self, model: str, used_keys: U8, keep_s: float) -> int:
        used = pa.FixedSizeBinaryArray.from_buffers(_KEY, len(used_keys), [None, pa.py_buffer(used_keys.tobytes())])
        deleted, merged, old = 0, [], []
        damaged = set(self._names(model))
        for segment in self._segments(model):
            damaged.discard(segment.name)
            rows = segment.rows
            is_recent = pc.greater_equal(rows["written"], pa.scalar(self._clock() - keep_s))
            kept = rows.filter(pc.or_(is_recent, pc.is_in(rows["key"], value_set=used)))
            deleted += len(rows) - len(kept)
            if len(kept) == len(rows) >= SEGMENT_ROWS // 2:
                continue
            merged.append(kept)
            old.append(segment.name)
            if sum(map(len, merged)) >= SEGMENT_ROWS:
                self._replace(model, merged, old)
                merged, old = [], []
        self._replace(model, merged, old)
        unfinished = {
            name
            for name, changed_at in self._storage.entries(model).items()
            if name.startswith(f"{model}/.") and changed_at < self._clock() - _UNFINISHED_S
        }
        for name in damaged | unfinished:
            self._storage.remove(name)
        return deleted

    def _replace(self, model: str, tables: list[pa.Table], old: list[str]) -> None:
        """Writes tables as one segment, and deletes the segments that they are from."""
        rows = pa.concat_tables(tables).combine_chunks() if tables else None
        written = None
        if rows:
            keys = rows["key"]
            is_first = pc.equal(pc.index_in(keys, value_set=keys), np.arange(len(rows), dtype=np.int32))
            written = self._write(model, rows.filter(is_first))
        for name in old:
            if name != written:
                self._storage.remove(name)

    def _write(self, model: str, rows: pa.Table) -> str:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_table(rows)
        content = sink.getvalue().to_pybytes()
        name = f"{model}/{_digest(content)}{_SUFFIX}"
        self._storage.write(name, content, shared=True)
        return name

    def _names(self, model: str) -> list[str]:
        names = self._storage.entries(model)
        return [name for name in names if name.endswith(_SUFFIX) and not name.startswith(f"{model}/.")]

    def _segments(self, model: str, dimension: int | None = None) -> Iterator[_Segment]:
        """The intact segments of a model. Segments that another process merges in the meantime are found as well."""
        seen: set[str] = set()
        damaged = 0
        while new := [name for name in self._names(model) if name not in seen]:
            for name in new:
                seen.add(name)
                content = self._storage.read(name)
                if content is None:  # merged into a segment that the next listing has
                    continue
                rows = _parse(name, content, dimension)
                damaged += rows is None
                if rows is not None:
                    yield _Segment(name, rows)
        if damaged:
            console.print(
                f"{self._storage.path(model)}: damaged segments of text vectors: {damaged}. Their texts are read again",
                markup=False,
                soft_wrap=True,
            )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _parse(name: str, content: bytes, dimension: int | None) -> pa.Table | None:
    """The rows of a segment; None if it is damaged."""
    if name.rpartition("/")[2] != _digest(content) + _SUFFIX:
        return None
    try:
        rows = pa.ipc.open_file(pa.BufferReader(content)).read_all()
    except pa.ArrowException:
        return None
    if dimension is not None and rows.schema.field("vector").type != pa.list_(pa.float32(), dimension):
        return None
    return rows


def _vectors(rows: pa.Table) -> F32:
    column: Any = rows["vector"].combine_chunks()
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(len(rows), -1)
