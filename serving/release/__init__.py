"""Releases: the artefact a worker answers from, and which one is live.

`write_release` and `load_release` are its two sides; every change of the pointer goes through `registry` and leaves a
line in the audit log.
"""

from __future__ import annotations

from serving.release import registry
from serving.release.audit import record_change
from serving.release.judgements import read_judgements, write_judgement
from serving.release.manifest import MANIFEST, Listed, Manifest, ReleaseError, list_releases, read_manifest
from serving.release.registry import (
    previous_release,
    promote,
    release_history,
    rollback,
    start_shadow,
    stop_shadow,
    unpin,
)
from serving.release.release import Release, load_release, write_release

__all__ = [
    "MANIFEST",
    "Listed",
    "Manifest",
    "Release",
    "ReleaseError",
    "list_releases",
    "load_release",
    "previous_release",
    "promote",
    "read_judgements",
    "read_manifest",
    "record_change",
    "registry",
    "release_history",
    "rollback",
    "start_shadow",
    "stop_shadow",
    "unpin",
    "write_judgement",
    "write_release",
]
