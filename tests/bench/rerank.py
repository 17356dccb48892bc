"""Reranking a search engine's answer: `python -m tests.bench.rerank`.

In a simulated shop, a share of the lists are answers to searches. A search engine scores the items of each with BM25
over title and tags, as OpenSearch does by default (k1 1.2, b 0.75), and the score is logged with the impressions as the
column `bm25`. With `--synonyms`, the engine also knows plurals and the synonyms of the shop's vocabulary, as one that
is well maintained does: a word counts as the best of its synonyms.

A nightly run declares that column. Rankers are then trained with and without its features, with the same settings, and
compared on the searches of the test window, which none of them has seen: mean ndcg@10, and its paired difference from
the engine's order with a 95% interval from a bootstrap over shoppers.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.arrays import F64
from features.text.tokens import tokenize
from offline.config import Config, SimulateConfig
from offline.evaluation import PRIMARY
from offline.nightly import Night
from offline.simulation import simulate
from offline.simulation.vocabulary import ATTRIBUTES, DEPARTMENTS
from offline.studies import Study
from ranker.metrics import paired_difference, score_lists, tie_break

K1, B = 1.2, 0.75


class Engine:
    """BM25 over the title and the tags of items (Robertson and Zaragoza 2009), with Lucene's inverse frequency.

    synonyms: words by word that count in its place.
    """

    def __init__(self, items: pa.Table, synonyms: Mapping[str, set[str]]) -> None:
        self._synonyms = synonyms
        texts = zip(items["item_id"].to_pylist(), items["title"].to_pylist(), items["tags"].to_pylist(), strict=True)
        self._words = {i: Counter(tokenize(" ".join([title, *(tags or ())]))) for i, title, tags in texts}
        self._mean = sum(map(Counter.total, self._words.values())) / len(self._words)
        found = Counter(word for words in self._words.values() for word in words)
        n = len(self._words)
        self._idf = {word: math.log(1 + (n - count + 0.5) / (count + 0.5)) for word, count in found.items()}

    def score(self, query: Sequence[str], item_id: str) -> float:
        """The score of an item for the words of a query."""
        words = self._words[item_id]
        length = K1 * (1 - B + B * words.total() / self._mean)
        weight = {w: self._idf[w] * n * (K1 + 1) / (n + length) for w, n in words.items()}
        return sum(max(weight.get(w, 0.0) for w in {word, *self._synonyms.get(word, ())}) for word in query)


def synonyms_of_shop() -> dict[str, set[str]]:
    """The words of an attribute by each of them, and nouns by their plural."""
    out: dict[str, set[str]] = {}
    for attribute in ATTRIBUTES:
        words = set(tokenize(" ".join([attribute.name, *attribute.modifiers])))
        for word in words:
            out.setdefault(word, set()).update(words)
    nouns = {word for department in DEPARTMENTS for noun in department.nouns for word in tokenize(noun)}
    for word in nouns:
        out.setdefault(f"{word}s", set()).add(word)
    return out


def log_scores(data: Path, synonyms: Mapping[str, set[str]]) -> None:
    """Add the engine's score to the impressions of searches, as the column `bm25` of their requests."""
    engine, path = Engine(pq.read_table(data / "items.parquet"), synonyms), data / "events.parquet"
    events = pq.read_table(path)
    words: dict[str, list[str]] = {}
    columns: list[str | None] = []
    for kind, query, item in zip(*(events[c].to_pylist() for c in ("event", "query", "item_id")), strict=True):
        if kind == "impression" and query:
            typed = words.setdefault(query, tokenize(query))
            columns.append(json.dumps({"bm25": engine.score(typed, item)}))
        else:
            columns.append(None)
    pq.write_table(events.append_column("columns", pa.array(columns, pa.string())), path, compression="zstd")


def measure(config: Config, seeds: int) -> dict[str, Any]:
    """The table, by name of the order. Rankers are averaged over seeds."""
    study = Study(Night(config))
    lists = study.lists("test")
    searched = np.array([bool(q) for q in lists.query])
    ties = tie_break(lists.item, lists.start)

    def of_score(score: F64) -> F64:
        return score_lists(PRIMARY, score, lists.gain, lists.start, ties, lists.missed)

    def of_ranker(*without: str) -> F64:
        rankers = [study.ranker.model_copy(update={"seed": study.ranker.seed + s}) for s in range(seeds)]
        mean: F64 = np.mean([study.ndcg("test", ranker, without) for ranker in rankers], axis=0)
        return mean

    orders: Mapping[str, F64] = {
        "the engine's order": of_score(lists.columns[0].astype(np.float64)),
        "the order shown": of_score(-lists.position.astype(np.float64)),
        "ranker without the score": of_ranker("request"),
        "ranker with the score": of_ranker(),
        "ranker with the score, without the query": of_ranker("query"),
        "ranker with neither": of_ranker("request", "query"),
    }
    base, user = orders["the engine's order"], lists.user[searched]
    out: dict[str, Any] = {"lists": int(searched.sum()), "shoppers": len(np.unique(user))}
    print(f"{out['lists']:,} searches of {out['shoppers']:,} shoppers; {len(lists):,} test lists; {seeds} seeds")
    print(f"{'':>42} {'ndcg@10':>8}   against the engine's order")
    for name, values in orders.items():
        gap = paired_difference(values[searched], base[searched], user)
        print(f"{name:>42} {values[searched].mean():8.4f}   {gap.difference:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})")
        out[name] = round(float(values[searched].mean()), 4)
    for name, one, other in (
        ("gain_of_score", "ranker with the score", "ranker without the score"),
        ("gain_of_score_alone", "ranker with the score, without the query", "ranker with neither"),
    ):
        gap = paired_difference(orders[one][searched], orders[other][searched], user)
        print(f"{one}, against {other}: {gap.difference:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})")
        out |= {name: [round(value, 4) for value in (gap.difference, gap.low, gap.high)]}
    return out


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny shop, only to show that it runs")
    parser.add_argument("--synonyms", action="store_true", help="a search engine that knows synonyms and plurals")
    parser.add_argument("--users", type=int, default=1500, help="shoppers")
    parser.add_argument("--items", type=int, default=SimulateConfig().items, help="items in the catalogue")
    parser.add_argument("--searches", type=float, default=0.5, help="share of the lists that are searches")
    parser.add_argument("--seeds", type=int, default=3, help="rankers to average")
    parser.add_argument("--budget", type=float, default=120, help="seconds to train the encoder")
    options = parser.parse_args()
    if options.quick:
        options.users, options.seeds, options.budget, options.items = 150, 1, 5, 150
    return options


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        config = Config.model_validate(
            {
                "workspace": folder,
                "simulate": {"users": options.users, "items": options.items, "searches": options.searches},
                "encoder": {"budget_s": options.budget, "refreshes": 0},
                "features": {"request": {"bm25": {"type": "number"}}},
            }
        )
        simulate(config.simulate, config.data)
        log_scores(config.data, synonyms_of_shop() if options.synonyms else {})
        print(json.dumps(measure(config, options.seeds)))


if __name__ == "__main__":
    main()
