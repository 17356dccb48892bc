"""The artefact: everything a worker answers from, in one directory that is made whole, checksummed and never changed.

    manifest.json      a `Manifest`: what is in here, made from what, with the size and SHA-256 of every file
    items.parquet      the catalogue with embeddings, for people and other programs; the service does not read it
    ranker.txt         the trees, as LightGBM's model text
    arrays/*.npy       the catalogue, vectors, prior, factors, neighbours and item state, memory-mapped by every worker
    encoder/           the text encoder, safetensors only

The id is the date and the beginning of the SHA-256 of the manifest without its id. The manifest holds the checksum of
every file, so the same inputs make the same id and the same bytes, and no byte can change without the id disagreeing.
Loading runs no code from a release: no pickle, no Python, nothing but arrays, text and JSON.
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
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from features.table import Feature, Items, names, schema_hash
from ranker import query_prior
from ranker.booster import BoosterTrees, scorer
from ranker.model_text import ModelTextError
from ranker.trees import Trees
from serving.release.arrays import Arrays, arrays_of, items_of
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
"""What an encoder's directory may not hold: code, or formats whose loading may run some."""


@dataclass(frozen=True)
class Release:
    """A loaded release. Its arrays are read-only and shared between the processes that map them."""

    path: Path
    manifest: Manifest
    items: Items
    trees: Trees | BoosterTrees

    @cached_property
    def knows_queries(self) -> bool:
        """Whether the ranker has learned what a query is worth."""
        return not {self.trees.names[k] for k in query_prior.query_columns(self.trees.names)}.isdisjoint(
            self.trees.asked
        )

    @property
    def id(self) -> str:
        """Date and checksum, as `20250131-0123456789`."""
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
) -> Path:
    """The directory of a new release under `root`, whole and on disk; the same inputs give the same one.

    items: with item state as of `cut_off`. item_columns: the catalogue, embeddings as fixed_size_list<float32>[d].
    encoder_dir: copied into the release; None where there was no encoder. Times are Unix seconds.
    Nothing is left behind where it fails. Raises ReleaseError where model and features disagree, where the encoder's
    directory holds code or a format that may run some, or a directory of the same id holds something else.
    """
    _check_features(items, _trees(model_text, "the model given"), "the model given")
    if any(a >= b for a, b in pairwise(items.catalogue.item_ids)):
        raise ReleaseError("the catalogue's item ids are not in ascending order, each once: sort it by item_id")
    root.mkdir(parents=True, exist_ok=True)
    with _temporary(root) as making:
        (making / _MODEL).write_text(model_text, encoding="utf-8", newline="")
        _write_parquet(item_columns, making / "items.parquet", encoder_fingerprint)
        (making / "arrays").mkdir()
        for name, array in arrays_of(items).items():
            np.save(making / "arrays" / f"{name}.npy", array, allow_pickle=False)
        if encoder_dir is not None:
            _copy_encoder(encoder_dir, making / "encoder")
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
            custom=[f.origin for f in items.custom],
            files={p.relative_to(making).as_posix(): _entry(p) for p in _files(making)},
        )
        # As it will be read: a whole number given for a float, say, must not make another id.
        manifest = msgspec.json.decode(as_json(manifest), type=Manifest)
        manifest = msgspec.structs.replace(manifest, id=release_id(manifest))
        (making / MANIFEST).write_bytes(as_json(manifest))
        load_release(making, verify=False, custom=items.custom)
        return _finalize(making, root / manifest.id)


