"""What each order would have been worth, had it been shown, from lists that were logged with their propensities.

All lists of the test window count here, those without a gain too: choosing lists by what came of them would spoil the
estimates. `ranker.offpolicy` has the estimators; this file brings lists and orders into the form they take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from features.arrays import F64, I32, I64
from features.log import Lists
from features.replay import Replay
from features.table import rows
from features.text.vectors import Vectors
from offline.config import POSITION_BIAS
from offline.data import Dataset, Windows, concat, keys, select
from offline.evaluation import systems
from offline.evaluation.baselines import Baselines, order_of
from offline.runtime import DataError, OnProgress
from ranker.examination import power_law
from ranker.metrics import tie_break
from ranker.offpolicy import LoggedLists, doubly_robust, ips, places, snips
from ranker.trees import Trees

K = 10
"""Places from the top whose gain is counted."""
_STRENGTH = 20.0
"""Impressions at the mean that a rank's gain is shrunk by."""

MOST, MOST_EARLIER = 6000, 2000
"""Lists that are valued, and earlier ones that gains are predicted from: read again, so they cost what rows cost."""

Propensities = Mapping[tuple[str, str], tuple[int, float]]


def estimate_values(
    data: Dataset,
    replay: Replay,
    logged: Callable[[], Iterator[Lists]],
    windows: Windows,
    trees: Trees,
    text: Vectors,
    seed: int,
    level: float,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """What each order is worth on the test window of a log with propensities; empty where there are none.

    logged: every list that was shown, in time order, some at a time. text: vectors of the encoder as it came. As
    `values`, and `left_out`: test lists without a propensity for each place.
    """
    ids, every = data.catalogue.item_ids, keys(logged())
    tested = _thin(windows.lists("test", every), MOST)
    if data.propensities is None or not len(tested):
        return {}
    shown = select(logged(), tested)
    numbers, chance = complete_lists(shown, data.propensities.of(shown.request_ids), ids)
    if not len(numbers):
        return {}
    before = select(logged(), _thin(windows.lists("validation", every), MOST_EARLIER))
    judged, n = shown.take(numbers), len(before)
    both = concat([before, judged])
    dull, best = Baselines(replay, judged, text, seed, whole=False), []
    score = np.empty(both.rows)
    for r in replay.snapshots(both):
        score[both.start[r.number] : both.start[r.number + 1]] = trees.score(
            rows(r.items, r.history, r.candidates, r.at, r.context)
        )
        if r.number >= n:
            best.append(dull.best(r))
        if on_progress and r.number % 64 == 63:
            on_progress(r.number + 1, len(both))
    cut = int(both.start[n])
    truth = data.truth.of(judged.request_ids) if data.truth else None
    orders = systems.orders(judged, np.array(best, np.int32), score[cut:], truth, ids)
    before_ranker = order_of(score[:cut], before.item, before.start, tie_break(before.item, before.start))
    found = value_estimates(judged, chance, orders, before, before_ranker, systems.utility(judged, truth, ids), level)
    return found | {"left_out": len(tested) - len(numbers)}


def _thin(numbers: I64, most: int) -> I64:
    """The numbers, or `most` of them, evenly spread."""
    return numbers if len(numbers) <= most else numbers[np.linspace(0, len(numbers) - 1, most).astype(np.int64)]


def complete_lists(lists: Lists, propensities: Propensities, item_ids: Sequence[str]) -> tuple[I64, F64]:
    """int64: numbers of the lists each of whose places has a propensity; float64[rows of these]: those.

    A list with an item outside the catalogue, or one that was logged in part, is left out whole. Raises DataError where
    an item stood elsewhere than its propensity says: it is of another log.
    """
    pairs = _pairs(lists, item_ids)
    held = [propensities.get(pair) for pair in pairs]
    wrong = [k for k, h in enumerate(held) if h is not None and h[0] != lists.position[k]]
    if wrong:
        request, item = pairs[wrong[0]]
        stood, said = int(lists.position[wrong[0]]), (held[wrong[0]] or (0,))[0]
        raise DataError(
            f"propensities.parquet: item {item!r} of list {request!r} has position {said}, the log has {stood} "
            f"({len(wrong)} such rows); it is of another log: bring in the one that goes with these events"
        )
    chance = np.array([np.nan if h is None else h[1] for h in held], np.float64)
    ranked = np.arange(lists.rows) - lists.start[lists.group]
    by_place = np.lexsort((lists.position, lists.group))
    good = np.ones(len(lists), np.bool_)
    good[lists.group[np.isnan(chance)]] = False
    good[lists.group[lists.position[by_place] != ranked]] = False
    return np.flatnonzero(good), chance[good[lists.group]]


def value_estimates(
    lists: Lists,
    chance: F64,
    orders: Mapping[str, I32],
    earlier: Lists,
    earlier_ranker: I32,
    utility: F64 | None,
    level: float,
) -> dict[str, Any]:
    """`k`, `lists`, and `systems`: by system `ips`, `snips` and `doubly_robust`, each an estimate, and `truth`.

    lists: whole ones; chance: float64[rows], their propensities. orders: int32[lists, depth] by system, items best
    first, `-1` after the last. What was shown is no order that could be shown again, but what it gained is known, so
    `shown_order` is a plain mean. earlier, earlier_ranker: lists before these, with the ranker's order of them: what
    doubly robust predicts gains from. utility: float64[rows], what an item would gain where it is looked at, of a
    simulated shop; else `truth` is None.
    """
    logged = _logged(lists, chance)
    # Shown as it was, every place agrees and needs no weight.
    as_shown = _logged(lists, np.ones(lists.rows))
    by_place, lift = _gains(earlier, earlier_ranker)
    rank = lift[np.minimum(_places(lists, orders["ranker"]), len(lift) - 1)]
    out: dict[str, Any] = {}
    for name, order in orders.items():
        own = name == "shown_order"
        seen = as_shown if own else logged
        place = logged.position.astype(np.int64) if own else _places(lists, order)
        predicted = by_place[np.minimum(place, len(by_place) - 1)] * rank
        found = {"ips": ips(seen, place, K, level=level)}
        if found["ips"].matches:
            found["snips"] = snips(seen, place, K, level=level)
        found["doubly_robust"] = doubly_robust(seen, place, K, predicted, level=level)
        truth = None if utility is None else _truth(lists, place, utility)
        out[name] = {k: asdict(e) for k, e in found.items()} | {"truth": truth}
    return {"k": K, "lists": len(lists), "systems": out}


def _pairs(lists: Lists, item_ids: Sequence[str]) -> list[tuple[str, str]]:
    requests = (lists.request_ids[g] for g in lists.group.tolist())
    return list(zip(requests, (item_ids[i] for i in lists.item.tolist()), strict=True))


def _logged(lists: Lists, chance: F64) -> LoggedLists:
    return LoggedLists(lists.start, lists.gain, lists.position.astype(np.int64), chance, lists.user)


def _places(lists: Lists, order: I32) -> I64:
    """int64[rows]: the place, from 0, of each row in the order of its list; what the order leaves out comes last."""
    asked = np.arange(len(order), dtype=np.int64)[:, None] << 32 | order.astype(np.int64).clip(0)
    listed = lists.group.astype(np.int64) << 32 | lists.item.astype(np.int64)
    by_key = np.argsort(listed)
    at = np.minimum(np.searchsorted(listed[by_key], asked), len(listed) - 1)
    held = (listed[by_key][at] == asked) & (order >= 0)
    score = np.full(lists.rows, np.nan)
    score[by_key[at[held]]] = -np.nonzero(held)[1].astype(np.float64)
    return places(score, lists.start, tie_break(lists.item, lists.start))


def _gains(lists: Lists, ranker: I32) -> tuple[F64, F64]:
    """float64[places] each: mean gain by place shown; how many times that items gain, by the ranker's place."""
    gain, position = lists.gain.astype(np.float64), lists.position.astype(np.int64).clip(0)
    longest = int(np.diff(lists.start).max(initial=1))
    mean = float(gain.mean()) if len(gain) else 0.0
    if not mean:
        return np.zeros(longest), np.ones(longest)
    position = np.minimum(position, longest - 1)
    by_place = (np.bincount(position, gain, longest) + _STRENGTH * mean) / (
        np.bincount(position, minlength=longest) + _STRENGTH
    )
    rank = _places(lists, ranker)
    expected = np.bincount(rank, by_place[position], longest)
    return by_place, (np.bincount(rank, gain, longest) + _STRENGTH * mean) / (expected + _STRENGTH * mean)


def _truth(lists: Lists, place: I64, utility: F64) -> float:
    """The true value, in a shop where the chance that a place is looked at is known: the simulated one."""
    seen = power_law(int(place.max(initial=0)) + 1, POSITION_BIAS)[place]
    return float((utility * seen)[place < K].sum() / len(lists))
