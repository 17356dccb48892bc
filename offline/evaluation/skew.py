"""Training-serving skew: feature rows that a service scored, compared with rows replayed from the log.

The replay works as in training: the release's arrays, item state from all events before the list in time order, and
user histories from the log. A difference means that one side knew something that the other did not: an event that
arrived late or was never collected, a service that lagged behind its stream, or a feature computed in two ways.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.arrays import F32
from features.columns import Column
from features.context import Context
from features.decay import ItemState
from features.history import EMPTY, Histories
from features.table import Feature, names, rows
from offline.data import LogFiles, load_log, logged_table
from offline.runtime import DataError, OnProgress
from serving.release import MANIFEST, Release, load_release

_DEGRADED = "answered without the user's history because Redis was unavailable"
_GONE = "their release has been removed"
_OTHER = "their release has different features from the latest release"


class FeatureSkew(NamedTuple):
    """Differences of one feature.

    values: number of values compared. differ: share of values that are not bit-identical. beyond: share of values that
    differ by more than the tolerance, or are missing on one side only. largest: largest absolute difference.
    """

    name: str
    values: int
    differ: float
    beyond: float
    largest: float

    def verdict(self, threshold: float) -> str:
        """ "SKEW", "equal" or "within tolerance". threshold: maximum share of values beyond the tolerance."""
        return "SKEW" if self.beyond > threshold else "equal" if not self.differ else "within tolerance"


@dataclass(frozen=True)
class Skew:
    """Differences by feature, and the number of lists and rows compared.

    left_out: reason -> lists not compared. missing_columns: column -> compared lists of requests that could have sent
    it, and did not for any candidate. Only columns missing somewhere are in it.
    """

    features: Sequence[FeatureSkew]
    lists: int
    rows: int
    left_out: Mapping[str, int]
    missing_columns: Mapping[str, int]

    def as_json(self, threshold: float) -> dict[str, Any]:
        """All values, as JSON values, with the verdict of each feature."""
        features = [f._asdict() | {"verdict": f.verdict(threshold)} for f in self.features]
        return {
            "lists": self.lists,
            "rows": self.rows,
            "left_out": dict(self.left_out),
            "missing_columns": dict(self.missing_columns),
            "features": features,
        }


class _Differences:
    """Differences by feature, added up over lists."""

    def __init__(self, columns: Sequence[str], tolerance: float) -> None:
        self._tolerance = tolerance
        self.columns = tuple(columns)
        self.lists = self.rows = 0
        self.missing: Counter[str] = Counter()
        self._differ, self._beyond = np.zeros((2, len(columns)), np.int64)
        self._largest = np.zeros(len(columns))

    def add(self, served: F32, replayed: F32) -> None:
        """Add one list. served, replayed: float32[candidates, features]."""
        one_missing = np.isnan(served) != np.isnan(replayed)
        both_missing = np.isnan(served) & np.isnan(replayed)
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            gap = np.where(served == replayed, 0.0, np.abs(served.astype(np.float64) - replayed))
        gap = np.where(one_missing, np.inf, np.where(both_missing, 0.0, gap))
        scale = np.maximum(np.maximum(np.abs(np.nan_to_num(served)), np.abs(np.nan_to_num(replayed))), 1e-6)
        self.lists += 1
        self.rows += len(served)
        self._differ += ((served.view(np.uint32) != replayed.view(np.uint32)) & ~both_missing).sum(axis=0)
        self._beyond += (gap > self._tolerance * scale).sum(axis=0)
        self._largest = np.maximum(self._largest, gap.max(axis=0, initial=0))

    def count_missing(self, columns: Sequence[Column], context: Context, route: str) -> None:
        """Count the columns that a request could have sent and did not. route: `rank` or `recommend`."""
        for k, column in enumerate(columns):
            expected = column.per == "request" or (route == "rank" and column.per == "candidate")
            if expected and (context.columns is None or np.isnan(context.columns[k]).all()):
                self.missing[column.name] += 1

    def features(self) -> list[FeatureSkew]:
        """One entry per feature."""
        n = max(self.rows, 1)
        every = zip(self.columns, self._differ.tolist(), self._beyond.tolist(), self._largest.tolist(), strict=True)
        return [FeatureSkew(name, self.rows, d / n, b / n, largest) for name, d, b, largest in every]


def compare_rows(
    directory: Path,
    releases: Path,
    custom: tuple[Feature, ...] = (),
    tolerance: float = 1e-5,
    limit: int = 1000,
    on_progress: OnProgress | None = None,
    log: str | None = None,
) -> Skew:
    """Compare the newest `limit` served lists that have feature rows with their replay.

    releases: directory of the releases that served. tolerance: relative differences up to this are ignored. log: as in
    `dataset.load`. Raises DataError where no list was logged with rows or none can be compared, ReleaseError where a
    release cannot be loaded.
    """
    files = LogFiles.of(directory, log)
    served = files.read_served()
    served = served.filter(pc.is_valid(served["rows"]))
    if not len(served):
        raise DataError(
            f"{directory / 'served'}: no list has feature rows. Set `serving.log_rows_share` above 0, let the service "
            "answer requests, then run `shelfwise collect`"
        )
    served = served.sort_by("at").slice(max(0, len(served) - limit))
    left_out: Counter[str] = Counter()
    differences: _Differences | None = None
    done = 0
    # The newest release first: it defines which features are compared.
    for release_id in reversed(pc.unique(served["release"]).to_pylist()):
        lists = served.filter(pc.equal(served["release"], release_id))
        done += len(lists)
        if not (releases / release_id / MANIFEST).is_file():
            left_out[_GONE] += len(lists)
            continue
        release = load_release(releases / release_id, custom=custom)
        differences = differences or _Differences(names(release.items), tolerance)
        _compare(release, lists, files, differences, left_out)
        if on_progress:
            on_progress(done, len(served))
    if differences is None or not differences.lists:
        reasons = "; ".join(f"{n} lists: {reason}" for reason, n in left_out.items())
        raise DataError(f"{directory / 'served'}: no list with feature rows can be compared ({reasons})")
    return Skew(differences.features(), differences.lists, differences.rows, dict(left_out), differences.missing)


def _compare(
    release: Release, lists: pa.Table, files: LogFiles, differences: _Differences, left_out: Counter[str]
) -> None:
    """Compare the lists of one release in time order: replay each list before later events are applied."""
    catalogue = release.items.catalogue
    if names(release.items) != differences.columns:
        left_out[_OTHER] += len(lists)
        return
    loaded = load_log(files, catalogue)
    events = loaded.events
    histories = Histories.of(events, release.manifest.retention, loaded.merges, loaded.event_key)
    user_of = {u: n for n, u in enumerate(events.user_ids)}
    state = ItemState.empty(catalogue.category, len(catalogue.category_names))
    items, applied = replace(release.items, state=state), 0
    for row in lists.to_pylist():
        at = row["at"].timestamp()
        end = int(np.searchsorted(events.at, at, side="left"))
        state.apply(events.item[applied:end], events.kind[applied:end], events.at[applied:end])
        applied = end
        user = user_of.get(row["user_id"])
        history = EMPTY if user is None else histories.read(user, at)
        candidates = catalogue.rows(row["candidates"])
        if row["degraded"]:
            left_out[_DEGRADED] += 1
            continue
        scored = np.frombuffer(row["rows"], "<f4").astype(np.float32).reshape(len(candidates), -1)
        context = Context.parse(row["device"], row["query"])
        if row["items"]:
            context = context._replace(seeds=catalogue.rows(row["items"]))
        if release.items.columns:
            logged = (row[name] for name in ("candidate_columns", "user_attributes", "placement"))
            sent = logged_table(release.items.columns, *logged)
            context = context._replace(columns=sent)
        differences.count_missing(release.items.columns, context, row["route"])
        differences.add(scored, rows(items, history, candidates, at, context))
