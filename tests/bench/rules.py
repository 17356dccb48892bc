"""Cost of rules and retrieval in a request: `python -m tests.bench.rules`, one thread, compared with the feature rows.

A synthetic shop of 100,000 items, a user with full lists, 500 candidates. Each repeat uses another user and times in
turn: the feature rows of the list (most of a request), each rule alone and all together, parsing rules into a plan, and
retrieving 500 candidates: from all items, from those that a filter admits, and through inverted lists. Times are
processor times.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from features.history import ENGAGEMENTS, SHOWN
from features.table import rows
from offline.training.inverted_lists import build_inverted_lists
from serving.ranking.retrieval import CandidateRetriever
from serving.rules.conditions import Attributes
from serving.rules.rules import Plan, Ranked, Rules
from tests.bench.assemble import made_up_request
from tests.bench.made_up import AT, made_up_items

RULES: dict[str, dict[str, Any]] = {
    "filter": {"filter": {"all": [{"attribute": "price", "lte": 50}, {"not": {"attribute": "style", "has": "7"}}]}},
    "exclude": {"exclude": [{"events": ["purchase"], "within_days": 30}, {"events": ["impression"], "within_days": 1}]},
    "boost": {"boost": [{"when": {"attribute": "available_from", "gte": "now-30d"}, "by": 0.5}]},
    "cap": {"cap": [{"attribute": "brand", "most": 2}, {"attribute": "category", "most": 5}]},
    "diversity": {"diversity": {"lambda": 0.7}},
    "diversity of 500": {"diversity": {"lambda": 0.7, "pool": 500}},
    "pin": {"pin": [{"item_id": f"sku-{k:08d}", "position": k} for k in range(5)]},
}
RULES["all"] = {
    k: v for name in ("filter", "exclude", "boost", "cap", "diversity", "pin") for k, v in RULES[name].items()
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--repeats", type=int, default=51)
    options = parser.parse_args()
    # One event loop with its threads, as in a worker.
    ms = asyncio.run(measure(options.items, options.events, options.repeats))
    medians = {name: float(np.median(m)) for name, m in ms.items()}
    print(f"{options.items} items, ms: median (p10-p90) of {options.repeats}")
    for name, m in ms.items():
        low, high = np.percentile(m, [10, 90])
        print(f"{medians[name]:8.3f} ({low:.3f}-{high:.3f})  {name}")
    base = medians["rows of 500"]
    ratio = {name: round(value / base, 4) for name, value in medians.items()}
    print(json.dumps({"rules_to_rows": ratio["rule: all"], "retrieve_to_rows": ratio["retrieve 500"], "ratio": ratio}))


async def measure(count: int, events: int, repeats: int) -> dict[str, list[float]]:
    rng = np.random.default_rng(0)
    items = made_up_items(rng, count, events)
    vectors = (items.vectors.code * items.vectors.scale[:, None]).astype(np.float32)
    inverted_retriever = CandidateRetriever(replace(items, inverted=build_inverted_lists(vectors, 0, above=0)))
    retriever, attributes = CandidateRetriever(items), Attributes(items)
    decoded = {name: msgspec.convert(rules, Rules) for name, rules in RULES.items()}
    plans = {name: Plan.of(rules, attributes, "rules") for name, rules in decoded.items()}
    ms: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats + 1):
        history, candidates = made_up_request(rng, count, 500, ENGAGEMENTS, SHOWN)
        score = np.sort(rng.normal(size=len(candidates)))[::-1].copy()
        ranked = Ranked([items.catalogue.item_ids[c] for c in candidates.tolist()], candidates, score)
        with timed(ms["rows of 500"]):
            rows(items, history, candidates, AT)
        with timed(ms["reading all rules"]):
            Plan.of(decoded["all"], attributes, "rules")
        for name, plan in plans.items():
            assert plan is not None
            with timed(ms[f"rule: {name}"]):
                plan.apply(ranked, items.vectors, history, AT, 50)
        retrievals = (
            ("", retriever, None),
            (", filter", retriever, plans["filter"]),
            (", inverted lists", inverted_retriever, None),
        )
        for name, candidate_retriever, plan in retrievals:
            with timed(ms[f"retrieve 500{name}"]):
                await candidate_retriever.candidates(history, AT, 500, plan)
    # Skip the first repeat, which compiles.
    return {name: m[1:] for name, m in ms.items()}


@contextmanager
def timed(into: list[float]) -> Iterator[None]:
    start = time.process_time()
    yield
    into.append(1000 * (time.process_time() - start))


if __name__ == "__main__":
    main()
