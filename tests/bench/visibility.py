"""How soon what is sent to one worker shows in another: `python -m tests.bench.visibility`, over HTTP, a real Valkey.

Two service processes and an embedding worker on one Valkey, and a made-up shop whose items have real texts. A line is
the time from sending something to the first answer that knows of it, asking every few milliseconds:

    click, own list     a shopper's click, then his ranking by the same worker, and by the other
    click, everybody's  the same click in the item state of both workers, seen in the ranking of somebody else
    withdrawn           an item taken out, until no worker answers with it
    new item            a new item written, until both workers rank it by its text
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
    """A release of 240 items with the encoder that read them, and a model that likes similar and often clicked ones."""
    rng = np.random.default_rng(seed)
    ids = [f"i{n:03d}" for n in range(240)]
    titles = [f"{MATERIALS[n % 6].title()} {THINGS[n % 8]} no. {n}" for n in range(240)]
    table = pa.table({"item_id": ids, "title": titles, "category": [THINGS[n % 8] for n in range(240)]})
    encoder = load("minilm", template="{title}", max_tokens=16)
    made = encoder.encode(titles)
    known = read_catalogue(table)
    vectors = Vectors.quantise(np.vstack([made, np.full((1, made.shape[1]), np.nan, np.float32)]))
    state = ItemState.empty(known.category, len(known.category_names))
    clicked = rng.integers(0, 240, 400).astype(np.int32)
    state.apply(clicked, np.full(400, Kind.CLICK, np.int8), np.sort(at - rng.uniform(1, 9e4, 400)))
    items = Items(known, vectors, np.full(241, 0.1, np.float32), Neighbours.none(240), state)
    encoder.save(root / "encoder")
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(made.ravel()), made.shape[1])
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
def embedder(url: str) -> Iterator[None]:
    """An embedding worker in a process of its own."""
    code = (
        "import sys; from offline.training.embedding_worker import Embedder; from serving.store import BulkStore\n"
        "with BulkStore(sys.argv[1]) as store: Embedder(store, 'bench').run()"
    )
    process = subprocess.Popen([sys.executable, "-c", code, url], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


class Shop:
    """Two workers, and what is asked of them. ask[0] is the one that is written to."""

    def __init__(self, ask: list[httpx.Client]) -> None:
        self.ask = ask

    def scores(self, worker: int, candidates: list[str], user: str | None = None) -> dict[str, float]:
        """The scores of some items for a user, or for nobody."""
        body = {"candidates": candidates} | ({"user_id": user} if user else {})
        answer = self.ask[worker].post("/v1/rank", json=body).raise_for_status().json()
        return {i["item_id"]: i["score"] for i in answer["items"]}

    def until(self, true: Callable[[], Any], began: float) -> float:
        """Seconds from `began` to when it was true. Raises AssertionError where that is never."""
        while not true():
            assert time.perf_counter() < began + _WAIT_S, "it never showed"
            time.sleep(0.002)
        return time.perf_counter() - began

    def clicked(self, n: int) -> dict[str, float]:
        """One shopper's click."""
        user, item = f"u{n}", f"i{7 * n % 240:03d}"
        other = f"i{(7 * n + 8) % 240:03d}"
        before = [self.scores(w, [other], user)[other] for w in (0, 1)]
        alone = [self.scores(w, [item])[item] for w in (0, 1)]
        event = {"event": "click", "user_id": user, "item_id": item}
        out, began = {}, time.perf_counter()
        self.ask[0].post("/v1/events", json=event).raise_for_status()
        for w, name in ((0, "own_list_same_worker"), (1, "own_list_other_worker")):
            out[name] = self.until(lambda w=w: self.scores(w, [other], user)[other] != before[w], began)
        for w, name in ((0, "item_state_same_worker"), (1, "item_state_other_worker")):
            out[name] = self.until(lambda w=w: self.scores(w, [item])[item] != alone[w], began)
        return out

    def withdrawn(self, n: int) -> dict[str, float]:
        """One item taken out, and brought back."""
        item = f"i{239 - n:03d}"
        began = time.perf_counter()
        self.ask[0].delete(f"/v1/items/{item}").raise_for_status()
        out = {"withdrawn_other_worker": self.until(lambda: not self.scores(1, [item]), began)}
        self.ask[0].put("/v1/items", json={"item_id": item, "available": True}).raise_for_status()
        self.until(lambda: self.scores(1, [item]), time.perf_counter())
        return out

    def new(self, n: int) -> dict[str, float]:
        """One new item, liked by who likes such things before anybody clicked it."""
        item, thing, other = f"new{n}", THINGS[n % 8], THINGS[(n + 3) % 8]
        user = f"liker{n}"
        liked = [f"i{k:03d}" for k in range(n % 8, 48, 8)]
        events = [{"event": "click", "user_id": user, "item_id": i} for i in liked]
        self.ask[0].post("/v1/events", json=events).raise_for_status()
        began = time.perf_counter()
        made = [{"item_id": item, "title": f"Linen {thing}"}, {"item_id": f"{item}-other", "title": f"Linen {other}"}]
        self.ask[0].put("/v1/items", json=made).raise_for_status()
        out = {}
        for w, name in ((0, "new_item_same_worker"), (1, "new_item_other_worker")):

            def first(w: int = w) -> bool:
                known = all(self.ask[w].get(f"/v1/items/{m['item_id']}").json().get("vector") for m in made)
                return known and next(iter(self.scores(w, [m["item_id"] for m in made], user))) == item

            out[name] = self.until(first, began)
        return out


@contextmanager
def running(url: str, release: Path) -> Iterator[Shop]:
    """The shop with its three processes."""
    with BulkStore(url) as store:
        store.point(Pointer(release.name, str(release)))
    with ExitStack() as stack:
        ports = [stack.enter_context(service(url, release, None))[1] for _ in range(2)]
        stack.enter_context(embedder(url))
        ask = [stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{p}", timeout=30)) for p in ports]
        yield Shop(ask)


def measured(times: int, on_line: Callable[[str], object] = print) -> dict[str, float]:
    """Milliseconds by what was sent, at the median and at the 99th percentile."""
    with tempfile.TemporaryDirectory() as directory, connect_url(None, Path(directory) / "redis") as url:
        release = shop(Path(directory), time.time() - 3600)
        with running(url, release) as made:
            made.new(10_000)  # the embedding worker has loaded its encoder then
            found: dict[str, list[float]] = {}
            for n in range(times):
                for one in (made.clicked(n), made.withdrawn(n % 200), made.new(n)):
                    for name, took in one.items():
                        found.setdefault(name, []).append(took * 1e3)
    out = {}
    for name, took in found.items():
        p50, p99 = np.percentile(took, [50, 99]).round(1).tolist()
        on_line(f"{name.replace('_', ' '):28} p50 {p50:8.1f} ms   p99 {p99:8.1f} ms   {len(took)} times")
        out |= {f"{name}_p50_ms": p50, f"{name}_p99_ms": p99}
    return out


def main() -> None:
    """Measure and print; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=30, help="how often each is done")
    options = parser.parse_args()
    print(json.dumps(measured(options.times)))


if __name__ == "__main__":
    main()
