"""What an event costs on its way: `python -m tests.bench.events`, with a real Valkey, the two of them on this machine.

Lists of 24 impressions are written as a page sends them, each list of one user in one call; then the stream is read
and taken into item state as a worker does, and collected. Processor time of this process and, by its own account, of
Valkey: what else runs on the machine lengthens neither by much. Ids of events and requests are 16 random bytes, as hex.
Ends with one line of JSON.
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
    """Each of one user."""
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
    """Processor seconds that Valkey has taken."""
    used = client.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


async def written(url: str, made: list[list[Event]]) -> float:
    """Processor seconds of the writing side."""
    store = Store(url, 30.0)
    await store.write(made[0], AT)
    begun = time.process_time()
    for one in made[1:]:
        await store.write(one, AT)
    took = time.process_time() - begun
    await store.close()
    return took


async def followed(url: str) -> tuple[float, int]:
    """Processor seconds to read the stream and take it into the state of 100,000 items, and events."""
    store, events = Store(url, 30.0), 0
    state = ItemState.empty(np.zeros(100_001, np.int32), 1)
    rows = {f"sku-{n:08d}": n for n in range(100_000)}
    state.apply(np.zeros(1, np.int32), np.zeros(1, np.int8), np.full(1, AT))  # compiled before
    last, begun = START, time.process_time()
    while (tail := (await store.poll(last)).tail).item_ids:
        state.apply(np.array([rows[i] for i in tail.item_ids], np.int32), tail.kind, tail.at)
        last, events = tail.last, events + len(tail.item_ids)
    took = time.process_time() - begun
    await store.close()
    return took, events


def collected(url: str, directory: Path) -> tuple[float, int]:
    """Processor seconds to bring the stream to Parquet, and bytes there."""
    with BulkStore(url) as store:
        begun = time.process_time()
        collect(directory, store)
        took = time.process_time() - begun
    return took, sum(p.stat().st_size for p in directory.glob("events/date=*/*.parquet"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=int, default=4000, help="of 24 impressions")
    made = lists(parser.parse_args().lists)
    with tempfile.TemporaryDirectory() as folder, connect_url(None, Path(folder) / "valkey") as url:
        data = Path(folder) / "data"
        data.mkdir()
        pq.write_table(pa.table({"item_id": ["a"], "title": ["t"]}), data / "items.parquet")
        with redis.Redis.from_url(url) as client:
            before = server_s(client)
            client_s, n = asyncio.run(written(url, made)), LIST * (len(made) - 1)
            valkey_s = server_s(client) - before
        follow_s, events = asyncio.run(followed(url))
        collect_s, size = collected(url, data)
    found = {
        "us_write_service": 1e6 * client_s / n,
        "us_write_redis": 1e6 * valkey_s / n,
        "us_follow": 1e6 * follow_s / events,
        "us_collect": 1e6 * collect_s / events,
        "bytes_parquet": size / events,
    }
    print(json.dumps({name: round(value, 2) for name, value in found.items()}))


if __name__ == "__main__":
    main()
