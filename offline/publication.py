"""A night's last steps: the release goes live, users' lists are completed, and what is old is removed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from features.history import ENGAGEMENTS, SHOWN, Segments
from features.log import F64
from offline import checks, erasures, guards, retention
from offline.progress import OnProgress
from offline.run import write_json
from serving import releases
from serving.manifest import read_manifest
from serving.store import DUPLICATES_S, BulkStore, user_hash

if TYPE_CHECKING:
    from offline.nightly import Night

_PARENT = "parent.json"
_USERS = 1000
"""Users whose lists are completed at a time."""


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
    made = night.json("release.json")
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
    seeded = _seeded(night, store, on_progress)
    path = Path(made["path"])
    releases.publish(night.config.releases, store, read_manifest(path), path)
    write_json(night.run.file("published.json"), {"release": made["id"], "seeded": seeded})


def _seeded(night: Night, store: BulkStore, on_progress: OnProgress) -> int:
    """Put what users' lists lack into Redis, some users at a time; how many records that were."""
    data, histories, erased = night.data, night.replay.histories, _erased(night, store)
    events, ids, users, added, now = data.events, data.catalogue.item_ids, data.events.user_ids, 0, time.time()
    for first in range(0, len(users), _USERS):
        some = range(first, min(first + _USERS, len(users)))
        rows = [
            held.row[_to_tell(held, u, cap, now)]
            for u in some
            for held, cap in ((histories.engagements, 2 * ENGAGEMENTS), (histories.shown, 2 * SHOWN))
        ]
        row = np.concatenate(rows)
        user = np.repeat(np.array(some), [len(a) + len(b) for a, b in zip(rows[::2], rows[1::2], strict=True)])
        # An event of an item outside the catalogue has lost its id on the way here.
        kept = (events.item[row] >= 0) & (events.at[row] > erased[user])
        row, user = row[kept], user[kept]
        added += store.seed(
            users[first : some.stop],
            np.searchsorted(user, np.arange(first, some.stop + 1)),
            events.at[row],
            events.kind[row],
            [ids[i] for i in events.item[row].tolist()],
            [data.event_id[r] for r in row.tolist()],
            now,
        )
        on_progress(some.stop, len(users))
    return added


def _to_tell(held: Segments, user: int, cap: int, now: float) -> slice:
    """A user's newest rows, and all of the days in which an event that is sent again is known by its id."""
    newest = held.newest(user, np.inf, cap)
    recent = held.start[user] + int(np.searchsorted(held.at[held.start[user] : newest.stop], now - DUPLICATES_S))
    return slice(min(newest.start, recent), newest.stop)


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
