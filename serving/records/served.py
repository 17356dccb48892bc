"""The served-list log: what each ranking answered, kept for the next night, without a request waiting for it.

A request puts a record into a bounded queue in memory; a task writes it to the Redis stream `sw:served`, field `l`:
MessagePack of a `Served`. What does not fit, and what is still in the queue of a worker that is killed, is lost and was
never acknowledged to anybody: it is a log, not an event. Dropped records are counted.
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
    """What the release in shadow says of the same request, scored after the answer had gone.

    score: float64[k], of the items as they were shown, little-endian bytes, NaN for one it has withdrawn. Over all
    candidates, before rules: correlation, of both releases' scores (Spearman), None where one gives all the same;
    overlap, the share of the live release's first 10 that are among its own first 10. live_ms, ms: time that each took
    to rank them.
    """

    release: str
    score: bytes
    correlation: float | None
    overlap: float
    live_ms: float
    ms: float


class Served(msgspec.Struct, frozen=True, omit_defaults=True):
    """One answered list, best first as it was shown: the place in `item_ids` is the position.

    at: the moment of the ranking, Unix seconds. score: float64[k], of the ranker, little-endian bytes. propensity:
    likewise, the chance of each item to stand at its place; only where exploration is on. candidates, rows: of a
    sampled share, every candidate that was ranked and float32[candidates, features], the very rows that were scored.
    degraded: ranked without the user's history. shadow: of a share of the lists while a release is in shadow.
    query: what was searched for.
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

    @property
    def scores(self) -> F64:
        """float64[k]."""
        return np.frombuffer(self.score, "<f8").astype(np.float64)

    @property
    def propensities(self) -> F64 | None:
        """float64[k], None where nothing was left to chance."""
        return None if self.propensity is None else np.frombuffer(self.propensity, "<f8").astype(np.float64)

    @property
    def table(self) -> F32 | None:
        """float32[candidates, features], None of a list that was not sampled."""
        if self.rows is None or not self.candidates:
            return None
        return np.frombuffer(self.rows, "<f4").astype(np.float32).reshape(len(self.candidates), -1)


_DECODE = msgspec.msgpack.Decoder(Served)


def decode_served(entry: bytes) -> Served:
    """A record as it stands in the stream. Raises what msgspec raises where it is none of ours."""
    return _DECODE.decode(entry)


class ServedLog:
    """A worker's queue of records, and the task that writes them. dropped: how many were lost for want of room."""

    def __init__(self, store: Store, metrics: Metrics, most: int) -> None:
        """most: entries of the stream beyond which nothing is added until `shelfwise collect` has taken some away."""
        self._store, self._metrics, self._most = store, metrics, most
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._length = 0
        self.dropped = 0

    def put(self, record: Served) -> None:
        """Keep a record for the log; takes microseconds and never waits."""
        entry = msgspec.msgpack.encode(record)
        if len(self._queue) >= _RECORDS or self._bytes + len(entry) > _BYTES:
            self._drop(1)
            return
        self._queue.append(entry)
        self._bytes += len(entry)

    async def run(self) -> None:
        """Write until cancelled; what is left then is written by `flush`."""
        while True:
            await asyncio.sleep(_PAUSE_S)
            await self.flush()

    async def flush(self) -> None:
        """Write all that is in the queue; where Redis is away, leave it there."""
        while self._queue:
            full = self._length >= self._most
            batch = [] if full else [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
            try:
                self._length = await self._store.append(SERVED, batch)
            except StoreAway as e:
                # Perhaps some were written, and are written twice then: `collect` keeps one of each request.
                self._queue.extendleft(reversed(batch))
                log.debug("the served lists wait: %s", type(e).__name__)
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
