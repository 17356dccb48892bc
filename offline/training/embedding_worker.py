"""The embedding worker: encodes item texts as they are written, so that the service ranks by them within seconds.

It is a process of its own, because the service runs without torch. Workers read the stream of changes as a consumer
group: they share the writes, and the others take over from a worker that dies. Vectors are computed by the encoder of
the live release. When another release goes live, its encoder encodes the written items again; it reads only texts whose
base vectors are not in the vector store. An item whose text is the same as in the release keeps the release's vector.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.arrays import F32
from offline.data import written_items
from serving.release import read_manifest
from serving.store import BulkStore, BulkWrittenItems, ItemFields, Pointer, decode_fields
from text_encoder.reading import BaseVectors, read_texts
from text_encoder.text import catalogue_texts

if TYPE_CHECKING:
    from text_encoder.encoder import Encoder

log = logging.getLogger(__name__)

_BATCH = 64
_SWITCH_BATCH = 8192
"""Items per batch when another release goes live. Each batch looks its texts up in the whole vector store."""
_ORPHANED_MS = 30_000
"""A write that a worker has not finished after this many milliseconds goes to another worker."""


class ReadOnly:
    """A store of base vectors to which nothing is added: the worker may only read the workspace."""

    def __init__(self, store: BaseVectors) -> None:
        self.read = store.read

    def write(self, model: str, keys: Sequence[bytes], vectors: F32) -> None:
        """Does nothing."""


class Embedder:
    """One embedding worker. encoded: number of texts encoded so far."""

    def __init__(self, store: BulkStore, name: str, vectors: BaseVectors) -> None:
        """name: unique name of this worker within the group. vectors: store of base vectors, which is only read."""
        self._store, self._name, self._vectors = store, name, ReadOnly(vectors)
        self._written = BulkWrittenItems(store)
        self._pointer: Pointer | None = None
        self._encoder: Encoder | None = None
        self.encoded = 0

    def run(self, stop: Callable[[], bool] = lambda: False, wait_s: float = 0.5) -> None:
        """Process writes until `stop` returns True. wait_s: longest wait for a write, in seconds."""
        while not stop():
            self.step(wait_s)

    def step(self, wait_s: float = 0.0) -> int:
        """Switch to a new release if there is one, encode a batch of writes, and return the number of texts encoded."""
        before = self.encoded
        pointer = self._store.pointer()
        if pointer is None:
            time.sleep(wait_s)
            return 0
        if pointer != self._pointer:
            from text_encoder.encoder import load

            self._encoder = load(str(Path(pointer.path) / "encoder"))
            self._pointer = pointer
            self._encode_missing()
        entries = self._written.claim(self._name, _BATCH, wait_s, _ORPHANED_MS)
        self._encode([item for _, item, change in entries if change == "put"])
        self._written.acknowledge([entry for entry, _, _ in entries])
        return self.encoded - before

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the live release's encoder."""
        assert self._pointer is not None
        return read_manifest(Path(self._pointer.path)).encoder_fingerprint

    def _encode_missing(self) -> None:
        """Encode written items without a vector, and those with changed text that still have the release's vector."""
        assert self._encoder is not None
        ids = self._written.ids()
        for first in range(0, len(ids), _SWITCH_BATCH):
            batch = ids[first : first + _SWITCH_BATCH]
            vectors = self._store.read_vectors(self.fingerprint, batch, self._encoder.dimension)
            known = np.asarray(np.isfinite(vectors).all(axis=1))
            stored = dict(zip(batch, vectors, strict=True))
            self._encode([i for i, is_known in zip(batch, known, strict=True) if not is_known], self._vectors)
            self._encode([i for i, is_known in zip(batch, known, strict=True) if is_known], self._vectors, stored)

    def _encode(
        self, item_ids: Sequence[str], base: BaseVectors | None = None, stored: Mapping[str, F32] | None = None
    ) -> None:
        """Encode the current texts of items, write the vectors to Redis, and announce them.

        base: where to look for base vectors, if given; that of a text just written is not there. stored: vectors of
        these items in Redis. If given, only items whose stored vector is the release's are encoded. Items whose text is
        the same as in the release are skipped, unless the release has no vector because its text was not read.
        """
        ids = list(dict.fromkeys(item_ids))
        if not ids or self._encoder is None or self._pointer is None:
            return
        written = dict(zip(ids, map(decode_fields, self._written.fields(ids).fields), strict=True))
        texts = texts_of(self._encoder.template, written, Path(self._pointer.path) / "items.parquet")
        changed = [i for i in ids if texts.now[i] != texts.released.get(i) or not texts.has_vector(i)]
        if stored is not None:
            changed = [i for i in changed if i in texts.vectors and np.array_equal(texts.vectors[i], stored[i])]
        new = [texts.now[i] for i in changed]
        # A single text is read in a full batch, with copies of it: its vector must be the same to the bit as in a batch
        # of the night, and only a fixed shape ensures that on every processor (`text_encoder.batches`). For texts of 16
        # to 48 tokens (MiniLM, AVX2), a write takes 0.16 s of a CPU; without copies, it would take 0.02 s.
        vectors = self._encoder.encode(new) if base is None else read_texts(self._encoder, new, base).vectors
        known = np.flatnonzero(np.isfinite(vectors).all(axis=1))
        good = [changed[k] for k in known.tolist()]
        self._store.write_vectors(self.fingerprint, good, vectors[known])
        self._written.announce_vectors(good)
        self.encoded += len(good)


class ItemTexts(NamedTuple):
    """Current and released texts of written items, and their released vectors, by item id."""

    now: dict[str, str]
    released: dict[str, str]
    vectors: dict[str, F32]

    def has_vector(self, item_id: str) -> bool:
        """True if the release has a vector for the item."""
        return item_id in self.vectors and bool(np.isfinite(self.vectors[item_id]).all())


def texts_of(template: str, written: Mapping[str, ItemFields], release_items: Path) -> ItemTexts:
    """Texts of written items, built as in the nightly run.

    release_items: the release's `items.parquet`, whose column types decide how written values are parsed.
    """
    released = pq.read_table(release_items, filters=pc.field("item_id").isin(pa.array(list(written), pa.string())))
    vectors: dict[str, F32] = {}
    if "embedding" in released.column_names:
        ids = released["item_id"].to_pylist()
        flat = released["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        vectors = dict(zip(ids, flat.reshape(len(ids), -1).astype(np.float32), strict=True)) if ids else {}
        released = released.drop_columns(["embedding"])
    now = written_items.overlay_written(released, written)

    def texts(table: pa.Table) -> dict[str, str]:
        return dict(zip(table["item_id"].to_pylist(), catalogue_texts(template, table), strict=True))

    return ItemTexts(texts(now), texts(released), vectors)
