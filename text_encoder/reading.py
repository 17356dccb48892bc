"""Encoding of many texts, with the base vectors kept in a store: only texts that the store lacks are read.

The key of a base vector covers the encoder's weights and the tokens of the text. So vectors are found again when other
texts of the catalogue, the projection or the template change. New vectors are written to the store every half minute,
and a reading that was interrupted continues from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from features.arrays import F32, I64, Bool
from text_encoder.batches import Batch, batches, padded_length

if TYPE_CHECKING:
    from text_encoder.encoder import Encoder

WINDOW = 8192
"""Texts that are divided into batches at a time. More would leave fewer batches partly filled."""
_PART_BATCHES = 16
_SAVE_S = 30.0
_ESTIMATE_S = 15.0
_NEXT_ESTIMATE_S = 600.0
"""Seconds between estimates of the remaining time. On a terminal, the progress bar has it as well."""


class BaseVectors(Protocol):
    """A store of base vectors. model: `Encoder.base_fingerprint`. keys: 16 bytes each."""

    def read(self, model: str, keys: Sequence[bytes], dimension: int) -> tuple[F32, Bool]:
        """(float32[n, dimension], bool[n]): the vectors of the keys, NaN if not known, and whether each is known."""

    def write(self, model: str, keys: Sequence[bytes], vectors: F32) -> None:
        """Adds vectors. vectors: float32[n, d]."""


class BatchMap(Protocol):
    """Maps a function over parts of a reading, in this process or on other machines."""

    def __call__(
        self, function: Callable[[Encoder, list[Batch]], Iterable[F32]], shared: Encoder, parts: Sequence[list[Batch]]
    ) -> Generator[F32, None, None]:
        """Yields the results of `function(shared, part)`, part by part. function: pure, and defined in a module."""


def map_serially(
    function: Callable[[Encoder, list[Batch]], Iterable[F32]], shared: Encoder, parts: Sequence[list[Batch]]
) -> Generator[F32, None, None]:
    """`BatchMap` in this process, one part after another."""
    for part in parts:
        yield from function(shared, part)


def _read_part(encoder: Encoder, part: list[Batch]) -> Iterator[F32]:
    return map(encoder.base_vectors, part)


class ReadTexts(NamedTuple):
    """Vectors of texts.

    vectors: float32[n, d], NaN for a text that is blank or was not read. keys: of the distinct texts in the store.
    read: number of texts that were read, because the store lacked them. unread: number of texts of `texts` that are not
    blank and were not read within the time limit.
    """

    vectors: F32
    keys: list[bytes]
    read: int
    unread: int


def read_texts(
    encoder: Encoder,
    texts: Sequence[str],
    store: BaseVectors,
    *,
    order: I64 | None = None,
    limit_s: float = np.inf,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    announce: Callable[[str], None] = lambda message: None,
    over_batches: BatchMap = map_serially,
    window: int = WINDOW,
) -> ReadTexts:
    """Encodes texts; those in the store are not read again.

    order: int64[n], numbers of the texts in the order in which to read them; None for the given order. limit_s: seconds
    after which no further part is read; at least one part is. on_progress: called with (number of distinct texts done,
    number of distinct texts). announce: called with messages: how many texts are to be read, and, every ten minutes,
    how long the remaining ones will take. window: see `WINDOW`; more for several workers. The vectors are those of
    `Encoder.encode`, bit for bit.
    """
    ordered = texts if order is None else [texts[row] for row in order.tolist()]
    distinct = list(dict.fromkeys(text for text in ordered if text.strip()))
    keys, counts = _keys(encoder, distinct)
    base, known = store.read(encoder.base_fingerprint, keys, encoder.base_dimension)
    reading = _Reading(encoder, distinct, keys, counts, base, known, store)
    missing = np.flatnonzero(~known)
    if len(missing):
        announce(f"{len(distinct) - len(missing):,} of {len(distinct):,} texts are known; reading {len(missing):,}")
    on_progress(len(distinct) - len(missing), len(distinct))
    for _ in reading.run(missing, window, limit_s, over_batches, announce):
        on_progress(int(known.sum()), len(distinct))
    row_of_text = {text: row for row, text in enumerate(distinct)}
    rows = np.array([row_of_text.get(text, -1) for text in texts], np.int64)
    vectors = np.full((len(texts), encoder.dimension), np.nan, np.float32)
    vectors[rows >= 0] = encoder.from_base(base)[rows[rows >= 0]]
    unread = int((~known[rows[rows >= 0]]).sum())
    return ReadTexts(vectors, keys, int(known[missing].sum()), unread)


def _keys(encoder: Encoder, texts: list[str]) -> tuple[list[bytes], I64]:
    """Key of the base vector of each text, and int64[n], its number of tokens."""
    model = encoder.base_fingerprint.encode()
    keys, counts = [], np.empty(len(texts), np.int64)
    for row, ids in enumerate(encoder.token_ids(texts)):
        counts[row] = len(ids)
        # Padding to another length may change the last bits of a vector.
        content = array("q", [padded_length(len(ids), encoder.max_tokens), *ids]).tobytes()
        keys.append(hashlib.blake2b(content, digest_size=16, key=model).digest())
    return keys, counts


class _Reading:
    """Texts that are being read, and their base vectors so far."""

    def __init__(
        self,
        encoder: Encoder,
        texts: list[str],
        keys: list[bytes],
        counts: I64,
        base: F32,
        known: Bool,
        store: BaseVectors,
    ) -> None:
        self._encoder, self._texts, self._keys, self._counts = encoder, texts, keys, counts
        self._base, self._known, self._store = base, known, store
        self._unsaved: list[I64] = []
        self._saved_at = time.monotonic()

    def run(
        self, missing: I64, window: int, limit_s: float, over_batches: BatchMap, announce: Callable[[str], None]
    ) -> Iterator[None]:
        """Reads the missing texts, window by window, and yields after each batch."""
        started, tokens, read, due_s = time.monotonic(), 0, 0, _ESTIMATE_S
        total = int(self._counts[missing].sum())
        try:
            for first in range(0, len(missing), window):
                for rows, vectors in self._window(missing[first : first + window], over_batches):
                    self._base[rows], self._known[rows] = vectors, True
                    self._unsaved.append(rows)
                    tokens, read = tokens + int(self._counts[rows].sum()), read + len(rows)
                    elapsed_s = time.monotonic() - started
                    if elapsed_s > due_s and read < len(missing):
                        left = _duration(elapsed_s * (total / tokens - 1))
                        announce(
                            f"{read:,} of {len(missing):,} are read; reading the remaining texts takes about {left}"
                        )
                        due_s = elapsed_s + _NEXT_ESTIMATE_S
                    if time.monotonic() > self._saved_at + _SAVE_S:
                        self._save()
                    yield
                    if elapsed_s >= limit_s:
                        return
        finally:
            self._save()

    def _window(self, rows: I64, over_batches: BatchMap) -> Iterator[tuple[I64, F32]]:
        """Reads some texts, and yields the rows and base vectors of each batch."""
        encoder = self._encoder
        texts = [self._texts[row] for row in rows.tolist()]
        made = list(batches(texts, self._counts[rows], encoder.max_tokens, encoder.model.device.type))
        parts = [[batch for _, batch in made[k : k + _PART_BATCHES]] for k in range(0, len(made), _PART_BATCHES)]
        with contextlib.closing(over_batches(_read_part, encoder, parts)) as results:
            for (chosen, _), vectors in zip(made, results, strict=True):
                yield rows[chosen], vectors

    def _save(self) -> None:
        """Writes the vectors read since the last call to the store."""
        rows = np.concatenate([np.empty(0, np.int64), *self._unsaved])
        if len(rows):
            keys = [self._keys[row] for row in rows.tolist()]
            self._store.write(self._encoder.base_fingerprint, keys, self._base[rows])
        self._unsaved, self._saved_at = [], time.monotonic()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