def load_release(path: Path, verify: bool = True, custom: tuple[Feature, ...] = ()) -> Release:
    """The release in a directory, its arrays memory-mapped.

    verify: read every file once and compare its checksum; sizes are compared in any case. Raises ReleaseError where
    anything is missing or disagrees: format, id, size, checksum, shape, type, feature schema, or model. custom: the
    features of the user's own that the configuration names; a release names its own but never brings their code.
    """
    manifest = read_manifest(path)
    if (ours := [f.origin for f in custom]) != manifest.custom:
        raise ReleaseError(
            f"{path}: was made with features {manifest.custom or 'none'} of the user's own, here are {ours or 'none'}: "
            "name the same in `features.custom`, with the same code, or make a new release"
        )
    for name, entry in manifest.files.items():
        _check_file(path, name, entry, verify)
    items = replace(items_of(Arrays(path, manifest)), custom=custom)
    if (found := schema_hash(items)) != manifest.schema_hash:
        differ = [f"{a} / {b}" for a, b in zip(manifest.feature_names, names(items), strict=False) if a != b]
        raise ReleaseError(
            f"{path}: its rows have schema {manifest.schema_hash} ({len(manifest.feature_names)} features), "
            f"this version makes {found} ({len(names(items))}){', first at ' + differ[0] if differ else ''}: "
            "serve it with the version that made it, or make a new release"
        )
    if _MODEL not in manifest.files:
        raise ReleaseError(f"{path / MANIFEST}: names no {_MODEL}; make the release again")
    trees = _trees((path / _MODEL).read_text(encoding="utf-8"), str(path / _MODEL))
    _check_features(items, trees, str(path / _MODEL))
    return Release(path, manifest, items, trees)


def _check_features(items: Items, trees: Trees | BoosterTrees, where: str) -> None:
    # LightGBM writes a space in a name as an underscore.
    ours = [n.replace(" ", "_") for n in names(items)]
    for column, (theirs, our) in enumerate(zip_longest(trees.names, ours)):
        if theirs != our:
            raise ReleaseError(
                f"{where} was trained on {len(trees.names)} features, the rows have {len(ours)}; at column {column} "
                f"the model has {theirs!r}, the rows {our!r}: train on the features of this version and catalogue"
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
    """A directory that is not yet a release and is gone after the block, unless it was renamed."""
    making = Path(tempfile.mkdtemp(prefix=".making-", dir=root))
    try:
        yield making
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _finalize(making: Path, target: Path) -> Path:
    """Everything on disk, then the name, then the name on disk: after a power cut it is whole or not there."""
    if target.exists():
        if (target / MANIFEST).is_file() and (target / MANIFEST).read_bytes() == (making / MANIFEST).read_bytes():
            return target
        raise ReleaseError(f"{target} exists and is not this release: move it away")
    making.chmod(0o755)
    for path in [*_files(making), *(p for p in making.rglob("*") if p.is_dir()), making]:
        _sync(path)
    making.rename(target)
    _sync(target.parent)
    return target


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_parquet(table: pa.Table, path: Path, fingerprint: str) -> None:
    import pyarrow.parquet as pq  # only the night writes, and it is 60 MB in a worker that never does

    metadata = {**(table.schema.metadata or {}), b"encoder_fingerprint": fingerprint.encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path, compression="zstd")


def _copy_encoder(source: Path, target: Path) -> None:
    for path in _files(source):
        if path.suffix.lower() in _CODE:
            raise ReleaseError(f"{path}: an encoder in a release may hold safetensors, JSON and text only; save it so")
    shutil.copytree(source, target)


def _check_file(path: Path, name: str, entry: FileEntry, verify: bool) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name or not name:
        raise ReleaseError(f"{path / MANIFEST}: {name!r} leads out of the release; refused")
    file = path / pure
    if not file.is_file():
        raise ReleaseError(f"{file} is missing: copy the release again")
    if not file.resolve().is_relative_to(path.resolve()):
        raise ReleaseError(f"{file} is a link out of the release; refused")
    if (size := file.stat().st_size) != entry.bytes:
        raise ReleaseError(f"{file} has {size} bytes, the manifest says {entry.bytes}: copy the release again")
    if verify and (found := _entry(file).sha256) != entry.sha256:
        raise ReleaseError(f"{file} has SHA-256 {found}, the manifest says {entry.sha256}: copy the release again")
