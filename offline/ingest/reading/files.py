"""Data files of a path: a file, a folder, a glob, or the members of a zip or gzip archive, unpacked within bounds."""

from __future__ import annotations

import gzip
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

from offline.runtime import DataError

ENDINGS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".dat": "csv",
    ".data": "csv",
    ".inter": "csv",
    ".item": "csv",
    ".user": "csv",
    ".genre": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".xml": "xml",
    ".yml": "xml",
    ".xlsx": "xlsx",
    ".parquet": "parquet",
}
"""Format by the end of a file's name, in lower case. `.data`, `.inter` and the like are tables of public data sets."""

_PACKED = (".gz", ".zip")
MOST_UNPACKED = 200 * 2**30
MOST_RATIO = 1000
"""Bounds of an archive: bytes after unpacking, and how many times as large as packed. A text rarely exceeds 100."""
MOST_FILES = 100_000
_CHUNK = 2**20


def is_data(path: Path) -> bool:
    """True if the name is that of a data file, packed or not."""
    name = path.name.lower()
    if name.startswith((".", "_", "~$")):
        return False
    return any(name.removesuffix(".gz").endswith(ending) for ending in ENDINGS) or name.endswith(".zip")


def find_files(source: Path | str, folder: Path | None = None) -> list[Path]:
    """Files of a path, folder or glob (relative to `folder`), sorted by name. Raises DataError if there are none.

    In a folder, files are found at any depth; files whose format the name does not tell are left out.
    """
    path = Path(source) if folder is None else folder / source
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.is_file() and is_data(p)]
    elif path.is_file():
        found = [path]
    else:
        root = folder or (Path(path.anchor) if path.is_absolute() else Path())
        pattern = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
        found = [p for p in root.glob(pattern) if p.is_file()] if any(c in str(source) for c in "*?[") else []
    if not found:
        raise DataError(f"{path}: there is no such file or folder, or it has no data files.")
    if len(found) > MOST_FILES:
        raise DataError(f"{path}: has {len(found)} files; the maximum is {MOST_FILES}. Import a part of it.")
    return sorted(found)


def unpack(path: Path, directory: Path) -> Sequence[tuple[str, Path]]:
    """(name, path) of the plain files of a file: itself, or the unpacked contents of a .gz or .zip in `directory`.

    Raises DataError for a broken archive and for one that exceeds the bounds above.
    """
    with path.open("rb") as raw:
        start = raw.read(4)
    try:
        if start[:2] == b"\x1f\x8b":
            name = path.name.removesuffix(".gz")
            to = directory / f"{len(list(directory.iterdir()))}_{name}"
            with gzip.open(path) as stream:
                _copy(path, cast(IO[bytes], stream), to, path.stat().st_size)
            return [(path.name, to)]
        if start == b"PK\x03\x04" and path.name.lower().endswith(".zip"):
            return _unzip(path, directory)
    except (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path.name}: the compressed data is truncated or corrupt ({error})."
            " Nothing was imported; download the file again."
        ) from None
    return [(path.name, path)]


def _unzip(path: Path, directory: Path) -> list[tuple[str, Path]]:
    out = []
    with zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if not m.is_dir() and is_data(Path(m.filename))]
        if len(members) > MOST_FILES:
            raise DataError(f"{path.name}: has {len(members)} files; the maximum is {MOST_FILES}.")
        for member in members:
            name = Path(member.filename).name
            to = directory / f"{len(list(directory.iterdir()))}_{name}"
            with archive.open(member) as stream:
                _copy(path, stream, to, member.compress_size)
            out += [(name, inner) for _, inner in unpack(to, directory)] if name.endswith(".gz") else [(name, to)]
    return out


def _copy(path: Path, stream: IO[bytes], to: Path, packed: int) -> None:
    most, written = min(MOST_UNPACKED, MOST_RATIO * max(packed, _CHUNK)), 0
    with to.open("wb") as out:
        while chunk := stream.read(_CHUNK):
            written += len(chunk)
            if written > most:
                raise DataError(f"{path.name}: unpacks to more than {most:,} bytes. Unpack it yourself if it is right.")
            if written > shutil.disk_usage(to.parent).free:
                raise DataError(f"{path.name}: there is no room on the disk to unpack it.")
            out.write(chunk)
