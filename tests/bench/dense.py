"""Long histories over few items, where EASE is strong: `python -m tests.bench.dense`.

A made-up shop of ratings: users and items have factors of a low rank, and users choose many of few items, each in an
order of their own taste. The last choice of each user is the test. The ranker is trained with and without the features
of the linear model, on the same lists, and compared with EASE over the whole catalogue, by the length of the history.
`--data FOLDER` uses a data set of a workspace instead. `over_ease` and its like are differences of ndcg@10, paired by
list, with an interval over users.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.arrays import F64
from offline.config import load
from offline.data.schema import CANONICAL, EVENTS_SCHEMA
from offline.evaluation import order_of, slices, systems
from offline.nightly import Artefacts, Night, comparison, ranker_config
from offline.training import fit_ranker
from ranker.metrics import paired_difference, tie_break
from ranker.trees import Trees
from tests.tiny_encoder import tiny_encoder

BEGIN = datetime(2023, 1, 1, tzinfo=UTC)
YEAR_S = 365 * 86400.0


def write_shop(data: Path, users: int, items: int, events: int, rank: int, seed: int) -> None:
    """A data set with about `events` ratings per user, from 20 up to six tenths of the items."""
    rng = np.random.default_rng(seed)
    factor, popular = rng.normal(size=(items, rank)), 0.8 * rng.gumbel(size=items)
    rows: dict[str, list[Any]] = {name: [] for name in ("user", "item", "at")}
    for user in range(users):
        count = int(np.clip(rng.lognormal(np.log(events) - 0.4, 0.9), min(20, items // 4), 0.6 * items))
        taste = rng.normal(size=rank)
        liked = factor @ (0.8 * taste * np.sqrt(rank) / np.linalg.norm(taste)) + popular + rng.gumbel(size=items)
        chosen = np.argsort(-liked)[:count]
        drift = factor[chosen] @ (0.5 * rng.normal(size=rank)) + 3 * rng.normal(size=count)
        rows["user"] += [user] * count
        rows["item"] += chosen[np.argsort(drift)].tolist()
        rows["at"] += (rng.uniform(0, YEAR_S) + np.cumsum(rng.exponential(3600, count))).tolist()
    order = np.argsort(rows["at"], kind="stable")
    n = len(order)
    table: dict[str, list[Any]] = {name: [None] * n for name in EVENTS_SCHEMA.names}
    table |= {
        "event_id": [f"e{k}" for k in range(n)],
        "event": ["rating"] * n,
        "user_id": [f"u{rows['user'][k]}" for k in order],
        "item_id": [f"i{rows['item'][k]}" for k in order],
        "timestamp": [BEGIN + timedelta(seconds=rows["at"][k]) for k in order],
    }
    data.mkdir(parents=True)
    pq.write_table(pa.table(table, schema=EVENTS_SCHEMA), data / "events.parquet")
    described: dict[str, list[Any]] = {name: [None] * items for name in CANONICAL}
    described |= {"item_id": [f"i{k}" for k in range(items)], "title": ["item"] * items}
    pq.write_table(pa.table(described, schema=pa.schema(list(CANONICAL.items()))), data / "items.parquet")


def measure(a: Artefacts) -> dict[str, Any]:
    """ndcg@10 by slice of the ranker, the ranker without the linear model, and baselines; and the differences."""
    names, config = [f.name for f in a.replay.features], ranker_config(a)
    rows, tested, numbers = a.window_rows("test")
    targets = a.inputs.targets(tested)
    learned, valid, both = a.window_rows("ranker"), a.window_rows("validation"), a.window_rows("ranker", "validation")
    values: dict[str, F64] = comparison.ndcg_of_baselines(a.baselines_of(numbers), targets)
    kept = np.array([k for k, name in enumerate(names) if not name.startswith("linear")])
    ties = tie_break(tested.item, tested.start)
    for name, columns in (("ranker", np.arange(len(names))), ("without", kept)):
        trained, _ = fit_ranker(learned, valid, both, names, config, columns)
        score = Trees.parse(trained.model_text).score(np.ascontiguousarray(rows[:, columns]))
        order = order_of(score, tested.item, tested.start, ties)
        values[name] = systems.per_list(order, targets, (systems.PRIMARY,))[systems.PRIMARY]
    by_slice = slices.list_slices(a.inputs.data.events, tested, a.warm[numbers])
    found: dict[str, Any] = {}
    for part, mask in by_slice.items():
        used = mask & ~np.isnan(values["ranker"])
        if used.sum() < 2:
            continue
        found[part] = {"lists": int(used.sum())} | {s: round(float(v[used].mean()), 4) for s, v in values.items()}
        for rival in ("ease", "without", "cooccurrence"):
            d = paired_difference(values["ranker"][used], values[rival][used], tested.user[used])
            found[part][f"over_{rival}"] = [round(x, 4) for x in (d.difference, d.low, d.high)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with items.parquet and events.parquet of a workspace")
    parser.add_argument("--users", type=int, default=600)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--events", type=int, default=160, help="mean ratings per user")
    parser.add_argument("--rank", type=int, default=12)
    parser.add_argument("--lists", type=int, default=4000, help="lists to train and test on, at most")
    parser.add_argument("--size", type=int, default=100, help="candidates of a list")
    parser.add_argument("--protocol", default="leave-last-out")
    parser.add_argument("--encoder", default="", help="model; without it a tiny one that knows nothing")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        if options.data is None:
            shop = options.users, options.items, options.events, options.rank
            write_shop(workspace / "data", *shop, options.seed)
        model = options.encoder or str(tiny_encoder(workspace / "tiny"))
        config = load(
            None,
            workspace=workspace,
            **({"data": options.data} if options.data else {}),
            lists={"source": "rebuilt", "most": options.lists, "size": options.size},
            windows={"protocol": options.protocol},
            encoder={"model": model, "mode": "frozen", "refreshes": 0}
            | ({} if options.encoder else {"max_tokens": 16}),
        )
        start = time.process_time()
        found = measure(Night(config).run_to("rows"))
    print(json.dumps({"slices": found, "cpu_s": round(time.process_time() - start), "ease": found["all"]["ease"]}))


if __name__ == "__main__":
    main()
