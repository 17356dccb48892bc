"""Cost of the feature rows of one request, compared with scoring them: `python -m tests.bench.assemble`, one thread.

A synthetic shop of 100,000 items with 384-d int8 vectors and 50 neighbours each; users with full lists (100
engagements, 240 impressions), with 10 engagements, and others. The model has 500 trees of 31 leaves, trained here on
such rows. Building rows (`features.table.rows`) and our scorer alternate, each time with another user and other
candidates, so that caches are no warmer than in service; `Booster.predict` scores the same rows afterwards. Times are
processor times, so other jobs on the machine matter only through the caches. Then the same request by part: values
shared by features, and each group of features after that.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import defaultdict
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import lightgbm as lgb
import numpy as np

from features.arrays import I32
from features.context import Context
from features.history import ENGAGEMENTS, SHOWN, History
from features.log import Kind
from features.moment import Items, Moment
from features.table import features, names, rows
from ranker.trees import Trees
from tests.bench.made_up import AT, DAY, made_up_items, skewed

PER_LIST = 24


class Request(NamedTuple):
    """The arguments of `rows`, without the items."""

    history: History
    candidates: I32


def made_up_request(rng: np.random.Generator, n: int, candidates: int, engagements: int, shown: int) -> Request:
    """A user of the last weeks. A third of the engagements are with listed items, to give clicks and skips."""
    shown_item = skewed(rng, n, shown)
    shown_at = np.sort(AT - rng.uniform(0, 14 * DAY, -(-shown // PER_LIST)).repeat(PER_LIST)[:shown])[::-1].copy()
    item, at = skewed(rng, n, engagements), AT - rng.uniform(0, 28 * DAY, engagements)
    clicked = rng.permutation(engagements)[: min(engagements // 3, shown)]
    from_list = rng.permutation(shown)[: len(clicked)]
    item[clicked], at[clicked] = shown_item[from_list], shown_at[from_list] + 60.0
    order = np.argsort(-at)
    kind = rng.choice([Kind.VIEW, Kind.CLICK, Kind.CART, Kind.PURCHASE], engagements).astype(np.int8)
    # The service ranks each item once, in the order of IDs.
    candidate_rows = np.unique(skewed(rng, n, 8 * candidates))
    candidate_rows = np.sort(rng.choice(candidate_rows, min(candidates, len(candidate_rows)), replace=False)).astype(
        np.int32
    )
    return Request(History(item[order], kind[order], at[order], shown_item, shown_at), candidate_rows)


def train_model(items: Items, n: int, trees: int, lists: int) -> str:
    """A lambdarank model in text format, trained on real feature rows with gains from a mixture of them."""
    rng = np.random.default_rng(0)
    tables = []
    for _ in range(lists):
        engagements, shown = int(rng.integers(0, ENGAGEMENTS + 1)), int(rng.integers(0, SHOWN + 1))
        request = made_up_request(rng, n, 50, engagements, shown)
        sent = rng.normal(size=(len(items.columns), len(request.candidates))).astype(np.float32)
        context = Context(columns=sent if len(sent) else None)
        tables.append(rows(items, request.history, request.candidates, AT, context))
    sizes, table = [len(m) for m in tables], np.vstack(tables)
    filled = np.nan_to_num(table.astype(np.float64))
    spread = (filled - filled.mean(axis=0)) / np.maximum(filled.std(axis=0), 1e-6)
    utility = spread @ rng.normal(size=table.shape[1]) + 3 * np.sin(spread[:, 16] * spread[:, 25])
    gain = np.digitize(utility + rng.normal(size=len(utility)), np.quantile(utility, [0.8, 0.93, 0.98]))
    data = lgb.Dataset(table, gain, group=sizes, feature_name=list(names(items)))
    settings = {"objective": "lambdarank", "num_leaves": 31, "learning_rate": 0.05, "feature_fraction": 0.5}
    return lgb.train(settings | {"verbosity": -1, "num_threads": 1}, data, trees).model_to_string()


def compare(items: Items, text: str, requests: list[Request]) -> np.ndarray:
    """ms[requests, 3]: building rows and our trees, alternating, then `Booster.predict`.

    Raises SystemExit if the scores differ.
    """
    trees, booster = Trees.parse(text), lgb.Booster(model_str=text)
    out = np.empty((len(requests), 3))
    trees.score(rows(items, requests[0].history, requests[0].candidates, AT))
    scored = []
    for n, request in enumerate(requests):
        times = [time.thread_time()]
        table = rows(items, request.history, request.candidates, AT)
        times.append(time.thread_time())
        score = trees.score(table)
        times.append(time.thread_time())
        out[n, :2] = 1000 * np.diff(times)
        scored.append((table, score))
    # In a separate loop: in service, no request follows 16 ms of LightGBM, which evict the caches.
    for n, (table, score) in enumerate(scored):
        before = time.thread_time()
        expected = booster.predict(table, raw_score=True, num_threads=1)
        out[n, 2] = 1000 * (time.thread_time() - before)
        if not np.array_equal(score, expected):
            raise SystemExit(f"scores differ from Booster.predict by {np.abs(score - expected).max()}")
    return out


def by_part(items: Items, requests: list[Request]) -> dict[str, float]:
    """Median us of each shared value of a moment, then of each group of features using them, most expensive first."""
    times: dict[str, list[float]] = defaultdict(list)
    shared = [name for name, value in vars(Moment).items() if isinstance(value, cached_property)]
    if items.companions is None:  # no feature reads these
        shared = [name for name in shared if name not in ("of_seeds", "buy_again")]
    if items.sequence is None:
        shared.remove("sequence_cosine")
    for request in requests:
        spent: dict[str, float] = defaultdict(float)
        before = time.thread_time()
        moment = Moment(items, request.history, request.candidates, AT)
        spent["(the moment itself)"] += time.thread_time() - before
        for name in shared:
            before = time.thread_time()
            getattr(moment, name)
            spent[f"shared: {name}"] += time.thread_time() - before
        columns: dict[str, np.ndarray] = {}
        moment.columns = columns
        for compute, group in groupby(features(items), lambda f: f.compute):
            features_of_group = tuple(group)
            before = time.thread_time()
            block = np.empty((len(features_of_group), len(request.candidates)), np.float32)
            block[:] = compute(moment)
            spent[_group(features_of_group[0].name)] += time.thread_time() - before
            columns.update(zip((f.name for f in features_of_group), block, strict=True))
        for part, seconds in spent.items():
            times[part].append(1e6 * seconds)
    medians = {part: float(np.median(us)) for part, us in times.items()}
    return dict(sorted(medians.items(), key=lambda pair: -pair[1]))


def _group(name: str) -> str:
    if name.endswith(("_rank", "_over_mean")):
        return "relative to the list: *" + name[name.rindex("_rank" if name.endswith("_rank") else "_over_mean") :]
    if name.endswith(("_share", "_residual", "_since", "_slope")):
        return "*" + name[name.rindex("_") :]
    return name.split("_")[0] + "_*"


def spread(ms: np.ndarray) -> str:
    low, middle, high = np.percentile(ms, [10, 50, 90])
    return f"{middle:7.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=101, help="requests per line of the table")
    parser.add_argument("--items", type=int, default=100_000, help="items in the catalogue")
    parser.add_argument("--events", type=int, default=1_000_000, help="events in the log of the item state")
    parser.add_argument("--trees", type=int, default=500, help="trees of the model, 31 leaves each")
    parser.add_argument("--lists", type=int, default=300, help="training lists of the model, 50 rows each")
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    items = made_up_items(rng, options.items, options.events)
    text = train_model(items, options.items, options.trees, options.lists)
    print(
        f"{platform.processor() or platform.machine()}, {len(names(items))} features, {options.trees} trees x 31, "
        "one thread, ms: median (p10-p90)"
    )
    print(
        f"{'candidates':>10} {'engaged':>7} {'shown':>5} {'rows':>19} {'Trees.score':>19} {'Booster.predict':>21} "
        f"{'/trees':>7} {'/predict':>8}"
    )
    shapes = [(500, ENGAGEMENTS, SHOWN), (100, ENGAGEMENTS, SHOWN), (1000, ENGAGEMENTS, SHOWN), (500, 10, SHOWN)]
    shapes += [(500, ENGAGEMENTS, 0), (500, 10, 24), (500, 0, 0)]
    medians: dict[tuple[int, int, int], np.ndarray] = {}
    for candidates, engaged, shown in shapes:
        requests = [made_up_request(rng, options.items, candidates, engaged, shown) for _ in range(options.repeats)]
        ms = compare(items, text, requests)
        medians[candidates, engaged, shown] = median = np.median(ms, axis=0)
        print(
            f"{candidates:10} {engaged:7} {shown:5} {spread(ms[:, 0]):>19} {spread(ms[:, 1]):>19} "
            f"{spread(ms[:, 2]):>21} {median[0] / median[1]:7.2f} {median[0] / median[2]:8.3f}",
            flush=True,
        )
    requests = [made_up_request(rng, options.items, 500, ENGAGEMENTS, SHOWN) for _ in range(options.repeats)]
    print(f"by part, us: median of {options.repeats} requests with 500 candidates and {ENGAGEMENTS} engagements")
    for part, us in by_part(items, requests).items():
        print(f"{us:8.1f}  {part}")
    assembled, scored, predicted = medians[shapes[0]]
    print(
        json.dumps(
            {
                "assemble_ms": round(float(assembled), 3),
                "trees_ms": round(float(scored), 3),
                "ratio_to_trees": round(float(assembled / scored), 3),
                "ratio_to_predict": round(float(assembled / predicted), 4),
                "ratio_to_trees_by_shape": {
                    "x".join(map(str, s)): round(float(m[0] / m[1]), 3) for s, m in medians.items()
                },
                "assemble_ms_by_shape": {"x".join(map(str, s)): round(float(m[0]), 3) for s, m in medians.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
