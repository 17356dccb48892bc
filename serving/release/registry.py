"""Changes of the live and the shadow release: publish, promote, pin, roll back. All of them go through this module.

Each change appends a line to `audit.jsonl` in the directory of the releases and to Redis. These lines are the history
used by rollbacks: publishing and promoting add a step, and a rollback removes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from features.table import Feature
from serving.lock import locked
from serving.release.audit import record_change
from serving.release.json_lines import read_lines
from serving.release.judgements import read_judgements
from serving.release.manifest import Manifest, ReleaseError, list_releases
from serving.release.owner import check_owner, ensure_owner, read_owner
from serving.release.release import Release, load_release
from serving.store import BulkStore, Pointer

_FORWARD = ("publish", "promote", "pin")
"""Actions that add a step to the history."""


def release_history(root: Path) -> list[dict[str, Any]]:
    """The audit log, oldest first: `at`, `action`, `release`, `before`, `by`, `reason`. Damaged lines are skipped."""
    return read_lines(root / "audit.jsonl", {"action", "release"})


def lineage(root: Path) -> list[str]:
    """IDs of the releases that were live, oldest first, ending with the live one; without those rolled back."""
    out: list[str] = []
    for line in release_history(root):
        if line["action"] == "rollback":
            while out and out[-1] != line["release"]:
                out.pop()
            out = out or [line["release"]]
        elif line["action"] in _FORWARD and (not out or out[-1] != line["release"]):
            out.append(line["release"])
    return out


def latest_release(root: Path) -> Path | None:
    """The release to serve if Redis names none: the last that was live, else the newest that passed the gate.

    None if no such release exists.
    """
    existing = {r.manifest.id: r.path for r in list_releases(root) if r.manifest}
    passed = [line["candidate"] for line in read_judgements(root) if line["verdict"] == "promote"]
    by_age = [i for i in reversed(existing) if i in passed]  # the oldest first, as in the lineage
    return next((existing[i] for i in reversed([*by_age, *lineage(root)]) if i in existing), None)


def live_pointer(root: Path, store: BulkStore) -> Pointer | None:
    """The pointer to the live release; None if there is none. Raises ReleaseError if it is of another shop."""
    pointer = store.pointer()
    check_owner(pointer, read_owner(root))
    return pointer


def previous_release(root: Path, live: str) -> str | None:
    """The release to roll back to: the last one before `live` in the audit log, else its parent; must still exist."""
    existing = {r.manifest.id: r.manifest for r in list_releases(root) if r.manifest}
    before = lineage(root)
    before = before[: len(before) - 1 - before[::-1].index(live)] if live in before else before
    known = [i for i in before if i in existing and i != live]
    if known:
        return known[-1]
    parent = existing[live].parent if live in existing else None
    return parent if parent in existing and parent != live else None


def last_rollback(root: Path, release: str) -> dict[str, Any] | None:
    """The audit line of the last rollback from a release; None if there is none or it was promoted again since."""
    last = None
    for line in release_history(root):
        if line["action"] == "rollback" and line.get("before") == release:
            last = line
        elif line["release"] == release and line["action"] in ("promote", "pin"):
            last = None
    return last


def publish(root: Path, store: BulkStore, release: Manifest, path: Path) -> None:
    """Make the release of a nightly run live; does nothing, and logs nothing, if it already is."""
    with locked(root / "lock", wait=True):
        pointer = live_pointer(root, store)
        if pointer is None or pointer.id != release.id:
            _point(root, store, "publish", release.id, path, "passed the nightly gate")


def promote(
    root: Path,
    store: BulkStore,
    release_id: str,
    reason: str,
    custom: tuple[Feature, ...] = (),
    action: str = "promote",
    by: str | None = None,
    replaces: str | None = None,
    take_over: bool = False,
) -> Release:
    """Make any existing release live and write its vectors to Redis. Raises ReleaseError if it is missing or damaged.

    action: recorded in the audit log; `pin` also prevents nightly runs from replacing the release until it is unpinned.
    by: user recorded in the audit log; None for the user of this process. replaces: the release that the caller saw
    live; raises ReleaseError if another one is live by the time it is this call's turn. None replaces any release.
    take_over: also replace the release of another shop.
    """
    with locked(root / "lock", wait=True):
        pointer = store.pointer() if take_over else live_pointer(root, store)
        if replaces is not None and (pointer is None or pointer.id != replaces):
            raise ReleaseError(
                f"{pointer.id if pointer else 'no release'} is live now, not {replaces}: someone else has changed it; "
                "look at `shelfwise releases` and try again"
            )
        return _promote(root, store, release_id, reason, custom, action, by)


def _promote(
    root: Path, store: BulkStore, release_id: str, reason: str, custom: tuple[Feature, ...], action: str, by: str | None
) -> Release:
    """`promote`, for a caller that holds the lock."""
    release = load_release(root / release_id, custom=custom)
    _restore_vectors(store, release)
    _point(root, store, action, release.id, release.path, reason, by)
    return release


def rollback(
    root: Path, store: BulkStore, reason: str, custom: tuple[Feature, ...] = (), by: str | None = None
) -> Release:
    """Make the previously live release live again. Raises ReleaseError if there is none."""
    with locked(root / "lock", wait=True):
        pointer = live_pointer(root, store)
        before = previous_release(root, pointer.id) if pointer else None
        if before is None:
            raise ReleaseError(
                "there is no release to roll back to: list them with `shelfwise releases` and promote one by its ID"
            )
        return _promote(root, store, before, reason, custom, "rollback", by)


def restore(root: Path, store: BulkStore, custom: tuple[Feature, ...] = ()) -> Release | None:
    """Make the last live release live again in a Redis that lost its pointer; None if it has one, or if none was live.

    Raises ReleaseError if that release is damaged.
    """
    with locked(root / "lock", wait=True):
        path = latest_release(root)
        if live_pointer(root, store) is not None or path is None:
            return None
        return _promote(root, store, path.name, "Redis was replaced", custom, "promote", None)


def unpin(root: Path, store: BulkStore, reason: str) -> Pointer:
    """Let nightly runs replace the live release again. Raises ReleaseError if none is live."""
    with locked(root / "lock", wait=True):
        pointer = live_pointer(root, store)
        if pointer is None:
            raise ReleaseError("no release is live yet: run `shelfwise nightly`")
        _point(root, store, "unpin", pointer.id, Path(pointer.path), reason)
        return pointer


def start_shadow(
    root: Path, store: BulkStore, release_id: str, reason: str, custom: tuple[Feature, ...] = ()
) -> Release:
    """Make every worker also score a share of its lists with this release. Raises ReleaseError if it is missing,
    damaged or live."""
    with locked(root / "lock", wait=True):
        pointer = live_pointer(root, store)
        if pointer is not None and pointer.id == release_id:
            raise ReleaseError(f"release {release_id} is live: choose another one for shadow scoring")
        release = load_release(root / release_id, custom=custom)
        before = store.shadow()
        record_change(root, store, "shadow", release.id, before.id if before else None, reason)
        store.set_shadow(Pointer(id=release.id, path=str(release.path.resolve()), owner=ensure_owner(root)))
    return release


def stop_shadow(root: Path, store: BulkStore, reason: str) -> Pointer:
    """Stop shadow scoring. Raises ReleaseError if no release is in shadow."""
    with locked(root / "lock", wait=True):
        live_pointer(root, store)
        before = store.shadow()
        if before is None:
            raise ReleaseError("no release is in shadow: start one with `shelfwise releases shadow ID`")
        record_change(root, store, "unshadow", before.id, before.id, reason)
        store.set_shadow(None)
    return before


def _restore_vectors(store: BulkStore, release: Release) -> None:
    """Write the item vectors from the release's files to Redis."""
    import pyarrow.parquet as pq  # imported here because it takes 40 ms

    table = pq.read_table(release.path / "items.parquet", columns=["item_id", "embedding"])
    vectors = np.array(table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False), np.float32)
    vectors = vectors.reshape(len(table), -1)
    known = np.flatnonzero(np.isfinite(vectors).all(axis=1))
    ids: Sequence[str] = table["item_id"].to_pylist()
    store.write_vectors(release.manifest.encoder_fingerprint, [ids[i] for i in known.tolist()], vectors[known])


def _point(
    root: Path, store: BulkStore, action: str, release_id: str, path: Path, reason: str, by: str | None = None
) -> None:
    """Set the live release. The audit line comes first, so that a change cut short is logged rather than never
    recorded."""
    pointer = store.pointer()
    record_change(root, store, action, release_id, pointer.id if pointer else None, reason, by)
    if (in_shadow := store.shadow()) and in_shadow.id == release_id:
        store.set_shadow(None)
    owner = ensure_owner(root)
    store.set_pointer(Pointer(id=release_id, path=str(path.resolve()), pinned=action == "pin", owner=owner))
