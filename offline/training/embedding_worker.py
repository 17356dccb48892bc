"""The embedding worker: reads the text of items as they are written, so that the service ranks them by it in seconds.

A process beside the service, as torch is here and not there. Writes come by a consumer group on the stream of changes,
so that several workers share them and one that dies leaves its own to the others. A vector is made by the encoder of
the live release; when another release goes live, what was written since is read anew by its encoder.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.arrays import F32
from offline.config import ITEM_COLUMNS
from serving.release import read_manifest
from serving.store import BulkStore, BulkWrittenItems, ItemFields, Pointer, decoded_fields
from text_encoder.encoder import Encoder, load
from text_encoder.text import attributes, item_texts

log = logging.getLogger(__name__)

_BATCH = 64
_ORPHANED_MS = 30_000
"""A write that its worker has not finished after so long is another's."""


class Embedder:
    """One worker. encoded: texts read so far."""

    def __init__(self, store: BulkStore, name: str) -> None:
        """name: of this worker in the group, its own."""
        self._store, self._name = store, name
        self._written = BulkWrittenItems(store)
        self._pointer: Pointer | None = None
        self._encoder: Encoder | None = None
        self.encoded = 0

    def run(self, stop: Callable[[], bool] = lambda: False, wait_s: float = 0.5) -> None:
        """Work until told to stop. wait_s: longest wait for something to do."""
        while not stop():
            self.step(wait_s)

    def step(self, wait_s: float = 0.0) -> int:
        """Take in a new release, if there is one, and some writes; returns how many texts were read."""
        before = self.encoded
        pointer = self._store.pointer()
        if pointer is None:
            time.sleep(wait_s)
            return 0
        if pointer != self._pointer:
            self._encoder = load(str(Path(pointer.path) / "encoder"))
            self._pointer = pointer
            self._read_missing()
        entries = self._written.take(self._name, _BATCH, wait_s, _ORPHANED_MS)
        self._read([item for _, item, what in entries if what == "put"])
        self._written.took([entry for entry, _, _ in entries])
        return self.encoded - before

    @property
    def fingerprint(self) -> str:
        """Of the live release's encoder."""
        assert self._pointer is not None
        return read_manifest(Path(self._pointer.path)).encoder_fingerprint

    def _read_missing(self) -> None:
        """Vectors by this encoder for what was written before it."""
        assert self._encoder is not None
        ids = self._written.ids()
        for first in range(0, len(ids), _BATCH):
            part = ids[first : first + _BATCH]
            held = self._store.read_vectors(self.fingerprint, part, self._encoder.dimension)
            self._read([i for i, vector in zip(part, held, strict=True) if not np.isfinite(vector).all()])

    def _read(self, item_ids: Sequence[str]) -> None:
        """Encode the texts of items as they are now, write the vectors, and tell."""
        ids = list(dict.fromkeys(item_ids))
        if not ids or self._encoder is None or self._pointer is None:
            return
        written = dict(zip(ids, map(decoded_fields, self._written.fields(ids)), strict=True))
        texts = texts_of(self._encoder.template, written, Path(self._pointer.path) / "items.parquet")
        made: F32 = self._encoder.encode(texts)
        known = np.flatnonzero(np.isfinite(made).all(axis=1))
        good = [ids[k] for k in known.tolist()]
        self._store.write_vectors(self.fingerprint, good, made[known])
        self._written.tell_vectors(good)
        self.encoded += len(good)


def texts_of(template: str, written: Mapping[str, ItemFields], release_items: Path) -> list[str]:
    """The text of each item: what was written over what the release has, filled into the encoder's template."""
    ids = list(written)
    table = pq.read_table(release_items, filters=[("item_id", "in", ids)]) if release_items.is_file() else None
    of_release: dict[str, dict[str, Any]] = {}
    if table is not None:
        of_release = {row["item_id"]: row for row in table.drop_columns(_heavy(table)).to_pylist()}
    rows = []
    for item_id, held in written.items():
        row = of_release.get(item_id, {"item_id": item_id})
        written_now = {k: v for k, v in held.fields.items() if not k.startswith("a:")} | held.attributes
        row = {**row, **written_now}
        more = [v for k, v in sorted(row.items()) if k not in ITEM_COLUMNS and k != "available"]
        words = [w for v in more for w in (v if isinstance(v, list) else [v]) if isinstance(w, str) and w]
        rows.append({**row, "attributes": ", ".join(words) or None})
    names = (*dict.fromkeys(k for row in rows for k in row), *attributes(template))
    return item_texts(template, {name: [_plain(row.get(name)) for row in rows] for name in names})


def _heavy(table: pa.Table) -> list[str]:
    return [name for name in ("embedding",) if name in table.column_names]


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
