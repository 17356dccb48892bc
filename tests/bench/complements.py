"""What goes with an item in the cart, by the hidden truth of the simulated shop: `python -m tests.bench.complements`.

In the simulated shop, some shoppers add a complement to an item in their cart (`simulate.complements`). Companions are
built from its log before the last quarter. Each time that a shopper looks for a complement after that, a system shows
ten items for the item in the cart. The simulation knows the probability of every item to be taken by this shopper at
this moment, so the probability that the ten have the one they take (hit@10) is exact, and only the choice of shoppers
and items is random. Compared are the tables of the sources `bought_together` and `goes_with`, simple baselines, and the
best order for the average shopper (all that an order without history can have) and for this shopper.

Reported for all, and for cold items in the cart (in at most 4 baskets before), with paired 95% intervals over shoppers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from features.arrays import F64, I32, Bool
from features.companions import Companions
from features.text.vectors import Vectors
from offline.config import SimulateConfig
from offline.data import load_dataset
from offline.simulation import simulate
from offline.simulation.dataset import open_shop
from offline.simulation.shop import Shop
from offline.simulation.shoppers import Mood, response
from ranker.metrics import paired_difference
from tests.bench.companions import COLD, Held, World, baselines, by_table, encoded

SHOWN = 10


class Wish(NamedTuple):
    """A shopper who looks for a complement of `seed`. probability: float64[items], of each item to be taken."""

    seed: int
    user: int
    probability: F64


def record_wishes(shop: Shop, first: int, days: int) -> list[Wish]:
    """The wishes from day `first` on, as the simulation draws from them. Simulates all days."""
    out: list[Wish] = []
    pending: list[tuple[int, F64]] = []
    complements, add = shop.complements, shop._add_complements
    choose, every = complements.choose, np.arange(len(shop.stock), dtype=np.int32)

    def recorded_choose(seed: I32, available: Bool, would_click: Any) -> Any:
        row, taken = choose(seed, available, would_click)
        click = would_click(row, np.broadcast_to(every, (len(row), len(every))))
        seeds = seed[row].tolist()
        pending.extend((s, complements.probability(s, available, c)) for s, c in zip(seeds, click, strict=True))
        return row, taken

    def recorded_add(*args: Any) -> Any:
        logs = add(*args)
        out.extend(Wish(s, u, p) for (s, p), u in zip(pending, logs[0].user.tolist(), strict=True))
        pending.clear()
        return logs

    for day in range(days):
        if day == first:
            complements.choose = recorded_choose  # type: ignore[method-assign]
            shop._add_complements = recorded_add  # type: ignore[method-assign, assignment]
        shop.day(day)
    return out


def average_shopper(shop: Shop, day: int) -> Callable[[int], F64]:
    """Seed -> float64[items]: mean probability over all shoppers, without a mood, to take each item with the seed."""
    n, every = len(shop.shoppers), np.arange(len(shop.stock), dtype=np.int32)
    available = np.isfinite(shop._weight(day))
    click = np.empty((n, len(every)))
    for lo in range(0, n, 256):
        user = np.arange(lo, min(lo + 256, n), dtype=np.int32)
        item, none = np.broadcast_to(every, (len(user), len(every))), np.full(len(user), -1, np.int32)
        mood, owned = Mood(none, none), np.zeros(item.shape, bool)
        click[user] = response(shop.shoppers, shop.stock, user, mood, item, shop.fashion[day], owned).click

    def mean(seed: int) -> F64:
        out, kinds = np.zeros(len(every)), shop.complements.kinds_with(seed, available)
        for items in kinds:
            out[items] += (click[:, items] / click[:, items].sum(axis=1, keepdims=True)).mean(axis=0) / len(kinds)
        return out

    return mean


def hits(wishes: Sequence[Wish], score: Callable[[Wish], F64]) -> F64:
    """float64[wishes]: probability that the ten items of the highest positive scores have the one that is taken."""
    out = np.empty(len(wishes))
    for k, wish in enumerate(wishes):
        values = score(wish).copy()
        values[wish.seed] = 0.0
        order = np.argsort(-values, kind="stable")[:SHOWN]
        out[k] = wish.probability[order[values[order] > 0]].sum()
    return out


def compare(found: Mapping[str, F64], own: str, wishes: Sequence[Wish], rows: Bool, title: str) -> dict[str, float]:
    """Print hit@10 of each system over some wishes, and the lead of `own` over each; return the means."""
    user = np.array([w.user for w in wishes])
    print(f"\n{title}: {rows.sum():,} wishes; hit@10 by the hidden truth; {own} minus it")
    for name, values in found.items():
        gap = paired_difference(found[own][rows], values[rows], user[rows])
        interval = "" if name == own else f"{gap.difference:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
        print(f"  {name:32s}{values[rows].mean():.4f}  {interval}", flush=True)
    return {name: float(values[rows].mean()) for name, values in found.items()}


def run(config: SimulateConfig, folder: Path, vectors_folder: Path | None) -> dict[str, float]:
    """Simulate the shop, build the tables, and compare."""
    simulate(config, folder)
    data = load_dataset(folder)
    first = config.days * 3 // 4
    train = config.start.timestamp() + first * 86400.0
    vectors = encoded(f"simulated-{config.users}", list(data.catalogue.titles), vectors_folder)
    world = World("simulated shop", data.catalogue, vectors, data.events, train, config.end.timestamp(), True)
    companions = Companions.build(
        data.catalogue, Vectors.quantise(vectors), world.past, len(data.catalogue), world.train
    )
    shop = open_shop(config)
    wishes = record_wishes(shop, first, config.days)
    n, average = len(data.catalogue), average_shopper(shop, first)
    of_seed = {seed: average(seed) for seed in {w.seed for w in wishes}}

    def wide(values: F64) -> F64:
        return np.pad(values[:n], (0, len(shop.stock) - min(n, len(values))))

    def held(scores: Callable[[Held], F64]) -> Callable[[Wish], F64]:
        return lambda wish: wide(scores(Held(np.array([wish.seed], np.int32), -1, wish.user)))

    systems = baselines(world) | {"bought_together": by_table(companions.together)}
    systems |= {"goes_with": by_table(companions.goes_with)}
    found = {name: hits(wishes, held(scores)) for name, scores in systems.items()}
    found["best for the average shopper"] = hits(wishes, lambda wish: of_seed[wish.seed])
    found["best for this shopper"] = hits(wishes, lambda wish: wish.probability)
    cold = np.array([world.count[w.seed] <= COLD for w in wishes])
    out = compare(found, "goes_with", wishes, np.ones(len(wishes), bool), "all")
    if cold.any():
        out |= {f"cold, {k}": v for k, v in compare(found, "goes_with", wishes, cold, "cold").items()}
    return out


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.complements", description=__doc__)
    parser.add_argument("--users", type=int, default=2500)
    parser.add_argument("--days", type=int, default=28)
    parser.add_argument("--complements", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--vectors", type=Path, help="folder that keeps text vectors between runs")
    options = parser.parse_args()
    shop = {"users": options.users, "days": options.days, "lists_per_user_day": 0.3, "seed": options.seed}
    config = SimulateConfig.model_validate(shop | {"complements": options.complements})
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(config, Path(folder), options.vectors)))


if __name__ == "__main__":
    main()
