"""Cells: the combinations of placement, release and experiment arms that lists had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.arrays import I32, I64

_FIELDS, _PAIRS, _PARTS = "\x1d", "\x1e", "\x1f"
"""Separators. Names of placements, releases, experiments and arms have no control characters."""


class Cell(NamedTuple):
    """Properties that lists have in common. placement, release: None if unknown. arms: arm by experiment."""

    placement: str | None
    release: str | None
    arms: tuple[tuple[str, str], ...] = ()


class Cells:
    """Numbers of cells, in the order in which they were met. placements: distinct placements, by number."""

    def __init__(self) -> None:
        self._number: dict[Cell, int] = {}
        self._of_text: dict[str, int] = {}
        self.placements: dict[str | None, int] = {}

    def __len__(self) -> int:
        return len(self._number)

    def number(self, cell: Cell) -> int:
        """The number of a cell, which is added if it is new."""
        self.placements.setdefault(cell.placement, len(self.placements))
        return self._number.setdefault(cell, len(self._number))

    @property
    def all(self) -> list[Cell]:
        """The cells, by number."""
        return list(self._number)

    def placement_codes(self) -> I64:
        """int64[cells]: the number of the placement of each cell."""
        return np.array([self.placements[cell.placement] for cell in self._number], np.int64)

    def encode(self, placement: pa.ChunkedArray, release: pa.ChunkedArray, arms: pa.ChunkedArray | None = None) -> I32:
        """int32[n]: the cell of each row. arms: map<string, string>, arm by experiment."""
        columns = [pc.fill_null(c.cast(pa.string()).combine_chunks(), "") for c in (placement, release)]
        text = pc.binary_join_element_wise(*columns, _FIELDS)
        if arms is not None:
            text = pc.binary_join_element_wise(text, _joined(arms), _FIELDS)
        encoded = text.dictionary_encode()
        codes = [self._of_text.setdefault(t, -1) for t in encoded.dictionary.to_pylist()]
        for k, t in enumerate(encoded.dictionary.to_pylist()):
            if codes[k] < 0:
                codes[k] = self._of_text[t] = self.number(_parsed(t))
        out: I32 = np.array(codes, np.int32)[encoded.indices.to_numpy(zero_copy_only=False)]
        return out

    def combined(self, served: I32, shown: I32) -> I32:
        """int32[n]: the served cells, with the placement of the shown ones where they have none; `-1` if both are."""
        out = np.where(served >= 0, served, shown).astype(np.int32)
        both = (served >= 0) & (shown >= 0) & (served != shown)
        cells = self.all
        for pair in np.unique(np.column_stack((served[both], shown[both])), axis=0).tolist():
            one, other = (cells[k] for k in pair)
            if one.placement is None and other.placement is not None:
                out[both & (served == pair[0]) & (shown == pair[1])] = self.number(
                    one._replace(placement=other.placement)
                )
        return out


def _joined(arms: pa.ChunkedArray) -> pa.Array:
    """One text per row from a column of maps."""
    column = arms.combine_chunks()
    column = column if isinstance(column, pa.Array) else pa.concat_arrays(column.chunks)
    pairs = pc.binary_join_element_wise(column.keys, column.items, _PARTS)
    lists = pa.ListArray.from_arrays(column.offsets, pairs)
    return pc.fill_null(pc.binary_join(lists, _PAIRS), "")


def _parsed(text: str) -> Cell:
    placement, release, *rest = text.split(_FIELDS)
    pairs = [tuple(pair.split(_PARTS)) for pair in rest[0].split(_PAIRS) if pair] if rest else []
    return Cell(placement or None, release or None, tuple(sorted((one, other) for one, other in pairs)))


class Breakdown(NamedTuple):
    """A division of lists into groups. names: by group.

    code: int64[cells + 1], the group of each cell, `-1` for none; the last entry is of rows without a cell.
    """

    code: I64
    names: Sequence[Mapping[str, str | None]]


def break_down(cells: Sequence[Cell], columns: Sequence[str], experiment: str | None = None) -> Breakdown:
    """Groups of cells with equal columns: `placement`, `release`, and of an experiment, `arm`."""
    names: dict[tuple[str | None, ...], int] = {}
    code = np.full(len(cells) + 1, -1)
    for k, cell in enumerate(cells):
        values = {**cell._asdict(), "arm": dict(cell.arms).get(experiment or "")}
        if experiment is None or values["arm"] is not None:
            code[k] = names.setdefault(tuple(values[c] for c in columns), len(names))
    extra = {} if experiment is None else {"experiment": experiment}
    return Breakdown(code, [dict(zip(columns, key, strict=True)) | extra for key in names])
