"""Next item in a basket or session, by companions and by simple baselines: `python -m tests.bench.companions`.

Reads `../shared/data` (see `WORLDS`): a gift shop, grocery baskets, and sessions of two Amazon departments. Companions
are built from the baskets before a time. Of each later basket (a sample), one item is held out, and up to five others
are the seeds; all items but the seeds are ordered. An item that a system gives no weight to is not found. Reported:
recall@10, ndcg@10 and the mean reciprocal rank, for all baskets and for cold ones (the held-out item or a seed was in
at most 4 baskets), and the difference to each baseline in ndcg@10, paired by basket, with a 95% bootstrap interval over
users. `goes_with` is judged on held-out items of another category than those of the seeds, and all systems then leave
out the categories of the seeds. `following` is judged on baskets whose order is known: the item after the seeds.

Last, the repeats: the items a user bought before that are in their next basket of the gift shop.

`--validation` uses the part before the test, on which all choices were made. `--vectors FOLDER` keeps text vectors
there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from features.arrays import F32, F64, I32, Bool
from features.catalogue import Catalogue
from features.companions import Companions, buy_again_scores, seed_scores
from features.companions.groups import Groups, baskets
from features.companions.pairs import top_pairs
from features.history import Histories
from features.log import Events, Kind
from features.neighbours import Neighbours
from features.text.vectors import Vectors
from ranker.metrics import paired_difference
from tests import ROOT
from text_encoder.encoder import load

DATA = ROOT.parent / "shared" / "data"
COLD, SEEDS, DAY = 4, 5, 86400.0
DECAY = 0.8
"""Weight of a seed for each item since it, where the order is known."""
COLUMNS = "recall@10, ndcg@10, MRR"
Table = dict[str, dict[str, float | str]]


class Held(NamedTuple):
    """A basket of which one item is held out. seeds: int32[1 to 5], in the order of the basket. user: cluster."""

    seeds: I32
    target: int
    user: int


@dataclass(frozen=True)
class World:
    """A log of baskets. train, until: Unix seconds; baskets in between are tested. ordered: if lines are in order."""

    name: str
    catalogue: Catalogue
    vectors: F32
    events: Events
    train: float
    until: float
    ordered: bool

    @cached_property
    def past(self) -> Events:
        """The events from which companions are built."""
        return self.events.before(self.train)

    @cached_property
    def count(self) -> F64:
        """float64[n]: baskets of each item before the test."""
        groups = baskets(self.past)
        return np.bincount(groups.item, minlength=len(self.catalogue)).astype(np.float64)

    def held(self, most: int, ordered: bool) -> list[Held]:
        """At most `most` baskets, each with one item held out: the next one, or any."""
        rng = np.random.default_rng(1)
        groups = baskets(self.events.take((self.events.at >= self.train) & (self.events.at < self.until)))
        user = self.users_of(groups)
        out = []
        for g in rng.permutation(len(groups.at))[:most].tolist():
            item = groups.item[groups.start[g] : groups.start[g + 1]]
            item = item if ordered else rng.permutation(item)
            place = int(rng.integers(1, len(item)))
            out.append(Held(item[max(0, place - int(rng.integers(1, SEEDS + 1))) : place], int(item[place]), user[g]))
        return out

    def users_of(self, groups: Groups) -> list[int]:
        """The user of each group: of the event at its time with its last item."""
        key = {(a, i): u for a, i, u in zip(self.events.at, self.events.item, self.events.user, strict=True)}
        last = groups.item[groups.start[1:] - 1]
        return [int(key[a, i]) for a, i in zip(groups.at, last, strict=True)]


def make_world(
    name: str, items: pd.DataFrame, lines: pd.DataFrame, vectors: F32, share: tuple[float, float], ordered: bool
) -> World:
    """items: item_id (sorted), title, category. lines: item_id, user, at, in any order. share: of the baskets."""
    n = len(items)
    category = pd.Categorical(items["category"])
    code = np.append(np.where(category.codes < 0, len(category.categories), category.codes), len(category.categories))
    catalogue = Catalogue(
        items["item_id"].tolist(),
        items["title"].tolist(),
        np.full(n + 1, np.nan),
        code.astype(np.int32),
        [str(c) for c in category.categories],
        np.zeros(n + 1, np.int32),
        [],
        np.full(n + 1, np.nan),
        np.empty((n + 1, 0)),
        [],
        np.zeros(n + 2, np.int64),
        np.empty(0, np.int32),
        [],
    )
    row = {item: k for k, item in enumerate(items["item_id"])}
    item = lines["item_id"].map(row).to_numpy(np.int32)
    user_ids, user = np.unique(lines["user"].to_numpy(), return_inverse=True)
    at = lines["at"].to_numpy(np.float64)
    order = np.lexsort((item, at))
    m = len(lines)
    events = Events(
        at[order],
        user[order].astype(np.int32),
        item[order],
        np.full(m, Kind.PURCHASE, np.int8),
        np.full(m, -1, np.int32),
        np.full(m, -1, np.int16),
        np.full(m, np.nan),
        user_ids.tolist(),
        [],
        np.full(m, -1, np.int32),
        np.full(m, -1, np.int8),
    )
    moments = np.sort(lines.groupby(["user", "at"], sort=False).first().index.get_level_values("at").to_numpy())
    train, until = (float(moments[min(int(s * len(moments)), len(moments) - 1)]) for s in share)
    return World(name, catalogue, vectors, events, train, until + (share[1] == 1), ordered)


def gift_shop(validation: bool, encode: Callable[[str, list[str]], F32]) -> World:
    """Invoices of a UK gift shop; no categories. The lines of an invoice have no order."""
    items = pd.read_parquet(DATA / "online_retail" / "items.parquet").sort_values("item_id", ignore_index=True)
    lines = pd.read_parquet(DATA / "online_retail" / "events.parquet")
    lines = lines[(lines["event"] == "purchase") & (lines["value"] > 0) & ~lines["exact_duplicate"]]
    lines = lines[lines["item_id"].isin(items["item_id"][items["is_product"]])]
    lines = lines.assign(
        user=lines["user_id"], at=lines["timestamp"].astype("datetime64[us, UTC]").astype("int64") / 1e6
    )
    items["title"] = items["title"].fillna("").astype(str)
    vectors = encode("gift_shop", items["title"].tolist())
    return make_world("gift shop", items, lines, vectors, (0.7, 0.8) if validation else (0.8, 1.0), False)


def groceries(validation: bool, encode: Callable[[str, list[str]], F32]) -> World:
    """Grocery carts in the order in which they were filled, in a random order of carts; the aisle is the category."""
    items = pd.read_parquet(DATA / "baskets" / "products.parquet").sort_values("product_id", ignore_index=True)
    lines = pd.read_parquet(DATA / "baskets" / "orders.parquet")
    orders = np.sort(lines["order_id"].unique())
    moment = dict(zip(orders, np.random.default_rng(0).permutation(len(orders)).tolist(), strict=True))
    at = lines["order_id"].map(moment) * DAY / 24 + lines["add_to_cart_order"]
    lines = pd.DataFrame({"item_id": lines["product_id"], "user": lines["order_id"], "at": at + 1.6e9})
    titles = items["product_name"].astype(str).tolist()
    items = pd.DataFrame({"item_id": items["product_id"], "title": titles, "category": items["aisle_id"]})
    return make_world(
        "groceries", items, lines, encode("groceries", titles), (0.8, 0.9) if validation else (0.9, 1.0), True
    )


def department(name: str, validation: bool, encode: Callable[[str, list[str]], F32]) -> World:
    """Sessions of an Amazon department; most items are in one session. The most specific category is the category."""
    folder = DATA / "bundles" / name
    titles = pd.read_csv(folder / "item_titles.csv").sort_values("item ID", ignore_index=True)
    category = pd.read_csv(folder / "item_categories.csv").set_index("item ID")["categories"]
    sessions = pd.read_csv(folder / "user_session.csv").set_index("session ID")["timestamp"]
    lines = pd.read_csv(folder / "session_item.csv")
    lines = lines[lines["item ID"].isin(titles["item ID"])]
    user, at = lines["session ID"], lines["session ID"].map(sessions).astype(float)
    lines = pd.DataFrame({"item_id": lines["item ID"], "user": user, "at": at}).drop_duplicates()
    text = titles["titles"].fillna("").astype(str).tolist()
    items = pd.DataFrame({"item_id": titles["item ID"], "title": text, "category": titles["item ID"].map(category)})
    return make_world(name, items, lines, encode(name, text), (0.6, 0.8) if validation else (0.8, 1.0), False)


WORLDS: dict[str, Callable[[bool, Callable[[str, list[str]], F32]], World]] = {
    "gift_shop": gift_shop,
    "groceries": groceries,
    "food": lambda validation, encode: department("food", validation, encode),
    "electronic": lambda validation, encode: department("electronic", validation, encode),
}
Scores = Callable[[Held], F64]
"""float64[n]: the score of every item, 0 for none."""


def by_table(table: Neighbours, decay: float = 1.0) -> Scores:
    """The sum over the seeds of the weights in a table; `decay` for each item since a seed."""
    every = np.arange(len(table.item) - 1, dtype=np.int32)
    return lambda held: seed_scores(table, every, held.seeds, decay ** np.arange(len(held.seeds) - 1.0, -1.0, -1.0))[0]


def plain_cosine(world: World) -> Neighbours:
    """The 50 best of each item by baskets in common over the geometric mean of their baskets."""
    groups, n = baskets(world.past), len(world.catalogue)
    by_item, one = np.argsort(groups.item, kind="stable"), np.ones(len(groups.at))
    root = np.sqrt(np.maximum(world.count, 1.0))
    start = np.searchsorted(groups.item[by_item], np.arange(n + 1))
    place, kinds = np.zeros_like(groups.place), np.empty((0, n), np.int32)
    item, weight = top_pairs(
        start, by_item, groups.group, groups.start, groups.item, place, one, one, one[:1], root, root, 0.0, kinds, 50
    )
    none = Neighbours.none(1, 50)
    return Neighbours(np.vstack([item, none.item[:1]]), np.vstack([weight, none.weight[:1]]))


def baselines(world: World) -> dict[str, Scores]:
    """Popularity, popularity in the categories of the seeds, plain cosine and similarity of texts."""
    n = len(world.catalogue)
    vectors = np.nan_to_num(world.vectors[:n])
    category = world.catalogue.category[:n]
    out: dict[str, Scores] = {"popularity": lambda held: world.count}
    if world.catalogue.category_names:
        out["popularity in category"] = lambda held: world.count * np.isin(category, category[held.seeds])
    out["plain cosine"] = by_table(plain_cosine(world))
    out["similar text"] = lambda held: np.maximum(vectors @ vectors[held.seeds].sum(axis=0), 0.0).astype(np.float64)
    return out


def ranks(scores: Scores, held: Sequence[Held], kind: I32 | None) -> F64:
    """float64[baskets]: rank of the held-out item from 0, the mean of equal scores; infinite if it has no score.

    kind: int32[n], codes; items with a code of a seed are left out. None to leave out the seeds only.
    """
    out = np.full(len(held), np.inf)
    for b, basket in enumerate(held):
        score = scores(basket).copy()
        score[basket.seeds] = 0.0
        if kind is not None:
            score[np.isin(kind, kind[basket.seeds])] = 0.0
        own = score[basket.target]
        if own > 0:
            out[b] = (score > own).sum() + ((score == own).sum() - 1) / 2
    return out


def metrics(rank: F64) -> F64:
    """float64[baskets, 3]: recall@10, ndcg@10 and reciprocal rank."""
    found = rank < 10
    return np.column_stack([found, np.where(found, 1 / np.log2(rank + 2), 0.0), 1 / (rank + 1)])


def report(title: str, systems: dict[str, Scores], own: str, held: list[Held], world: World, kind: I32 | None) -> Table:
    """Print and return the metrics of each system, and the lead of `own` over each, for all and for cold baskets."""
    count, user = world.count, np.array([h.user for h in held])
    cold = np.array([min(count[h.target], count[h.seeds].min()) <= COLD for h in held])
    measured = {name: metrics(ranks(scores, held, kind)) for name, scores in systems.items()}
    out: Table = {}
    for part, rows in (("all", np.ones(len(held), bool)), ("cold", cold)):
        print(f"\n{world.name}, {title}, {part}: {rows.sum()} baskets; {COLUMNS}; {own} minus it (ndcg@10)")
        if rows.any():
            out |= {f"{part}/{name}": row for name, row in compare(measured, own, user, rows).items()}
    return out


def compare(measured: dict[str, F64], own: str, user: np.ndarray, rows: Bool) -> Table:
    """Print and return the means over some baskets, and the paired difference of `own` to each system in ndcg@10."""
    out: Table = {}
    for name, values in measured.items():
        recall, ndcg, mrr = values[rows].mean(axis=0).tolist()
        gap = paired_difference(measured[own][rows, 1], values[rows, 1], user[rows])
        interval = "" if name == own else f"{gap.difference:+.4f} [{gap.low:.4f}, {gap.high:.4f}]"
        print(f"  {name:36s}{recall:.4f} {ndcg:.4f} {mrr:.4f}  {interval}", flush=True)
        out[name] = {"recall": recall, "ndcg": ndcg, "mrr": mrr, "lead": interval}
    return out


def judge_baskets(world: World, companions: Companions, most: int) -> dict[str, Table]:
    """The next item of a basket: bought together, and complements among the other categories."""
    held = world.held(most, ordered=False)
    simple = baselines(world)
    systems = simple | {"together": by_table(companions.together)}
    out = {"together": report("in the basket", systems, "together", held, world, None)}
    if world.catalogue.category_names:
        category = world.catalogue.category[: len(world.catalogue)]
        other = [h for h in held if not (category[h.seeds] == category[h.target]).any()]
        simple.pop("popularity in category")
        systems = simple | {"together": by_table(companions.together), "goes_with": by_table(companions.goes_with)}
        out["goes_with"] = report("of another category", systems, "goes_with", other, world, category)
    return out


def judge_order(world: World, companions: Companions, most: int) -> Table:
    """The next item of a session whose order is known; later seeds count more for our tables."""
    held = world.held(most, ordered=True)
    systems = baselines(world)
    systems["plain cosine, recent seeds"] = by_table(plain_cosine(world), DECAY)
    systems["together, recent seeds"] = by_table(companions.together, DECAY)
    systems["following"] = by_table(companions.following, DECAY)
    return report("next in the session", systems, "following", held, world, None)


def judge_repeats(world: World, companions: Companions, most: int) -> Table:
    """Which items of the user's list are in their next basket: baskets with some of them, and not all."""
    later = baskets(world.events.take((world.events.at >= world.train) & (world.events.at < world.until)))
    histories, user = Histories.of(world.events), world.users_of(later)
    values: dict[str, list[F64]] = {}
    cluster = []
    for g in np.random.default_rng(1).permutation(len(later.at)).tolist():
        at, bought = float(later.at[g]), later.item[later.start[g] : later.start[g + 1]]
        history = histories.read(user[g], at)
        item, due = buy_again_scores(history, at, companions.repurchase_s)
        wanted = np.isin(item, bought)
        if not 0 < wanted.sum() < len(item):
            continue
        newest, times = np.full(len(item), -np.inf), np.zeros(len(item))
        row = np.searchsorted(item, history.item)
        np.maximum.at(newest, row, history.at)
        np.add.at(times, row, 1.0)
        orders = {"last bought first": (-newest,), "most often first, then last": (-newest, -times), "due": (-due,)}
        for name, keys in orders.items():
            values.setdefault(name, []).append(list_metrics(wanted[np.lexsort((item, *keys))]))
        cluster.append(user[g])
        if len(cluster) == most:
            break
    print(f"\n{world.name}, bought again: {len(cluster)} baskets; {COLUMNS}; due minus it (ndcg@10)")
    measured = {name: np.array(rows) for name, rows in values.items()}
    return compare(measured, "due", np.array(cluster), np.ones(len(cluster), bool))


