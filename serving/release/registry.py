"""Which release is live, who made it so, and which ones are kept: every change of the pointer goes through here.

Each change leaves a line in `audit.jsonl` beside the releases and in Redis. The lines are the history that a rollback
goes back along: publishing and promoting go a step on, a rollback goes one back.
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
from serving.release.manifest import Manifest, ReleaseError, list_releases
from serving.release.release import Release, load_release
from serving.store import BulkStore, Pointer

_STEPS_ON = ("publish", "promote", "pin")


def release_history(root: Path) -> list[dict[str, Any]]:
    """The audit, oldest first: `at`, `action`, `release`, `before`, `by`, `reason`. A damaged line is left out."""
    return read_lines(root / "audit.jsonl", {"action", "release"})


def lineage(root: Path) -> list[str]:
    """Ids of the releases that were live, oldest first, the live one last; those rolled back from are left out."""
    out: list[str] = []
    for line in release_history(root):
        if line["action"] == "rollback":
            while out and out[-1] != line["release"]:
                out.pop()
            out = out or [line["release"]]
        elif line["action"] in _STEPS_ON and (not out or out[-1] != line["release"]):
            out.append(line["release"])
    return out


def previous_release(root: Path, live: str) -> str | None:
    """The release that was live before this one and is still there: by the audit, else the one it names as parent."""
    there = {r.manifest.id: r.manifest for r in list_releases(root) if r.manifest}
    before = lineage(root)
    before = before[: len(before) - 1 - before[::-1].index(live)] if live in before else before
    known = [i for i in before if i in there and i != live]
    if known:
        return known[-1]
    parent = there[live].parent if live in there else None
    return parent if parent in there and parent != live else None


def last_rollback(root: Path, release: str) -> dict[str, Any] | None:
    """The audit line of the rollback away from a release, where nobody has promoted it since; None otherwise."""
    found = None
    for line in release_history(root):
        if line["action"] == "rollback" and line.get("before") == release:
            found = line
        elif line["release"] == release and line["action"] in ("promote", "pin"):
            found = None
    return found


def publish(root: Path, store: BulkStore, release: Manifest, path: Path) -> None:
    """Make a night's release live; nothing is said of it where it is already."""
    with locked(root / "lock", wait=True):
        pointer = store.pointer()
        if pointer is None or pointer.id != release.id:
            _point(root, store, "publish", release.id, path, "the night's gate let it pass")


def promote(
    root: Path,
    store: BulkStore,
    release_id: str,
    reason: str,
    custom: tuple[Feature, ...] = (),
    action: str = "promote",
    by: str | None = None,
) -> Release:
    """Make any release live that is there and whole, its vectors in Redis. Raises ReleaseError where it is not.

    action: as the audit calls it; `pin` also keeps nights from replacing it, until it is unpinned. by: who wants it,
    for the audit; None is this process's user.
    """
    with locked(root / "lock", wait=True):
        release = load_release(root / release_id, custom=custom)
        _restore_vectors(store, release)
        _point(root, store, action, release.id, release.path, reason, by)
    return release


def rollback(
    root: Path, store: BulkStore, reason: str, custom: tuple[Feature, ...] = (), by: str | None = None
) -> Release:
    """Make the release live that was so before. Raises ReleaseError where there is none."""
    pointer = store.pointer()
    before = previous_release(root, pointer.id) if pointer else None
    if before is None:
        raise ReleaseError("there is no release to go back to: see `shelfwise releases`, and promote one by its id")
    return promote(root, store, before, reason, custom, "rollback", by)


def unpin(root: Path, store: BulkStore, reason: str) -> Pointer:
    """Let nights replace the live release again. Raises ReleaseError where none is live."""
    with locked(root / "lock", wait=True):
        pointer = store.pointer()
        if pointer is None:
            raise ReleaseError("no release is live yet: run `shelfwise nightly`")
        _point(root, store, "unpin", pointer.id, Path(pointer.path), reason)
        return pointer


def start_shadow(
    root: Path, store: BulkStore, release_id: str, reason: str, custom: tuple[Feature, ...] = ()
) -> Release:
    """Have every worker score a share of its lists by this release too. Raises ReleaseError where it is not whole or
    live already."""
    with locked(root / "lock", wait=True):
        pointer = store.pointer()
        if pointer is not None and pointer.id == release_id:
            raise ReleaseError(f"release {release_id} is live: a release in shadow is another one")
        release = load_release(root / release_id, custom=custom)
        before = store.shadow()
        record_change(root, store, "shadow", release.id, before.id if before else None, reason)
        store.cast(Pointer(id=release.id, path=str(release.path.resolve())))
    return release


def stop_shadow(root: Path, store: BulkStore, reason: str) -> Pointer:
    """End that. Raises ReleaseError where no release is in shadow."""
    with locked(root / "lock", wait=True):
        before = store.shadow()
        if before is None:
            raise ReleaseError("no release is in shadow: `shelfwise releases shadow ID` puts one there")
        record_change(root, store, "unshadow", before.id, before.id, reason)
        store.cast(None)
    return before


def _restore_vectors(store: BulkStore, release: Release) -> None:
    """Put a release's item vectors into Redis, from its own file."""
    import pyarrow.parquet as pq  # 40 ms that no request should wait for

    table = pq.read_table(release.path / "items.parquet", columns=["item_id", "embedding"])
    vectors = np.array(table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False), np.float32)
    vectors = vectors.reshape(len(table), -1)
    known = np.flatnonzero(np.isfinite(vectors).all(axis=1))
    ids: Sequence[str] = table["item_id"].to_pylist()
    store.write_vectors(release.manifest.encoder_fingerprint, [ids[i] for i in known.tolist()], vectors[known])


def _point(
    root: Path, store: BulkStore, action: str, release_id: str, path: Path, reason: str, by: str | None = None
) -> None:
    """The line first: killed in between, a change is announced that did not come, never one made without a trace."""
    pointer = store.pointer()
    record_change(root, store, action, release_id, pointer.id if pointer else None, reason, by)
    if (in_shadow := store.shadow()) and in_shadow.id == release_id:
        store.cast(None)
    store.point(Pointer(id=release_id, path=str(path.resolve()), pinned=action == "pin"))
