"""Words and encoders in languages other than English.

    python -m tests.bench.languages search FOLDER     judged searches (search_relevance): match of query words
    python -m tests.bench.languages reviews FILE      Chinese reviews (chinese.parquet): kind of product by shared words
    python -m tests.bench.languages shop              the simulated shop in English and in Chinese: wanted items found
    python -m tests.bench.languages bound [ITEMS]     candidates by words, with and without the bound on common words
    python -m tests.bench.languages nights WORKSPACE  its nightly runs, by language and encoder, on the same log

Differences have a 95% interval of a paired bootstrap. `first` is the tokenizer before version 2: Unicode letters and
digits up to the next other character, which cuts words at combining marks and not between words without spaces.
"""

from __future__ import annotations

import math
import re
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq

from features.arrays import F32, F64, I32
from features.catalogue import Catalogue
from features.retrieval import _TIE_BREAK, _best
from features.text import tokens, vocabulary
from features.text.vectors import Vectors
from features.text.vocabulary import Query, Vocabulary
from offline.config import load
from offline.config.simulation import SimulateConfig
from offline.nightly import Night
from offline.simulation.dataset import open_shop, simulate
from offline.simulation.searches import Searches
from offline.studies import Study
from ranker.metrics import paired_difference

Tokenizer = Callable[[str], list[str]]
QUERIES, NEIGHBOURS, CANDIDATES = 1_000, 10, 500


