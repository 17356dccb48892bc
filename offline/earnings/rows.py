"""Rows of lists and events with a fixed size, in temporary files split by a key.

IDs are 64-bit hashes. A file has all rows of its keys, so that each can be processed alone: memory depends on the size
of one file, not on the length of the log.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from enum import IntEnum
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from features.arrays import I64, U64

ROW = np.dtype(
    [
        ("request", np.uint64),
        ("user", np.uint64),
        ("item", np.uint64),
        ("at", np.int64),
        ("list_at", np.int64),
        ("kind", np.int8),
        ("cell", np.int32),
        ("revenue", np.float64),
        ("margin", np.float64),
    ]
)
"""request, user, item: hashes, 0 for none. at, list_at: Unix microseconds of the row, and of the list it counts for.

kind: a `RowKind`. cell: number of a `Cell`, `-1` for none. revenue, margin: of a purchase or return, NaN if unknown.
"""
Rows = NDArray[np.void]
"""Array of `ROW`."""


class RowKind(IntEnum):
    """Kind of a row. Kinds of lists and touches are lower than those of actions: at equal times they come first."""

    LIST = 0
    SILENT = 1
    """A served list of which no impression or action was reported."""
    SHOWN = 2
    LISTED = 3
    """An item of a served list, whether or not it was shown."""
    CLICK = 4
    CART = 5
    PURCHASE = 6
    RETURN = 7


FIRST_ACTION = RowKind.CLICK
_MOST_FILES = 200


def make_rows(count: int) -> Rows:
    """Rows without request, user, item and cell, and with unknown money."""
    rows = np.zeros(count, ROW)
    rows["cell"] = -1
    rows["revenue"] = rows["margin"] = np.nan
    return rows


class SplitRows:
    """Rows in unnamed temporary files, split by a hash. The files disappear with this object or the process."""

    def __init__(self, scratch: Path, rows: int, rows_per_file: int) -> None:
        """rows: estimate of how many will be added. rows_per_file: the most that fit into memory."""
        self._stack = ExitStack()
        count = min(max(-(-rows // rows_per_file), 1), _MOST_FILES)
        self._files: list[IO[bytes]] = [
            self._stack.enter_context(tempfile.TemporaryFile(dir=scratch))  # noqa: SIM115
            for _ in range(count)
        ]

    def add(self, rows: Rows, key: U64) -> None:
        """Append rows to the files of their keys."""
        part = (key % np.uint64(len(self._files))).astype(np.int64)
        order = np.argsort(part, kind="stable")
        bounds = np.searchsorted(part[order], np.arange(len(self._files) + 1))
        rows = rows[order]
        for number, file in enumerate(self._files):
            if bounds[number] < bounds[number + 1]:
                file.write(rows[bounds[number] : bounds[number + 1]].tobytes())

    def parts(self) -> Iterator[Rows]:
        """The rows of each file, in the order in which they were added. A file is empty afterwards."""
        for file in self._files:
            file.seek(0)
            rows = np.frombuffer(file.read(), ROW)
            file.seek(0)
            file.truncate()
            yield rows

    def __enter__(self) -> SplitRows:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def first_rows(key: NDArray[np.generic]) -> I64:
    """int64: index of the first row of each run of equal keys."""
    return np.flatnonzero(np.append(True, key[1:] != key[:-1])) if len(key) else np.empty(0, np.int64)
