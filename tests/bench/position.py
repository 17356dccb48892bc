"""What setting position aside is worth where clicks are biased by it, judged by the hidden truth of a simulated shop.

    python -m tests.bench.position [--users 2000] [--bias 1.0] [--explore 0.3] [--seeds 3]

The same rows are learned from twice: with clicks as they were logged, and with `position_debias` and validation by
clicks over the chance that their place was looked at. Both orders of the test lists are judged by the expected gain of
every item shown, wherever it stood. Texts are bags of words, so that nothing has to be trained before.
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
    """Make the shop, learn twice, print both and their difference; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--bias", type=float, default=1.0, help="place k is looked at with chance (1 + k)^-bias")
    parser.add_argument("--explore", type=float, default=0.3, help="share of lists in a random order")
    parser.add_argument("--seeds", type=int, default=3, help="rankers trained for each side; scores are added")
    options = parser.parse_args()
    with TemporaryDirectory() as directory:
        print(json.dumps(measured(Path(directory), options.users, options.bias, options.explore, options.seeds)))


def measured(directory: Path, users: int, bias: float, explore: float, seeds: int) -> dict[str, float]:
    """ndcg@10 of expected gain without and with, the difference and its interval over users."""
    simulate(SimulateConfig(users=users, position_bias=bias, explore=explore), directory)
    data = dataset.load_dataset(directory)
    shown = query_groups.logged_lists(data.events)
    shown = shown.take(np.flatnonzero(lists_with_gain(shown)))
    windows = Windows.split(shown.at, shown.user, WindowConfig())
    refresh = np.quantile(shown.at[shown.at >= windows.ranker], np.linspace(0, 1, 6, endpoint=False))
    replay = Replay(data.catalogue, _words(data.catalogue.titles), data.events, refresh)
    columns = names(replay.items_at(-np.inf))
    parts = {w: shown.take(windows.lists(w, shown)) for w in ("ranker", "validation", "test")}
    x = {w: replay.rows(part) for w, part in parts.items()}
    learnt, valid, tested = (parts[w] for w in ("ranker", "validation", "test"))
    assert data.truth is not None
    ids = data.catalogue.item_ids
    pairs = zip((tested.request_ids[g] for g in tested.group.tolist()), tested.item.tolist(), strict=True)
    told = data.truth.of(shown.request_ids)
    worth = np.array([told[request, ids[item]] for request, item in pairs])

    def ndcg(debias: bool) -> F64:
        score = np.zeros(tested.rows)
        seen = examination_probability(x["ranker"], learnt, valid, columns) if debias else None
        for seed in range(seeds):
            made = train(
                x["ranker"],
                learnt.gain,
                learnt.start,
                x["validation"],
                valid.gain,
                valid.start,
                columns,
                RankerConfig(position_debias=debias, seed=seed),
                learnt.position,
                valid_examination=seen,
            )
            score += Trees.parse(made.model_text).score(x["test"])
        return _ndcg(score, worth, len(tested))

    without, with_ = ndcg(False), ndcg(True)
    found = paired_difference(with_, without, tested.user)
    return {
        "without": float(without.mean()),
        "with": float(with_.mean()),
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "lists": len(tested),
    }


def _words(titles: object) -> F32:
    """float32[n + 1, d]: each word a direction of its own, drawn by its letters."""
    texts = list(titles)  # type: ignore[call-overload]
    out = np.full((len(texts) + 1, _DIMENSIONS), np.nan, np.float32)
    for i, text in enumerate(texts):
        words = re.findall(r"\w+", text.lower()) or [""]
        drawn = [np.random.default_rng(zlib.crc32(w.encode())).normal(size=_DIMENSIONS) for w in words]
        out[i] = np.sum(drawn, axis=0) / np.linalg.norm(np.sum(drawn, axis=0))
    return out


def _ndcg(score: F64, worth: F64, count: int) -> F64:
    """float64[lists]: ndcg@10 with expected gains as they are; all lists of a simulated shop are equally long."""
    score, worth = score.reshape(count, -1), worth.reshape(count, -1)
    discount = 1 / np.log2(np.arange(2, 12))
    top = np.take_along_axis(worth, np.argsort(-score, axis=1, kind="stable")[:, :10], axis=1)
    out: F64 = (top @ discount) / (-np.sort(-worth, axis=1)[:, :10] @ discount)
    return out


if __name__ == "__main__":
    main()
