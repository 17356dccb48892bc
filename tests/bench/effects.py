"""Experiments with known effects in the simulated shop: `python -m tests.bench.effects --effect novelty`.

Each arm changes how shoppers respond to its lists, by a known amount, so the true effect on clicks per list is known:
the expected clicks of every list are computed for both arms. The data set has the columns of experiments that a service
logs, so that the analysis reads it like any other. `tests.bench.loop --effect` has the same effects with a real
service, which then assigns the arms.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.arrays import F64, I32, Bool
from offline.config.simulation import SimulateConfig
from offline.data.partitions import Storage, day_name, split_by_day
from offline.data.schema import EXPERIMENT_FIELDS, PLACEMENT, SERVED, SERVED_SCHEMA
from offline.simulation.dataset import LogWriter, open_shop
from offline.simulation.day_log import DayLog, ListRequests
from offline.simulation.shop import Shop
from ranker.examination import power_law

EXPERIMENT, CONTROL = "loop", "control"


class Effect(NamedTuple):
    """What an arm changes.

    odds: added to the log odds of every click. half_life_days: of `odds`, from the start of the experiment; None if it
    stays. unseen: share of its lists that are served, and never seen, because the page fails or the shopper leaves.
    degraded: share of its lists that are ranked without the history. took_ms: mean time of a list.
    """

    odds: float = 0.0
    half_life_days: float | None = None
    unseen: float = 0.0
    degraded: float = 0.0
    took_ms: float = 8.0

    def odds_at(self, days: F64 | float) -> F64:
        """float64, like `days` since the start: what is added to the log odds."""
        keep = 1.0 if self.half_life_days is None else np.exp2(-np.asarray(days) / self.half_life_days)
        return np.asarray(self.odds * keep * np.ones_like(np.asarray(days, np.float64)))


EFFECTS = {
    CONTROL: Effect(),
    "null": Effect(),
    "small": Effect(odds=0.06),
    "large": Effect(odds=0.3),
    "novelty": Effect(odds=0.5, half_life_days=2.0),
    "broken": Effect(unseen=0.5, degraded=0.5),
    "slow": Effect(unseen=0.05, took_ms=900.0),
}
"""The effects by the name of their arm."""


class Truth(NamedTuple):
    """Expected clicks and gain per list of the experiment, over all of its lists: in the control, and in the arm."""

    lists: int
    control: float
    arm: float
    gain_control: float
    gain_arm: float

    @property
    def lift(self) -> float:
        """The true relative effect on clicks per list."""
        return self.arm / self.control - 1.0


def simulate_experiment(config: SimulateConfig, effect: str, directory: Path, start: int = 7) -> Truth:
    """Write the data set of a shop with an experiment of two arms, `control` and `effect`, and return the truth.

    config: its `days` include `start` days before the experiment. Half of the shoppers are in each arm.
    """
    shop = open_shop(config)
    writer = LogWriter(shop.stock, config.users, None)
    treated = np.random.default_rng([config.seed, 77]).random(config.users) < 0.5
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(shop.stock.table, directory / "items.parquet")
    events: list[pa.Table] = []
    sums, lists = np.zeros(4), 0
    for day in range(config.days):
        requests, views = shop.coming(day)
        item = shop.listed(day, requests.page)
        running = day >= start
        arm = treated[requests.user] & running
        parts, seen, expected = _shown(shop, day, requests, item, arm, EFFECTS[effect], day - start)
        log = DayLog.merged([views, *parts])
        first = shop.lists
        shop.count(requests, log)
        writer.add(log)
        events.append(writer.events_table(log))
        if running:
            sums, lists = sums + expected.sum(axis=0), lists + len(arm)
        _write_served(directory, shop, writer, requests, item, first, arm if running else None, seen, effect)
    pq.write_table(pa.concat_tables(events), directory / "events.parquet")
    return Truth(lists, *(sums / max(lists, 1)).tolist())


def _shown(
    shop: Shop, day: int, requests: ListRequests, item: I32, arm: Bool, effect: Effect, days: int
) -> tuple[list[DayLog], Bool, F64]:
    """(events of the lists, whether each was seen, expected clicks and gains of each in both arms)."""
    odds = float(effect.odds_at(float(days)))
    examined = power_law(item.shape[1], shop.position_bias)
    plain, changed = (shop.would(day, requests, item, odds=o) for o in (0.0, odds))
    see = 1.0 - effect.unseen
    expected = np.column_stack(
        [
            (plain.click * examined).sum(axis=1),
            (changed.click * examined).sum(axis=1) * see,
            (plain.expected_gain * examined).sum(axis=1),
            (changed.expected_gain * examined).sum(axis=1) * see,
        ]
    )
    seen = ~(arm & (shop.rng.random(len(arm)) < effect.unseen))
    shift = np.where(arm, odds, 0.0)[seen, None]
    numbers = np.flatnonzero(seen)
    parts = shop.shown(day, requests[numbers], 0, item[numbers], np.full(item[numbers].shape, np.nan), odds=shift)
    # The number of a list is its place among all of the day, seen or not.
    renumbered = [
        DayLog(**{**vars(p), "request": np.where(p.request < 0, -1, shop.lists + numbers[p.request])}) for p in parts
    ]
    return renumbered, seen, expected


def _write_served(
    directory: Path,
    shop: Shop,
    writer: LogWriter,
    requests: ListRequests,
    item: I32,
    first: int,
    arm: Bool | None,
    seen: Bool,
    effect: str,
) -> None:
    """Write the lists of a day as `collect` does. arm: None before the experiment."""
    if not len(requests.user):
        return
    rng = np.random.default_rng([int(requests.at_us[0]) % 2**32, 5])
    n = len(requests.user)
    of_arm = EFFECTS[effect]
    treated = np.zeros(n, np.bool_) if arm is None else arm
    took = np.where(treated, of_arm.took_ms, EFFECTS[CONTROL].took_ms) * rng.lognormal(-0.08, 0.4, n)
    ids = np.array(writer.stock.table["item_id"].to_pylist())
    rows: dict[str, Any] = {field.name: [None] * n for field in SERVED_SCHEMA}
    rows |= {
        "request_id": [f"r{first + k:07d}" for k in range(n)],
        "at": pa.array(requests.at_us).cast(pa.timestamp("us", "UTC")),
        "release": ["simulated"] * n,
        "route": ["recommend"] * n,
        "user_id": writer.user_ids(requests.user),
        "degraded": (treated & (rng.random(n) < of_arm.degraded)).tolist(),
        "item_ids": ids[item].tolist(),
        "score": np.broadcast_to(-np.arange(item.shape[1], dtype=np.float64), item.shape).tolist(),
    }
    names = np.where(treated, effect, CONTROL).tolist()
    more = {
        PLACEMENT: ["home"] * n,
        EXPERIMENT_FIELDS[0]: [None if arm is None else [(EXPERIMENT, name)] for name in names],
        EXPERIMENT_FIELDS[3]: took.tolist(),
    }
    schema = pa.schema([*SERVED_SCHEMA, *more])
    table = pa.table(rows | {field.name: values for field, values in more.items()}, schema)
    name = f"part-{int(requests.at_us[0]) // 1000:013d}-000000.parquet"
    for day, part in split_by_day(table, "at"):
        Storage.of(directory).write_table(day_name(SERVED, day, name), part)


def main() -> None:
    """Write the data set of each seed, and print the truth; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--effect", choices=sorted(set(EFFECTS) - {CONTROL}), default="large")
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--days", type=int, default=21, help="days of log, a week of them before the experiment")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--directory", type=Path, default=Path("build/effects"))
    options = parser.parse_args()
    config = SimulateConfig(seed=options.seed, users=options.users, days=options.days)
    truth = simulate_experiment(config, options.effect, options.directory / options.effect)
    print(json.dumps({"effect": options.effect, **truth._asdict(), "lift": truth.lift}))


if __name__ == "__main__":
    main()
