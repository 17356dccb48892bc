"""Comparison of word-vector approximations with the text encoder's own vector of a query.

    python -m tests.bench.query WORKSPACE        a simulated shop with a nightly run up to its encoder
    python -m tests.bench.query --films FOLDER   the items of RankLens, with the encoder not fine-tuned
    python -m tests.bench.query --cost [ITEMS] [zh]   cost of a query in a request, for a synthetic shop; zh: titles of
                                                 words of two Chinese characters, without spaces

Each method makes a vector from a query, which orders the catalogue. Reported for each: the share of the encoder's
nearest 10 and 50 that it finds; the share of the wanted properties that its first 10 have (shop), or how often they
include the film that the words are from; and the time per query. Queries have typos, as from simulated shoppers.
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
from features.text.tokens import tokenize
from features.text.vectors import Vectors
from features.text.vocabulary import Vocabulary
from offline.config.simulation import SimulateConfig
from offline.data import dataset
from offline.simulation.dataset import open_shop
from offline.simulation.products import make_products
from offline.simulation.searches import Searches
from tests.bench.assemble import Request, made_up_request
from tests.bench.made_up import AT, made_up_items, skewed
from text_encoder.encoder import Encoder, load

QUERIES, FILMS = 300, 700


@dataclass(frozen=True)
class World:
    """A catalogue, its vectors by an encoder (float32[n + 1, d]), queries, and the value of an order's first 10."""

    catalogue: Catalogue
    vectors: F32
    encoder: Encoder
    queries: Sequence[str]
    worth: Callable[[I32], float]


def shop(workspace: Path) -> World:
    """The shop that `shelfwise simulate` makes by default, with the encoder of its nightly run."""
    (run,) = (p.parent for p in (workspace / "runs").glob("*/encoder.json"))
    catalogue, stock = dataset.load_dataset(workspace / "data").catalogue, open_shop(SimulateConfig()).stock
    rng = np.random.default_rng(1)
    assert stock.table["item_id"].to_pylist() == list(catalogue.item_ids), "simulate with the defaults"
    searches = Searches(stock, rng)
    intents = [searches.wish(i) for i in rng.integers(0, len(catalogue), QUERIES).tolist()]
    all_rows = np.arange(len(catalogue), dtype=np.int32)
    odds = np.array([searches.odds(wish, all_rows) for wish in intents])  # from none to all of the wanted properties
    share = (odds - odds.min()) / (odds.max() - odds.min())
    return World(
        catalogue,
        _with_unknown(np.load(run / "vectors.npy")[-1]),
        load(str(run / "encoder")),
        [searches.typed(w) for w in intents],
        lambda order: float(np.take_along_axis(share, order[:, :10].astype(np.int64), axis=1).mean()),
    )


def film_shop(folder: Path) -> World:
    """Films, each searched for by two or three words of its title, genres, tags and actors."""
    films = pq.read_table(folder / "items.parquet").sort_by("item_id").slice(0, FILMS).to_pylist()
    rng = np.random.default_rng(1)
    properties = [[*(r["genres"] or ()), *(r["tags"] or ()), *(r["actors"] or ())] for r in films]
    names = sorted({f"tags={v}" for values in properties for v in values})
    code = {name: k for k, name in enumerate(names)}
    tags = [sorted({code[f"tags={v}"] for v in values}) for values in properties]
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
    target = rng.integers(0, n, QUERIES)
    typist = Searches(make_products(rng, 2, np.zeros(1, np.int64), 0), rng)
    queries = []
    for i in target.tolist():
        words = list(dict.fromkeys(" ".join([films[i]["title"], *properties[i]]).lower().split()))
        picked = sorted(rng.choice(len(words), min(len(words), 2 + int(rng.integers(2))), replace=False))
        queries.append(" ".join(typist.slipped(words[k]) for k in picked))
    return World(
        catalogue,
        _with_unknown(encoder.encode(texts)),
        encoder,
        queries,
        lambda order: float((order[:, :10] == target[:, None]).any(axis=1).mean()),
    )


def _with_unknown(vectors: F32) -> F32:
    return np.vstack([vectors, np.full((1, vectors.shape[1]), np.nan, np.float32)]).astype(np.float32)


def methods(world: World) -> dict[str, Callable[[str], F64]]:
    """Functions from a query to its vector, by method."""
    words, known = Vocabulary.build(world.catalogue, world.vectors), np.isfinite(world.vectors[:-1]).all(axis=1)
    names, item = list(words.names), np.repeat(np.arange(len(world.catalogue)), np.diff(words.start[:-1]))
    has_word = np.zeros((len(world.catalogue), len(names)), np.float32)
    has_word[item, words.word] = 1.0
    has_word, target = has_word[known], world.vectors[:-1][known]
    ridge = np.linalg.solve(
        has_word.T @ has_word + np.eye(len(names), dtype=np.float32), has_word.T @ (target - target.mean(axis=0))
    )
    word_vectors = world.encoder.encode(names)

    def without_typos(text: str) -> F64:
        return words.read(" ".join(w for w in tokenize(text) if w in names)).direction

    return {
        "mean of the items that hold a word": lambda text: words.read(text).direction,
        "the same, slips unread": without_typos,
        "ridge of items on their words": _with_word_vectors(words, ridge),
        "words by the encoder": _with_word_vectors(words, word_vectors),
        "the same less their mean": _with_word_vectors(words, word_vectors - word_vectors.mean(axis=0)),
    }


