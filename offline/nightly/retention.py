"""Retention: removal of old releases, run directories and text vectors at the end of a nightly run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np

from features.arrays import U8
from offline.config import RetentionConfig
from offline.training import VectorStore
from serving.lock import locked
from serving.release import ReleaseError, list_releases, read_manifest, record_change, registry
from serving.store import BulkStore

_REMOVED, _MAKING = ".removed-", ".making-"


def remove_old(root: Path, store: BulkStore, config: RetentionConfig, of_arms: Collection[str] = ()) -> list[str]:
    """Remove old releases and return their IDs; keep the newest, the live one, its predecessor and the shadow one.

    of_arms: IDs of releases of the arms of experiments, which are kept too.

    Also removes incomplete releases left by a killed run. The vectors of an encoder are deleted from Redis with the
    last release that uses them. If this call is killed, the next one completes it.
    """
    with locked(root / "lock", wait=True):
        pointer = store.pointer()
        readable = [(r.path, r.manifest) for r in list_releases(root) if r.manifest]
        kept = {m.id for _, m in readable[: config.releases]} | set(of_arms)
        if in_shadow := store.shadow():
            kept |= {in_shadow.id}
        if pointer is not None:
            kept |= {pointer.id} | {i for i in [registry.previous_release(root, pointer.id)] if i}
        gone = [(p, m) for p, m in readable if m.id not in kept] if pointer is not None else []
        for path, manifest in gone:
            path.rename(root / f"{_REMOVED}{manifest.id}")
            record_change(root, store, "remove", manifest.id, None, f"older than the newest {config.releases}")
        used = {m.encoder_fingerprint for _, m in readable if m.id in kept}
        for left_over in sorted(root.glob(f"{_REMOVED}*")):
            _delete_release(left_over, store, used)
        for unfinished in root.glob(f"{_MAKING}*"):
            shutil.rmtree(unfinished)
        return [m.id for _, m in gone]


def remove_runs(root: Path, own: Path, config: RetentionConfig) -> list[str]:
    """Remove all but the newest run directories, and never `own`. Returns the names of those removed."""
    runs = sorted((p for p in root.iterdir() if p.is_dir() and p != own), key=lambda p: p.stat().st_mtime, reverse=True)
    gone = runs[config.runs - 1 :]
    for path in gone:
        shutil.rmtree(path)
    return [p.name for p in gone]


def remove_vectors(store: VectorStore, runs: Path, config: RetentionConfig) -> int:
    """Remove vectors of texts that none of the runs under `runs` uses, and return their number.

    Those written in the last `vector_days` days are kept.
    """
    used: dict[str, list[U8]] = {}
    for path in sorted(runs.glob("*/texts.json")):
        model = json.loads(path.read_text("utf-8"))["base_fingerprint"]
        used.setdefault(model, []).append(np.load(path.with_name("text_keys.npy"), allow_pickle=False))
    keys = {model: np.concatenate(arrays) for model, arrays in used.items()}
    return store.tidy(keys, config.vector_days * 86_400)


def _delete_release(release: Path, store: BulkStore, used: set[str]) -> None:
    """Delete a release directory, and its vectors if no other release uses them.

    The vectors go first: they are found through the manifest in the directory.
    """
    try:
        fingerprint = read_manifest(release).encoder_fingerprint
    except ReleaseError:
        fingerprint = None  # the manifest is gone, so the vectors are gone as well
    if fingerprint is not None and fingerprint not in used:
        store.drop_vectors(fingerprint)
    # For the same reason, the manifest is deleted last.
    for path in release.iterdir():
        if path.name != "manifest.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(release)
