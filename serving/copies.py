"""Copies of small documents of Redis beside the releases, for workers that start while Redis is unavailable."""

from __future__ import annotations

import os
from pathlib import Path


def write_copy(file: Path, content: bytes) -> None:
    """Replace a file atomically, unless it has this content. Several workers may do so at once. Raises OSError."""
    if file.is_file() and file.read_bytes() == content:
        return
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
