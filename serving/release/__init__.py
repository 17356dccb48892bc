"""Releases: the artefact that workers serve, and the choice of the live one.

`write_release` and `load_release` write and read the artefact. `registry` makes every change of the release pointer and
records it in the audit log.
"""

from __future__ import annotations

from serving.release import registry
from serving.release.audit import record_change
from serving.release.earnings import EARNINGS, read_earnings
from serving.release.judgements import read_judgements, write_judgement
from serving.release.manifest import MANIFEST, ListedRelease, Manifest, ReleaseError, list_releases, read_manifest
from serving.release.owner import ensure_owner, read_owner
from serving.release.registry import (
    latest_release,
    live_pointer,
    previous_release,
    promote,
    release_history,
    restore,
    rollback,
    start_shadow,
    stop_shadow,
    unpin,
)
from serving.release.release import Release, load_release, write_release

__all__ = [
    "EARNINGS",
    "MANIFEST",
    "ListedRelease",
    "Manifest",
    "Release",
    "ReleaseError",
    "ensure_owner",
    "latest_release",
    "list_releases",
    "live_pointer",
    "load_release",
    "previous_release",
    "promote",
    "read_earnings",
    "read_judgements",
    "read_manifest",
    "read_owner",
    "record_change",
    "registry",
    "release_history",
    "restore",
    "rollback",
    "start_shadow",
    "stop_shadow",
    "unpin",
    "write_judgement",
    "write_release",
]
