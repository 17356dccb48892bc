"""Cost of the items of a request (seeds): `python -m tests.bench.seeds`, in process, one thread.

A synthetic shop of 100,000 items with full tables of companions, and users with full lists.

1. Milliseconds of a recommendation without seeds by a release without tables (the baseline), by the same release with
   tables, and with 1 and 5 seeds by it: candidates, feature rows, and both; alternating, medians.
2. Seconds to build the tables from the log of the shop, beside the neighbours; bytes of the arrays of a release.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import numpy as np

from features.companions import Companions
from features.context import Context
from features.history import ENGAGEMENTS, SHOWN
from features.moment import Items
from features.neighbours import Neighbours
from features.table import rows
from offline.training.inverted_lists import build_inverted_lists
from serving.ranking.retrieval import CandidateRetriever
from serving.release.arrays import to_arrays
from tests.bench.assemble import made_up_request
from tests.bench.made_up import AT, made_up_events, made_up_items, skewed

SIZE = 500
_PER_ITEM = 50


def made_up_companions(rng: np.random.Generator, n: int) -> Companions:
    """Full tables with random contents: their cost does not depend on these."""

    def table() -> Neighbours:
        item = skewed(rng, n, _PER_ITEM * n).reshape(n, _PER_ITEM)
        weight = np.sort(rng.random((n, _PER_ITEM), np.float32))[:, ::-1]
        empty = np.full((1, _PER_ITEM), -1, np.int32), np.zeros((1, _PER_ITEM), np.float32)
        return Neighbours(np.vstack([item, empty[0]]), np.vstack([weight, empty[1]]))

    return Companions(table(), table(), table(), np.full(n + 1, 30 * 86400.0, np.float32))


def measure(items: Items, companions: Companions, requests: int) -> dict[str, np.ndarray]:
    """Case -> float64[requests, 2]: milliseconds for the candidates, and for their feature rows."""
    rng, n, with_tables = np.random.default_rng(3), len(items.catalogue), replace(items, companions=companions)
    cases = {"without tables": (items, 0)} | {f"{k} seeds": (with_tables, k) for k in (0, 1, 5)}
    retrievers = {name: CandidateRetriever(of) for name, (of, _) in cases.items()}
    out = {name: np.empty((requests, 2)) for name in cases}
    for k in range(-3, requests):  # the first three compile and warm
        history = made_up_request(rng, n, 50, ENGAGEMENTS, SHOWN).history
        seeds = skewed(rng, n, 5)
        for name, (of, count) in cases.items():
            context = Context(seeds=seeds[:count])
            began = time.perf_counter()
            found = retrievers[name].candidates_now(history, AT, SIZE, None, context)
            middle = time.perf_counter()
            rows(of, history, found.item, AT, context)
            if k >= 0:
                out[name][k] = (middle - began) * 1e3, (time.perf_counter() - middle) * 1e3
    return out


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.seeds", description=__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=2_000_000, help="for the tables")
    parser.add_argument("--requests", type=int, default=200)
    options = parser.parse_args()
    rng, n = np.random.default_rng(2), options.items
    items = made_up_items(rng, n, 200_000)
    vectors = items.vectors.code * items.vectors.scale[:, None]
    items = replace(items, inverted=build_inverted_lists(vectors.astype(np.float32), 17))
    companions = made_up_companions(rng, n)
    figures = dict[str, float]()
    print(f"{n:,} items, {SIZE} candidates, medians of {options.requests} requests in ms")
    for name, ms in measure(items, companions, options.requests).items():
        candidates, of_rows = np.median(ms, axis=0)
        print(f"  {name:15} candidates {candidates:6.2f}  rows {of_rows:6.2f}  both {np.median(ms.sum(axis=1)):6.2f}")
        figures[f"{name} ms"] = float(np.median(ms.sum(axis=1)))
    log = made_up_events(rng, options.events, n // 2, n)
    for name, build in (
        ("neighbours", lambda events: Neighbours.build(events, n, AT)),
        ("companions", lambda events: Companions.build(items.catalogue, items.vectors, events, n, AT)),
    ):
        build(log.before(AT - 89 * 86400.0))  # compiles
        began = time.perf_counter()
        build(log)
        figures[f"{name} s"] = time.perf_counter() - began
        print(f"{name}: {figures[f'{name} s']:.1f} s from {len(log):,} events")
    without, with_tables = (
        sum(a.nbytes for a in to_arrays(of).values()) for of in (items, replace(items, companions=companions))
    )
    print(f"arrays: {without / n:,.0f} bytes per item, with tables {with_tables / n:,.0f}")
    print(json.dumps(figures | {"bytes per item": without / n, "bytes per item with tables": with_tables / n}))


if __name__ == "__main__":
    main()
