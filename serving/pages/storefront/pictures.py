"""Addresses of the products' own pictures, from the catalogue in the release: `image_url` of `items.parquet`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from serving.ranking import Live

if TYPE_CHECKING:
    import pyarrow as pa

_COLUMN = "image_url"


class Pictures:
    """The addresses of pictures in the live release, of the origins that the configuration allows.

    They are read when a page first asks for them, because no ranking needs them.
    """

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = frozenset(origins)
        self._read: tuple[Path, pa.ChunkedArray | None] | None = None

    async def of(self, live: Live) -> Callable[[int], str | None] | None:
        """A function from a row of the release's catalogue to the address of its picture, None if it has none.

        None if no origin is allowed, or the catalogue has no pictures. Items written since the release have none.
        """
        if not self._origins:
            return None
        path = live.release.path
        if self._read is None or self._read[0] != path:
            self._read = path, await asyncio.to_thread(_read, path / "items.parquet")
        column = self._read[1]
        return None if column is None else lambda row: self._allowed(column[row].as_py()) if row < len(column) else None

    def _allowed(self, address: str | None) -> str | None:
        try:
            parts = urlsplit(address or "")
        except ValueError:  # such as an unclosed bracket around an IPv6 address
            return None
        return address if f"{parts.scheme}://{parts.netloc}".lower() in self._origins else None


def _read(file: Path) -> pa.ChunkedArray | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if _COLUMN not in pq.read_schema(file).names:
        return None
    column = pq.read_table(file, columns=[_COLUMN])[_COLUMN]
    return column if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) else None
