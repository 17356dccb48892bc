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
from datetime import UTC, datetime
from functools import cached_property
from itertools import pairwise, zip_longest
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from features.catalogue import Catalogue
from features.decay import HALF_LIVES_S, ItemState
from features.inverted_lists import InvertedLists
from features.log import F32, Kind
from features.neighbours import Neighbours
from features.segments import Segments
from features.strings import Strings
from features.table import Feature, Items, names, schema_hash
from features.vectors import Vectors
from features.words import Vocabulary
from ranker import query_prior
from ranker.booster import BoosterTrees, scorer
from ranker.model_text import ModelTextError
from ranker.trees import Trees

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
MANIFEST = "manifest.json"
_MODEL = "ranker.txt"
_CODE = frozenset({".py", ".pyc", ".so", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".h5"})
"""What an encoder's directory may not hold: code, or formats whose loading may run some."""
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
class Release:
    """A loaded release. Its arrays are read-only and shared between the processes that map them."""

    path: Path
    manifest: Manifest
    items: Items
    trees: Trees | BoosterTrees

    @cached_property
    def knows_queries(self) -> bool:
        """Whether the ranker has learned what a query is worth."""
        return not {self.trees.names[k] for k in query_prior.of_query(self.trees.names)}.isdisjoint(self.trees.asked)

    @property
    def id(self) -> str:
        """Date and checksum, as `20250131-0123456789`."""
        return self.manifest.id


@dataclass(frozen=True)
class Listed:
    """A directory that looks like a release: its manifest, or the problem with it."""

    path: Path
    manifest: Manifest | None
    problem: str = ""


def write(
    root: Path, *, items: Items, model_text: str, item_columns: pa.Table, encoder_dir: Path | None, cut_off: float,
    window: Mapping[str, Any], metrics: Mapping[str, Any], parent: str | None, created_at: float,
    encoder_fingerprint: str,
) -> Path:  # fmt: skip
    """The directory of a new release under `root`, whole and on disk; the same inputs give the same one.

    items: with item state as of `cut_off`. item_columns: the catalogue, embeddings as fixed_size_list<float32>[d].
    encoder_dir: copied into the release; None where there was no encoder. Times are Unix seconds.
    Nothing is left behind where it fails. Raises ReleaseError where model and features disagree, where the encoder's
    directory holds code or a format that may run some, or a directory of the same id holds something else.
    """
    _agree(items, _trees(model_text, "the model given"), "the model given")
    if any(a >= b for a, b in pairwise(items.catalogue.item_ids)):
        raise ReleaseError("the catalogue's item ids are not in ascending order, each once: sort it by item_id")
    root.mkdir(parents=True, exist_ok=True)
    with _aside(root) as making:
        (making / _MODEL).write_text(model_text, encoding="utf-8", newline="")
        _write_parquet(item_columns, making / "items.parquet", encoder_fingerprint)
        (making / "arrays").mkdir()
        for name, array in _arrays(items).items():
            np.save(making / "arrays" / f"{name}.npy", array, allow_pickle=False)
        if encoder_dir is not None:
            _copy_encoder(encoder_dir, making / "encoder")
        manifest = Manifest(
            id="", format=FORMAT, created_at=created_at, cut_off=cut_off, parent=parent, window=dict(window),
            metrics=dict(metrics), encoder_fingerprint=encoder_fingerprint, dimension=items.vectors.code.shape[1],
            items=len(items.catalogue), schema_hash=schema_hash(items), feature_names=list(names(items)),
            custom=[f.origin for f in items.custom],
            files={p.relative_to(making).as_posix(): _entry(p) for p in _files(making)},
        )  # fmt: skip
        # As it will be read: a whole number given for a float, say, must not make another id.
        manifest = msgspec.json.decode(_json(manifest), type=Manifest)
        manifest = msgspec.structs.replace(manifest, id=_id(manifest))
        (making / MANIFEST).write_bytes(_json(manifest))
        load(making, verify=False, custom=items.custom)
        return _settle(making, root / manifest.id)


def load(path: Path, verify: bool = True, custom: tuple[Feature, ...] = ()) -> Release:
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
    items = replace(_items(_Arrays(path, manifest), manifest), custom=custom)
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
    _agree(items, trees, str(path / _MODEL))
    return Release(path, manifest, items, trees)


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
        found = _id(manifest)
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


def _agree(items: Items, trees: Trees | BoosterTrees, where: str) -> None:
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


def _id(manifest: Manifest) -> str:
    date = datetime.fromtimestamp(manifest.created_at, UTC).strftime("%Y%m%d")
    return f"{date}-{hashlib.sha256(_json(msgspec.structs.replace(manifest, id=''))).hexdigest()[:10]}"


