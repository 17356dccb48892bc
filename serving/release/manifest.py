"""The manifest of a release, `manifest.json`: its metadata, and the size and SHA-256 of every file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec

from features.columns import Column
from features.retention import Retention
from ranker.calibration import Outcome, OutcomeMap

FORMAT = 2
MANIFEST = "manifest.json"
_MANIFEST_BYTES = 16 << 20


class ReleaseError(ValueError):
    """A release cannot be written or used; the message names the file or field, both values, and the fix."""


class FileEntry(msgspec.Struct, frozen=True):
    """Size in bytes and SHA-256 (hex) of one file."""

    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """Metadata of a release. Times are Unix seconds, UTC.

    cut_off: item state includes the events before this time. window: the time ranges of training and testing.
    metrics: results of the evaluation that passed the gate. parent: ID of the release that was live at creation.
    files: by path relative to the directory, with `/`. attribution_s: as in `features.moment.Items`. retention: of the
    users' lists that the ranker was trained on. custom: where the code of each custom feature is. columns: the
    declared columns of requests; not in the file if there are none. tokens: version of `features.text.tokens` that
    split the texts into words; not set in releases of version 1, whose IDs do not cover it. calibration: the map
    from scores to the probability of each outcome; not set in a release without any. simple_order: what the ranker
    orders by if it is a simple order; not set if it is trained.
    """

    id: str
    format: int
    created_at: Annotated[float, msgspec.Meta(ge=0, lt=253402300800)]
    cut_off: float
    parent: str | None
    window: dict[str, Any]
    metrics: dict[str, Any]
    encoder_fingerprint: str
    dimension: int
    items: int
    schema_hash: str
    feature_names: list[str]
    attribution_s: Annotated[float, msgspec.Meta(gt=0)]
    retention: Retention
    files: dict[str, FileEntry]
    custom: list[str] = []
    columns: list[Column] | msgspec.UnsetType = msgspec.UNSET
    tokens: int | msgspec.UnsetType = msgspec.UNSET
    calibration: dict[Outcome, OutcomeMap] | msgspec.UnsetType = msgspec.UNSET
    simple_order: str | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True)
class ListedRelease:
    """A directory under the releases: its manifest, or the reason why it cannot be read."""

    path: Path
    manifest: Manifest | None
    problem: str = ""


def read_manifest(path: Path) -> Manifest:
    """The manifest of the release in `path`, checked against its ID; other files are not checked. Raises
    ReleaseError."""
    file = path / MANIFEST
    if not file.is_file():
        raise ReleaseError(f"{path} is not a release: it has no {MANIFEST}")
    if (size := file.stat().st_size) > _MANIFEST_BYTES:
        raise ReleaseError(f"{file} has {size} bytes; the maximum for a manifest is {_MANIFEST_BYTES}")
    content = file.read_bytes()
    try:
        format_ = msgspec.json.decode(content, type=dict[str, Any]).get("format")
        if format_ != FORMAT:
            raise ReleaseError(
                f"{file}: format {format_!r}, this version reads {FORMAT}: serve it with the version that wrote it"
            )
        manifest = msgspec.json.decode(content, type=Manifest)
        expected = release_id(manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise ReleaseError(f"{file} is not a valid manifest: {e}; copy the release again or rebuild it") from e
    if expected != manifest.id:
        raise ReleaseError(
            f"{file}: ID {manifest.id!r} does not match the content, whose ID is {expected!r}: copy the release again"
        )
    return manifest


def list_releases(root: Path) -> list[ListedRelease]:
    """Every release under `root`, newest first; those that cannot be read come last, with the reason."""
    good, bad = [], []
    for path in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")) if root.is_dir() else []:
        try:
            good.append(ListedRelease(path, read_manifest(path)))
        except ReleaseError as e:
            bad.append(ListedRelease(path, None, str(e)))
    return (
        sorted(good, key=lambda r: (r.manifest.created_at, r.path.name) if r.manifest else (0, ""), reverse=True) + bad
    )


def release_id(manifest: Manifest) -> str:
    """Date and first 10 hex digits of the SHA-256 of the manifest without its ID."""
    date = datetime.fromtimestamp(manifest.created_at, UTC).strftime("%Y%m%d")
    return f"{date}-{hashlib.sha256(as_json(msgspec.structs.replace(manifest, id=''))).hexdigest()[:10]}"


def as_json(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`; equal manifests give equal bytes."""
    # Metrics may be NumPy scalars.
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted", enc_hook=lambda x: x.item()), indent=1)
