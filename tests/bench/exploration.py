"""Exploration against none over days with new items, by the hidden truth: `python -m tests.bench.exploration`.

Each arm is a shop of its own, with the same shoppers, requests and new items: in one shop, the lists without
exploration would profit from what the explored ones teach. A shop opens with a log of some days, on which the ranker is
trained. Then its lists are served and acted on, one after the other: item counts and histories follow every event, and
nights refit everything else but the ranker and the encoder (texts are bags of words). The gain of a list is the
expected gain of its items by the hidden truth, times the probability that their positions are examined.

With --directory, all state is there: after an interruption, the same command continues with the next shop.
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit  # type: ignore[import-untyped]

from features.arrays import F64, I32, I64
from features.catalogue import Catalogue
from features.history import ENGAGEMENTS, SHOWN, History
from features.log import Events, Kind
from features.moment import Items
from features.replay import Replay
from features.table import names, rows
from offline.config.simulation import SimulateConfig
from offline.data import query_groups
from offline.data.dataset import read_catalogue
from offline.simulation.dataset import open_shop
from offline.simulation.day_log import DayLog, ListRequests
from offline.simulation.products import DAY_US
from offline.simulation.shop import Shop
from ranker.calibration import OutcomeMap, fit_maps
from ranker.examination import power_law
from ranker.train import RankerConfig, train
from ranker.trees import Trees
from serving.config import ExplorationConfig
from serving.ranking.exploration import belief_of, explore, explore_by_posterior, item_spread
from tests.bench.position import bag_of_words

ARMS: dict[str, ExplorationConfig | None] = {
    "none": None,
    "swaps": ExplorationConfig(mode="swaps", share=0.2),
    "thompson": ExplorationConfig(mode="thompson", share=0.2, quota=0.1),
    "ucb": ExplorationConfig(mode="ucb", share=0.2, quota=0.1),
    "no_quota": ExplorationConfig(mode="thompson", share=0.2, quota=0.0),
    "half": ExplorationConfig(mode="thompson", share=0.5, quota=0.1),
}
_LAST_DAYS = 4


def main() -> None:
    """Play the remaining shops, and print the differences between the arms; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=14, help="days served")
    parser.add_argument("--opening", type=int, default=10, help="days of log before them")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--users", type=int, default=250)
    parser.add_argument("--new-items", type=float, default=5, help="new items per day")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--first-seed", type=int, default=0, help="for shops that are played by another process")
    parser.add_argument("--refit", type=int, default=7, help="nights from one refit to the next")
    parser.add_argument("--arms", default=",".join(ARMS), help=f"of {', '.join(ARMS)}")
    parser.add_argument("--directory", type=Path, help="folder for all state; by default a temporary one")
    options = parser.parse_args()
    arms = options.arms.split(",")
    with TemporaryDirectory() as temporary:
        played = []
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            config = SimulateConfig(
                seed=seed,
                items=options.items,
                users=options.users,
                days=options.opening,
                ahead=options.days,
                new_items_per_day=options.new_items,
            )
            played.append(play_all(config, arms, options.refit, options.directory or Path(temporary)))
    print(json.dumps(summary(played, arms, options.days)))


class Played(NamedTuple):
    """The lists of a shop. user, day: int64[lists]. gain, new_gain: float64[lists], of the shown list and of its new
    items. greedy: float64[lists], of the ranker's order at that time. new: float64[lists], positions of new items.
    explored: float64[lists], 1 or 0.
    """

    user: I64
    day: I64
    gain: F64
    new_gain: F64
    greedy: F64
    new: F64
    explored: F64


