"""The release artefact: an immutable, checksummed directory with everything a worker needs to serve.

    manifest.json      a `Manifest`: the contents, their origin, and the size and SHA-256 of every file
    items.parquet      the catalogue with embeddings, for people and other programs; workers do not read it
    ranker.txt         the trees, as LightGBM model text
    arrays/*.npy       the catalogue, vectors, prior, factors, neighbours and item state, memory-mapped by every worker
    encoder/           the text encoder, safetensors only

The ID is the date and the first 10 hex digits of the SHA-256 of the manifest without its ID. The manifest contains the
checksum of every file. Therefore equal inputs give the same ID and the same bytes, and any change of a byte is
detected. Loading a release runs no code from it: it contains no pickles and no Python, only arrays, text and JSON.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, zip_longest
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from features.retention import DEFAULT_RETENTION, Retention
from features.table import Feature, Items, names, schema_hash
from features.text import tokens
from ranker import query_prior
from ranker.booster import BoosterTrees, scorer
from ranker.calibration import Maps
from ranker.model_text import ModelTextError
from ranker.trees import Trees
from serving.release.arrays import Arrays, from_arrays, to_arrays
from serving.release.manifest import (
    FORMAT,
    MANIFEST,
    FileEntry,
    Manifest,
    ReleaseError,
    as_json,
    read_manifest,
    release_id,
)

if TYPE_CHECKING:
    import pyarrow as pa

_MODEL = "ranker.txt"
_CODE = frozenset({".py", ".pyc", ".so", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".h5"})
"""File types not allowed in an encoder directory: code, and formats that can run code when loaded."""


@dataclass(frozen=True)
class Release:
    """A loaded release. Its arrays are read-only and shared between the processes that map them."""

    path: Path
    manifest: Manifest
    items: Items
    trees: Trees | BoosterTrees

    @cached_property
    def knows_queries(self) -> bool:
        """True if the trees use any query feature."""
        return query_prior.knows_queries(self.trees.names, self.trees.used_columns)

    @cached_property
    def knows_seeds(self) -> bool:
        """True if the trees use any feature of the items of a request, or rows have none of these."""
        return query_prior.knows_seeds(self.trees.names, self.trees.used_columns)

    @property
    def id(self) -> str:
        """Date and checksum, such as `20250131-0123456789`."""
        return self.manifest.id


def write_release(
    root: Path,
    *,
    items: Items,
    model_text: str,
    item_columns: pa.Table,
    encoder_dir: Path | None,
    cut_off: float,
    window: Mapping[str, Any],
    metrics: Mapping[str, Any],
    parent: str | None,
    created_at: float,
    encoder_fingerprint: str,
    retention: Retention = DEFAULT_RETENTION,
    calibration: Maps = MappingProxyType({}),
    simple_order: str | None = None,
) -> Path:
    """Write a release under `root`, synced to disk, and return its directory. Equal inputs give the same directory.

    items: with item state as of `cut_off`. item_columns: the catalogue, embeddings as fixed_size_list<float32>[d].
    encoder_dir: copied into the release; None if there is no encoder. Times are Unix seconds. retention,
    calibration, simple_order: see `Manifest`.
    A failed write leaves nothing behind. Raises ReleaseError if model and features do not match, if the encoder
    directory contains code or a format that can run code, or if the directory of this ID exists with different content.
    """
    _check_features(items, _trees(model_text, "the given model"), "the given model")
    if any(a >= b for a, b in pairwise(items.catalogue.item_ids)):
        raise ReleaseError(
            "the catalogue's item IDs are not unique and ascending: sort by item_id and remove duplicates"
        )
    root.mkdir(parents=True, exist_ok=True)
    with _temporary(root) as staging:
        (staging / _MODEL).write_text(model_text, encoding="utf-8", newline="")
        _write_parquet(item_columns, staging / "items.parquet", encoder_fingerprint)
        (staging / "arrays").mkdir()
        for name, array in to_arrays(items).items():
            np.save(staging / "arrays" / f"{name}.npy", array, allow_pickle=False)
        if encoder_dir is not None:
            _copy_encoder(encoder_dir, staging / "encoder")
        manifest = Manifest(
            id="",
            format=FORMAT,
            created_at=created_at,
            cut_off=cut_off,
            parent=parent,
            window=dict(window),
            metrics=dict(metrics),
            encoder_fingerprint=encoder_fingerprint,
            dimension=items.vectors.code.shape[1],
            items=len(items.catalogue),
            schema_hash=schema_hash(items),
            feature_names=list(names(items)),
            attribution_s=items.attribution_s,
            retention=retention,
            custom=[f.origin for f in items.custom],
            columns=list(items.columns) or msgspec.UNSET,
            tokens=tokens.VERSION,
            calibration=dict(calibration) or msgspec.UNSET,
            simple_order=simple_order or msgspec.UNSET,
            files={p.relative_to(staging).as_posix(): _entry(p) for p in _files(staging)},
        )
        # Round trip through JSON, so that the ID is of the values as they will be read: an int for a float, for
        # example.
        manifest = msgspec.json.decode(as_json(manifest), type=Manifest)
        manifest = msgspec.structs.replace(manifest, id=release_id(manifest))
        (staging / MANIFEST).write_bytes(as_json(manifest))
        load_release(staging, verify=False, custom=items.custom)
        return _finalize(staging, root / manifest.id)


def load_release(path: Path, verify: bool = True, custom: tuple[Feature, ...] = ()) -> Release:
    """Load the release in a directory, with memory-mapped arrays.

    verify: also read every file and compare its checksum; sizes are always compared. custom: the custom features of the
    configuration; a release names those it was built with but does not contain their code. Raises ReleaseError if
    anything is missing or does not match: format, ID, size, checksum, shape, dtype, feature schema, model or custom
    features.
    """
    manifest = read_manifest(path)
    if (configured := [f.origin for f in custom]) != manifest.custom:
        raise ReleaseError(
            f"{path}: was built with custom features {manifest.custom or 'none'}, but {configured or 'none'} are "
            "configured: set the same in `features.custom`, with the same code, or make a new release"
        )
    for name, entry in manifest.files.items():
        _check_file(path, name, entry, verify)
    items = replace(
        from_arrays(Arrays(path, manifest)),
        custom=custom,
        columns=tuple(manifest.columns or ()),
        attribution_s=manifest.attribution_s,
    )
    if (schema := schema_hash(items)) != manifest.schema_hash:
        differ = [f"{a} / {b}" for a, b in zip(manifest.feature_names, names(items), strict=False) if a != b]
        raise ReleaseError(
            f"{path}: its feature schema is {manifest.schema_hash} ({len(manifest.feature_names)} features), that of "
            f"this version is {schema} ({len(names(items))}){', first difference ' + differ[0] if differ else ''}: "
            "serve it with the version that built it, or make a new release"
        )
    _check_words(path, manifest, items)
    if _MODEL not in manifest.files:
        raise ReleaseError(f"{path / MANIFEST}: does not list {_MODEL}; rebuild the release")
    trees = _trees((path / _MODEL).read_text(encoding="utf-8"), str(path / _MODEL))
    _check_features(items, trees, str(path / _MODEL))
    return Release(path, manifest, items, trees)


def _check_words(path: Path, manifest: Manifest, items: Items) -> None:
    """Raise ReleaseError if queries would be split into other words than the texts of the release were."""
    made = 1 if manifest.tokens is msgspec.UNSET else manifest.tokens
    if items.words is None or made == tokens.VERSION:
        return
    # Version 2 reads Latin, Greek, Cyrillic and Armenian letters as version 1 did.
    if made == 1 and (other := next((name for name in items.words.names if max(name, default="") >= "\u0590"), None)):
        raise ReleaseError(
            f"{path}: its words, such as {other!r}, were split by version 1 of the tokenizer, and version "
            f"{tokens.VERSION} would not find them: serve it with the version that built it, or make a new release"
        )
    if made > tokens.VERSION:
        raise ReleaseError(
            f"{path}: its words were split by version {made} of the tokenizer, this version has {tokens.VERSION}: "
            "serve it with the version that built it, or make a new release"
        )


def _check_features(items: Items, trees: Trees | BoosterTrees, where: str) -> None:
    # LightGBM writes a space in a name as an underscore.
    expected = [n.replace(" ", "_") for n in names(items)]
    for column, (of_model, of_rows) in enumerate(zip_longest(trees.names, expected)):
        if of_model != of_rows:
            raise ReleaseError(
                f"{where} was trained on {len(trees.names)} features, the rows have {len(expected)}; column {column} "
                f"is {of_model!r} in the model, {of_rows!r} in the rows: train on the features of this version and "
                "catalogue"
            )


def _trees(model_text: str, where: str) -> Trees | BoosterTrees:
    try:
        return scorer(model_text)
    except ModelTextError as e:
        raise ReleaseError(f"{where}: {e}") from e


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as f:
        return FileEntry(path.stat().st_size, hashlib.file_digest(f, "sha256").hexdigest())


def _files(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file())


@contextmanager
def _temporary(root: Path) -> Iterator[Path]:
    """A temporary directory under `root`, deleted after the block unless it was renamed."""
    staging = Path(tempfile.mkdtemp(prefix=".making-", dir=root))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _finalize(staging: Path, target: Path) -> Path:
    """Sync all files, rename, sync the rename: after a power failure the release is complete or absent."""
    if target.exists():
        if (target / MANIFEST).is_file() and (target / MANIFEST).read_bytes() == (staging / MANIFEST).read_bytes():
            return target
        raise ReleaseError(f"{target} exists with different content: move it away")
    staging.chmod(0o755)
    for path in [*_files(staging), *(p for p in staging.rglob("*") if p.is_dir()), staging]:
        _sync(path)
    staging.rename(target)
    _sync(target.parent)
    return target


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_parquet(table: pa.Table, path: Path, fingerprint: str) -> None:
    import pyarrow.parquet as pq  # imported here because workers never write, and it takes 60 MB

    metadata = {**(table.schema.metadata or {}), b"encoder_fingerprint": fingerprint.encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path, compression="zstd")


def _copy_encoder(source: Path, target: Path) -> None:
    for path in _files(source):
        if path.suffix.lower() in _CODE:
            raise ReleaseError(
                f"{path}: an encoder in a release may only contain safetensors, JSON and text: save it in that form"
            )
    shutil.copytree(source, target)


def _check_file(path: Path, name: str, entry: FileEntry, verify: bool) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name or not name:
        raise ReleaseError(f"{path / MANIFEST}: the path {name!r} is outside the release; refused")
    file = path / pure
    if not file.is_file():
        raise ReleaseError(f"{file} is missing: copy the release again")
    if not file.resolve().is_relative_to(path.resolve()):
        raise ReleaseError(f"{file} is a link to a file outside the release; refused")
    if (size := file.stat().st_size) != entry.bytes:
        raise ReleaseError(f"{file} has {size} bytes, the manifest says {entry.bytes}: copy the release again")
    if verify and (checksum := _entry(file).sha256) != entry.sha256:
        raise ReleaseError(f"{file} has SHA-256 {checksum}, the manifest says {entry.sha256}: copy the release again")
