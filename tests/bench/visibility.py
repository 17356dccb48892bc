"""Delay until a change sent to one worker shows in another: `python -m tests.bench.visibility`, with a real Valkey.

Two service processes and an embedding worker share one Valkey, with a synthetic shop whose items have real texts. Each
line is the time from an HTTP request to the first response that reflects it, polling every few milliseconds:

    own list            a user's click, then their ranking by the same worker and by the other
    item state          the same click in the item state of both workers, seen in the ranking of an anonymous user
    withdrawn           an item is withdrawn, until no worker returns it
    new item            a new item is written, until both workers rank it by its text
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import lightgbm as lgb
import numpy as np
import pyarrow as pa

from features.decay import ItemState
from features.history import History
from features.log import Kind
from features.neighbours import Neighbours
from features.table import Items, names, rows
from features.text.vectors import Vectors
from offline.data.dataset import read_catalogue
from serving.release.release import write_release
from serving.store import BulkStore, Pointer
from serving.store.embedded import connect_url
from tests.bench.serve import service
from text_encoder.encoder import load

MATERIALS = ("woollen", "steel", "oak", "silk", "leather", "copper")
THINGS = ("cap", "hammer", "table", "scarf", "belt", "kettle", "tent", "violin")
_WAIT_S = 60.0


def shop(root: Path, at: float, seed: int = 0) -> Path:
    """A release of 240 items with its encoder, and a model that prefers similar and often clicked items."""
    rng = np.random.default_rng(seed)
    ids = [f"i{n:03d}" for n in range(240)]
    titles = [f"{MATERIALS[n % 6].title()} {THINGS[n % 8]} no. {n}" for n in range(240)]
    table = pa.table({"item_id": ids, "title": titles, "category": [THINGS[n % 8] for n in range(240)]})
    encoder = load("minilm", template="{title}", max_tokens=16)
    encoded = encoder.encode(titles)
    catalogue = read_catalogue(table)
    vectors = Vectors.quantise(np.vstack([encoded, np.full((1, encoded.shape[1]), np.nan, np.float32)]))
    state = ItemState.empty(catalogue.category, len(catalogue.category_names))
    clicked = rng.integers(0, 240, 400).astype(np.int32)
    state.apply(clicked, np.full(400, Kind.CLICK, np.int8), np.sort(at - rng.uniform(1, 9e4, 400)))
    items = Items(catalogue, vectors, np.full(241, 0.1, np.float32), Neighbours.none(240), state)
    encoder.save(root / "encoder")
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(encoded.ravel()), encoded.shape[1])
    return write_release(
        root / "releases",
        items=items,
        model_text=_model(items, at, rng),
        encoder_dir=root / "encoder",
        cut_off=at,
        item_columns=table.append_column("embedding", embedding),
        window={},
        metrics={},
        parent=None,
        created_at=at,
        encoder_fingerprint=encoder.fingerprint,
    )


def _model(items: Items, at: float, rng: np.random.Generator) -> str:
    every, table = np.arange(240, dtype=np.int32), []
    for _ in range(40):
        liked = rng.integers(0, 240, 3).astype(np.int32)
        history = History(
            liked, np.full(3, Kind.CLICK, np.int8), at - np.arange(1.0, 4.0), np.empty(0, np.int32), np.empty(0)
        )
        table.append(rows(items, history, every, at))
    x, columns = np.concatenate(table), list(names(items))
    label = x[:, columns.index("text_max")] + 0.3 * x[:, columns.index("item_clicks_1h")]
    settings = {"objective": "regression", "num_leaves": 31, "verbose": -1, "num_threads": 1, "deterministic": True}
    return str(lgb.train(settings, lgb.Dataset(x, label, feature_name=columns), 60).model_to_string())


@contextmanager
def embedder(url: str, vectors: Path) -> Iterator[None]:
    """An embedding worker in its own process."""
    code = (
        "import sys; from offline.training import Embedder, VectorStore; from serving.store import BulkStore\n"
        "with BulkStore(sys.argv[1]) as store: Embedder(store, 'bench', VectorStore(sys.argv[2])).run()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, url, str(vectors)], env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


class Shop:
    """Two workers and their clients. Changes are sent to ask[0]."""

    def __init__(self, ask: list[httpx.Client]) -> None:
        self.ask = ask

    def scores(self, worker: int, candidates: list[str], user: str | None = None) -> dict[str, float]:
        """The scores of some items for a user, or for an anonymous one."""
        body = {"candidates": candidates} | ({"user_id": user} if user else {})
        answer = self.ask[worker].post("/v1/rank", json=body).raise_for_status().json()
        return {i["item_id"]: i["score"] for i in answer["items"]}

    def until(self, condition: Callable[..., Any], began: float) -> float:
        """Seconds from `began` until the condition is true. Raises AssertionError if it never is."""
        while not condition():
            assert time.perf_counter() < began + _WAIT_S, "the change never showed"
            time.sleep(0.002)
        return time.perf_counter() - began

    def clicked(self, n: int) -> dict[str, float]:
        """Delays of a user's click."""
        user, item = f"u{n}", f"i{7 * n % 240:03d}"
        other = f"i{(7 * n + 8) % 240:03d}"
        before = [self.scores(w, [other], user)[other] for w in (0, 1)]
        anonymous = [self.scores(w, [item])[item] for w in (0, 1)]
        event = {"event": "click", "user_id": user, "item_id": item}
        out, began = {}, time.perf_counter()
        self.ask[0].post("/v1/events", json=event).raise_for_status()
        for w, name in ((0, "own_list_same_worker"), (1, "own_list_other_worker")):
            out[name] = self.until(lambda w=w: self.scores(w, [other], user)[other] != before[w], began)
        for w, name in ((0, "item_state_same_worker"), (1, "item_state_other_worker")):
            out[name] = self.until(lambda w=w: self.scores(w, [item])[item] != anonymous[w], began)
        return out

    def withdrawn(self, n: int) -> dict[str, float]:
        """Delay of withdrawing an item, which is made available again afterwards."""
        item = f"i{239 - n:03d}"
        began = time.perf_counter()
        self.ask[0].delete(f"/v1/items/{item}").raise_for_status()
        out = {"withdrawn_other_worker": self.until(lambda: not self.scores(1, [item]), began)}
        self.ask[0].put("/v1/items", json={"item_id": item, "available": True}).raise_for_status()
        self.until(lambda: self.scores(1, [item]), time.perf_counter())
        return out

    def new(self, n: int) -> dict[str, float]:
        """Delays of a new item, until a user who likes similar items gets it first, before anyone has clicked it."""
        item, thing, other = f"new{n}", THINGS[n % 8], THINGS[(n + 3) % 8]
        user = f"liker{n}"
        liked = [f"i{k:03d}" for k in range(n % 8, 48, 8)]
        events = [{"event": "click", "user_id": user, "item_id": i} for i in liked]
        self.ask[0].post("/v1/events", json=events).raise_for_status()
        began = time.perf_counter()
        items = [{"item_id": item, "title": f"Linen {thing}"}, {"item_id": f"{item}-other", "title": f"Linen {other}"}]
        self.ask[0].put("/v1/items", json=items).raise_for_status()
        out = {}
        for w, name in ((0, "new_item_same_worker"), (1, "new_item_other_worker")):

            def first(w: int = w) -> bool:
                known = all(self.ask[w].get(f"/v1/items/{m['item_id']}").json().get("vector") for m in items)
                return known and next(iter(self.scores(w, [m["item_id"] for m in items], user))) == item

            out[name] = self.until(first, began)
        return out


