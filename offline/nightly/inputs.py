"""Inputs of a nightly run: the configuration, the data set with its log, and the engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from features.arrays import Bool
from features.custom import load as load_features
from features.log import Lists
from features.moment import Feature
from offline.config import ANNOTATION_FILES, Config
from offline.data import Dataset, LogFiles, Targets, imported, list_columns, list_seeds, load_dataset, query_groups
from offline.evaluation import check_columns
from offline.nightly.list_source import ListSource, choose
from offline.runtime import LOCAL, Engine, checksum, source_digest
from ranker.train import MAX_LIST
from serving.release import live_pointer
from serving.store import BulkStore, Pointer
from text_encoder import multilingual
from text_encoder.config import AUTO

_FILES = ("items.parquet", "written_items.parquet", "erasures.parquet", *ANNOTATION_FILES)


@dataclass(frozen=True)
class Inputs:
    """Inputs shared by the steps of one nightly run, loaded on first use and cached.

    redis_url: Redis to publish to; None makes the release without publishing it. custom: user-defined features. since,
    until: use only events with since <= time < until, in Unix seconds; None is unbounded. learning_curve: also evaluate
    rankers trained on fractions of the lists. runs: files with rankings of the test lists by other systems, to compare
    with. clock: returns the current time in Unix seconds. engine: runs the heavy parts of the work; the result depends
    only on its number of workers.
    """

    config: Config
    redis_url: str | None
    custom: tuple[Feature, ...]
    since: float | None = None
    until: float | None = None
    learning_curve: bool = False
    runs: tuple[Path, ...] = ()
    clock: Callable[[], float] = time.time
    engine: Engine = LOCAL

    @classmethod
    def of(cls, config: Config, redis_url: str | None = None, **options: Any) -> Inputs:
        """Inputs from a configuration; options are the fields above.

        Raises FeatureError if a custom feature cannot be loaded, and DataError if an existing data set lacks the column
        of a configured slice.
        """
        out = cls(config, redis_url, load_features(config.features.custom), **options)
        if config.slices.columns and (config.data / "items.parquet").is_file():
            check_columns(config.data, out.log_files.event_columns, config.slices.columns)
        return out

    @property
    def digest(self) -> dict[str, Any]:
        """Everything the result of the run depends on, as JSON values."""
        sections = {"seed", "windows", "lists", "features", "encoder", "sequence", "ranker"}
        data = self.config.data
        return {
            "config": self.config.model_dump(mode="json", include=sections),
            "retention": asdict(self.config.serving.retention),
            "data": {name: checksum(data / name) for name in _FILES if (data / name).exists()},
            "log": self.log_files.checksums(),
            **({"users": self._attributes} if self.config.features.user else {}),
            # Placements may need them.
            **({"companions": True} if self.config.needs_companions else {}),
            **({"merges": merges} if (merges := self._merges) else {}),
            "code": source_digest(),
            "own": [f.origin for f in self.custom],
            # Which model `auto` chooses depends on it.
            **({"multilingual": multilingual.is_installed()} if self.config.encoder.model == AUTO else {}),
            "since": self.since,
            "until": self.until,
            # The number of workers changes the trained model; the kind of engine does not.
            **({"workers": self.engine.workers} if self.engine.workers > 1 else {}),
        }

    @property
    def _attributes(self) -> dict[str, str]:
        """SHA-256 of the files with users' attributes."""
        path = self.config.data / imported.PROFILES_FILE
        own = {path.name: checksum(path)} if path.exists() else {}
        return own | {name: storage.checksum(name) for storage, name in self.log_files.attributes.sources}

    @property
    def _merges(self) -> dict[str, str]:
        """SHA-256 of the files with merges of users before the end of the time range."""
        files = self.log_files.merges.files(end=self.log_files.end)
        return {name: storage.checksum(name) for storage, name in files}

    @cached_property
    def log_files(self) -> LogFiles:
        """The files of the log."""
        return LogFiles.of(self.config.data, self.config.log, self.since, self.until)

    @cached_property
    def data(self) -> Dataset:
        """The data set, with the events from `since` to `until`."""
        c = self.config
        return load_dataset(c.data, c.features.attributes, self.log_files, c.workspace)

    @cached_property
    def list_source(self) -> ListSource:
        """The kind of the query groups (logged lists, rebuilt lists, or both), and the reason."""
        source = self.config.lists.source
        if source != "auto":
            return ListSource(source, f"lists.source is {source}")
        return choose(self.logged_keys, (len(block) for block in self._unlogged_baskets(-np.inf)), self.config)

    @property
    def is_logged(self) -> bool:
        """True if all query groups are logged lists."""
        return self.list_source.kind == "logged"

    @property
    def is_mixed(self) -> bool:
        """True if query groups are logged lists and rebuilt lists."""
        return self.list_source.kind == "mixed"

    def lists(self) -> Iterator[Lists]:
        """All logged lists short enough to train on, all baskets to rebuild lists for, or both; in blocks, in time
        order.

        Of both, logged lists without an action are left out, and so are baskets whose actions belong to a logged list.
        """
        if self.is_logged:
            return self.short_lists()
        if self.is_mixed:
            return query_groups.merge(self._unlogged_baskets(-np.inf), self._logged_with_gain)
        return query_groups.iter_baskets(self.data.events, -np.inf)

    def are_logged(self, lists: Lists) -> Bool:
        """bool[lists]: whether each of these query groups is a logged list."""
        if not self.is_mixed:
            return np.full(len(lists), self.is_logged)
        return np.array([request in self._logged_requests for request in lists.request_ids], bool)

    def logged_lists(self) -> Iterator[Lists]:
        """All logged lists, in blocks, in time order."""
        attribution_s, merges = self.config.lists.attribution_s, self.data.merges
        return query_groups.iter_logged_lists(self.data.shown, attribution_s, merges=merges)

    def with_columns(self, lists: Lists) -> Lists:
        """The lists with the values of the declared columns of their requests, NaN for a list that was not logged; and
        with the items that they named, if these have features."""
        declared, catalogue = self.config.features.columns, self.data.catalogue
        if self.config.needs_companions:
            lists = replace(lists, seeds=list_seeds(self.log_files, lists, catalogue))
        if not declared:
            return lists
        users = self.data.events.user_ids
        return replace(lists, columns=list_columns(self.log_files, lists, catalogue.item_ids, declared, users))

    def short_lists(self) -> Iterator[Lists]:
        """The logged lists that are short enough to train on, in blocks, in time order."""
        return (b.take(np.flatnonzero(np.diff(b.start) <= MAX_LIST)) for b in self.logged_lists())

    @cached_property
    def logged_keys(self) -> query_groups.ListKeys:
        """Time and user of the logged lists that are short enough to train on, and whether they have an action."""
        has_list = query_groups.has_logged_list(self.data.shown)
        return query_groups.logged_keys(self.short_lists() if has_list else ())

    @cached_property
    def _logged_with_gain(self) -> Lists:
        return query_groups.concat(b.take(np.flatnonzero(query_groups.has_gain(b))) for b in self.short_lists())

    @cached_property
    def _logged_requests(self) -> frozenset[str]:
        return frozenset(self._logged_with_gain.request_ids)

    def _unlogged_baskets(self, begin: float) -> Iterator[Lists]:
        """Baskets from `begin` on, without the actions that belong to a logged list."""
        baskets = query_groups.iter_baskets(self.data.events, begin)
        attribution_s, merges = self.config.lists.attribution_s, self.data.merges
        return query_groups.without_logged(baskets, self._logged_with_gain, attribution_s, merges)

    def targets(self, tested: Lists) -> Targets:
        """Items that users engaged with in the test lists, whether they were listed or not. tested: of one kind."""
        if self.are_logged(tested).all():
            return query_groups.find_targets(tested, tested)
        requests, begin = set(tested.request_ids), float(tested.at.min())
        blocks = self._unlogged_baskets(begin) if self.is_mixed else query_groups.iter_baskets(self.data.events, begin)
        baskets = (
            b.take(np.array([g for g, r in enumerate(b.request_ids) if r in requests], np.int64)) for b in blocks
        )
        return query_groups.find_targets(tested, query_groups.concat(baskets))

    @property
    def cut_off(self) -> float:
        """Time just after the last event of the log, in Unix seconds.

        The item state of the release includes all events before it.
        """
        return float(np.nextafter(self.data.events.at[-1], np.inf))

    def pointer(self) -> Pointer | None:
        """The pointer to the live release; None if no release is live or Redis is not part of this run."""
        if self.redis_url is None:
            return None
        with BulkStore(self.redis_url) as store:
            return live_pointer(self.config.releases, store)

    @property
    def live(self) -> str | None:
        """The ID of the live release, or None."""
        pointer = self.pointer()
        return pointer.id if pointer else None
