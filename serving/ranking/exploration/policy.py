"""Exploration by the posterior: the items that the shop knows least about are placed where they may belong.

An explored list is made in two steps. The first chooses its items: the ranker's best, with some of the last replaced by
new items, so that these have their quota. The second arranges them: the most uncertain items are taken out, and merged
again into the others at a place drawn from their posterior. The propensities are those of the second step given the
items, as `ranker.offpolicy` needs them; what the first step draws does not matter for them.

- `thompson`: each place with the posterior probability that the item belongs there. This is Thompson sampling (1933)
  against the others at their expected values, but the probabilities are computed and then drawn from, so that they are
  known. The posterior is logistic in log odds: its distribution function is in closed form, and has heavier tails.
- `ucb`: the place of the upper bound (mean and one standard deviation), and with a probability of 0.1 any other.

Some explored lists keep the ranker's order of their items, at least `_KEPT`: without them, the value of that order
could not be estimated. If the expected clicks given up, discounted by position as in ndcg, would exceed the budget,
more lists keep it, and fewer new items are brought in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from features.arrays import F64, I64
from serving.config import ExplorationConfig
from serving.ranking.exploration.belief import Belief
from serving.ranking.exploration.merge import Merge, positions

_KEPT = 0.2
_MOVED_SHARE, _MOST_MOVED = 0.25, 8
"""Share of the positions whose items are merged again, and their maximum."""
_ANYWHERE = 0.1
"""Probability of a uniform place in mode `ucb`."""


class Explored(NamedTuple):
    """An explored list. order: int64[k], candidates as shown. propensity: float64[k] in (0, 1], see the module.

    lost: expected share of the expected clicks of the ranker's list that is given up; at most the budget.
    """

    order: I64
    propensity: F64
    lost: float


def explore_by_posterior(belief: Belief, length: int, config: ExplorationConfig, rng: np.random.Generator) -> Explored:
    """Draw an explored list of the first `length` candidates and of new ones after them. length: 1 or more."""
    length = min(length, len(belief.chance))
    moved = min(max(1, round(_MOVED_SHARE * length)), _MOST_MOVED, length - 1)
    wanted = min(int(np.ceil(config.quota * length - 1e-9)), moved)
    joining = _newcomers(belief, length, wanted, config, rng)
    within = _most_uncertain(belief, length, moved - len(joining))
    while True:
        arrangement = _Arrangement.of(belief, length, within, joining, config)
        if arrangement is not None:
            return arrangement.draw(rng)
        if not len(joining):
            return Explored(np.arange(length), np.ones(length), 0.0)
        joining = joining[:-1]


def _newcomers(belief: Belief, length: int, wanted: int, config: ExplorationConfig, rng: np.random.Generator) -> I64:
    """int64: new items below the list that join it, so that it has `wanted` of them, most promising first."""
    below = np.flatnonzero(belief.new[length:]) + length
    count = min(max(wanted - int(belief.new[:length].sum()), 0), len(below))
    if not count:
        return np.empty(0, np.int64)
    bound = rng.logistic(size=len(below)) * np.sqrt(3) / np.pi if config.mode == "thompson" else 1.0
    value = _log_odds(belief.chance[below]) + belief.deviation[below] * bound
    return below[np.argsort(-value, kind="stable")[:count]]


def _most_uncertain(belief: Belief, length: int, count: int) -> I64:
    """int64, ascending: the items of the list with the widest posteriors. At least one item stays."""
    deviation = np.where(belief.movable[:length], belief.deviation[:length], -1.0)
    widest = np.argsort(-deviation, kind="stable")[: max(count, 0)]
    return np.sort(widest[deviation[widest] > 0])


@dataclass(frozen=True)
class _Arrangement:
    """The distribution of the order of the items of a list.

    others, merged: int64, the candidates that stay in order, and those that are merged into them. base: int64, gaps of
    the latter in the ranker's order. kept: probability of that order. lost: as in `Explored`.
    """

    others: I64
    merged: I64
    base: I64
    merge: Merge
    kept: float
    lost: float

    @classmethod
    def of(
        cls, belief: Belief, length: int, within: I64, joining: I64, config: ExplorationConfig
    ) -> _Arrangement | None:
        """The arrangement within the budget; None if there is none with these newcomers, or nothing to move."""
        merged = np.concatenate([within, np.sort(joining)])
        if not len(merged):
            return None
        stays = np.ones(length, np.bool_)
        stays[within] = False
        replaceable = np.flatnonzero(stays & ~belief.new[:length])
        stays[replaceable[len(replaceable) - len(joining) :]] = False
        others = np.flatnonzero(stays)
        base = np.searchsorted(others, merged)
        merge = Merge.of(_gaps(belief, others, merged, config))
        weight = 1.0 / np.log2(np.arange(length) + 2.0)
        chance = belief.chance
        ranked = float((chance[:length] * weight).sum())
        place = np.concatenate(positions(base, len(others)))
        in_order = float((chance[np.concatenate([others, merged])] * weight[place]).sum())
        drawn = merge.expected(weight, chance[others], chance[merged])
        least = (1.0 - config.budget) * ranked
        if in_order < least:
            return None
        kept = _KEPT
        if kept * in_order + (1 - kept) * drawn < least:
            kept = min((least - drawn) / (in_order - drawn), 1.0)
        return cls(others, merged, base, merge, kept, 1.0 - (kept * in_order + (1 - kept) * drawn) / ranked)

    def draw(self, rng: np.random.Generator) -> Explored:
        """A list of this distribution."""
        n = len(self.others)
        base = np.concatenate(positions(self.base, n))
        gap = self.base
        if rng.random() >= self.kept:
            cumulative = np.cumsum(self.merge.gap, axis=1)
            gap = np.minimum((cumulative < rng.random((len(gap), 1))).sum(axis=1), n)
        others, merged = positions(gap, n)
        drawn = np.concatenate(self.merge.probability(others, merged))
        place = np.concatenate([others, merged])
        order, propensity = np.empty(len(place), np.int64), np.empty(len(place))
        order[place] = np.concatenate([self.others, self.merged])
        propensity[place] = self.kept * (place == base) + (1 - self.kept) * drawn
        return Explored(order, np.clip(propensity, np.finfo(np.float64).tiny, 1.0), self.lost)


def _gaps(belief: Belief, others: I64, merged: I64, config: ExplorationConfig) -> F64:
    """float64[m, n + 1]: the probability of each place of the merged items among the others."""
    threshold = np.minimum.accumulate(_log_odds(belief.chance[others]))
    mean, deviation = _log_odds(belief.chance[merged])[:, None], belief.deviation[merged][:, None]
    if config.mode == "thompson":
        above = 0.5 * (1.0 + np.tanh((mean - threshold) / (deviation * np.sqrt(3) / np.pi) / 2.0))
        bounds = np.hstack([np.zeros((len(merged), 1)), above, np.ones((len(merged), 1))])
        return np.diff(bounds, axis=1)
    out = np.full((len(merged), len(others) + 1), _ANYWHERE / (len(others) + 1))
    place = (threshold >= mean + deviation).sum(axis=1)
    out[np.arange(len(merged)), place] += 1.0 - _ANYWHERE
    return out


def _log_odds(chance: F64) -> F64:
    out: F64 = np.log(chance / (1.0 - chance))
    return out
