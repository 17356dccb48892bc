"""The incremental estimate: what treated users bought beyond those of the holdout.

A user counts from the first list of the experiment that was served to them, with all they bought since, on any page of
the shop. As in reports of experiments, a served list with items is an exposure, whether or not an impression is
reported: an arm whose pages are left before they are seen must not lose those users. The arms are drawn at random, so
without an effect users of both would buy the same on average. The difference per user, times the number of treated
users, is what the lists brought. Last touch cannot tell that: it also credits lists with what users would have bought
without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from features.arrays import F64, I64
from offline.data import DAY_US
from offline.earnings.cells import Cell
from offline.earnings.rows import Rows, first_rows
from offline.earnings.sums import OUTCOMES
from offline.experiments import Moments, add_days, contrast, estimate, interval, sample_ratio, tuned_target
from serving.config import ExperimentConfig

PLANNED_DAYS = 28.0
"""Days for which the intervals of an experiment without start and end are narrowest."""
_BEFORE = "revenue before"
_COLUMNS = (*OUTCOMES, _BEFORE)


class Holdout(NamedTuple):
    """An experiment with a holdout. arms: names, the holdout first. shares: expected, by arm."""

    experiment: str
    arms: tuple[str, ...]
    shares: tuple[float, ...]
    planned_days: float


def _held(config: ExperimentConfig) -> str | None:
    """The holdout: the first arm with an `order` in place of the ranker's."""
    return next((arm for arm, c in config.arms.items() if c.order is not None), None)


def why_not_incremental(experiments: Mapping[str, ExperimentConfig]) -> dict[str, str]:
    """The experiments without an incremental estimate, and why they have none, as the end of a sentence."""
    out = {}
    for name, config in experiments.items():
        if config.interleave:
            out[name] = "its lists mix both arms (interleave), so no user is without either"
        elif config.unit != "user":
            out[name] = "its unit is the session, and a shopper buys later, in sessions of other arms"
        elif _held(config) is None:
            out[name] = "it has no holdout, which is an arm with an order"
    return out


def holdouts(experiments: Mapping[str, ExperimentConfig]) -> list[Holdout]:
    """The experiments that have an incremental estimate: over users, with a holdout."""
    out, none = [], why_not_incremental(experiments)
    for name, config in experiments.items():
        held = _held(config)
        if held is None or name in none:
            continue
        arms = (held, *(arm for arm in config.arms if arm != held))
        planned = PLANNED_DAYS
        if config.start is not None and config.end is not None:
            planned = (config.end - config.start).total_seconds() / 86400
        out.append(Holdout(name, arms, tuple(config.arms[arm].share for arm in arms), planned))
    return out