@contextmanager
def running(url: str, release: Path) -> Iterator[Shop]:
    """The shop with its three processes."""
    with BulkStore(url) as store:
        store.set_pointer(Pointer(release.name, str(release)))
    with ExitStack() as stack:
        ports = [stack.enter_context(service(url, release, None))[1] for _ in range(2)]
        stack.enter_context(embedder(url, release.parent / "vectors"))
        ask = [stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{p}", timeout=30)) for p in ports]
        yield Shop(ask)


def measure(times: int, on_line: Callable[[str], object] = print) -> dict[str, float]:
    """Delays in milliseconds, at the median and the 99th percentile."""
    with tempfile.TemporaryDirectory() as directory, connect_url(None, Path(directory) / "redis") as url:
        release = shop(Path(directory), time.time() - 3600)
        with running(url, release) as running_shop:
            running_shop.new(10_000)  # wait until the embedding worker has loaded its encoder
            delays: dict[str, list[float]] = {}
            for n in range(times):
                for one in (running_shop.clicked(n), running_shop.withdrawn(n % 200), running_shop.new(n)):
                    for name, took in one.items():
                        delays.setdefault(name, []).append(took * 1e3)
    out: dict[str, float] = {}
    for name, all_ms in delays.items():
        p50, p99 = np.percentile(all_ms, [50, 99]).round(1).tolist()
        on_line(f"{name.replace('_', ' '):28} p50 {p50:8.1f} ms   p99 {p99:8.1f} ms   {len(all_ms)} times")
        out |= {f"{name}_p50_ms": p50, f"{name}_p99_ms": p99}
    return out


def main() -> None:
    """Measure and print; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=30, help="repeats of each measurement")
    options = parser.parse_args()
    print(json.dumps(measure(options.times)))


if __name__ == "__main__":
    main()