def list_metrics(wanted: Bool) -> F64:
    """float64[3]: recall@10, ndcg@10 and reciprocal rank of the first. wanted: of each item, in the order judged."""
    discount, ideal = 1 / np.log2(np.arange(10) + 2), min(10, int(wanted.sum()))
    gain = wanted[:10]
    dcg = (gain * discount[: len(gain)]).sum()
    return np.array([gain.sum() / ideal, dcg / discount[:ideal].sum(), 1 / (np.flatnonzero(wanted)[0] + 1)])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.companions", description=__doc__)
    parser.add_argument("--worlds", nargs="*", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--baskets", type=int, default=2000, help="baskets that are tested, of each data set")
    parser.add_argument("--validation", action="store_true", help="use the part before the test")
    parser.add_argument("--vectors", type=Path, help="folder that keeps text vectors between runs")
    options = parser.parse_args()
    if not DATA.is_dir():
        print(f"skipped: {DATA} does not exist")
        return
    out: dict[str, dict[str, Table]] = {}
    for name in options.worlds:
        world = WORLDS[name](options.validation, lambda name, texts: encoded(name, texts, options.vectors))
        began = time.perf_counter()
        vectors = Vectors.quantise(world.vectors)
        companions = Companions.build(world.catalogue, vectors, world.past, len(world.catalogue), world.train)
        seconds = time.perf_counter() - began
        print(f"\n{name}: {len(world.past)} lines, {len(world.catalogue)} items; built in {seconds:.1f} s")
        out[name] = judge_baskets(world, companions, options.baskets)
        if world.ordered:
            out[name]["following"] = judge_order(world, companions, options.baskets)
        if name == "gift_shop":
            out[name]["again"] = judge_repeats(world, companions, options.baskets)
    print(json.dumps(out))


def encoded(name: str, texts: list[str], folder: Path | None) -> F32:
    """float32[n + 1, d]: the vectors of texts by the packaged encoder, and NaN for the unknown item."""
    file = folder / f"{name}.npy" if folder else None
    if file and file.exists():
        kept: F32 = np.load(file)
        return kept
    vectors = load("minilm", max_tokens=32).encode(texts)
    vectors = np.vstack([vectors, np.full((1, vectors.shape[1]), np.nan, np.float32)])
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, vectors)
    return vectors


if __name__ == "__main__":
    main()
