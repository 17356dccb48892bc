"""Memory of users and items: `python -m tests.bench.memory`, in a real Valkey and in a real worker.

Users are written through `serving.store`, with lists of several lengths. Bytes are `MEMORY USAGE` of every key of a
sample of users, and the growth of `used_memory` over all users, which includes the server's own tables. A formula is
fitted to these. Items: their vectors in Redis, and a release with many and one with few items, each loaded by its own
process, whose memory the kernel splits into private and shared (`smaps_rollup`).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import redis

from features.history import ENGAGEMENTS, SHOWN
from features.log import Kind
from features.moment import Items
from serving.store import BulkStore
from serving.store.embedded import connect_url
from tests.bench.made_up import AT, DIMENSIONS, made_up_items, skewed

SHAPES = ((10, 24), (50, 120), (100, 240), (100, 24), (10, 240), (0, 240), (100, 0), (1, 0))
"""(engagements, impressions) per user, for each line of the table."""
ID_BYTES = 12
"""Length of an item ID: `sku-00000000`."""
_SAMPLE = 200


class User(NamedTuple):
    """Bytes per user: MEMORY USAGE of both lists, and growth of the server. No event is from the last two days."""

    engagements: int
    shown: int
    keys: float
    server: float


def used_bytes(url: str) -> int:
    """Bytes the server uses. Measured on a new connection after others have closed: their buffers count too."""
    time.sleep(0.1)
    with redis.Redis.from_url(url) as client:
        memory: dict[str, Any] = client.info("memory")
        return int(memory["used_memory"])


def empty_server(url: str) -> int:
    """Empty the server and return the bytes it still uses."""
    with redis.Redis.from_url(url) as client:
        client.execute_command("FLUSHALL", "SYNC")  # without SYNC, memory is freed later in the background
    return used_bytes(url)


def measure_users(url: str, users: int, items: int) -> list[User]:
    """One result for each of `SHAPES`. The server is emptied before each."""
    out, rng = [], np.random.default_rng(1)
    for engagements, shown in SHAPES:
        before = empty_server(url)
        with BulkStore(url) as store:
            write_users(store, rng, users, engagements, shown, items)
        growth = used_bytes(url) - before
        with redis.Redis.from_url(url) as client:
            keys = [f"sw:{{user-{u:08d}}}:{suffix}" for u in range(min(users, _SAMPLE)) for suffix in "es"]
            sizes = [client.memory_usage(key, samples=0) or 0 for key in keys]
        out.append(User(engagements, shown, 2 * float(np.mean(sizes)), growth / users))
        print(f"  wrote users with {engagements} engagements and {shown} impressions", file=sys.stderr, flush=True)
    return out


def write_users(
    store: BulkStore, rng: np.random.Generator, users: int, engagements: int, shown: int, items: int
) -> None:
    """Write users with full lists, as a first release seeds them. Old events need no IDs for deduplication."""
    events_per_user, kinds = engagements + shown, [int(k) for k in Kind if k != Kind.IMPRESSION]
    for first in range(0, users, 2000):
        count = min(2000, users - first)
        kind = np.tile(np.repeat([kinds[1], Kind.IMPRESSION], [engagements, shown]), count).astype(np.int8)
        store.seed(
            [f"user-{u:08d}" for u in range(first, first + count)],
            np.arange(count + 1) * events_per_user,
            AT - np.floor(rng.uniform(3e5, 5e6, count * events_per_user)),
            kind,
            [f"sku-{i:08d}" for i in skewed(rng, items, count * events_per_user).tolist()],
            [f"event-{first}-{n}" for n in range(count * events_per_user)],
            AT,
            AT,
        )


def fit_user_bytes(users: list[User]) -> tuple[float, float, float]:
    """Bytes per user with any list, per engagement and per impression.

    Least squares over the table, with relative errors.
    """
    x = np.array([[1.0, u.engagements, u.shown] for u in users])
    y = np.array([u.server for u in users])
    a, b, c = np.linalg.lstsq(x / y[:, None], np.ones(len(y)), rcond=None)[0]
    return float(a), float(b), float(c)


def measure_duplicates(url: str, events: int) -> float:
    """Bytes per ID in the deduplication set of a user with this many events in two days."""
    from serving.store import Event

    empty_server(url)
    with redis.Redis.from_url(url) as client, BulkStore(url) as store:
        store.write([Event(f"e{n}", int(Kind.CLICK), "u", f"sku-{n:08d}", AT - n) for n in range(events)], AT)
        sizes = [client.memory_usage(k, samples=0) or 0 for k in client.scan_iter(match="*:d:*")]
        return sum(sizes) / events


def measure_stream(url: str, events: int) -> float:
    """Bytes per event in the stream, until it is trimmed."""
    from serving.store import Event

    empty_server(url)
    with redis.Redis.from_url(url) as client, BulkStore(url) as store:
        for first in range(0, events, 500):
            store.write(
                [
                    Event(
                        f"event-{n:010d}",
                        int(Kind.IMPRESSION),
                        f"user-{n // 24:08d}",
                        f"sku-{n:08d}",
                        AT - 60,
                        f"request-{n // 24:010d}",
                        n % 24,
                    )
                    for n in range(first, min(first + 500, events))
                ],
                AT,
            )
        return float(client.memory_usage("sw:events", samples=0) or 0) / events


def measure_vectors(url: str, items: int) -> float:
    """Bytes per item vector in Redis, including its key and the server's tables."""
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(items, DIMENSIONS)).astype(np.float32)
    before = empty_server(url)
    with BulkStore(url) as store:
        store.write_vectors("0123456789abcdef", [f"sku-{i:08d}" for i in range(items)], vectors)
    return (used_bytes(url) - before) / items