def _with_word_vectors(words: Vocabulary, vectors: F32) -> Callable[[str], F64]:
    """Queries as `words` parses them, with other word vectors, float32[w, d]."""
    strength = words.rarity * np.linalg.norm(vectors, axis=1).astype(np.float32)
    other = replace(words, vectors=Vectors.quantise(vectors), strength=strength)
    return lambda text: other.read(text).direction


def main(world: World) -> None:
    """Print the table, and the same as JSON."""
    items = Vectors.quantise(world.vectors)
    all_rows = np.arange(len(world.catalogue), dtype=np.int32)

    def order(directions: Sequence[F64]) -> I32:
        rows = [np.argsort(-np.nan_to_num(items.cosines_to(all_rows, d)), kind="stable")[:50] for d in directions]
        return np.array(rows, np.int32)

    start = time.perf_counter()
    encoded = [v.astype(np.float64) for v in world.encoder.encode(list(world.queries))]
    seconds = {"the encoder itself": (time.perf_counter() - start) / QUERIES}
    orders = {"the encoder itself": order(encoded)}
    for name, method in methods(world).items():
        method(world.queries[0])
        start = time.perf_counter()
        directions = [method(q) for q in world.queries]
        seconds[name] = (time.perf_counter() - start) / QUERIES
        orders[name] = order(directions)
    reference = orders["the encoder itself"]
    table = {
        name: {
            **{f"@{k}": _overlap(reference[:, :k], own_order[:, :k]) for k in (10, 50)},
            "sought": world.worth(own_order),
            "ms": 1e3 * seconds[name],
        }
        for name, own_order in orders.items()
    }
    for name, row in table.items():
        print(f"{name:45s}" + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))
    print(json.dumps(table))


def _overlap(a: I32, b: I32) -> float:
    return float(np.mean([len(np.intersect1d(x, y)) / a.shape[1] for x, y in zip(a, b, strict=True)]))


def cost(n: int = 20_000, script: str = "", repeats: int = 101) -> None:
    """Processor ms of rows for 500 candidates and of retrieval, each without and with a query, alternating."""
    chinese = script == "zh"
    rng = np.random.default_rng(1)
    items = made_up_items(rng, n, 10 * n)
    vocabulary = ["".join(rng.choice(list("aeioubcdfglmnprst"), int(rng.integers(4, 10)))) for _ in range(20_000)]
    if chinese:
        pairs = skewed(rng, 3_000, 2 * len(vocabulary)).reshape(-1, 2).tolist()
        vocabulary = [chr(0x4E00 + 5 * a) + chr(0x4E00 + 5 * b) for a, b in pairs]
    drawn = skewed(rng, len(vocabulary), 7 * n).reshape(n, 7).tolist()
    titles = [("" if chinese else " ").join(vocabulary[k] for k in row) for row in drawn]
    catalogue = replace(items.catalogue, titles=titles)
    vectors = (items.vectors.code * items.vectors.scale[:, None]).astype(np.float32)
    words = Vocabulary.build(catalogue, vectors)
    items = replace(items, catalogue=catalogue, words=words)

    def parts(r: Request, c: Context) -> dict[str, Callable[[], object]]:
        return {
            "parsing the query": lambda: words.read(c.query),
            "rows": lambda: rows(items, r.history, r.candidates, AT),
            "rows with query": lambda: rows(items, r.history, r.candidates, AT, c),
            "text candidates": lambda: text_candidates(items, r.history, AT, 500, NO_CONTEXT),
            "text candidates with query": lambda: text_candidates(items, r.history, AT, 500, c),
        }

    ms: dict[str, list[float]] = {}
    for number in range(-3, repeats):
        request = made_up_request(rng, n, 500, ENGAGEMENTS, SHOWN)
        typed_words = [vocabulary[k] for k in drawn[int(rng.integers(n))][:3]]
        typed_words[2] = typed_words[2][:1] + typed_words[2][2:]  # a typo, which is searched for among all words
        context = Context(query=("" if chinese else " ").join(typed_words))
        for name, work in parts(request, context).items():
            start = time.thread_time()
            work()
            if number >= 0:
                ms.setdefault(name, []).append(1e3 * (time.thread_time() - start))
    for name, spent in ms.items():
        low, p50, high = np.percentile(spent, [10, 50, 90])
        print(f"{name:25s}{p50:8.3f} ({low:.3f}-{high:.3f})")
    median = {name: float(np.median(spent)) for name, spent in ms.items()}
    print(
        json.dumps(
            {
                "rows_ratio": median["rows with query"] / median["rows"],
                "retrieval_ratio": median["text candidates with query"] / median["text candidates"],
                "read_ms": median["parsing the query"],
                "words": len(words.names),
            }
        )
    )


if __name__ == "__main__":
    if sys.argv[1] == "--cost":
        cost(int(sys.argv[2]) if len(sys.argv) > 2 else 20_000, "".join(sys.argv[3:]))
    else:
        main(film_shop(Path(sys.argv[2])) if sys.argv[1] == "--films" else shop(Path(sys.argv[1])))
