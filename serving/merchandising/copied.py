"""A copy of the document beside the releases, for workers that start while Redis is unavailable."""

from __future__ import annotations

from pathlib import Path

import msgspec

from serving import copies
from serving.merchandising.document import Document
from serving.merchandising.stored import decode_document

FILE = "merchandising.json"


def read_copy(root: Path) -> Document | None:
    """The copy in a directory of releases; None if there is none. Raises OSError or ValueError if it cannot be read."""
    file = root / FILE
    if not file.is_file():
        return None
    try:
        return decode_document(file.read_bytes())
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise ValueError(f"{file} is not a valid document of merchandising rules ({e})") from e


def write_copy(root: Path, document: Document) -> None:
    """Replace the copy in a directory of releases. Several workers may do so at once. Raises OSError."""
    copies.write_copy(root / FILE, msgspec.json.encode(document))