class Worker(NamedTuple):
    """Bytes of a process: private, and shared with other processes that map the same release."""

    private: int
    shared: int


def rollup() -> Worker:
    """Memory of this process. Pages of files count as shared even if only one worker maps them."""
    text = Path("/proc/self/smaps_rollup").read_text("ascii")
    field = {name: int(kb) * 1024 for name, kb in re.findall(r"(\w+):\s+(\d+) kB", text)}
    # Anonymous pages are private. All others are pages of files, of which all workers of a machine share one copy.
    return Worker(field["Anonymous"], field["Rss"] - field["Anonymous"])


def measure_worker(release: Path | None) -> Worker:
    """Memory of a worker with a release, warmed up and with every array read; without a release, of Python alone."""
    from serving.ranking.live import Live
    from serving.release.release import load_release

    if release is None:
        return rollup()
    live = Live.of(load_release(release))
    live.warm()
    items = live.items
    every = np.arange(len(items.catalogue), dtype=np.int32)
    for first in range(0, len(every), 1000):
        live.rank(_full_history(every), list(items.catalogue.item_ids[first : first + 1000]), AT, 10)
    return rollup()


def _full_history(items: np.ndarray) -> Any:
    from features.history import History

    item = items[: min(len(items), ENGAGEMENTS)]
    shown = items[: min(len(items), SHOWN)]
    return History(
        item,
        np.full(len(item), Kind.CLICK, np.int8),
        np.full(len(item), AT - 100.0),
        shown,
        np.full(len(shown), AT - 200.0),
    )


def write_release(root: Path, items: int, events: int) -> Path:
    """Write a release with this many items and a small model."""
    import lightgbm as lgb

    from features.history import EMPTY
    from features.table import names, rows

    rng = np.random.default_rng(3)
    catalogue_items = made_up_items(rng, items, events)
    table = rows(catalogue_items, EMPTY, np.arange(min(items, 500), dtype=np.int32), AT)
    data = lgb.Dataset(
        table, rng.integers(0, 3, len(table)), group=[len(table)], feature_name=list(names(catalogue_items))
    )
    settings = {"objective": "lambdarank", "num_leaves": 31, "verbosity": -1, "num_threads": 1, "min_data_in_leaf": 1}
    return write_release_with(root, catalogue_items, lgb.train(settings, data, 20).model_to_string(), AT)