def _json(manifest: Manifest) -> bytes:
    # Metrics tend to be numpy's numbers.
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted", enc_hook=lambda x: x.item()), indent=1)


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as f:
        return FileEntry(path.stat().st_size, hashlib.file_digest(f, "sha256").hexdigest())


def _files(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file())


@contextmanager
def _aside(root: Path) -> Iterator[Path]:
    """A directory that is not yet a release and is gone after the block, unless it was renamed."""
    making = Path(tempfile.mkdtemp(prefix=".making-", dir=root))
    try:
        yield making
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _settle(making: Path, target: Path) -> Path:
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


def _arrays(items: Items) -> dict[str, NDArray[Any]]:
    c = items.catalogue
    out: dict[str, NDArray[Any]] = {
        "price": c.price, "category": c.category, "brand": c.brand, "available_from": c.available_from,
        "numbers": c.numbers, "tag_start": c.tag_start, "tag": c.tag, "vector_code": items.vectors.code,
        "vector_scale": items.vectors.scale, "prior": items.prior, "attribute_rates": items.attribute_rates,
        "factors": items.factors, "segment_centre": items.segments.centre,
        "segment_log_share": items.segments.log_share,
        "neighbour_item": items.neighbours.item,
        "neighbour_weight": items.neighbours.weight,
        "state_value": items.state.value, "state_latest": items.state.latest,
    }  # fmt: skip
    if items.inverted is not None:
        lists = items.inverted
        out |= {"list_centre_code": lists.centre.code, "list_centre_scale": lists.centre.scale}
        out |= {"list_start": lists.start, "list_row": lists.row}
    if (w := items.words) is not None:
        out |= w.names.arrays("word_names") | {"word_rarity": w.rarity, "word_strength": w.strength}
        out |= {"word_code": w.vectors.code, "word_scale": w.vectors.scale}
        out |= {"item_word_start": w.start, "item_word": w.word}
    for name, strings in (
        ("item_ids", c.item_ids), ("titles", c.titles), ("category_names", c.category_names),
        ("brand_names", c.brand_names), ("number_names", c.number_names), ("tag_names", c.tag_names),
        ("date_names", c.date_names),
    ):  # fmt: skip
        out |= Strings.of(strings).arrays(name)
    return {name: np.ascontiguousarray(array) for name, array in out.items()}


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


