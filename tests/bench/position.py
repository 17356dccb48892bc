"""Value of position debiasing when clicks are biased, measured by the hidden truth of a simulated shop.

    python -m tests.bench.position [--users 2000] [--bias 1.0] [--explore 0.3] [--seeds 3]

Rankers are trained on the same rows twice: on the clicks as logged, and with `position_debias` and validation on clicks
weighted by inverse examination probability. Both are evaluated on the test lists by the expected gain of every item
shown, at any position. Texts are bags of words, so that no encoder has to be trained.
"""

from __future__ import annotations

import argparse
import json
import re
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from features.arrays import F32, F64
from features.replay import Replay
from features.table import names
from offline.config.simulation import SimulateConfig
from offline.config.windows import WindowConfig
from offline.data import dataset, query_groups
from offline.data.windows import Windows
from offline.evaluation.systems import lists_with_gain
from offline.simulation.dataset import simulate
from offline.training.position_effects import examination_probability
from ranker.metrics import paired_difference
from ranker.train import RankerConfig, train
from ranker.trees import Trees

_DIMENSIONS = 128


def main() -> None:
    """Simulate the shop, train both, and print them with their difference; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--bias", type=float, default=1.0, help="position k is examined with probability (1 + k)^-bias")
    parser.add_argument("--explore", type=float, default=0.3, help="share of lists in a random order")
    parser.add_argument("--seeds", type=int, default=3, help="rankers trained per variant; their scores are added")
    options = parser.parse_args()
    with TemporaryDirectory() as directory:
        print(json.dumps(measure(Path(directory), options.users, options.bias, options.explore, options.seeds)))


def measure(directory: Path, users: int, bias: float, explore: float, seeds: int) -> dict[str, float]:
    """ndcg@10 of expected gain without and with debiasing, and the difference with its interval over users."""
    simulate(SimulateConfig(users=users, position_bias=bias, explore=explore), directory)
    data = dataset.load_dataset(directory)
    shown = query_groups.logged_lists(data.events)
    shown = shown.take(np.flatnonzero(lists_with_gain(shown)))
    windows = Windows.split(shown.at, shown.user, WindowConfig())
    refresh = np.quantile(shown.at[shown.at >= windows.ranker], np.linspace(0, 1, 6, endpoint=False))
    replay = Replay(data.catalogue, bag_of_words(data.catalogue.titles), data.events, refresh)
    columns = names(replay.items_at(-np.inf))
    lists_of = {w: shown.take(windows.lists(w, shown)) for w in ("ranker", "validation", "test")}
    x = {w: replay.rows(part) for w, part in lists_of.items()}
    train_lists, valid, tested = (lists_of[w] for w in ("ranker", "validation", "test"))
    assert data.truth is not None
    ids = data.catalogue.item_ids
    pairs = zip((tested.request_ids[g] for g in tested.group.tolist()), tested.item.tolist(), strict=True)
    utilities = data.truth.of(shown.request_ids)
    expected_gain = np.array([utilities[request, ids[item]] for request, item in pairs])

    def ndcg(debias: bool) -> F64:
        score = np.zeros(tested.rows)
        examination = examination_probability(x["ranker"], train_lists, valid, columns) if debias else None
        for seed in range(seeds):
            trained = train(
                x["ranker"],
                train_lists.gain,
                train_lists.start,
                x["validation"],
                valid.gain,
                valid.start,
                columns,
                RankerConfig(position_debias=debias, seed=seed),
                train_lists.position,
                valid_examination=examination,
            )
            score += Trees.parse(trained.model_text).score(x["test"])
        return _ndcg(score, expected_gain, len(tested))

    without, with_ = ndcg(False), ndcg(True)
    difference = paired_difference(with_, without, tested.user)
    return {
        "without": float(without.mean()),
        "with": float(with_.mean()),
        "difference": difference.difference,
        "low": difference.low,
        "high": difference.high,
        "lists": len(tested),
    }


def bag_of_words(titles: object) -> F32:
    """float32[n + 1, d]: sum of a random direction for each word of the title, normalised."""
    texts = list(titles)  # type: ignore[call-overload]
    out = np.full((len(texts) + 1, _DIMENSIONS), np.nan, np.float32)
    for i, text in enumerate(texts):
        words = re.findall(r"\w+", text.lower()) or [""]
        drawn = [np.random.default_rng(zlib.crc32(w.encode())).normal(size=_DIMENSIONS) for w in words]
        out[i] = np.sum(drawn, axis=0) / np.linalg.norm(np.sum(drawn, axis=0))
    return out


def _ndcg(score: F64, expected_gain: F64, count: int) -> F64:
    """float64[lists]: ndcg@10 with expected gains. All lists of a simulated shop have the same length."""
    score, expected_gain = score.reshape(count, -1), expected_gain.reshape(count, -1)
    discount = 1 / np.log2(np.arange(2, 12))
    top = np.take_along_axis(expected_gain, np.argsort(-score, axis=1, kind="stable")[:, :10], axis=1)
    out: F64 = (top @ discount) / (-np.sort(-expected_gain, axis=1)[:, :10] @ discount)
    return out


if __name__ == "__main__":
    main()
