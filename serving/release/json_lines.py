"""Small files beside the releases, synced to disk: JSON Lines, of which damaged lines are skipped, and texts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def append_line(file: Path, line: str) -> None:
    """Append a line and sync it to disk. If the last line was cut off, start a new one first."""
    with file.open("ab+") as f:
        cut_off = f.tell() and (f.seek(-1, os.SEEK_END), f.read(1))[1] != b"\n"
        f.write(b"\n" * bool(cut_off) + line.encode() + b"\n")
        f.flush()
        os.fsync(f.fileno())


def sync_text(file: Path, text: str) -> None:
    """Write a small file and sync it to disk."""
    partial = file.with_name(f".{file.name}.partial")
    with partial.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    partial.replace(file)


def read_lines(file: Path, fields: Iterable[str]) -> list[dict[str, Any]]:
    """The lines that are objects with these fields, in file order; other lines are skipped."""
    out, required = [], set(fields)
    for line in file.read_text("utf-8", errors="replace").splitlines() if file.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and required <= set(record):
            out.append(record)
    return out
