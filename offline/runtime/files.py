"""Files of a run: written whole or not at all, checksummed, reserved."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path


def checksum(path: Path) -> str:
    """SHA-256 of a file, or of a directory's file names and contents."""
    digest = hashlib.sha256()
    for p in sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]:
        with p.open("rb") as f:
            digest.update(f"{p.relative_to(path)}\0{hashlib.file_digest(f, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def source_digest() -> str:
    """SHA-256 of our own source: another version may make other things of the same data."""
    here = Path(__file__).parent.parent
    rooms = ("features", "text_encoder", "ranker", "serving", "offline")
    digest = hashlib.sha256()
    for path in sorted(p for room in rooms for p in (here / room).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(json.dumps(value, indent=1), "utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
