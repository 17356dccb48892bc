"""Relevance of search results by judged pairs of query and product: `python -m tests.bench.search_relevance FOLDER`.

FOLDER has `pairs.parquet`: `query`, `product_title`, `median_relevance` from 1 to 4. Each system orders the judged
products of a query. Reported is ndcg@10 with gain 2^(relevance - 1) - 1, its mean over queries with a 95% interval, and
the paired difference from the text encoder's own vector of the query, which a request cannot wait for.

- `random`: expected order of equal scores.
- `bm25`: of titles, k1 = 1.2 and b = .75 (Robertson and Zaragoza, 2009).
- `query_match`, `query_cosine`: the service's two features of a query, without a text encoder in the request.
- `words_of_items`: `query_cosine` with word vectors that are the means of the items with the word alone.
- `encoder`: cosine of title and query by the encoder, not fine-tuned.
- `encoder_tuned`: the same, fine-tuned on the other folds, where each query is a shopper who buys all products with
  relevance 4, one after the other.
- `ranker`: trees over the service's two features and the length of the query, trained on the other folds.
- `ranker_words_of_items`: the same with `words_of_items` instead of `query_cosine`.

There are five folds of queries. Nothing is tuned on the queries that are reported, except for the share of items in a
word vector (`features.text.vocabulary`), for which shares of .3 to .7 were compared on all queries.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from features.arrays import F32, F64, I32, I64
from features.log import Kind
from features.text.tokens import tokenize
from features.text.vectors import Vectors
from features.text.vocabulary import Vocabulary
from ranker.metrics import intervals, paired_difference, score_lists, tie_break
from ranker.train import RankerConfig, train
from ranker.trees import Trees
from tests.bench.languages import titled
from tests.bench.rerank import Engine
from tests.worlds import make_events
from text_encoder.config import EncoderConfig
from text_encoder.encoder import load
from text_encoder.examples import examples
from text_encoder.train import fine_tune

FOLDS = 5
NAMES = ("query_match", "query_cosine", "query_length")


class Judged(NamedTuple):
    """Judged products. item: int32[rows], numbers of titles. gain: int64[rows], 0 to 3. start: int64[queries + 1]."""

    queries: list[str]
    titles: list[str]
    item: I32
    gain: I64
    start: I64

    @property
    def query(self) -> I64:
        """int64[rows]: the number of the query of each row."""
        return np.repeat(np.arange(len(self.queries)), np.diff(self.start))

    def scores(self, of_query: Callable[[int, I32], F64 | F32]) -> F64:
        """float64[rows]: the scores by a function of a query's number and its items."""
        bounds = zip(self.start[:-1], self.start[1:], strict=True)
        return np.concatenate([of_query(q, self.item[a:b]) for q, (a, b) in enumerate(bounds)]).astype(np.float64)


def read(folder: Path, most: int | None) -> Judged:
    """The judged pairs of the first `most` queries, or of all."""
    pairs = pd.read_parquet(folder / "pairs.parquet", columns=["query", "product_title", "median_relevance"])
    queries = pairs["query"].drop_duplicates().tolist()[:most]
    pairs = pairs[pairs["query"].isin(queries)].sort_values("query", kind="stable", key=lambda q: q.map(queries.index))
    item, titles = pd.factorize(pairs["product_title"])
    count = pairs.groupby("query", sort=False).size()
    gain = pairs["median_relevance"].to_numpy(np.int64) - 1
    return Judged(queries, list(titles), item.astype(np.int32), gain, np.append(0, np.cumsum(count)).astype(np.int64))


def bm25(judged: Judged) -> F64:
    """float64[rows]: BM25 of each title for its query; inverse document frequency over all titles."""
    ids = [str(k) for k in range(len(judged.titles))]
    engine = Engine(pa.table({"item_id": ids, "title": judged.titles, "tags": [None] * len(ids)}), {})
    typed = [list(dict.fromkeys(tokenize(query))) for query in judged.queries]
    return judged.scores(lambda q, items: np.array([engine.score(typed[q], ids[i]) for i in items]))


def cosines(judged: Judged, vectors: F32, query_vectors: F32) -> F64:
    """float64[rows]: cosines of unit vectors of titles and queries."""
    return judged.scores(lambda q, items: vectors[items] @ query_vectors[q])


def tuned(judged: Judged, encoder: Any, vectors: F32, fold: I64, budget_s: float) -> F64:
    """float64[rows]: cosines by an encoder that was fine-tuned on the queries of the other folds."""
    out = np.empty(len(judged.item))
    rng, query = np.random.default_rng(0), judged.query
    for k in range(FOLDS):
        bought = rng.permutation(np.flatnonzero((judged.gain == judged.gain.max()) & (fold[query] != k)))
        log = [(float(n), int(query[row]), int(judged.item[row]), Kind.PURCHASE, -1) for n, row in enumerate(bought)]
        events = make_events(log, len(judged.queries))
        config = EncoderConfig(mode="projection", budget_s=budget_s, epochs=20)
        trained = fine_tune(encoder, judged.titles, examples(events, np.inf), config, zero_shot=vectors)
        held_out = fold[query] == k
        out[held_out] = cosines(judged, trained.vectors, trained.encoder.encode(judged.queries))[held_out]
    return out


