"""Checksums and atomic writes of the files of a run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def checksum(path: Path) -> str:
    """SHA-256 of a file, or of the file names and contents of a directory."""
    digest = hashlib.sha256()
    for p in sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]:
        with p.open("rb") as f:
            digest.update(f"{p.relative_to(path)}\0{hashlib.file_digest(f, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def source_digest() -> str:
    """SHA-256 of the source of Shelfwise. Another version may produce different results from the same data."""
    digest = hashlib.sha256()
    for path in sources():
        digest.update(path.read_bytes())
    return digest.hexdigest()


def sources() -> list[Path]:
    """The source files of Shelfwise, in order."""
    root = Path(__file__).parents[2]
    packages = ("features", "text_encoder", "ranker", "serving", "offline")
    return sorted(p for package in packages for p in (root / package).rglob("*.py"))


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which replaces it when the block ends; after an error `path` is unchanged."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8 and without a change of line ends."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, "utf-8", newline="\n")


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=1))
