"""Slices by any column: of test lists where it is a column of the events, of what was engaged with where of the items.

Texts and lists of texts are cut by value, the most frequent apart and the rest as `other`; numbers and moments into
quarters. What lacks the column is a slice of its own, so nothing drops out unseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from features.log import Lists
from offline.quarantine import DataError

if TYPE_CHECKING:
    # The configuration imports this, and a host that only serves has no pandas.
    from offline.lists import Targets
    from offline.log import LogFiles

Mask = NDArray[np.bool_]

VALUES = 8
"""Values of a column that are slices of their own: those of most lists or targets."""
MISSING, OTHER = "(none)", "(other)"


class SliceConfig(BaseModel):
    """Parts of the test that are reported on their own, beyond those that every shop has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: tuple[str, ...] = Field(
        (), max_length=20, description="columns of items or events, as category, brand, device; each value is a slice"
    )


def check(directory: Path, event_columns: Sequence[str], columns: Sequence[str]) -> None:
    """Raises DataError for a column that neither the items of the data set in `directory` nor its events have."""
    of_items = _columns(directory / "items.parquet")
    for name in columns:
        if name not in of_items and name not in event_columns:
            raise DataError(
                f"slice {name!r}: no such column; items have {', '.join(of_items)}; events have "
                f"{', '.join(event_columns)}"
            )


def of_items(items: pa.Table, columns: Sequence[str], targets: Targets) -> dict[str, Mask]:
    """bool[targets] by `column:value`, for the columns that `items` has; its rows are the catalogue's."""
    out: dict[str, Mask] = {}
    for name in columns:
        if name in items.column_names:
            out |= _slices(name, items[name].take(pa.array(targets.item)))
    return out


def of_events(log: LogFiles, columns: Sequence[str], lists: Lists, but: Sequence[str]) -> dict[str, Mask]:
    """bool[lists] by `column:value`, of the first impression of each list that fills the column.

    but: columns left out, those of items. A list that was rebuilt has none of it. Only
    impressions are asked: what a click says would tell which lists were clicked.
    """
    here = log.event_columns
    asked = [name for name in columns if name in here and name not in but]
    if not asked:
        return {}
    wanted, parts = pa.array(lists.request_ids, pa.string()), []
    for span in log.events.spans(list(dict.fromkeys(("timestamp", "request_id", "event", *asked)))):
        listed = pc.and_(pc.is_in(span["request_id"], wanted), pc.equal(span["event"], "impression"))
        parts.append(span.filter(listed).sort_by("timestamp"))
    if not parts:
        return {}
    shown = pa.concat_tables(parts, promote_options="permissive")
    out: dict[str, Mask] = {}
    for name in asked:
        filled = shown.filter(pc.is_valid(shown[name]))
        # The first of each: of several numbers written to one place the last stays.
        row = pc.index_in(wanted, filled["request_id"].combine_chunks())
        out |= _slices(name, filled[name].take(row))
    return out


def _columns(path: Path) -> list[str]:
    try:
        return list(pq.read_schema(path).names) if path.is_file() else []
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{path}: cannot be read as Parquet ({e}); bring it in again") from e


def _slices(name: str, values: pa.ChunkedArray | pa.Array) -> dict[str, Mask]:
    """bool[n] by `column:value`."""
    column = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        of, value = pc.list_parent_indices(column).to_numpy(), pc.list_flatten(column)
    else:
        of, value = np.arange(len(column)), column
    if pa.types.is_temporal(value.type) or (_is_number(value.type) and pc.count_distinct(value).as_py() > VALUES):
        return _quarters(name, value, len(column))
    texts = pc.cast(value, pa.string()).to_pylist()
    held = [(int(g), text) for g, text in zip(of.tolist(), texts, strict=True) if text]
    number = {text: k for k, text in enumerate(sorted({text for _, text in held}))}
    lists = np.array([g for g, _ in held], np.int64)
    code = np.array([number[text] for _, text in held], np.int64)
    most = np.argsort(-np.bincount(code, minlength=len(number)), kind="stable")[:VALUES].tolist()
    names, out = list(number), {}
    for k in most:
        out[f"{name}:{names[k]}"] = _marked(lists[code == k], len(column))
    rest = _marked(lists[~np.isin(code, most)], len(column))
    out |= {f"{name}:{OTHER}": rest} if rest.any() else {}
    return out | {f"{name}:{MISSING}": ~_marked(lists, len(column))}


def _quarters(name: str, value: pa.Array, n: int) -> dict[str, Mask]:
    """By quartiles of the values met; a moment is named by its day."""
    days = pa.types.is_temporal(value.type)
    numbers = pc.cast(pc.cast(value, pa.timestamp("s")), pa.int64()) if days else value
    x = pc.cast(numbers, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    known = np.isfinite(x)
    if not known.any():
        return {f"{name}:{MISSING}": np.ones(n, np.bool_)}
    ends = np.unique(np.quantile(x[known], (0, 0.25, 0.5, 0.75, 1), method="nearest"))
    quarter = np.searchsorted(ends[1:-1], x, side="left")
    said = [str(np.datetime64(int(e), "s"))[:10] if days else f"{e:,.4g}" for e in ends]
    out = {
        f"{name}:{low} to {high}" if k == 0 else f"{name}:over {low} to {high}": known & (quarter == k)
        for k, (low, high) in enumerate(pairwise(said))
    } or {f"{name}:{said[0]}": known}
    return out | {f"{name}:{MISSING}": ~known}


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _marked(rows: np.ndarray, n: int) -> Mask:
    out = np.zeros(n, np.bool_)
    out[rows] = True
    return out
