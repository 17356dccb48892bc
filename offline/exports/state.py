"""The state that an export ranks with: a release with the events and written items of the data set, and its users."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pv
import pyarrow.parquet as pq

from features.arrays import I32
from features.bounds import IdError, clean_id
from features.columns import Scalar
from features.history import EMPTY, Histories, History
from features.log import Events
from offline.config import Config
from offline.data import LogFiles, imported, load_log, user_histories, written_items
from offline.runtime import DataError
from serving.ranking import Live, Overlay
from serving.release import Release
from serving.store import BulkStore

_COLUMN = "user_id"


@dataclass(frozen=True)
class Shoppers:
    """Users to rank for, in the order of their IDs, and their state.

    row: int32, like `user_ids`: number of the user in `histories`, -1 if both lists are empty. attributes: by user ID,
    of users who have any; empty if the release has no features of them. events: number of events in the histories.
    """

    user_ids: Sequence[str]
    row: I32
    histories: Histories
    attributes: Mapping[str, Mapping[str, Scalar]]
    events: int

    def history(self, number: int, at: float) -> History:
        """The lists of a user strictly before a time."""
        row = int(self.row[number])
        return EMPTY if row < 0 else self.histories.read(row, at)


def live_at(
    config: Config, release: Release, store: BulkStore, at: float, users: Sequence[str] | None
) -> tuple[Live, Shoppers]:
    """A release and its users as the service would have them at a time, from the collected log.

    users: distinct IDs; None for all with an event that has not expired. Items that were written since the release are
    those that `shelfwise collect` has moved to the data set; `store` has the vectors of their texts.

    Raises DataError if there is no user to rank for, and FileNotFoundError without a log.
    """
    files = LogFiles.of(config.data, config.log, until=at)
    live = _with_written(Live.of(release), config.data, store)
    loaded = load_log(files, live.items.catalogue, config.workspace)
    events, retention = loaded.events, release.manifest.retention
    _apply_later_events(live, events)
    histories = user_histories(events, config.workspace, retention, loaded.merges, loaded.event_key)
    number = {user_id: k for k, user_id in enumerate(events.user_ids)}
    user_ids = sorted(number if users is None else users)
    row = np.array([number.get(u, -1) for u in user_ids], np.int32)
    for k in np.flatnonzero(row >= 0).tolist():
        history = histories.read(int(row[k]), at)
        if not (len(history.item) or len(history.shown_item)):
            row[k] = -1
    if users is None:
        user_ids, row = [u for u, r in zip(user_ids, row.tolist(), strict=True) if r >= 0], row[row >= 0]
    if not user_ids:
        raise DataError(f"{config.data}: no user has an event that has not expired; collect or import events first")
    return live, Shoppers(user_ids, row, histories, _attributes(live, files, user_ids, at), len(events))


def _with_written(live: Live, data: Path, store: BulkStore) -> Live:
    """The release with the items written since its cut-off, and without those withdrawn since."""
    manifest, catalogue = live.release.manifest, live.release.items.catalogue
    collected = written_items.read_written_items(data)
    known = dict(zip(collected, (catalogue.rows(list(collected)) >= 0).tolist(), strict=True))
    written = {
        item_id: item
        for item_id, item in collected.items()
        if not known[item_id] or item.at > manifest.cut_off or not item.available
    }
    if not written:
        return live
    vectors = store.read_vectors(manifest.encoder_fingerprint, list(written), manifest.dimension)
    encoded = {i: v for i, v in zip(written, vectors, strict=True) if np.isfinite(v).all()}
    return live.with_overlay(Overlay(written, encoded))


def _apply_later_events(live: Live, events: Events) -> None:
    """Apply the events since the release's cut-off to its item state."""
    begin = int(np.searchsorted(events.at, live.release.manifest.cut_off, side="left"))
    for part in events.take(slice(begin, len(events))).parts():
        live.items.state.apply(part.item, part.kind, part.at)


def _attributes(live: Live, files: LogFiles, user_ids: Sequence[str], at: float) -> Mapping[str, Mapping[str, Scalar]]:
    if not live.reads_attributes:
        return {}
    attributes = imported.UserAttributes(files, set(user_ids))
    attributes.advance(at)
    return attributes.state


def read_user_ids(path: Path) -> list[str]:
    """The distinct IDs of a file, sorted: a Parquet or CSV file with a column `user_id`, or a text with one per line.

    Raises DataError, naming file and row, for a file that cannot be read, without IDs, or with an invalid ID.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a CSV or Parquet file with a column {_COLUMN!r}, or a text")
    given = _column(path)
    out = set[str]()
    for row, value in enumerate(given):
        try:
            out.add(clean_id(value or ""))
        except IdError as e:
            raise DataError(f"{path}, row {row}: {(value or '')[:50]!r} {e}") from e
    if not out:
        raise DataError(f"{path}: has no user ID; give a CSV or Parquet file with a column {_COLUMN!r}, or a text")
    return sorted(out)


def _column(path: Path) -> list[str | None]:
    suffix = path.suffix.lower()
    try:
        if suffix in (".parquet", ".csv"):
            table = pq.read_table(path) if suffix == ".parquet" else _read_csv(path)
            if Counter(table.column_names)[_COLUMN] != 1:
                raise DataError(f"{path}: has no column {_COLUMN!r}, or several; found {', '.join(table.column_names)}")
            ids: list[str | None] = table[_COLUMN].cast(pa.string()).to_pylist()
            return ids
        return [line for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path}: cannot be read ({' '.join(str(e).split())[:200]}); save it as UTF-8") from e


def _read_csv(path: Path) -> pa.Table:
    # As text: IDs such as 007 must not become numbers.
    return pv.read_csv(path, convert_options=pv.ConvertOptions(column_types={_COLUMN: pa.string()}))