def play_all(config: SimulateConfig, arms: Sequence[str], refit: int, directory: Path) -> dict[str, Played]:
    """The shop of a seed with each arm; those in the directory are read."""
    directory.mkdir(parents=True, exist_ok=True)
    opened: Opened | None = None
    out = {}
    for arm in arms:
        key = f"{config.items}-{config.users}-{config.new_items_per_day:g}-{config.days}-{config.ahead}-{refit}"
        file = directory / f"{key}-{config.seed}-{arm}.npz"
        if not file.exists():
            opened = opened or Opened.of(config)
            played = World(opened, ARMS[arm], refit).play()
            np.savez(file.with_suffix(".new.npz"), **played._asdict())
            file.with_suffix(".new.npz").replace(file)
            print(
                f"seed {config.seed}, {arm}: gain {played.gain.mean():.4f}, of new items {played.new_gain.mean():.4f}"
            )
        with np.load(file) as stored:
            out[arm] = Played(**{name: stored[name] for name in Played._fields})
    return out


def summary(played: Sequence[dict[str, Played]], arms: Sequence[str], days: int) -> dict[str, Any]:
    """Means per list of the first arm, and the relative differences of the others from it, as [difference, low, high].

    Intervals of 95% are over seeds: within one, all lists share what the shop has learnt. `gain` is of the lists shown,
    `learnt` of the ranker's order in the same shop, `late` the last four days, `new` positions of new items, `lost` the
    share of the gain that explored lists give up.
    """
    base = arms[0]
    first = [p[base] for p in played]
    out: dict[str, Any] = {"lists": sum(len(p.user) for p in first), "seeds": len(played)}
    out |= {f"{name}_{base}": _mean([getattr(p, name) for p in first]) for name in ("gain", "new_gain", "new")}
    out["gain"] = out.pop(f"gain_{base}")
    for arm in arms[1:]:
        for name, of, since in (
            ("gain", "gain", 0),
            ("gain_late", "gain", days - _LAST_DAYS),
            ("learnt", "greedy", 0),
            ("learnt_late", "greedy", days - _LAST_DAYS),
            ("new_gain", "new_gain", 0),
            ("new", "new", 0),
        ):
            pairs = [
                (getattr(p[arm], of)[p[arm].day >= since], getattr(p[base], of)[p[base].day >= since]) for p in played
            ]
            out[f"{arm}_{name}"] = _difference([(float(own.mean()), float(other.mean())) for own, other in pairs])
        explored = [(p[arm].gain[p[arm].explored > 0].sum(), p[arm].greedy[p[arm].explored > 0].sum()) for p in played]
        shown, ranked = np.array(explored).sum(axis=0)
        out[f"{arm}_lost"] = round(float(1 - shown / ranked), 5) if ranked else 0.0
    return out


def _mean(values: Sequence[F64]) -> float:
    return float(np.concatenate(values).mean())


def _difference(pairs: Sequence[tuple[float, float]]) -> list[float | None]:
    """The mean of the differences of pairs, relative to the mean of the second, with its t interval over pairs.

    None instead of what is not known: an interval from one pair, and everything if the second is 0 in all pairs.
    """
    own, other = np.array(pairs).T
    if not other.any():
        return [None, None, None]
    difference, n = (own - other) / other.mean(), len(pairs)
    if n < 2:
        return [round(float(difference.mean()), 5), None, None]
    half = float(stdtrit(n - 1, 0.975) * difference.std(ddof=1) / np.sqrt(n))
    return [round(float(difference.mean()) + x, 5) for x in (0.0, -half, half)]


class Opened(NamedTuple):
    """A shop after its opening log. logs: one per day. trees, click: the ranker, and its probability of a click."""

    config: SimulateConfig
    catalogue: Catalogue
    logs: list[DayLog]
    trees: Trees
    click: OutcomeMap

    @classmethod
    def of(cls, config: SimulateConfig) -> Opened:
        """Simulate the opening log, and train the ranker on its lists."""
        shop = open_shop(config)
        catalogue = read_catalogue(shop.stock.table)
        logs = [shop.day(day) for day in range(config.days)]
        events = events_of(logs, len(shop.shoppers))
        lists = query_groups.logged_lists(events)
        cuts = np.quantile(lists.at, [0.3, 0.5, 0.7, 0.8])
        replay = Replay(catalogue, bag_of_words(catalogue.titles), events, cuts)
        used = lists.take(np.flatnonzero(lists.at >= cuts[0]))
        x, columns = replay.rows(used), names(replay.items_at(-np.inf))
        n = int(np.searchsorted(used.at, cuts[-1]))
        edge = int(used.start[n])
        trained = train(
            x[:edge],
            used.gain[:edge],
            used.start[: n + 1],
            x[edge:],
            used.gain[edge:],
            used.start[n:] - edge,
            columns,
            RankerConfig(trees=150, early_stopping_rounds=40, min_data_in_leaf=50),
            used.position[:edge],
        )
        before = Trees.parse(trained.before_refit or trained.model_text)
        maps = fit_maps(before.score(x[edge:]), used.gain[edge:])
        return cls(config, catalogue, logs, Trees.parse(trained.model_text), maps["click"])


