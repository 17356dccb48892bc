"""Rebuilt, logged and mixed lists for a shop of purchases that starts to serve: `python -m tests.bench.served_lists`.

A simulated shop keeps only the purchases of its first days. From then on it serves some lists, and sells beside them.
A nightly run after a week learns from rebuilt lists, from both kinds (`mixed`: what `lists.source: auto` makes of fewer
than 1,000 lists with an action), and from logged lists, where these can be split.
All releases then rank the lists of the following week, which none of them has seen. `ndcg@10` is the mean over lists
with an action; `over_rebuilt` is the difference from the release of rebuilt lists (the first of `--sources`), paired by
list, with an interval over users. `sd` is the standard deviation per list of that difference: divided by the root of
the number of test lists, it is the standard error of a comparison.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from features.arrays import F64
from features.log import Lists
from offline.config import Config, load
from offline.data import query_groups
from offline.nightly import Night, comparison
from offline.runtime import DataError
from offline.simulation import simulate
from ranker.metrics import paired_difference
from tests.purchases import forget_lists
from tests.tiny_encoder import tiny_encoder

DAY_S = 86400.0
END = datetime(2024, 6, 1, tzinfo=UTC)
SOURCES: dict[str, dict[str, Any]] = {
    "rebuilt": {"source": "rebuilt"},
    "mixed": {"source": "auto"},
    "logged": {"source": "logged"},
}


def measure(folder: Path, served: int, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row of figures for each source of lists. seed: of the simulated shop."""
    end = END.timestamp()
    until = end - options.later * DAY_S
    shop = {"seed": seed, "items": options.items, "users": options.users, "days": options.days, "end": END.isoformat()}
    settings: dict[str, Any] = {
        "simulate": shop,
        "encoder": {"model": str(folder / "tiny"), "epochs": 2, "max_tokens": 16},
        "workspace": folder / f"served-{served}-{seed}",
    }
    config = load(None, **settings)
    simulate(config.simulate, config.data)
    forget_lists(config.data, served, since=until - options.live * DAY_S, all_since=until)
    base = Night(load(None, **settings, lists={"source": "logged"}))
    base.run_to("encoder")
    later = query_groups.concat(
        block.take(np.flatnonzero(query_groups.has_gain(block) & (block.at >= until))) for block in base.inputs.lists()
    )
    values: dict[str, F64] = {}
    rows = []
    first = options.sources[0]
    for name in options.sources:
        start = time.perf_counter()
        row: dict[str, Any] = {"seed": seed, "served": served, "source": name}
        try:
            values[name], facts = _evaluate(load(None, **settings, lists=SOURCES[name]), until, base, later)
        except DataError as e:
            row["failed"] = str(e)
        else:
            row |= {"ndcg@10": round(float(values[name].mean()), 4), "test_lists": len(later), **facts}
        if {name, first} <= set(values) and name != first:
            d = paired_difference(values[name], values[first], later.user)
            row[f"over_{first}"] = [round(x, 4) for x in (d.difference, d.low, d.high)]
            row["sd"] = round(float(np.std(values[name] - values[first])), 3)
        row["seconds"] = round(time.perf_counter() - start)
        print(json.dumps(row), file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def _evaluate(config: Config, until: float, base: Night, later: Lists) -> tuple[F64, dict[str, Any]]:
    """ndcg@10 of each later list by the release of one source, and the numbers of lists it learned from."""
    night = Night(config, until=until)
    a = night.run_to("ranker")
    model = a.sequence_models[-1] if a.sequence_models else None
    score = comparison.score_with_vectors(
        a.trees, a.vectors, base.artefacts.replay, later, a.replay.vocabulary_at(a.windows.test), model
    )
    ranker = a.json("ranker.json")
    facts = {
        "kind": night.inputs.list_source.kind,
        "learned": ranker["lists"],
        "trees": ranker["trees"],
        "logged_of_them": int(a.logged[a.window_rows("ranker", "validation").numbers].sum()),
    }
    return comparison.ndcg(score, later, query_groups.find_targets(later, later)), facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--served", type=int, nargs="+", default=[3, 60, 600, 1000], help="lists served before the run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[17], help="seeds of simulated shops")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--items", type=int, default=600)
    parser.add_argument("--users", type=int, default=700)
    parser.add_argument("--days", type=int, default=42)
    parser.add_argument("--live", type=int, default=7, help="days from the first served list to the run")
    parser.add_argument("--later", type=int, default=7, help="days after the run, for the comparison")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tiny_encoder(Path(folder) / "tiny")
        for seed in options.seeds:
            for served in options.served:
                rows += measure(Path(folder), served, seed, options)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