def write_release_with(root: Path, items: Items, model_text: str, created_at: float) -> Path:
    """Write a release with these items and no encoder; the vectors are only in the arrays."""
    import pyarrow as pa

    from serving.release.release import write_release

    n = len(items.catalogue)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(n * DIMENSIONS, np.float32)), DIMENSIONS)
    columns = pa.table({"item_id": list(items.catalogue.item_ids), "embedding": vectors})
    return write_release(
        root,
        items=items,
        model_text=model_text,
        item_columns=columns,
        encoder_dir=None,
        cut_off=AT,
        window={},
        metrics={},
        parent=None,
        created_at=created_at,
        encoder_fingerprint="0123456789abcdef",
    )


def measure_in_process(release: Path | None) -> Worker:
    command = [sys.executable, "-m", "tests.bench.memory", "--worker", str(release or "none")]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Worker(*json.loads(output.splitlines()[-1]))


def measure_workers(many: int, few: int, events: int) -> tuple[Worker, Worker, Worker]:
    """Memory of a worker without a release, with few items and with many."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [write_release(Path(folder) / str(n), n, events) for n in (few, many)]
        measure_in_process(paths[0])  # the first process may have to compile, which takes memory
        return measure_in_process(None), measure_in_process(paths[0]), measure_in_process(paths[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20_000, help="users per line of the table")
    parser.add_argument(
        "--items", type=int, default=100_000, help="items of the larger release; the smaller has a tenth"
    )
    parser.add_argument(
        "--events", type=int, default=200_000, help="events in the item state of the release, and in the stream"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure_worker(None if options.worker == "none" else Path(options.worker))))
        return
    with tempfile.TemporaryDirectory() as folder, connect_url(None, Path(folder)) as url:
        users = measure_users(url, options.users, options.items)
        duplicate, stream = measure_duplicates(url, 1000), measure_stream(url, min(options.events, 20_000))
        vector = measure_vectors(url, min(options.items, 20_000))
    base, few, many = measure_workers(options.items, options.items // 10, options.events)
    print(f"Redis, bytes per user, {options.users:,} users, item IDs of {ID_BYTES} bytes")
    print(f"{'engagements':>11} {'impressions':>11} {'MEMORY USAGE':>13} {'server growth':>15} {'formula':>9}")
    a, b, c = fit_user_bytes(users)
    for u in users:
        formula = a + b * u.engagements + c * u.shown
        print(f"{u.engagements:11} {u.shown:11} {u.keys:13,.0f} {u.server:15,.0f} {formula:9,.0f}")
    print(f"formula: {a:.0f} + {b:.1f} x engagements + {c:.1f} x impressions")
    print(
        f"plus {duplicate:.1f} per event of the last two to four days, and {stream:.0f} per event in the stream "
        "until trimmed"
    )
    print(f"item vector in Redis: {vector:.0f} bytes ({DIMENSIONS} dimensions)")
    items = options.items - options.items // 10
    private, shared = (many.private - few.private) / items, (many.shared - few.shared) / items
    print(f"worker without a release: {base.private / 1e6:.0f} MB private, {base.shared / 1e6:.0f} MB shared")
    for n, worker in ((options.items // 10, few), (options.items, many)):
        print(f"with {n:,} items: {worker.private / 1e6:.0f} MB private, {worker.shared / 1e6:.0f} MB shared")
    print(f"item in a worker: {private:.0f} bytes private, {shared:.0f} shared by the workers of a machine")
    full = next(u for u in users if (u.engagements, u.shown) == (ENGAGEMENTS, SHOWN))
    print(
        json.dumps(
            {
                "bytes_per_user": round(full.server),
                "bytes_per_user_formula": [round(a, 1), round(b, 2), round(c, 2)],
                "bytes_per_item_redis": round(vector),
                "bytes_per_item_worker_private": round(private),
                "bytes_per_item_worker_shared": round(shared),
                "bytes_per_event_stream": round(stream),
            }
        )
    )


if __name__ == "__main__":
    main()