def first(text: str) -> list[str]:
    """The words of a text by version 1 of the tokenizer."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", re.sub("[\u0300-\u036f]", "", unicodedata.normalize("NFKD", text)))
    return [word[:40] for word in re.findall(r"[^\W_]+", re.sub("['’ʼ`]", "", text.casefold()))]


def characters(text: str) -> list[str]:
    """The words of a text, of scripts without spaces only single characters."""
    return [word for word in tokens.tokenize(text) if not tokens.is_pair(word)]


@contextmanager
def reading_by(tokenizer: Tokenizer) -> Iterator[None]:
    """Vocabularies read texts and queries by another tokenizer."""
    with patch.object(vocabulary, "tokenize", tokenizer):
        yield


def titled(item_ids: Sequence[str], titles: Sequence[str]) -> Catalogue:
    """A catalogue that has only titles."""
    n, none = len(titles), np.zeros(len(titles) + 1, np.int32)
    nan, start = np.full(n + 1, np.nan), np.zeros(n + 2, np.int64)
    return Catalogue(
        item_ids, titles, nan, none, [], none, [], nan, np.empty((n + 1, 0)), [], start, np.empty(0, np.int32), []
    )


def _difference(name: str, changed: F64, base: F64) -> None:
    d = paired_difference(changed, base, np.arange(len(base), dtype=np.int32))
    print(f"{name:45s}{d.difference:+.4f} [{d.low:+.4f}, {d.high:+.4f}]")


def search(folder: str) -> None:
    """Mean over queries of ndcg@10, gain 2^(r - 1) - 1, of the match of query words with title and description."""
    pairs = pq.read_table(Path(folder) / "pairs.parquet").to_pylist()
    queries: dict[str, list[tuple[str, float]]] = {}
    for row in pairs:
        text = f"{row['product_title']} {row['product_description'] or ''}"
        queries.setdefault(row["query"], []).append((text, 2.0 ** (row["median_relevance"] - 1) - 1))
    titles = [text for judged in queries.values() for text, _ in judged]
    found = {}
    for name, tokenizer in (("first", first), ("now", tokens.tokenize)):
        with reading_by(tokenizer):
            words = Vocabulary.without_vectors(titled([f"i{k:06d}" for k in range(len(titles))], titles))
            values, at = [], 0
            for query, judged in queries.items():
                rows = np.arange(at, at + len(judged), dtype=np.int32)
                at += len(judged)
                score, gain = words.match(words.read(query), rows), np.array([g for _, g in judged])
                values.append(_ndcg(gain[np.argsort(-np.nan_to_num(score), kind="stable")], gain))
        found[name] = np.array(values)
        print(f"{name}: {len(values)} queries, ndcg@10 {found[name].mean():.4f}, {len(words.names):,} words")
    _difference("now - first", found["now"], found["first"])


def _ndcg(ordered: F64, gain: F64) -> float:
    discount = 1 / np.log2(np.arange(2, 12))
    best = np.sort(gain)[::-1][:10] @ discount[: len(gain)]
    return float(ordered[:10] @ discount[: len(gain)] / best) if best else 1.0


def reviews(file: str) -> None:
    """Share of held-out reviews whose 10 nearest others, by cosine of tf-idf, have the same kind of product most often.

    Every fifth review is held out.
    """
    table = pq.read_table(file)
    texts, kinds = table["review"].to_pylist(), np.array(table["cat"].to_pylist())
    held = np.arange(len(texts)) % 5 == 0
    right = {}
    for name, tokenizer in (("first", first), ("characters", characters), ("now", tokens.tokenize)):
        rows = _tf_idf([tokenizer(text or "") for text in texts], ~held)
        similarity = (rows[held] @ rows[~held].T).toarray()
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :NEIGHBOURS]
        voted = [Counter(kinds[~held][row].tolist()).most_common(1)[0][0] for row in nearest]
        right[name] = (np.array(voted) == kinds[held]).astype(np.float64)
        print(f"{name}: {right[name].mean():.4f} of {held.sum()} reviews, {rows.shape[1]:,} words")
    _difference("now - first", right["now"], right["first"])
    _difference("now - characters", right["now"], right["characters"])


def _tf_idf(texts: list[list[str]], fitted: np.ndarray) -> Any:
    """A sparse matrix of unit rows. fitted: bool[texts], those that decide how rare a word is."""
    from scipy import sparse  # type: ignore[import-untyped]

    number: dict[str, int] = {}
    counts = [Counter(number.setdefault(word, len(number)) for word in words) for words in texts]
    start = np.cumsum([0, *map(len, counts)])
    column = np.array([word for count in counts for word in count])
    value = np.array([1 + math.log(times) for count in counts for times in count.values()])
    rows = sparse.csr_matrix((value, column, start), (len(texts), len(number)))
    with_word = np.asarray((rows[fitted] > 0).sum(axis=0)).ravel()
    rows = rows @ sparse.diags(np.log((1 + fitted.sum()) / (1 + with_word)))
    norm = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    return sparse.csr_matrix(sparse.diags(1 / np.where(norm == 0, 1, norm)) @ rows)


def shop() -> None:
    """Mean share of the wanted properties in the first 10 items by match, of the same wishes in each language."""
    worth = {}
    for name, language, tokenizer in (
        ("English", "en", tokens.tokenize),
        ("Chinese", "zh", tokens.tokenize),
        ("Chinese, characters", "zh", characters),
        ("Chinese, first", "zh", first),
    ):
        stock = open_shop(SimulateConfig(items=2_000, language=language)).stock
        searches = Searches(stock, np.random.default_rng(1))
        every = np.arange(len(stock), dtype=np.int32)
        with reading_by(tokenizer):
            words = Vocabulary.without_vectors(_catalogue(stock.table.to_pylist()))
            worth[name] = np.array([_worth(words, searches, every) for _ in range(QUERIES)])
        print(f"{name}: {worth[name].mean():.4f} of the wanted properties, {len(words.names):,} words")
    for name in list(worth)[1:]:
        _difference(f"{name} - English", worth[name], worth["English"])


def _catalogue(rows: list[dict[str, object]]) -> Catalogue:
    """Titles and tags of the simulated shop."""
    tags = sorted({f"tags={tag}" for row in rows for tag in row["tags"]})  # type: ignore[attr-defined]
    code = {tag: k for k, tag in enumerate(tags)}
    of_item = [sorted({code[f"tags={tag}"] for tag in row["tags"]}) for row in rows]  # type: ignore[attr-defined]
    start = np.cumsum([0, *map(len, of_item)])
    tag = np.array([t for found in of_item for t in found], np.int32)
    plain = titled([str(row["item_id"]) for row in rows], [str(row["title"]) for row in rows])
    return replace(plain, tag_start=np.append(start, start[-1]), tag=tag, tag_names=tags)


def _worth(words: Vocabulary, searches: Searches, every: I32) -> float:
    wish = searches.wish(int(searches.rng.integers(len(every))))
    share = words.match(words.read(searches.typed(wish)), every)
    odds = searches.odds(wish, np.argsort(-np.nan_to_num(share), kind="stable")[:10].astype(np.int32))
    best = searches.odds(wish, every)
    return float(np.mean((odds - best.min()) / (best.max() - best.min())))


def bound(items: str = "20000") -> None:
    """ndcg@10 and recall of the candidates by words of a large shop, with the bound on common words and without.

    The gain of an item is its share of the wanted properties. Recall is the share of the items with all of them that is
    found, of as many as there are places. Vectors are the latent properties of the items.
    """
    for language in ("en", "zh"):
        config = SimulateConfig(items=int(items), new_items_per_day=0, language=language)
        stock = open_shop(config).stock
        vectors = np.vstack([stock.latent, np.full((1, stock.latent.shape[1]), np.nan, np.float32)])
        words, coded = Vocabulary.build(_catalogue(stock.table.to_pylist()), vectors), Vectors.quantise(vectors)
        searches, every = Searches(stock, np.random.default_rng(1)), np.arange(len(stock), dtype=np.int32)
        wishes = [searches.wish(int(searches.rng.integers(len(stock)))) for _ in range(QUERIES)]
        queries = [words.read(searches.typed(wish)) for wish in wishes]
        found: dict[str, tuple[F64, F64]] = {}
        candidates = []
        for name, most in (("bound", vocabulary._ENOUGH_ITEMS), ("no bound", len(stock) * 100)):
            with patch.object(vocabulary, "_ENOUGH_ITEMS", most):
                _by_words(words, coded, queries[0])  # compiles, and makes the index
                start = time.process_time()
                orders = [_by_words(words, coded, query) for query in queries]
                ms = 1e3 * (time.process_time() - start) / QUERIES
            scores = [_found(order, searches.odds(w, every)) for order, w in zip(orders, wishes, strict=True)]
            ndcg, recall = np.array(scores).T
            found[name] = ndcg, recall
            candidates.append([order.tolist() for order in orders])
            print(f"{language}, {name}: ndcg@10 {ndcg.mean():.4f}, recall {recall.mean():.4f}, {ms:.2f} ms")
        others = sum(a != b for a, b in zip(*candidates, strict=True))
        print(f"{others} of {QUERIES} queries have other candidates")
        for k, name in enumerate(("ndcg@10", "recall")):
            _difference(f"{language}, bound - no bound, {name}", found["bound"][k], found["no bound"][k])


def _by_words(words: Vocabulary, vectors: Vectors, query: Query) -> I32:
    """The best 500 items by words, as in `features.retrieval.text_candidates`."""
    holding = words.holding(query)
    share = words.match(query, holding) + _TIE_BREAK * np.nan_to_num(vectors.cosines_to(holding, query.direction))
    return _best(holding, share, CANDIDATES)


def _found(order: I32, odds: F64) -> tuple[float, float]:
    """ndcg@10 and recall of an order. odds: of every item, lowest without and highest with all wanted properties."""
    gain = (odds - odds.min()) / (odds.max() - odds.min())
    whole = gain == 1.0
    found = np.zeros(10)
    found[: len(order[:10])] = gain[order[:10]]
    return _ndcg(found, np.sort(gain)[::-1][:10]), whole[order].sum() / min(CANDIDATES, whole.sum())


def nights(workspace: str) -> None:
    """ndcg@10 on the test lists of nightly runs that differ in language and encoder alone; the log is the same."""
    values: dict[tuple[str, str], F64] = {}
    for name in ("en minilm", "zh multilingual", "zh minilm", "en multilingual"):
        language, model = name.split()
        place = Path(workspace) / name.replace(" ", "_")
        simulate(SimulateConfig(language=language, end=datetime(2026, 6, 1, tzinfo=UTC)), place / "data")
        study = Study(Night(load(None, workspace=place, encoder={"model": model})))
        others = list(dict.fromkeys(of for of, _ in values))
        for kind, found in (("ranker", study.ndcg("test")), ("text", _by_text(study))):
            print(f"{name}: {kind}: {found.mean():.4f} of {len(found)} lists", flush=True)
            for other in others:
                d = paired_difference(found, values[other, kind], study.users("test"))
                print(f"    - {other}: {d.difference:+.4f} [{d.low:+.4f}, {d.high:+.4f}]", flush=True)
            values[name, kind] = found


def _by_text(study: Study) -> F64:
    """ndcg@10 of the test lists in the order of the interest score alone."""
    from offline.evaluation import PRIMARY
    from ranker.metrics import score_lists, tie_break

    x, tested, _ = study._artefacts.window_rows("test")
    score: F32 = np.nan_to_num(x[:, study.columns.index("text_pooled")], nan=-1.0)
    ties = tie_break(tested.item, tested.start)
    return score_lists(PRIMARY, score, tested.gain, tested.start, ties, tested.missed)


if __name__ == "__main__":
    modes: dict[str, Callable[..., None]] = {
        "search": search,
        "reviews": reviews,
        "shop": shop,
        "bound": bound,
        "nights": nights,
    }
    modes[sys.argv[1]](*sys.argv[2:])
