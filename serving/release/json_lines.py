"""A file of JSON lines that is only ever added to: what was written is on disk, and a damaged line spoils no other."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def append_line(file: Path, line: str) -> None:
    """Add a line to a file, on disk when this returns; after one that was cut short a new one begins."""
    with file.open("ab+") as f:
        cut = f.tell() and (f.seek(-1, os.SEEK_END), f.read(1))[1] != b"\n"
        f.write(b"\n" * bool(cut) + line.encode() + b"\n")
        f.flush()
        os.fsync(f.fileno())


def read_lines(file: Path, fields: Iterable[str]) -> list[dict[str, Any]]:
    """The lines of a file that are objects with these fields, in their order; damaged ones are left out."""
    out, needed = [], set(fields)
    for line in file.read_text("utf-8", errors="replace").splitlines() if file.exists() else ():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and needed <= set(found):
            out.append(found)
    return out
