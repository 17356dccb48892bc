"""Publication: make the release live, add missing user history to Redis, and remove old releases and runs."""

from __future__ import annotations

import time

import numpy as np

from features.arrays import F64
from features.bounds import COLUMNS
from offline.data import erasures, imported
from offline.nightly import checks, gate, retention
from offline.nightly.artefacts import Artefacts
from offline.runtime import OnProgress, console
from offline.training import VectorStore
from serving.release import read_manifest, registry
from serving.store import DUPLICATES_S, AttributeWrite, BulkStore, UserLimits

_USERS = 1000
"""Users per batch when seeding histories."""


def publish(a: Artefacts, on_progress: OnProgress) -> None:
    """Write item vectors, missing user history and then the pointer to Redis; write `published.json`.

    Raises ReleaseKept or ApprovalNeeded if the gate, a pin or an earlier rollback forbids it. These checks are skipped
    for a release that is live already; its vectors and histories are completed.
    """
    config, release_id = a.inputs.config, a.release_id
    with _store(a) as store:
        if a.inputs.live != release_id:
            if gate.wants_shadow(a):
                reason = "passed the gate (gate.mode: shadow)"
                registry.start_shadow(config.releases, store, release_id, reason, a.inputs.custom)
            gate.raise_unless_allowed(a, a.inputs.pointer())
        vectors = a.vectors
        known = np.flatnonzero(np.isfinite(vectors).all(axis=1))
        ids = a.inputs.data.catalogue.item_ids
        fingerprint = a.json("encoder.json")["fingerprint"]
        store.write_vectors(fingerprint, [ids[i] for i in known.tolist()], vectors[known], on_progress)
        seeded = _seed_histories(a, store, on_progress)
        _seed_attributes(a, store)
        registry.publish(config.releases, store, read_manifest(a.release_path), a.release_path)
    a.write_json("published.json", {"release": release_id, "seeded": seeded})


def is_live(a: Artefacts) -> bool:
    """True if the release of this run is live."""
    return a.inputs.live == a.release_id


def _store(a: Artefacts) -> BulkStore:
    assert a.inputs.redis_url is not None
    serving = a.inputs.config.serving
    return BulkStore(a.inputs.redis_url, limits=UserLimits(serving.retention, serving.max_users))


def _seed_histories(a: Artefacts, store: BulkStore, on_progress: OnProgress) -> int:
    """Add missing user history to Redis, a batch of users at a time. Returns the number of records added."""
    data, histories, erased = a.inputs.data, a.replay.histories, _erased_until(a, store)
    events, ids, users, now = data.events, data.catalogue.item_ids, data.events.user_ids, time.time()
    added = refused = 0
    for first in range(0, len(users), _USERS):
        batch = range(first, min(first + _USERS, len(users)))
        # All recent enough for a resent event to be recognised by its ID.
        rows = [rows for u in batch for rows in histories.latest_rows(u, 2, now - DUPLICATES_S)]
        row = np.concatenate(rows)
        user = np.repeat(
            np.array(batch), [len(engaged) + len(shown) for engaged, shown in zip(rows[::2], rows[1::2], strict=True)]
        )
        # The data set has no ID for items outside the catalogue.
        # Rows that a merge moved are of two users.
        kept = (events.item[row] >= 0) & (events.at[row] > np.maximum(erased[user], erased[events.user[row]]))
        row, user = row[kept], user[kept]
        seeded = store.seed(
            users[first : batch.stop],
            np.searchsorted(user, np.arange(first, batch.stop + 1)),
            events.at[row],
            events.kind[row],
            [ids[i] for i in events.item[row].tolist()],
            [data.event_id[r] for r in row.tolist()],
            now,
            a.inputs.cut_off,
        )
        added, refused = added + seeded.records, refused + seeded.refused_users
        on_progress(batch.stop, len(users))
    if refused:
        console.print(
            f"{refused} users of the log have no lists in Redis, because the maximum number of users have: raise "
            f"serving.max_users ({a.inputs.config.serving.max_users}), if the memory of Redis allows it",
            markup=False,
            soft_wrap=True,
        )
    return added


def _seed_attributes(a: Artefacts, store: BulkStore) -> None:
    """Add the attributes of users in the data set to those in Redis, if any is a feature."""
    if not a.inputs.config.features.user:
        return
    known, now = imported.UserAttributes(a.inputs.log_files), time.time()
    known.advance(np.inf)
    gone = _erasures(a, store)
    # Imported attributes have no time, so that those of a user who was ever erased are not known to be newer.
    writes = [
        AttributeWrite(user, now, dict(list(attributes.items())[:COLUMNS]))
        for user, attributes in known.state.items()
        if any(value is not None for value in attributes.values()) and gone.until(user) == -np.inf
    ]
    if refused := store.seed_attributes(writes):
        console.print(
            f"{refused} users have no attributes in Redis, because the maximum number of users have lists: raise "
            f"serving.max_users ({a.inputs.config.serving.max_users}), if the memory of Redis allows it",
            markup=False,
            soft_wrap=True,
        )


def tidy(a: Artefacts, on_progress: OnProgress) -> None:
    """Save the statistics for later runs, remove old releases and runs, and write `removed.json`."""
    config = a.inputs.config
    checks.keep_statistics(config.statistics, a.run.directory.name, a.json("statistics.json"))
    with _store(a) as store:
        # Of experiments that have ended, too: an analysis may still compare their arms.
        of_arms = frozenset[str]().union(*(one.releases for one in config.experiments.values()))
        releases = retention.remove_old(config.releases, store, config.retention, of_arms)
    runs = retention.remove_runs(config.runs, a.run.directory, config.retention)
    vectors = retention.remove_vectors(VectorStore(config.vector_store), config.runs, config.retention)
    a.write_json("removed.json", {"releases": releases, "runs": runs, "vectors": vectors})


def _erased_until(a: Artefacts, store: BulkStore) -> F64:
    """float64[users]: time up to which a user's events were erased, -inf if never.

    Includes erasures after the log was read, so that seeding does not restore erased events.
    """
    gone = _erasures(a, store)
    return np.array([gone.until(u) for u in a.inputs.data.events.user_ids], np.float64)


def _erasures(a: Artefacts, store: BulkStore) -> erasures.Erasures:
    """All erasures, also those that `collect` has not recorded yet."""
    known = erasures.read_erasures(a.inputs.config.data)
    return known.merged(erasures.waiting_erasures(store, known.secrets)[1])