class _Arrays:
    """The arrays of a release by name, each held to a type and a shape (None: any extent)."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self._files = path, manifest.files

    def __call__(self, name: str, dtype: type, *shape: int | None) -> NDArray[Any]:
        file = f"arrays/{name}.npy"
        if file not in self._files:
            raise ReleaseError(f"{self.path / MANIFEST}: names no {file}; make the release again")
        try:
            # A plain view: numba and numpy treat `memmap` as a type of its own, slowly.
            array: NDArray[Any] = np.asarray(np.load(self.path / file, mmap_mode="r", allow_pickle=False))
        except (ValueError, OSError, EOFError) as e:
            raise ReleaseError(f"{self.path / file} is no array: {e}") from e
        wanted = tuple(found if want is None else want for found, want in zip(array.shape, shape, strict=False))
        if array.dtype != dtype or len(array.shape) != len(shape) or array.shape != wanted:
            raise ReleaseError(
                f"{self.path / file}: {array.dtype}{list(array.shape)}, expected {np.dtype(dtype)}"
                f"{['any' if s is None else s for s in shape]}: make the release again"
            )
        return array

    def has(self, name: str) -> bool:
        return f"arrays/{name}.npy" in self._files

    def within(self, name: str, array: NDArray[Any], low: int, high: int) -> NDArray[Any]:
        """The array, all of whose values are from `low` to below `high`: compiled code reads where they point."""
        if array.size and not (low <= array.min() and array.max() < high):
            raise ReleaseError(
                f"{self.path}/arrays/{name}.npy: holds {array.min()} to {array.max()}, expected {low} to {high - 1}: "
                "make the release again"
            )
        return array

    def strings(self, name: str, count: int | None) -> Strings:
        start = self(f"{name}_start", np.int64, None if count is None else count + 1)
        text = self(f"{name}_text", np.uint8, None)
        return Strings(self._ascending(f"{name}_start", start, len(text)), text)

    def _ascending(self, name: str, start: NDArray[Any], end: int) -> NDArray[Any]:
        if not len(start) or start[0] != 0 or start[-1] != end or (np.diff(start) < 0).any():
            raise ReleaseError(f"{self.path}/arrays/{name}.npy: does not go up from 0 to {end}: make the release again")
        return start


def _items(read: _Arrays, manifest: Manifest) -> Items:
    n, d = manifest.items, manifest.dimension
    category_names, brand_names = list(read.strings("category_names", None)), list(read.strings("brand_names", None))
    number_names, tag_names = list(read.strings("number_names", None)), list(read.strings("tag_names", None))
    category = read.within("category", read("category", np.int32, n + 1), 0, len(category_names) + 1)
    tag = read.within("tag", read("tag", np.int32, None), 0, len(tag_names))
    catalogue = Catalogue(
        item_ids=read.strings("item_ids", n),
        titles=read.strings("titles", n),
        price=read("price", np.float64, n + 1),
        category=category,
        category_names=category_names,
        brand=read.within("brand", read("brand", np.int32, n + 1), 0, len(brand_names) + 1),
        brand_names=brand_names,
        available_from=read("available_from", np.float64, n + 1),
        numbers=read("numbers", np.float64, n + 1, len(number_names)),
        number_names=number_names,
        tag_start=read._ascending("tag_start", read("tag_start", np.int64, n + 2), len(tag)),
        tag=tag,
        tag_names=tag_names,
        date_names=list(read.strings("date_names", None)),
    )
    near = read.within("neighbour_item", read("neighbour_item", np.int32, n + 1, None), -1, n)
    entities = n + 1 + len(category_names) + 1 + 1
    state = ItemState(
        read("state_value", np.float64, entities, len(Kind), len(HALF_LIVES_S)),
        read("state_latest", np.float64, entities),
        category,
        len(category_names),
    )
    vectors = Vectors(read("vector_code", np.int8, n + 1, d), read("vector_scale", np.float32, n + 1))
    neighbours = Neighbours(near, read("neighbour_weight", np.float32, n + 1, near.shape[1]))
    rates = read("attribute_rates", np.float32, None, None)
    if rates.size and rates.shape != (n + 1, len(catalogue.by_attribute)):
        raise ReleaseError(
            f"{read.path}/arrays/attribute_rates.npy: {list(rates.shape)}, expected "
            f"{[n + 1, len(catalogue.by_attribute)]}: make the release again"
        )
    factors = read("factors", np.float32, None, None)
    if factors.size and len(factors) != n + 1:
        raise ReleaseError(
            f"{read.path}/arrays/factors.npy: {len(factors)} rows, expected {n + 1}: make the release again"
        )
    prior = read("prior", np.float32, n + 1)
    return Items(
        catalogue, vectors, prior, neighbours, state, rates, factors, _segments(read, factors),
        inverted=_inverted(read, n, d), words=_words(read, n, d),
    )  # fmt: skip


def _words(read: _Arrays, n: int, d: int) -> Vocabulary | None:
    """The catalogue's words, of a release that reads queries."""
    if not read.has("word_rarity"):
        return None
    rarity = read("word_rarity", np.float32, None)
    count = len(rarity)
    word = read.within("item_word", read("item_word", np.int32, None), 0, count)
    return Vocabulary(
        read.strings("word_names", count), rarity,
        Vectors(read("word_code", np.int8, count, d), read("word_scale", np.float32, count)),
        read("word_strength", np.float32, count),
        read._ascending("item_word_start", read("item_word_start", np.int64, n + 2), len(word)), word,
    )  # fmt: skip


def _segments(read: _Arrays, factors: F32) -> Segments:
    """Those of the release; none in one whose ranker never saw any."""
    if not read.has("segment_centre"):
        return Segments.none()
    centre = read("segment_centre", np.float32, None, None)
    if len(centre) and centre.shape[1] != factors.shape[1]:
        raise ReleaseError(
            f"{read.path}/arrays/segment_centre.npy: {centre.shape[1]} columns, expected {factors.shape[1]} as "
            "factors.npy has: make the release again"
        )
    return Segments(centre, read("segment_log_share", np.float32, len(centre)))


def _inverted(read: _Arrays, n: int, d: int) -> InvertedLists | None:
    """The inverted lists of a release that has them: one that is small enough has none."""
    if not read.has("list_start"):
        return None
    row = read.within("list_row", read("list_row", np.int32, None), 0, n)
    start = read._ascending("list_start", read("list_start", np.int64, None), len(row))
    if len(start) < 2:
        raise ReleaseError(f"{read.path}/arrays/list_start.npy: holds no list: make the release again")
    centre = Vectors(
        read("list_centre_code", np.int8, len(start) - 1, d), read("list_centre_scale", np.float32, len(start) - 1)
    )
    return InvertedLists(centre, start, row)
