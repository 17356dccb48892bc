"""The served-list log: the list returned by each ranking, kept for the next nightly run. No request waits for it.

A request puts a record into a bounded queue in memory, and a task writes it to the Redis stream `sw:served`: field `l`
is the MessagePack of a `Served`. Records that do not fit are dropped and counted. Records still in the queue of a
worker that is killed are lost. Both are acceptable, because a log record, unlike an event, is never acknowledged to a
client.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

import msgspec
import numpy as np

from features.arrays import F32, F64
from serving.records.metrics import Metrics
from serving.store import SERVED, Store, StoreAway

log = logging.getLogger(__name__)

_PAUSE_S = 0.1
_RECORDS = 5_000
_BYTES = 32_000_000
_BATCH = 200


class ShadowScores(msgspec.Struct, frozen=True, omit_defaults=True):
    """Scores of the shadow release for the same request, computed after the response was sent.

    score: float64[k] as little-endian bytes, of the items in the order shown; NaN for an item withdrawn in that
    release. correlation: Spearman correlation of the two releases' scores; None if either scores all candidates
    equally. overlap: share of the live release's top 10 that is also in the shadow release's top 10. Both cover all
    candidates, before rules. live_ms, ms: time the live and the shadow release took to rank them.
    """

    release: str
    score: bytes
    correlation: float | None
    overlap: float
    live_ms: float
    ms: float


class Served(msgspec.Struct, frozen=True, omit_defaults=True):
    """One served list in the order shown: the index in `item_ids` is the position.

    at: time of the ranking, Unix seconds. score: the ranker's scores, float64[k] as little-endian bytes. propensity:
    the probability of each item at its position, in the same form; only with exploration. candidates, rows: all ranked
    candidates and the feature rows that were scored, float32[candidates, features]; only for a sampled share of the
    lists. degraded: ranked without the user's history. shadow: for a share of the lists while a release is in shadow.
    query: the search query. columns: the columns that were sent, as a JSON object; a list has one value per item of
    `item_ids`. candidate_columns: the same per item of `candidates`. user_attributes: those
    of the user at that time, as a JSON object; None if no release asked for them. placement,
    items: those of the request. experiments: the arm of the list by experiment; `serving.config.INTERLEAVED` for one
    that mixes both arms, which then has in `teams` the arm that chose the item of each position, None for one that
    neither chose. session_id: that of the request, and took_ms: milliseconds that the list took; both only for lists of
    experiments.
    """

    request_id: str
    at: float
    release: str
    route: str
    item_ids: list[str]
    score: bytes
    user_id: str | None = None
    device: str | None = None
    degraded: bool = False
    propensity: bytes | None = None
    candidates: list[str] | None = None
    rows: bytes | None = None
    shadow: ShadowScores | None = None
    query: str | None = None
    columns: str | None = None
    candidate_columns: str | None = None
    user_attributes: str | None = None
    placement: str | None = None
    items: list[str] = []
    experiments: dict[str, str] = {}
    teams: list[str | None] = []
    session_id: str | None = None
    took_ms: float | None = None

    @property
    def scores(self) -> F64:
        """The ranker's scores, float64[k]."""
        return np.frombuffer(self.score, "<f8").astype(np.float64)

    @property
    def propensities(self) -> F64 | None:
        """The probability of each item at its position, float64[k]; None without exploration."""
        return None if self.propensity is None else np.frombuffer(self.propensity, "<f8").astype(np.float64)

    @property
    def table(self) -> F32 | None:
        """The feature rows, float32[candidates, features]; None for a list that was not sampled."""
        if self.rows is None or not self.candidates:
            return None
        return np.frombuffer(self.rows, "<f4").astype(np.float32).reshape(len(self.candidates), -1)


_DECODE = msgspec.msgpack.Decoder(Served)


def decode_served(entry: bytes) -> Served:
    """Decode a record of the stream. Raises the errors of msgspec if it is not a valid `Served`."""
    return _DECODE.decode(entry)


class ServedLog:
    """A worker's queue of records and the task that writes them. dropped: number of records that did not fit."""

    def __init__(self, store: Store, metrics: Metrics, most: int) -> None:
        """most: length of the stream at which writing stops until `shelfwise collect` has removed entries."""
        self._store, self._metrics, self._most = store, metrics, most
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._length = 0
        self.dropped = 0

    def put(self, record: Served) -> None:
        """Add a record to the queue; takes microseconds and never blocks."""
        entry = msgspec.msgpack.encode(record)
        if len(self._queue) >= _RECORDS or self._bytes + len(entry) > _BYTES:
            self._drop(1)
            return
        self._queue.append(entry)
        self._bytes += len(entry)

    async def run(self) -> None:
        """Write the queue until cancelled; call `flush` then to write the rest."""
        while True:
            await asyncio.sleep(_PAUSE_S)
            await self.flush()

    async def flush(self) -> None:
        """Write the whole queue; records stay queued while Redis is unavailable."""
        while self._queue:
            full = self._length >= self._most
            batch = [] if full else [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
            try:
                self._length = await self._store.append(SERVED, batch)
            except StoreAway as e:
                # Some may have been written and will be written twice: `collect` keeps one record per request.
                self._queue.extendleft(reversed(batch))
                log.debug("served lists stay queued: %s", type(e).__name__)
                return
            except asyncio.CancelledError:
                self._queue.extendleft(reversed(batch))
                raise
            self._bytes -= sum(map(len, batch))
            if full and self._length >= self._most:
                self._drop(len(self._queue))
                self._queue.clear()
                self._bytes = 0

    def _drop(self, count: int) -> None:
        self.dropped += count
        self._metrics.dropped(count)
