"""Knowledge of a user's candidates: the posterior of the log odds that they click each of them.

The mean is the ranker's score, calibrated. The variance has two parts. The item's: the ranker predicts a new item from
its description, from which items differ by `item_spread`, and each expected click on the item narrows that, in the
normal approximation of a Beta-Binomial posterior in log odds. And the user's: the posterior of their taste, in the
direction of the item's factor (`features.taste`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from features.arrays import F64, I32, Bool
from features.decay import HALF_LIVES_S
from features.history import History
from features.log import Kind
from features.moment import Items, Moment
from ranker.calibration import Maps, OutcomeMap
from serving.config import ExplorationConfig
from serving.rules import RuleError

_DAY_S = 86400.0
_LONGEST = len(HALF_LIVES_S) - 1
_USUAL_SPREAD = 0.5
"""Variance of items around the prediction from their description, in squared log odds, where it is not known."""
_SPREADS = (0.1, 2.0)
"""Range of the estimate, so that a few items cannot make exploration useless or boundless."""
_LEAST_EXPECTED = 1.0
"""Expected clicks of an item from which its clicks count for the estimate."""


class Belief(NamedTuple):
    """The posterior of a click on each candidate, in the ranker's order. float64[c] each.

    chance: the calibrated probability of a click, in (0, 1). deviation: standard deviation of its log odds, above 0.
    new: bool[c], whether the item is new on sale, with few impressions. movable: bool[c], false for items outside the
    catalogue.
    """

    chance: F64
    deviation: F64
    new: Bool
    movable: Bool


def belief_of(
    items: Items,
    spread: float,
    history: History,
    item: I32,
    score: F64,
    at: float,
    click: OutcomeMap,
    config: ExplorationConfig,
) -> Belief:
    """The belief about candidates. item: int32[c], catalogue rows, best first. score: float64[c], the ranker's.

    spread: from `item_spread`. click: the map from scores to click probabilities.
    """
    moment = Moment(items, history, item, at)
    chance = np.clip(click(score), 1e-6, 1 - 1e-6)
    shown = moment.counts[:, Kind.IMPRESSION, _LONGEST]
    rate = np.nan_to_num(moment.click_rate, nan=click.rate)
    known = item >= 0
    of_item = 1.0 / (1.0 / spread + shown * rate * (1.0 - rate))
    too_old = at - items.catalogue.available_from[item] > config.new_days * _DAY_S  # false without a date
    new = known & (shown < config.new_below) & ~too_old
    return Belief(chance, np.sqrt(of_item + moment.taste_variance), new, known)


def item_spread(items: Items, at: float) -> float:
    """Variance of the items' log odds of a click around the prediction from their description, 0.1 to 2.

    A moment estimate: squared differences between observed and expected clicks, minus those of binomial draws, relative
    to the squared information of the impressions. 0.5 if no item has been shown often enough.
    """
    n = len(items.catalogue)
    counts = items.state.of_items(np.arange(n, dtype=np.int32), at)[:, :, _LONGEST]
    shown, clicks, rate = counts[:, Kind.IMPRESSION], counts[:, Kind.CLICK], items.prior[:n].astype(np.float64)
    with np.errstate(invalid="ignore"):  # NaN where no lists were logged
        used = shown * rate >= _LEAST_EXPECTED
    shown, clicks, rate = shown[used], clicks[used], rate[used]
    binomial = shown * rate * (1.0 - rate)
    information = float((binomial**2).sum())
    if not information:
        return _USUAL_SPREAD
    excess = float(((clicks - shown * rate) ** 2 - binomial).sum())
    return float(np.clip(excess / information, *_SPREADS))


def check_exploration(config: ExplorationConfig | None, maps: Maps, path: str) -> None:
    """Raise RuleError if lists are explored by the probability of a click, and the release has none.

    maps: of the release. path: of the exploration in the configuration.
    """
    if config is not None and config.by_posterior and "click" not in maps:
        raise RuleError(
            path,
            "the release has no probability of a click: its log had too few, or it was made by an earlier version; use "
            "the mode swaps, or make a new release from a longer log",
        )
