"""What a night removes when it is done: releases and runs that nobody will go back to."""

from __future__ import annotations

import shutil
from pathlib import Path

from offline.config import RetentionConfig
from serving.lock import locked
from serving.release import ReleaseError, list_releases, read_manifest, record_change, registry
from serving.store import BulkStore

_REMOVED, _MAKING = ".removed-", ".making-"


def remove_old(root: Path, store: BulkStore, config: RetentionConfig) -> list[str]:
    """Ids of the releases removed now: beyond the newest, neither live, nor in shadow, nor the one before it.

    Also what a killed night left: releases half made or half removed. An encoder's vectors go from Redis with the last
    release that has them. Killed anywhere, the next call completes it.
    """
    with locked(root / "lock", wait=True):
        pointer = store.pointer()
        good = [(r.path, r.manifest) for r in list_releases(root) if r.manifest]
        kept = {m.id for _, m in good[: config.releases]}
        if in_shadow := store.shadow():
            kept |= {in_shadow.id}
        if pointer is not None:
            kept |= {pointer.id} | {i for i in [registry.previous_release(root, pointer.id)] if i}
        gone = [(p, m) for p, m in good if m.id not in kept] if pointer is not None else []
        for path, manifest in gone:
            path.rename(root / f"{_REMOVED}{manifest.id}")
            record_change(root, store, "remove", manifest.id, None, f"older than the newest {config.releases}")
        used = {m.encoder_fingerprint for _, m in good if m.id in kept}
        for left in sorted(root.glob(f"{_REMOVED}*")):
            _delete_vectors(left, store, used)
        for half in root.glob(f"{_MAKING}*"):
            shutil.rmtree(half)
        return [m.id for _, m in gone]


def remove_runs(root: Path, own: Path, config: RetentionConfig) -> list[str]:
    """Names of the run directories removed now: all but the newest, and never `own`."""
    runs = sorted((p for p in root.iterdir() if p.is_dir() and p != own), key=lambda p: p.stat().st_mtime, reverse=True)
    gone = runs[config.runs - 1 :]
    for path in gone:
        shutil.rmtree(path)
    return [p.name for p in gone]


def _delete_vectors(left: Path, store: BulkStore, used: set[str]) -> None:
    """Vectors first: while the directory is there, its manifest says which they are."""
    try:
        fingerprint = read_manifest(left).encoder_fingerprint
    except ReleaseError:
        fingerprint = None  # its files went, so its vectors are gone
    if fingerprint is not None and fingerprint not in used:
        store.drop_vectors(fingerprint)
    # The manifest last, for the same reason.
    for path in left.iterdir():
        if path.name != "manifest.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(left)
