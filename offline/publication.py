"""A night's last steps: the release goes live, users' lists are completed, and what is old is removed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from features.log import F64
from offline import checks, erasures, guards, retention
from offline.progress import OnProgress
from offline.run import write_json
from serving import release, releases
from serving.store import BulkStore, user_hash

if TYPE_CHECKING:
    from offline.nightly import Night

_PARENT = "parent.json"


def parent(night: Night) -> str | None:
    """The release that was live when this night's was first made: remembered, so that made again, after it went live
    itself, it is still the same to the byte."""
    if not night.run.file(_PARENT).exists():
        write_json(night.run.file(_PARENT), {"parent": night.live})
    found: str | None = night.json(_PARENT)["parent"]
    return found


def publish(night: Night, store: BulkStore, on_progress: OnProgress) -> None:
    """Vectors into Redis, then what users' lists lack, then the pointer; writes `published.json`.

    Raises Kept or Asked where the gate, a pin or a rollback says no; a release that is live already is completed.
    """
    made, events = night.json("release.json"), night.data.events
    if night.live != made["id"]:
        if guards.goes_into_shadow(night):
            releases.shadow(
                night.config.releases, store, made["id"], "the night's gate (gate.mode: shadow)", night.custom
            )
        guards.raise_unless_it_may_go_live(night, night.pointer())
    vectors = night.vectors
    known = np.flatnonzero(np.isfinite(vectors).all(axis=1))
    ids = night.data.catalogue.item_ids
    fingerprint = night.json("encoder.json")["fingerprint"]
    store.write_vectors(fingerprint, [ids[i] for i in known.tolist()], vectors[known], on_progress)
    # An event of an item outside the catalogue has lost its id on the way here.
    order = np.argsort(events.user, kind="stable")
    order = order[events.item[order] >= 0]
    order = order[events.at[order] > _erased(night, store)[events.user[order]]]
    start = np.searchsorted(events.user[order], np.arange(events.n_users + 1))
    event_ids = night.data.event_id.take(pa.array(order)).to_pylist()
    item_ids = [ids[i] for i in events.item[order].tolist()]
    seeded = store.seed(
        events.user_ids, start, events.at[order], events.kind[order], item_ids, event_ids, time.time(), on_progress
    )
    path = Path(made["path"])
    releases.publish(night.config.releases, store, release.read_manifest(path), path)
    write_json(night.run.file("published.json"), {"release": made["id"], "seeded": seeded})


def tidy(night: Night, store: BulkStore) -> None:
    """Keep what the data looked like for later nights, and remove old releases and runs; writes `removed.json`."""
    checks.keep(night.config.statistics, night.run.directory.name, night.json("statistics.json"))
    gone = retention.remove_old(night.config.releases, store, night.config.retention)
    runs = retention.remove_runs(night.config.runs, night.run.directory, night.config.retention)
    write_json(night.run.file("removed.json"), {"releases": gone, "runs": runs})


def _erased(night: Night, store: BulkStore) -> F64:
    """float64[users]: until when a user was erased since the log was read, so that no list is brought back."""
    gone = erasures.known(night.config.data, store.erased()[1])
    return np.array([gone.get(user_hash(u), -np.inf) for u in night.data.events.user_ids], np.float64)
