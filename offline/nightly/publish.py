"""Publication: the release goes live, users' histories are completed in Redis, and what is old is removed."""

from __future__ import annotations

import time

import numpy as np

from features.arrays import F64
from features.history import ENGAGEMENTS, SHOWN, EventsByUser
from offline.data import erasures
from offline.nightly import checks, gate, retention
from offline.nightly.artefacts import Artefacts
from offline.runtime import OnProgress
from serving.release import read_manifest, registry
from serving.store import DUPLICATES_S, BulkStore, user_hash

_USERS = 1000
"""Users whose histories are completed at a time."""


def publish(a: Artefacts, on_progress: OnProgress) -> None:
    """Write vectors to Redis, then what users' histories lack, then the pointer; and `published.json`.

    Raises ReleaseKept or ApprovalNeeded where the gate, a pin or a rollback says no; a release that is live already is
    completed.
    """
    config, release_id = a.inputs.config, a.release_id
    with _store(a) as store:
        if a.inputs.live != release_id:
            if gate.wants_shadow(a):
                by = "the night's gate (gate.mode: shadow)"
                registry.start_shadow(config.releases, store, release_id, by, a.inputs.custom)
            gate.raise_unless_allowed(a, a.inputs.pointer())
        vectors = a.vectors
        known = np.flatnonzero(np.isfinite(vectors).all(axis=1))
        ids = a.inputs.data.catalogue.item_ids
        fingerprint = a.json("encoder.json")["fingerprint"]
        store.write_vectors(fingerprint, [ids[i] for i in known.tolist()], vectors[known], on_progress)
        seeded = _seed_histories(a, store, on_progress)
        registry.publish(config.releases, store, read_manifest(a.release_path), a.release_path)
    a.write_json("published.json", {"release": release_id, "seeded": seeded})


def is_live(a: Artefacts) -> bool:
    """Whether the release of this run is live."""
    return a.inputs.live == a.release_id


def _store(a: Artefacts) -> BulkStore:
    assert a.inputs.redis_url is not None
    return BulkStore(a.inputs.redis_url)


def _seed_histories(a: Artefacts, store: BulkStore, on_progress: OnProgress) -> int:
    """Put what users' lists lack into Redis, some users at a time; how many records that were."""
    data, histories, erased = a.inputs.data, a.replay.histories, _erased_until(a, store)
    events, ids, users, added, now = data.events, data.catalogue.item_ids, data.events.user_ids, 0, time.time()
    for first in range(0, len(users), _USERS):
        some = range(first, min(first + _USERS, len(users)))
        rows = [
            held.row[_rows_to_seed(held, u, cap, now)]
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


def _rows_to_seed(held: EventsByUser, user: int, cap: int, now: float) -> slice:
    """A user's newest rows, and all of the days in which an event that is sent again is known by its id."""
    newest = held.newest(user, np.inf, cap)
    recent = held.start[user] + int(np.searchsorted(held.at[held.start[user] : newest.stop], now - DUPLICATES_S))
    return slice(min(newest.start, recent), newest.stop)


def tidy(a: Artefacts, on_progress: OnProgress) -> None:
    """Keep this data set's statistics for later nights, and remove old releases and runs; writes `removed.json`."""
    config = a.inputs.config
    checks.keep_statistics(config.statistics, a.run.directory.name, a.json("statistics.json"))
    with _store(a) as store:
        releases = retention.remove_old(config.releases, store, config.retention)
    runs = retention.remove_runs(config.runs, a.run.directory, config.retention)
    a.write_json("removed.json", {"releases": releases, "runs": runs})


def _erased_until(a: Artefacts, store: BulkStore) -> F64:
    """float64[users]: until when a user was erased since the log was read, so that no history is brought back."""
    gone = erasures.merge_erasures(a.inputs.config.data, store.erased()[1])
    return np.array([gone.get(user_hash(u), -np.inf) for u in a.inputs.data.events.user_ids], np.float64)
