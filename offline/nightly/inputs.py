"""Inputs of a nightly run: the configuration, the data set with its log, and where the work is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from features.custom import load as load_features
from features.log import Kind, Lists
from features.moment import Feature
from offline.config import ANNOTATION_FILES, Config
from offline.data import Dataset, LogFiles, Targets, load_dataset, query_groups
from offline.evaluation import check_columns
from offline.runtime import LOCAL, Engine, checksum, source_digest
from serving.store import BulkStore, Pointer

_FILES = ("items.parquet", "written_items.parquet", "erasures.parquet", *ANNOTATION_FILES)


@dataclass(frozen=True)
class Inputs:
    """What the steps of one nightly run read. What several of them need is loaded once, when first asked for.

    redis_url: where to publish; None makes the release and leaves the pointer alone. custom: features of the user's
    own. since, until: only the log from one moment up to, not including, the other, Unix seconds; None is all of it.
    learning_curve: train on parts of the lists as well when evaluating. clock: Unix seconds. engine: where parts of the
    work are done; the result is the same.
    """

    config: Config
    redis_url: str | None
    custom: tuple[Feature, ...]
    since: float | None = None
    until: float | None = None
    learning_curve: bool = False
    clock: Callable[[], float] = time.time
    engine: Engine = LOCAL

    @classmethod
    def of(cls, config: Config, redis_url: str | None = None, **options: Any) -> Inputs:
        """Inputs by configuration; options as the fields above.

        Raises FeatureError for a custom feature that cannot be loaded, and DataError for a slice by a column that the
        data set, where it exists already, does not have.
        """
        out = cls(config, redis_url, load_features(config.features.custom), **options)
        if config.slices.columns and (config.data / "items.parquet").is_file():
            check_columns(config.data, out.log_files.event_columns, config.slices.columns)
        return out

    @property
    def digest(self) -> dict[str, Any]:
        """Everything the result of the run depends on, as JSON values."""
        sections = {"seed", "windows", "lists", "features", "encoder", "ranker"}
        data = self.config.data
        return {
            "config": self.config.model_dump(mode="json", include=sections),
            "data": {name: checksum(data / name) for name in _FILES if (data / name).exists()},
            "log": self.log_files.checksums(),
            "code": source_digest(),
            "own": [f.origin for f in self.custom],
            "since": self.since,
            "until": self.until,
            # Several workers train another model on the same data; which engine they run on changes nothing.
            **({"workers": self.engine.workers} if self.engine.workers > 1 else {}),
        }

    @cached_property
    def log_files(self) -> LogFiles:
        """Where the log is."""
        return LogFiles.of(self.config.data, self.config.log, self.since, self.until)

    @cached_property
    def data(self) -> Dataset:
        """The data set, the log from `since` to `until`."""
        c = self.config
        return load_dataset(c.data, c.features.attributes, self.log_files, c.workspace)

    @cached_property
    def is_logged(self) -> bool:
        """Whether query groups come from logged lists; otherwise they are rebuilt."""
        shown, source = self.data.shown, self.config.lists.source
        if source != "auto":
            return source == "logged"
        return any(bool(((p.kind == Kind.IMPRESSION) & (p.request >= 0) & (p.item >= 0)).any()) for p in shown.parts())

    def lists(self) -> Iterator[Lists]:
        """Every logged list, or every basket for which a list is rebuilt; in blocks, in order of time."""
        if self.is_logged:
            return query_groups.iter_logged_lists(self.data.shown, self.config.lists.attribution_s)
        return query_groups.iter_baskets(self.data.events, -np.inf)

    def targets(self, tested: Lists) -> Targets:
        """What users engaged with in some test lists, offered there or not."""
        if self.is_logged:
            return query_groups.find_targets(tested, tested)
        names = set(tested.request_ids)
        blocks = query_groups.iter_baskets(self.data.events, float(tested.at.min()))
        kept = (b.take(np.array([g for g, r in enumerate(b.request_ids) if r in names], np.int64)) for b in blocks)
        return query_groups.find_targets(tested, query_groups.concat(kept))

    @property
    def cut_off(self) -> float:
        """Just after the last event of the log: the release's item state holds everything before it."""
        return float(np.nextafter(self.data.events.at[-1], np.inf))

    def pointer(self) -> Pointer | None:
        """The pointer to the live release; None where there is none or Redis is not part of this run."""
        if self.redis_url is None:
            return None
        with BulkStore(self.redis_url) as store:
            return store.pointer()

    @property
    def live(self) -> str | None:
        """The id of the live release."""
        pointer = self.pointer()
        return pointer.id if pointer else None
