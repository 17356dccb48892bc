"""Off-policy value of each system's ranking, from lists that were logged with propensities.

All lists of the test window count, including those without gain: selecting lists by their outcome would bias the
estimates.
`ranker.offpolicy` has the estimators; this module prepares their input.
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
from offline.evaluation.outcomes import served_score
from offline.runtime import DataError, OnProgress
from ranker.examination import power_law
from ranker.metrics import tie_break
from ranker.offpolicy import LoggedLists, doubly_robust, ips, places, snips
from ranker.trees import Trees

K = 10
"""Positions whose gain is counted."""
_STRENGTH = 20.0
"""Impressions at the mean gain that are added to each position when its gain is estimated."""

MOST, MOST_EARLIER = 6000, 2000
"""Limits on the test lists and on the earlier lists that gains are predicted from. Each list has to be replayed."""

Propensities = Mapping[tuple[str, str], tuple[int, float]]
"""(request ID, item ID) -> (position, propensity)."""


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
    with_columns: Callable[[Lists], Lists] = lambda lists: lists,
) -> dict[str, Any]:
    """Value of each system's ranking on the test window; empty for a log without propensities.

    logged: every shown list in time order, in blocks. text: vectors of the pretrained encoder. with_columns: adds the
    columns of their requests to lists. The result is that of `value_estimates`, and `left_out`, the number of test
    lists that lack a propensity for a position.
    """
    ids, every = data.catalogue.item_ids, keys(logged())
    tested = _thin(windows.lists("test", every), MOST)
    if data.propensities is None or not len(tested):
        return {}
    shown = select(logged(), tested)
    numbers, propensity = complete_lists(shown, data.propensities.of(shown.request_ids), ids)
    if not len(numbers):
        return {}
    earlier = select(logged(), _thin(windows.lists("validation", every), MOST_EARLIER))
    evaluated, n = shown.take(numbers), len(earlier)
    both = with_columns(concat([earlier, evaluated]))
    baselines, best = Baselines(replay, evaluated, text, seed, whole=False), []
    score = np.empty(both.rows)
    for r in replay.snapshots(both):
        table = rows(r.items, r.history, r.candidates, r.at, r.context)
        score[both.start[r.number] : both.start[r.number + 1]] = served_score(trees, table, r.context)
        if r.number >= n:
            best.append(baselines.best(r))
        if on_progress and r.number % 64 == 63:
            on_progress(r.number + 1, len(both))
    cut = int(both.start[n])
    truth = data.truth.of(evaluated.request_ids) if data.truth else None
    orders = systems.orders(evaluated, np.array(best, np.int32), score[cut:], truth, ids)
    earlier_ranker = order_of(score[:cut], earlier.item, earlier.start, tie_break(earlier.item, earlier.start))
    utility = systems.utility(evaluated, truth, ids)
    estimates = value_estimates(evaluated, propensity, orders, earlier, earlier_ranker, utility, level)
    return estimates | {"left_out": len(tested) - len(numbers)}


def _thin(numbers: I64, most: int) -> I64:
    """At most `most` of the numbers, evenly spaced."""
    return numbers if len(numbers) <= most else numbers[np.linspace(0, len(numbers) - 1, most).astype(np.int64)]


def complete_lists(lists: Lists, propensities: Propensities, item_ids: Sequence[str]) -> tuple[I64, F64]:
    """int64: numbers of the lists with a propensity for every position; float64: propensities of their rows.

    A list with an item outside the catalogue, or one that was logged in part, is left out entirely. Raises DataError if
    the position of an item differs from that in the propensities, which means that they belong to another log.
    """
    pairs = _pairs(lists, item_ids)
    logged = [propensities.get(pair) for pair in pairs]
    wrong = [k for k, found in enumerate(logged) if found is not None and found[0] != lists.position[k]]
    if wrong:
        request, item = pairs[wrong[0]]
        actual, expected = int(lists.position[wrong[0]]), (logged[wrong[0]] or (0,))[0]
        raise DataError(
            f"propensities.parquet: item {item!r} of list {request!r} has position {expected}, but {actual} in the log "
            f"({len(wrong)} such rows). The file belongs to another log: import the propensities of these events"
        )
    propensity = np.array([np.nan if found is None else found[1] for found in logged], np.float64)
    rank = np.arange(lists.rows) - lists.start[lists.group]
    by_position = np.lexsort((lists.position, lists.group))
    complete = np.ones(len(lists), np.bool_)
    complete[lists.group[np.isnan(propensity)]] = False
    complete[lists.group[lists.position[by_position] != rank]] = False
    return np.flatnonzero(complete), propensity[complete[lists.group]]


def value_estimates(
    lists: Lists,
    propensity: F64,
    orders: Mapping[str, I32],
    earlier: Lists,
    earlier_ranker: I32,
    utility: F64 | None,
    level: float,
) -> dict[str, Any]:
    """`k`, `lists`, and `systems`: for each system the estimates `ips`, `snips` and `doubly_robust`, and `truth`.

    lists: complete lists. propensity: float64[rows]. orders: int32[lists, depth] by system, items best first, `-1`
    after the last. earlier, earlier_ranker: earlier lists and the ranker's order of them, from which doubly robust
    predicts gains. utility: float64[rows], the expected gain of an item that is examined, known for a simulated shop;
    without it `truth` is None. The gain of `shown_order` was observed, so its estimates are plain means. `snips` is
    missing where no item has the position that it was shown at.
    """
    logged = _logged(lists, propensity)
    # The shown order agrees with the log at every position and needs no weights.
    unweighted = _logged(lists, np.ones(lists.rows))
    gain_at, lift = _gains(earlier, earlier_ranker)
    rank_lift = lift[np.minimum(_places(lists, orders["ranker"]), len(lift) - 1)]
    out: dict[str, Any] = {}
    for name, order in orders.items():
        is_shown = name == "shown_order"
        log = unweighted if is_shown else logged
        place = logged.position.astype(np.int64) if is_shown else _places(lists, order)
        predicted = gain_at[np.minimum(place, len(gain_at) - 1)] * rank_lift
        estimates = {"ips": ips(log, place, K, level=level)}
        if estimates["ips"].matches:
            estimates["snips"] = snips(log, place, K, level=level)
        estimates["doubly_robust"] = doubly_robust(log, place, K, predicted, level=level)
        truth = None if utility is None else _truth(lists, place, utility)
        out[name] = {k: asdict(e) for k, e in estimates.items()} | {"truth": truth}
    return {"k": K, "lists": len(lists), "systems": out}


def _pairs(lists: Lists, item_ids: Sequence[str]) -> list[tuple[str, str]]:
    """(request ID, item ID) of each row."""
    requests = (lists.request_ids[g] for g in lists.group.tolist())
    return list(zip(requests, (item_ids[i] for i in lists.item.tolist()), strict=True))


def _logged(lists: Lists, propensity: F64) -> LoggedLists:
    return LoggedLists(lists.start, lists.gain, lists.position.astype(np.int64), propensity, lists.user)


def _places(lists: Lists, order: I32) -> I64:
    """int64[rows]: position, from 0, of each row in the order of its list; items missing from the order come last."""
    ordered_key = np.arange(len(order), dtype=np.int64)[:, None] << 32 | order.astype(np.int64).clip(0)
    row_key = lists.group.astype(np.int64) << 32 | lists.item.astype(np.int64)
    by_key = np.argsort(row_key)
    at = np.minimum(np.searchsorted(row_key[by_key], ordered_key), len(row_key) - 1)
    match = (row_key[by_key][at] == ordered_key) & (order >= 0)
    score = np.full(lists.rows, np.nan)
    score[by_key[at[match]]] = -np.nonzero(match)[1].astype(np.float64)
    return places(score, lists.start, tie_break(lists.item, lists.start))


def _gains(lists: Lists, ranker: I32) -> tuple[F64, F64]:
    """float64[positions] each: mean gain by shown position, and the factor on it by the ranker's position."""
    gain, position = lists.gain.astype(np.float64), lists.position.astype(np.int64).clip(0)
    longest = int(np.diff(lists.start).max(initial=1))
    mean = float(gain.mean()) if len(gain) else 0.0
    if not mean:
        return np.zeros(longest), np.ones(longest)
    position = np.minimum(position, longest - 1)
    gain_at = (np.bincount(position, gain, longest) + _STRENGTH * mean) / (
        np.bincount(position, minlength=longest) + _STRENGTH
    )
    rank = _places(lists, ranker)
    expected = np.bincount(rank, gain_at[position], longest)
    return gain_at, (np.bincount(rank, gain, longest) + _STRENGTH * mean) / (expected + _STRENGTH * mean)


def _truth(lists: Lists, place: I64, utility: F64) -> float:
    """The true value in a simulated shop, where the examination probability of each position is known."""
    examination_probability = power_law(int(place.max(initial=0)) + 1, POSITION_BIAS)[place]
    return float((utility * examination_probability)[place < K].sum() / len(lists))