class HoldoutSums:
    """Sums of the outcomes of the users of an experiment, by arm, up to each day.

    in_two_arms: users with lists of several arms, such as guests who log in. They are left out.
    """

    def __init__(self, holdout: Holdout, cells: Sequence[Cell], first_day: int, days: int, until: int) -> None:
        """first_day: days since 1970. until: Unix microseconds; what is bought after it does not count."""
        self.holdout, self.first_day, self._days, self._until = holdout, first_day, days, until
        number = {arm: k for k, arm in enumerate(holdout.arms)}
        arms = (dict(cell.arms).get(holdout.experiment, "") for cell in cells)
        self._arm_of_cell = np.array([number.get(arm, -1) for arm in arms], np.int64)
        self._changes = np.zeros((days, len(number), len(_COLUMNS) + 1, len(_COLUMNS) + 1))
        self.in_two_arms = 0

    def add(self, lists: Rows, bought: Rows) -> None:
        """Add the users of a file. lists: those served to them. bought: their purchases and returns."""
        lists = lists[(lists["user"] != 0) & (lists["cell"] >= 0)]
        lists = lists[self._arm_of_cell[lists["cell"]] >= 0]
        lists = lists[np.lexsort((lists["at"], lists["user"]))]
        if not len(lists):
            return
        start = first_rows(lists["user"])
        arm = self._arm_of_cell[lists["cell"]]
        arms = np.minimum.reduceat(arm, start), np.maximum.reduceat(arm, start)
        one = arms[0] == arms[1]
        self.in_two_arms += int((~one).sum())
        user, since, arm = lists["user"][start[one]], lists["at"][start[one]], arms[0][one]
        if not len(user):
            return

        unit = np.minimum(np.searchsorted(user, bought["user"]), len(user) - 1)
        counts = (user[unit] == bought["user"]) & (bought["at"] <= self._until)
        bought, unit = bought[counts], unit[counts]
        later = bought["at"] >= since[unit]
        values = np.zeros((len(user) + int(later.sum()), len(_COLUMNS)))
        for column, name in enumerate(OUTCOMES):
            values[len(user) :, column] = np.nan_to_num(bought[name][later])
        values[: len(user), -1] = np.bincount(unit[~later], np.nan_to_num(bought["revenue"][~later]), len(user))
        units = np.concatenate((np.arange(len(user)), unit[later]))
        day = np.concatenate((since, bought["at"][later])) // DAY_US - self.first_day
        self._add_rows(units, arm, np.clip(day, 0, self._days - 1), values)

    def _add_rows(self, unit: I64, arm: I64, day: I64, values: F64) -> None:
        """Sum the rows of each unit and day, and add them."""
        key = unit * self._days + day
        keys, row = np.unique(key, return_inverse=True)
        by_day = np.zeros((len(keys), values.shape[1]))
        np.add.at(by_day, row, values)
        units = keys // self._days
        add_days(self._changes, units, arm[units], keys % self._days, by_day)

    def moments(self) -> Moments:
        """The sums over users up to the end of each day."""
        return Moments(("unit", *_COLUMNS), self._changes.cumsum(axis=0))


def incremental(sums: HoldoutSums) -> dict[str, Any]:
    """The estimates of an experiment by treated arm and day, and whether its arms have as many users as they should.

    All intervals are of 95%: `low` and `high` are always valid, `fixed_low` and `fixed_high` only for a single look.
    None stands for what is unknown, as while an arm has fewer than two users.
    """
    holdout, moments = sums.holdout, sums.moments()
    units = moments.units
    ratio = sample_ratio(units, holdout.shares)
    used = np.flatnonzero(units.sum(axis=1) > 0)
    treated = [
        {
            "arm": arm,
            "users": int(units[-1, k]),
            "outcomes": {name: _estimates(sums, moments, k, name, used) for name in OUTCOMES},
        }
        for k, arm in enumerate(holdout.arms)
        if k
    ]
    return {
        "experiment": holdout.experiment,
        "holdout": holdout.arms[0],
        "holdout_users": int(units[-1, 0]),
        "in_two_arms": sums.in_two_arms,
        "sample_ratio": {"p": ratio.p, "alarm": ratio.alarm},
        "treated": treated,
    }


def _estimates(sums: HoldoutSums, moments: Moments, arm: int, outcome: str, days: I64) -> list[dict[str, Any]]:
    """The estimate of an outcome up to the end of each of these days."""
    found = estimate(moments, outcome, covariates=(_BEFORE,))
    difference = contrast(found, arm)
    since_start = np.arange(1.0, len(moments.units) + 1) - (days[0] if len(days) else 0)
    target = tuned_target(difference.time, since_start, sums.holdout.planned_days)
    out = []
    for day in days.tolist():
        users = float(moments.units[day, arm])
        i = interval(float(difference.value[day]), float(difference.variance[day]), float(difference.time[day]), target)
        ends = {"value": i.value, "low": i.low, "high": i.high, "fixed_low": i.fixed_low, "fixed_high": i.fixed_high}
        out.append(
            {"day": sums.first_day + day, "users": int(users)}
            | {name: _known(users * end) for name, end in ends.items()}
            | {"per_user": _known(i.value), "of_holdout": _known(float(found.value[day, 0]))}
        )
    return out


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None