def ranked(judged: Judged, columns: F32, fold: I64) -> F64:
    """float64[rows]: scores of trees over columns, trained on three folds, with the number of trees from a fourth."""
    out, query, config = (
        np.empty(len(judged.item)),
        judged.query,
        RankerConfig(leaves=7, min_data_in_leaf=20, position_debias=False, refit=False),
    )
    for k in range(FOLDS):
        parts = [np.isin(fold, held) for held in ([(k + 1) % FOLDS], [k])]
        train_rows, valid_rows = ~(parts[0] | parts[1])[query], parts[0][query]
        sizes = np.diff(judged.start)
        learned, valid = (
            (columns[rows], judged.gain[rows].astype(np.int8), np.append(0, np.cumsum(sizes[of])).astype(np.int64))
            for rows, of in ((train_rows, ~(parts[0] | parts[1])), (valid_rows, parts[0]))
        )
        trees = Trees.parse(train(*learned, *valid, NAMES, config).model_text)
        held_out = parts[1][query]
        out[held_out] = trees.score(columns[held_out])
    return out


def main(folder: Path, most: int | None, budget_s: float) -> dict[str, Any]:
    """Measure all systems."""
    judged = read(folder, most)
    catalogue, encoder = (
        titled([str(k) for k in range(len(judged.titles))], judged.titles),
        load("minilm", template="{title}", max_tokens=64),
    )
    vectors, queries = encoder.encode(judged.titles), encoder.encode(judged.queries)
    # As the nightly run does it: the mean of the items is subtracted from all vectors, and all have unit length again.
    centred = encoder.centred(vectors.mean(axis=0))
    of_items = np.vstack([centred.from_base(vectors), np.full((1, vectors.shape[1]), np.nan, np.float32)])
    words = Vocabulary.without_vectors(catalogue)
    own = centred.from_base(encoder.encode(list(words.names)).astype(np.float16).astype(np.float32))
    quantised = Vectors.quantise(of_items)

    def cosine_by(vocabulary: Vocabulary) -> F64:
        read = [vocabulary.read(query) for query in judged.queries]
        return judged.scores(lambda q, items: np.nan_to_num(quantised.cosines_to(items, read[q].direction)))

    read_queries = [words.read(query) for query in judged.queries]
    match = judged.scores(lambda q, items: words.match(read_queries[q], items))
    cosine = cosine_by(words.with_vectors(of_items, own))
    by_items = cosine_by(words.with_vectors(of_items))
    fold = np.random.default_rng(0).permutation(len(judged.queries)) % FOLDS
    length = np.array([len(tokenize(q)) for q in judged.queries], np.float64)[judged.query]
    systems = {
        "random": np.zeros(len(judged.item)),
        "bm25": bm25(judged),
        "query_match": match,
        "words_of_items": by_items,
        "query_cosine": cosine,
        "encoder": cosines(judged, vectors, queries),
        "encoder_tuned": tuned(judged, encoder, vectors, fold, budget_s),
        "ranker": ranked(judged, np.stack([match, cosine, length], axis=1).astype(np.float32), fold),
        "ranker_words_of_items": ranked(judged, np.stack([match, by_items, length], axis=1).astype(np.float32), fold),
    }
    return report(judged, systems)


def report(judged: Judged, systems: dict[str, F64]) -> dict[str, Any]:
    """ndcg@10 of each system, and its difference from the encoder."""
    ties = tie_break(judged.item, judged.start)
    found = {name: score_lists("ndcg@10", s, judged.gain, judged.start, ties) for name, s in systems.items()}
    cluster = np.arange(len(judged.queries))
    out: dict[str, Any] = {"queries": len(judged.queries), "pairs": len(judged.item)}
    for name, value in found.items():
        (mean,), (low,), (high,) = intervals(value[:, None], cluster)
        d = paired_difference(value, found["encoder"], cluster)
        out[name] = {"ndcg@10": mean, "low": low, "high": high}
        out[name] |= {"to_encoder": d.difference, "to_encoder_low": d.low, "to_encoder_high": d.high}
        print(f"{name:22s}{mean:.4f} [{low:.4f}, {high:.4f}]   {d.difference:+.4f} [{d.low:+.4f}, {d.high:+.4f}]")
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--queries", type=int, help="Use only the first queries.")
    parser.add_argument("--budget", type=float, default=60.0, help="Seconds for each of the five fine-tunings.")
    options = parser.parse_args()
    print(json.dumps(main(options.folder, options.queries, options.budget)))
