"""How well vectors of words stand in for the text encoder's own vector of a query.

    python -m tests.bench.query WORKSPACE        a simulated shop whose night has come as far as its encoder
    python -m tests.bench.query --films FOLDER   RankLens' items, by the encoder as it came
    python -m tests.bench.query --cost [ITEMS]   what a query adds to a request, of a made-up shop

Each way of making a query's vector orders the catalogue. Said of each: the share of the encoder's own nearest 10 and 50
that are among its own; how much of what was sought the first 10 have (the shop), or how often they hold the film that
the words are of; and the time of one query. Queries are typed as simulated shoppers type, slips included.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from features.arrays import F32, F64, I32
from features.catalogue import Catalogue
from features.context import NO_CONTEXT, Context
from features.history import ENGAGEMENTS, SHOWN
from features.retrieval import text_candidates
from features.table import rows
from features.text.vectors import Vectors
from features.text.vocabulary import Vocabulary, tokenize
from offline.config.simulation import SimulateConfig
from offline.data import dataset
from offline.simulation.dataset import open_shop
from offline.simulation.products import make_products
from offline.simulation.searches import Searches
from tests.bench.assemble import made_up_request
from tests.bench.made_up import AT, made_up_items, skewed
from text_encoder.encoder import Encoder, load

QUERIES, FILMS = 300, 700


@dataclass(frozen=True)
class World:
    """A catalogue, its vectors by an encoder (float32[n + 1, d]), queries, and the worth of an order's first 10."""

    catalogue: Catalogue
    vectors: F32
    encoder: Encoder
    queries: Sequence[str]
    worth: Callable[[I32], float]


def shop(workspace: Path) -> World:
    """The shop that `shelfwise simulate` makes by default, and the encoder of its night."""
    (run,) = (p.parent for p in (workspace / "runs").glob("*/encoder.json"))
    catalogue, stock = dataset.load_dataset(workspace / "data").catalogue, open_shop(SimulateConfig()).stock
    rng = np.random.default_rng(1)
    assert stock.table["item_id"].to_pylist() == list(catalogue.item_ids), "simulate with the defaults"
    searches = Searches(stock, rng)
    wishes = [searches.wish(i) for i in rng.integers(0, len(catalogue), QUERIES).tolist()]
    every = np.arange(len(catalogue), dtype=np.int32)
    odds = np.array([searches.odds(wish, every) for wish in wishes])  # from nothing to all of what was sought
    share = (odds - odds.min()) / (odds.max() - odds.min())
    return World(
        catalogue,
        _and_unknown(np.load(run / "vectors.npy")[-1]),
        load(str(run / "encoder")),
        [searches.typed(w) for w in wishes],
        lambda order: float(np.take_along_axis(share, order[:, :10].astype(np.int64), axis=1).mean()),
    )


def film_shop(folder: Path) -> World:
    """Films, each sought by two or three words of its title, genres, tags and actors."""
    films = pq.read_table(folder / "items.parquet").sort_by("item_id").slice(0, FILMS).to_pylist()
    rng = np.random.default_rng(1)
    listed = [[*(r["genres"] or ()), *(r["tags"] or ()), *(r["actors"] or ())] for r in films]
    names = sorted({f"tags={v}" for values in listed for v in values})
    code = {name: k for k, name in enumerate(names)}
    tags = [sorted({code[f"tags={v}"] for v in values}) for values in listed]
    n, none = len(films), np.zeros(len(films) + 1, np.int32)
    start = np.append(np.cumsum([0, *map(len, tags)]), sum(map(len, tags)))
    catalogue = Catalogue(
        [r["item_id"] for r in films],
        [r["title"] for r in films],
        np.full(n + 1, np.nan),
        none,
        [],
        none,
        [],
        np.full(n + 1, np.nan),
        np.empty((n + 1, 0)),
        [],
        start,
        np.concatenate(tags).astype(np.int32),
        names,
    )
    encoder = load("minilm", max_tokens=64)
    texts = [f"{r['title']}. {', '.join(r['genres'] or ())}. {r['description'] or ''}" for r in films]
    sought = rng.integers(0, n, QUERIES)
    slips = Searches(make_products(rng, 2, np.zeros(1, np.int64), 0), rng)
    queries = []
    for i in sought.tolist():
        words = list(dict.fromkeys(" ".join([films[i]["title"], *listed[i]]).lower().split()))
        picked = sorted(rng.choice(len(words), min(len(words), 2 + int(rng.integers(2))), replace=False))
        queries.append(" ".join(slips.slipped(words[k]) for k in picked))
    return World(
        catalogue,
        _and_unknown(encoder.encode(texts)),
        encoder,
        queries,
        lambda order: float((order[:, :10] == sought[:, None]).any(axis=1).mean()),
    )


def _and_unknown(vectors: F32) -> F32:
    return np.vstack([vectors, np.full((1, vectors.shape[1]), np.nan, np.float32)]).astype(np.float32)