class World:
    """One shop, with an arm."""

    def __init__(self, opened: Opened, arm: ExplorationConfig | None, refit: int) -> None:
        self.opened, self.arm, self.refit = opened, arm, refit
        self.shop: Shop = open_shop(opened.config)
        self.logs = list(opened.logs)
        for day in range(opened.config.days):
            self.shop.day(day)
        count = len(self.shop.shoppers)
        self.engaged: list[list[tuple[int, int, float]]] = [[] for _ in range(count)]
        self.seen: list[list[tuple[int, float]]] = [[] for _ in range(count)]
        self.vectors = bag_of_words(opened.catalogue.titles)
        for log in self.logs:
            for event in zip(log.kind.tolist(), log.user.tolist(), log.item.tolist(), log.at_us.tolist(), strict=True):
                self._remember(*event)
        self.waiting: list[tuple[int, int, int, int]] = []
        self.items: Items = self._night(opened.config.days)
        self.examination = power_law(opened.config.list_length, self.shop.position_bias)
        self.begun_us = self._begins_us(opened.config.days)

    def play(self) -> Played:
        """Serve all days."""
        config, lines = self.opened.config, []
        for day in range(config.days, config.days + config.ahead):
            self._seed(day, 0)
            lists, searches = self.shop.coming(day)
            logs = [searches]
            self._queue(searches)
            for n in range(len(lists.user)):
                request = lists[n : n + 1]
                self._apply(int(request.at_us[0]))
                item, line = self._serve(day, n, request)
                lines.append((int(request.user[0]), day - config.days, *line))
                self._seed(day, 1 + n)
                log = DayLog.merged(self.shop.shown(day, request, n, item[None], np.full((1, len(item)), np.nan)))
                self._queue(log)
                logs.append(log)
            self._apply(self._begins_us(day + 1))
            self.logs.append(DayLog.merged(logs))
            self.shop.count(lists, self.logs[-1])
            if (day - config.days) % self.refit == self.refit - 1:
                self.items = self._night(day + 1)
        columns = np.array(lines, np.float64).T
        return Played(columns[0].astype(np.int64), columns[1].astype(np.int64), *columns[2:])

    def _serve(self, day: int, n: int, request: ListRequests) -> tuple[I32, tuple[float, ...]]:
        """The shown items, and (gain, gain of new items, gain of the ranker's order, new items, explored)."""
        at, length = int(request.at_us[0]) / 1e6, self.opened.config.list_length
        offered = self.shop.offered(day, int(request.page[0]))
        would: F64 = self.shop.would(day, request, offered[None]).expected_gain[0]
        history = self._history(int(request.user[0]))
        score = self.opened.trees.score(rows(self.items, history, offered, at))
        best = np.argsort(-score, kind="stable")
        order, explored = best[:length], False
        rng = np.random.default_rng([self.opened.config.seed, day, n, 7])
        if self.arm is not None and self.arm.by_posterior:
            explored = bool(rng.random() < self.arm.share)
            if explored:
                belief = belief_of(
                    self.items, self.spread, history, offered[best], score[best], at, self.opened.click, self.arm
                )
                order = best[explore_by_posterior(belief, length, self.arm, rng).order]
        elif self.arm is not None:
            order = order[explore(length, self.arm.share, rng)[0]]
            explored = bool((order != best[:length]).any())
        new = self.shop.stock.available_us[offered] >= self.begun_us
        gain = would[order] * self.examination
        greedy = float((would[best[:length]] * self.examination).sum())
        figures = float(gain.sum()), float(gain[new[order]].sum()), greedy, float(new[order].sum()), float(explored)
        return offered[order], figures

    def _night(self, day: int) -> Items:
        """The items with everything refit to the log so far."""
        events = events_of(self.logs, len(self.shop.shoppers))
        at = self._begins_us(day) / 1e6
        replay = Replay(self.opened.catalogue, self.vectors, events, np.empty(0))
        items = replace(replay.items_at(at), words=None)
        self.spread = item_spread(items, at)
        return items

    def _history(self, user: int) -> History:
        engaged, seen = self.engaged[user][-ENGAGEMENTS:][::-1], self.seen[user][-SHOWN:][::-1]
        item, kind, at = zip(*engaged, strict=True) if engaged else ((), (), ())
        shown, shown_at = zip(*seen, strict=True) if seen else ((), ())
        return History(
            np.array(item, np.int32),
            np.array(kind, np.int8),
            np.array(at, np.float64),
            np.array(shown, np.int32),
            np.array(shown_at, np.float64),
        )

    def _remember(self, kind: int, user: int, item: int, at_us: int) -> None:
        if kind == Kind.IMPRESSION:
            self.seen[user].append((item, at_us / 1e6))
        else:
            self.engaged[user].append((item, kind, at_us / 1e6))

    def _queue(self, log: DayLog) -> None:
        for at_us, kind, item, user in zip(
            log.at_us.tolist(), log.kind.tolist(), log.item.tolist(), log.user.tolist(), strict=True
        ):
            heapq.heappush(self.waiting, (at_us, kind, item, user))

    def _apply(self, until_us: int) -> None:
        """Apply the events strictly before a time."""
        due = []
        while self.waiting and self.waiting[0][0] < until_us:
            due.append(heapq.heappop(self.waiting))
        for at_us, kind, item, user in due:
            self._remember(kind, user, item, at_us)
        if due:
            event = np.array(due, np.int64)
            self.items.state.apply(event[:, 2].astype(np.int32), event[:, 1].astype(np.int8), event[:, 0] / 1e6)

    def _seed(self, day: int, part: int) -> None:
        """Seed each list separately, so that arms have the same requests and the same luck."""
        seed = [self.opened.config.seed, 100 + day, part]
        self.shop.rng, self.shop.device_rng = np.random.default_rng(seed), np.random.default_rng([*seed, 1])

    def _begins_us(self, day: int) -> int:
        return self.shop.opening_us + day * DAY_US


def events_of(logs: Sequence[DayLog], users: int) -> Events:
    """The log of the days as events, with the numbers of users, items and lists as they are."""
    kind, user, item, at_us, position, value = (
        np.concatenate([getattr(log, name) for log in logs])
        for name in ("kind", "user", "item", "at_us", "position", "value")
    )
    offsets = np.cumsum([0, *(int(log.request.max(initial=-1)) + 1 for log in logs[:-1])])
    request = np.concatenate(
        [np.where(log.request < 0, -1, log.request + first) for log, first in zip(logs, offsets, strict=True)]
    )
    order = np.lexsort((item, kind, at_us))
    n = len(order)
    return Events(
        at_us[order] / 1e6,
        user[order].astype(np.int32),
        item[order].astype(np.int32),
        kind[order].astype(np.int8),
        request[order].astype(np.int32),
        position[order].astype(np.int16),
        value[order],
        [f"u{k:07d}" for k in range(users)],
        [f"r{k:08d}" for k in range(int(request.max(initial=-1)) + 1)],
        np.full(n, -1, np.int32),
        np.full(n, -1, np.int8),
    )


if __name__ == "__main__":
    main()
