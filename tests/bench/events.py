"""Cost of an event on its way into the data set: `python -m tests.bench.events`, with a real Valkey on this machine.

Lists of 24 impressions are written as a page sends them, each list of one user in one call. Then the stream is read and
applied to item state as a worker does, and collected. Figures are processor times of this process and, as reported by
itself, of Valkey, so other jobs on the machine hardly matter. Event and request IDs are 16 random bytes in hex. Ends
with one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis

from features.decay import ItemState
from features.log import Kind
from offline.data.collection import collect
from serving.store import START, BulkStore, Event, Store
from serving.store.embedded import connect_url
from tests.bench.made_up import AT

LIST = 24


def lists(count: int) -> list[list[Event]]:
    """`count` lists of impressions, each of one user."""
    rng = np.random.default_rng(0)
    out = []
    for n in range(count):
        request, user, items = rng.bytes(16).hex(), f"user-{rng.integers(10**8):08d}", rng.integers(100_000, size=LIST)
        out.append(
            [
                Event(rng.bytes(16).hex(), int(Kind.IMPRESSION), user, f"sku-{item:08d}", AT + n / 100, request, k)
                for k, item in enumerate(items.tolist())
            ]
        )
    return out


def server_s(client: redis.Redis) -> float:
    """Processor seconds used by Valkey."""
    used = client.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


async def measure_writing(url: str, lists_to_write: list[list[Event]]) -> float:
    """Processor seconds of the writing side."""
    store = Store(url, 30.0)
    await store.write(lists_to_write[0], AT)
    start = time.process_time()
    for events in lists_to_write[1:]:
        await store.write(events, AT)
    took = time.process_time() - start
    await store.close()
    return took


async def measure_following(url: str) -> tuple[float, int]:
    """Processor seconds to read the stream and apply it to the state of 100,000 items, and the number of events."""
    store, events = Store(url, 30.0), 0
    state = ItemState.empty(np.zeros(100_001, np.int32), 1)
    rows = {f"sku-{n:08d}": n for n in range(100_000)}
    state.apply(np.zeros(1, np.int32), np.zeros(1, np.int8), np.full(1, AT))  # compile first
    last, start = START, time.process_time()
    while (tail := (await store.poll(last)).tail).item_ids:
        state.apply(np.array([rows[i] for i in tail.item_ids], np.int32), tail.kind, tail.at)
        last, events = tail.last, events + len(tail.item_ids)
    took = time.process_time() - start
    await store.close()
    return took, events


def measure_collecting(url: str, directory: Path) -> tuple[float, int]:
    """Processor seconds to move the stream to Parquet, and the bytes written."""
    with BulkStore(url) as store:
        start = time.process_time()
        collect(directory, store)
        took = time.process_time() - start
    return took, sum(p.stat().st_size for p in directory.glob("events/date=*/*.parquet"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=int, default=4000, help="number of lists, 24 impressions each")
    lists_to_write = lists(parser.parse_args().lists)
    with tempfile.TemporaryDirectory() as folder, connect_url(None, Path(folder) / "valkey") as url:
        data = Path(folder) / "data"
        data.mkdir()
        pq.write_table(pa.table({"item_id": ["a"], "title": ["t"]}), data / "items.parquet")
        with redis.Redis.from_url(url) as client:
            before = server_s(client)
            client_s, n = asyncio.run(measure_writing(url, lists_to_write)), LIST * (len(lists_to_write) - 1)
            valkey_s = server_s(client) - before
        follow_s, events = asyncio.run(measure_following(url))
        collect_s, size = measure_collecting(url, data)
    figures = {
        "us_write_service": 1e6 * client_s / n,
        "us_write_redis": 1e6 * valkey_s / n,
        "us_follow": 1e6 * follow_s / events,
        "us_collect": 1e6 * collect_s / events,
        "bytes_parquet": size / events,
    }
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