def ways(world: World) -> dict[str, Callable[[str], F64]]:
    """The vector of a query, in each of the ways that are compared."""
    words, known = Vocabulary.build(world.catalogue, world.vectors), np.isfinite(world.vectors[:-1]).all(axis=1)
    names, of = list(words.names), np.repeat(np.arange(len(world.catalogue)), np.diff(words.start[:-1]))
    held = np.zeros((len(world.catalogue), len(names)), np.float32)
    held[of, words.word] = 1.0
    held, target = held[known], world.vectors[:-1][known]
    ridge = np.linalg.solve(
        held.T @ held + np.eye(len(names), dtype=np.float32), held.T @ (target - target.mean(axis=0))
    )
    alone = world.encoder.encode(names)

    def exactly(text: str) -> F64:
        return words.read(" ".join(w for w in tokenize(text) if w in names)).direction

    return {
        "mean of the items that hold a word": lambda text: words.read(text).direction,
        "the same, slips unread": exactly,
        "ridge of items on their words": _by(words, ridge),
        "words by the encoder": _by(words, alone),
        "the same less their mean": _by(words, alone - alone.mean(axis=0)),
    }


def _by(words: Vocabulary, vectors: F32) -> Callable[[str], F64]:
    """Queries as `words` reads them, with other vectors of words, float32[w, d]."""
    strength = words.rarity * np.linalg.norm(vectors, axis=1).astype(np.float32)
    other = replace(words, vectors=Vectors.quantise(vectors), strength=strength)
    return lambda text: other.read(text).direction


def main(world: World) -> None:
    """Print the table, and the same as JSON."""
    items = Vectors.quantise(world.vectors)
    every = np.arange(len(world.catalogue), dtype=np.int32)

    def order(directions: Sequence[F64]) -> I32:
        found = [np.argsort(-np.nan_to_num(items.toward(every, d)), kind="stable")[:50] for d in directions]
        return np.array(found, np.int32)

    began = time.perf_counter()
    own = [v.astype(np.float64) for v in world.encoder.encode(list(world.queries))]
    took = {"the encoder itself": (time.perf_counter() - began) / QUERIES}
    found = {"the encoder itself": order(own)}
    for name, way in ways(world).items():
        way(world.queries[0])
        began = time.perf_counter()
        directions = [way(q) for q in world.queries]
        took[name] = (time.perf_counter() - began) / QUERIES
        found[name] = order(directions)
    best = found["the encoder itself"]
    table = {
        name: {
            **{f"@{k}": _overlap(best[:, :k], mine[:, :k]) for k in (10, 50)},
            "sought": world.worth(mine),
            "ms": 1e3 * took[name],
        }
        for name, mine in found.items()
    }
    for name, row in table.items():
        print(f"{name:45s}" + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))
    print(json.dumps(table))


def _overlap(a: I32, b: I32) -> float:
    return float(np.mean([len(np.intersect1d(x, y)) / a.shape[1] for x, y in zip(a, b, strict=True)]))


def cost(n: int, repeats: int = 101) -> None:
    """Rows of 500 candidates and retrieval, each without and with a query, turn about; ms of the processor."""
    rng = np.random.default_rng(1)
    items = made_up_items(rng, n, 10 * n)
    spelt = ["".join(rng.choice(list("aeioubcdfglmnprst"), int(rng.integers(4, 10)))) for _ in range(20_000)]
    titles = [" ".join(spelt[k] for k in row) for row in skewed(rng, len(spelt), 7 * n).reshape(n, 7).tolist()]
    catalogue = replace(items.catalogue, titles=titles)
    vectors = (items.vectors.code * items.vectors.scale[:, None]).astype(np.float32)
    items = replace(items, catalogue=catalogue, words=Vocabulary.build(catalogue, vectors))
    assert items.words is not None
    ms: dict[str, list[float]] = {}
    for number in range(-3, repeats):
        request = made_up_request(rng, n, 500, ENGAGEMENTS, SHOWN)
        said = titles[int(rng.integers(n))].split()[:3]
        said[2] = said[2][:1] + said[2][2:]  # a slip, which is looked for among all words
        typed = Context(query=" ".join(said))
        for name, work in {
            "reading the query": lambda typed=typed: items.words.read(typed.query),
            "rows": lambda r=request: rows(items, r.history, r.candidates, AT),
            "rows with it": lambda r=request, c=typed: rows(items, r.history, r.candidates, AT, c),
            "near by text": lambda r=request: text_candidates(items, r.history, AT, 500, NO_CONTEXT),
            "near by text with it": lambda r=request, c=typed: text_candidates(items, r.history, AT, 500, c),
        }.items():
            began = time.thread_time()
            work()
            if number >= 0:
                ms.setdefault(name, []).append(1e3 * (time.thread_time() - began))
    for name, spent in ms.items():
        low, middle, high = np.percentile(spent, [10, 50, 90])
        print(f"{name:25s}{middle:8.3f} ({low:.3f}-{high:.3f})")
    middle_of = {name: float(np.median(spent)) for name, spent in ms.items()}
    print(
        json.dumps(
            {
                "rows_ratio": middle_of["rows with it"] / middle_of["rows"],
                "retrieval_ratio": middle_of["near by text with it"] / middle_of["near by text"],
                "read_ms": middle_of["reading the query"],
                "words": len(items.words.names),
            }
        )
    )


if __name__ == "__main__":
    if sys.argv[1] == "--cost":
        cost(*map(int, sys.argv[2:]))
    else:
        main(film_shop(Path(sys.argv[2])) if sys.argv[1] == "--films" else shop(Path(sys.argv[1])))
