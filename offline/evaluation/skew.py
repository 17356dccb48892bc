"""Skew: the feature rows a service scored, against rows made of the log alone for the same list and moment.

The replay is training's way of knowing: a release's arrays as they are, item state from all events before the moment in
order of time, users' lists from the log. What differs was known to one side only: an event that came late or was never
collected, a service that fell behind its stream, a feature that is not the same function of the same things.
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
from features.context import Context
from features.decay import ItemState
from features.history import EMPTY, Histories
from features.table import Feature, names, rows
from offline.data import LogFiles
from offline.data import load_log as load_log
from offline.runtime import DataError, OnProgress
from serving.release import MANIFEST, Release, load_release

_DEGRADED = "answered without the user's history, as Redis was away"
_GONE = "their release is not there any more"
_OTHER = "their release has other features than the newest"


class FeatureSkew(NamedTuple):
    """One feature: how many values were compared, the share that is not the same to the bit, the share that differs
    by more than the tolerance or is missing on one side only, and the largest difference."""

    name: str
    values: int
    differ: float
    beyond: float
    largest: float

    def verdict(self, threshold: float) -> str:
        """In a word."""
        return "SKEW" if self.beyond > threshold else "equal" if not self.differ else "within tolerance"


@dataclass(frozen=True)
class Skew:
    """What was compared, and what was not, by reason."""

    features: Sequence[FeatureSkew]
    lists: int
    rows: int
    left_out: Mapping[str, int]

    def as_json(self, threshold: float) -> dict[str, Any]:
        """All figures, as JSON values."""
        found = [f._asdict() | {"verdict": f.verdict(threshold)} for f in self.features]
        return {"lists": self.lists, "rows": self.rows, "left_out": dict(self.left_out), "features": found}


class _Differences:
    """Counts by feature, list after list."""

    def __init__(self, columns: Sequence[str], tolerance: float) -> None:
        self._tolerance = tolerance
        self.columns = tuple(columns)
        self.lists = self.rows = 0
        self._differ, self._beyond = np.zeros((2, len(columns)), np.int64)
        self._largest = np.zeros(len(columns))

    def add(self, served: F32, replayed: F32) -> None:
        one = np.isnan(served) != np.isnan(replayed)
        both = np.isnan(served) & np.isnan(replayed)
        with np.errstate(invalid="ignore"):  # infinity less infinity
            gap = np.where(served == replayed, 0.0, np.abs(served.astype(np.float64) - replayed))
        gap = np.where(one, np.inf, np.where(both, 0.0, gap))
        scale = np.maximum(np.maximum(np.abs(np.nan_to_num(served)), np.abs(np.nan_to_num(replayed))), 1e-6)
        self.lists += 1
        self.rows += len(served)
        self._differ += ((served.view(np.uint32) != replayed.view(np.uint32)) & ~both).sum(axis=0)
        self._beyond += (gap > self._tolerance * scale).sum(axis=0)
        self._largest = np.maximum(self._largest, gap.max(axis=0, initial=0))

    def features(self) -> list[FeatureSkew]:
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
    """The newest `limit` served lists with rows, each against its replay.

    releases: where the releases are that answered. tolerance: relative difference that is none. log: as in
    `dataset.load`. Raises DataError where no list was logged with rows, or none can be compared; ReleaseError where a
    release cannot be loaded.
    """
    files = LogFiles.of(directory, log)
    served = files.read_served()
    served = served.filter(pc.is_valid(served["rows"]))
    if not len(served):
        raise DataError(
            f"{directory / 'served'}: holds no list with feature rows; set `serving.log_rows_share` above 0, let the "
            "service answer, and run `shelfwise collect`"
        )
    served = served.sort_by("at").slice(max(0, len(served) - limit))
    left_out: Counter[str] = Counter()
    differences: _Differences | None = None
    done = 0
    # The newest first: its columns are those that count.
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
        said = "; ".join(f"{n} lists: {reason}" for reason, n in left_out.items())
        raise DataError(f"{directory / 'served'}: no list with rows can be compared ({said})")
    return Skew(differences.features(), differences.lists, differences.rows, dict(left_out))


def _compare(
    release: Release, lists: pa.Table, files: LogFiles, differences: _Differences, left_out: Counter[str]
) -> None:
    """One release's lists, in order of time: read, then apply."""
    catalogue = release.items.catalogue
    if names(release.items) != differences.columns:
        left_out[_OTHER] += len(lists)
        return
    events = load_log(files, catalogue).events
    histories, user_of = Histories.of(events), {u: n for n, u in enumerate(events.user_ids)}
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
        found = np.frombuffer(row["rows"], "<f4").astype(np.float32).reshape(len(candidates), -1)
        context = Context.said(row["device"], row["query"])
        differences.add(found, rows(items, history, candidates, at, context))
