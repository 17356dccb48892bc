"""Whether the incremental figure of `shelfwise earnings` covers the truth: `python -m tests.bench.earnings`.

Users with a hidden rate of purchases buy for four weeks at this rate, whatever they are shown. In the last two they see
lists, and some purchases are of items that a list had shown. The lists of treated users also make them buy more; those
of the holdout do not. So the truth is known: the revenue that treated users would not have brought without the effect.
Every seed has another shop, and its tables are made from a data set on disk, as by the command.

The last line is a JSON object: `covered`, seeds whose always-valid interval has the truth, and `covered_fixed`, those
whose interval for a single look has it; `incremental_bias` and `last_touch_bias`, mean of the figure minus the truth,
divided by the truth. Last touch credits lists with what would have been bought anyway; it is there for comparison.
`half_width`: of the interval, divided by the truth. `detected`: share of the seeds whose interval is above zero.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.arrays import F64, I64
from offline.config import EarningsConfig
from offline.data import EVENTS_SCHEMA, PLACEMENT, UTC_US, LogFiles
from offline.earnings import Holdout, Settings, make_tables

DAYS, DAY_US = 14, 86_400_000_000
FIRST_US = 20_000 * DAY_US
LISTS_PER_DAY, SHOWN = 0.4, 5
"""Mean lists of a user per day, and items of a list."""
PURCHASES_PER_DAY = 0.1
ITEMS = 200
FOLLOWED = 0.3
"""Probability that a purchase that happens anyway is of an item that the last list of the user had shown."""
EFFECT = 0.05
"""Purchases that a list of a treated user causes."""
ARMS = ("held", "ranked")


class World(NamedTuple):
    """A simulated log. truth: revenue that the lists of treated users caused."""

    lists: pa.Table
    events: pa.Table
    items: pa.Table
    truth: float


def simulate(seed: int, users: int, share: float, effect: float = EFFECT) -> World:
    """The log of one seed. share: of the users in the holdout. effect: purchases that a treated list causes."""
    rng = np.random.default_rng(seed)
    price = np.round(rng.lognormal(3.0, 0.7, ITEMS), 2)
    treated = rng.random(users) >= share
    keen = rng.gamma(0.7, 1 / 0.7, users)  # some users come and buy far more than others
    user = np.repeat(np.arange(users), rng.poisson(LISTS_PER_DAY * DAYS * keen))
    at = FIRST_US + (rng.random(len(user)) * DAYS * DAY_US).astype(np.int64)
    order = np.lexsort((at, user))
    user, at = user[order], at[order]
    shown = rng.integers(0, ITEMS, (len(user), SHOWN))

    buyer = np.repeat(np.arange(users), rng.poisson(PURCHASES_PER_DAY * 2 * DAYS * keen))
    bought_at = FIRST_US + (rng.uniform(-DAYS, DAYS, len(buyer)) * DAY_US).astype(np.int64)
    # The last list before each purchase, if there is one.
    key = np.concatenate((at, bought_at))
    who = np.concatenate((user, buyer))
    sequence = np.lexsort((key, who))
    last = np.maximum.accumulate(np.where(sequence < len(at), sequence, -1))
    before = np.empty(len(key), np.int64)
    before[sequence] = last
    before = before[len(at) :]
    follows = (before >= 0) & (user[before] == buyer) & (rng.random(len(buyer)) < FOLLOWED)
    item = np.where(follows, shown[before, rng.integers(0, SHOWN, len(buyer))], rng.integers(0, ITEMS, len(buyer)))

    caused = np.flatnonzero(treated[user] & (rng.random(len(user)) < effect))
    caused_item = shown[caused, rng.integers(0, SHOWN, len(caused))]
    caused_at = at[caused] + rng.integers(1, 3600, len(caused)) * 1_000_000
    paid = _Bought(np.append(buyer, user[caused]), np.append(item, caused_item), np.append(bought_at, caused_at))
    names = np.array(ARMS)[treated.astype(int)]
    items = pa.table({"item_id": _ids("i", np.arange(ITEMS)), "title": _ids("i", np.arange(ITEMS)), "price": price})
    return World(
        _lists(user, at, shown, names[user]),
        _events(user, at, shown, paid, price),
        items,
        float(price[caused_item].sum()),
    )


class _Bought(NamedTuple):
    user: I64
    item: I64
    at: I64


def _ids(prefix: str, numbers: I64) -> pa.Array:
    return pa.array(np.char.add(prefix, numbers.astype(str)))


def _lists(user: I64, at: I64, shown: I64, arm: np.ndarray) -> pa.Table:
    offsets = pa.array(np.arange(len(user) + 1) * SHOWN, pa.int32())
    arms = pa.MapArray.from_arrays(
        np.arange(len(user) + 1, dtype=np.int32), pa.array(["trial"] * len(user)), pa.array(arm)
    )
    return pa.table(
        {
            "request_id": _ids("q", np.arange(len(user))),
            "at": pa.array(at).cast(UTC_US),
            "user_id": _ids("u", user),
            "release": pa.array(["r1"] * len(user)),
            "placement": pa.array(["home"] * len(user)),
            "item_ids": pa.ListArray.from_arrays(offsets, _ids("i", shown.ravel())),
            "experiments": arms,
        }
    )


def _events(user: I64, at: I64, shown: I64, paid: _Bought, price: F64) -> pa.Table:
    n, m = shown.size, len(paid.user)
    request = np.repeat(np.arange(len(user)), SHOWN)
    columns: dict[str, Any] = {
        "event_id": _ids("e", np.arange(n + m)),
        "event": pa.array(["impression"] * n + ["purchase"] * m),
        "user_id": _ids("u", np.append(user[request], paid.user)),
        "item_id": _ids("i", np.append(shown.ravel(), paid.item)),
        "timestamp": pa.array(np.append(at[request], paid.at)).cast(UTC_US),
        "request_id": pa.concat_arrays([_ids("q", request), pa.nulls(m, pa.string())]),
        "position": pa.concat_arrays(
            [pa.array(np.tile(np.arange(SHOWN), len(user)), pa.int16()), pa.nulls(m, pa.int16())]
        ),
        "value": pa.concat_arrays([pa.nulls(n, pa.float64()), pa.array(price[paid.item])]),
        "placement": pa.concat_arrays([pa.array(["home"] * n, pa.string()), pa.nulls(m, pa.string())]),
    }
    schema = EVENTS_SCHEMA.append(PLACEMENT)
    return pa.table({f.name: columns.get(f.name, pa.nulls(n + m, f.type)) for f in schema}, schema=schema)


def measure(world: World, share: float) -> dict[str, Any]:
    """The figures of the treated arm: the last incremental estimate, and the revenue by last touch."""
    settings = Settings(
        EarningsConfig(value="amount"), 86400.0, {}, [Holdout("trial", ARMS, (share, 1 - share), float(DAYS))]
    )
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        pq.write_table(world.items, directory / "items.parquet")
        pq.write_table(world.events, directory / "events.parquet")
        served = directory / "served" / "date=2024-10-04"
        served.mkdir(parents=True)
        pq.write_table(world.lists, served / "part-0-0.parquet")
        tables = make_tables(LogFiles.of(directory), settings)
    last = tables["experiments"][0]["treated"][0]["outcomes"]["revenue"][-1]
    touched = sum(arm["total"]["revenue"] for arm in tables["arms"] if arm["arm"] == ARMS[1])
    return {**last, "last_touch": touched}


def main() -> None:
    """Print the figures of each seed, and the summary."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--users", type=int, default=4000)
    parser.add_argument("--holdout", type=float, default=0.2, help="share of the users")
    options = parser.parse_args()
    rows = []
    for seed in range(options.seeds):
        world = simulate(seed, options.users, options.holdout)
        found = measure(world, options.holdout)
        rows.append({**found, "truth": world.truth})
        print(
            f"seed {seed}: truth {world.truth:,.0f}; incremental {found['value']:,.0f} "
            f"[{found['low']:,.0f}, {found['high']:,.0f}]; last touch {found['last_touch']:,.0f}",
            flush=True,
        )
    value = {name: np.array([row[name] for row in rows], np.float64) for name in rows[0] if name != "day"}
    truth = value["truth"]
    inside = {end: (value[f"{end}low"] <= truth) & (truth <= value[f"{end}high"]) for end in ("", "fixed_")}
    found = {
        "covered": int(inside[""].sum()),
        "covered_fixed": int(inside["fixed_"].sum()),
        "seeds": len(rows),
        "incremental_bias": round(float((value["value"] - truth).mean() / truth.mean()), 4),
        "last_touch_bias": round(float((value["last_touch"] - truth).mean() / truth.mean()), 4),
        "half_width": round(float((value["high"] - value["value"]).mean() / truth.mean()), 3),
        "half_width_fixed": round(float((value["fixed_high"] - value["value"]).mean() / truth.mean()), 3),
        "detected": round(float((value["low"] > 0).mean()), 3),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
