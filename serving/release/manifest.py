"""What a release says of itself: `manifest.json`, with the size and SHA-256 of every file of its directory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec

FORMAT = 1
MANIFEST = "manifest.json"
_MANIFEST_BYTES = 16 << 20


class ReleaseError(ValueError):
    """A release cannot be written or used; the message says which file or field, both values, and what to do."""


class FileEntry(msgspec.Struct, frozen=True):
    """Size in bytes and SHA-256 (hex) of one file."""

    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What a release says of itself. Times are Unix seconds, UTC.

    cut_off: item state holds the events before it. window: what was trained and tested on which stretch of time.
    metrics: of the evaluation that let it pass. parent: id of the release that was live when it was made.
    files: by path inside the directory, with `/`. custom: the user's own features: where their code is.
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
    files: dict[str, FileEntry]
    custom: list[str] = []


@dataclass(frozen=True)
class Listed:
    """A directory that looks like a release: its manifest, or the problem with it."""

    path: Path
    manifest: Manifest | None
    problem: str = ""


def read_manifest(path: Path) -> Manifest:
    """What the release in a directory says of itself, checked against its id; its files are not looked at."""
    file = path / MANIFEST
    if not file.is_file():
        raise ReleaseError(f"{path} is no release: it has no {MANIFEST}")
    if (size := file.stat().st_size) > _MANIFEST_BYTES:
        raise ReleaseError(f"{file} has {size} bytes; a manifest has at most {_MANIFEST_BYTES}")
    content = file.read_bytes()
    try:
        written_as = msgspec.json.decode(content, type=dict[str, Any]).get("format")
        if written_as != FORMAT:
            raise ReleaseError(
                f"{file}: format {written_as!r}, this version reads {FORMAT}: serve it with the version that made it"
            )
        manifest = msgspec.json.decode(content, type=Manifest)
        found = release_id(manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise ReleaseError(f"{file} is not a manifest: {e}; copy or make the release again") from e
    if found != manifest.id:
        raise ReleaseError(
            f"{file}: id {manifest.id!r}, but its content makes {found!r}: it was changed; copy it again"
        )
    return manifest


def list_releases(root: Path) -> list[Listed]:
    """Every release under `root`, newest first, those that cannot be read at the end with their problem."""
    good, bad = [], []
    for path in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")) if root.is_dir() else []:
        try:
            good.append(Listed(path, read_manifest(path)))
        except ReleaseError as e:
            bad.append(Listed(path, None, str(e)))
    return (
        sorted(good, key=lambda r: (r.manifest.created_at, r.path.name) if r.manifest else (0, ""), reverse=True) + bad
    )


def release_id(manifest: Manifest) -> str:
    """Date, and the beginning of the SHA-256 of the manifest without its id."""
    date = datetime.fromtimestamp(manifest.created_at, UTC).strftime("%Y%m%d")
    return f"{date}-{hashlib.sha256(as_json(msgspec.structs.replace(manifest, id=''))).hexdigest()[:10]}"


def as_json(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`, the same for the same manifest."""
    # Metrics tend to be numpy's numbers.
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted", enc_hook=lambda x: x.item()), indent=1)
