"""False alarms and power of the analysis of experiments, on simulated shops and on real experiments.

    python -m tests.bench.experiments [--tests 2000] [--days 28] [--users 6000] [--real checkpoints.parquet]

Simulated: A/A tests that are looked at every day. Shoppers differ in how often they come and buy; most buy nothing, and
the value of orders has a heavy tail: see `Shop`. `naive` tests with a fixed horizon every day and stops at the first
p < 0.05. For power, the arm buys more (clicks more, for clicks per list), by as much as a test with a fixed horizon
finds with a probability of 80% at the end. The sample ratio is tested every day at 50:50 and at a planted 51:49.

Real: checkpoints of experiments of a shop (counts, means and variances of both arms over time), for which the truth is
not known: how often each test stops, and when.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from scipy.special import ndtr, ndtri  # type: ignore[import-untyped]

from features.arrays import F64
from offline.experiments.statistics import (
    ALPHA,
    LEVEL,
    UNIT,
    Contrast,
    Moments,
    add_days,
    contrast,
    estimate,
    log_bayes_factor,
    sequential_p,
    tuned_target,
)
from offline.runtime import progress_bar

REAL = Path(__file__).resolve().parents[3] / "shared/data/experiments/checkpoints.parquet"
COLUMNS = (UNIT, "lists", "clicks", "purchases", "revenue", "clicks_before", "purchases_before", "revenue_before")
METRICS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "revenue per user": ("revenue", UNIT, ()),
    "revenue per user, CUPED": ("revenue", UNIT, ("revenue_before", "purchases_before", "clicks_before")),
    "purchases per user": ("purchases", UNIT, ()),
    "clicks per list": ("clicks", "lists", ()),
}
"""Numerator, denominator and covariates."""
LEAST = 100
"""Users an arm needs before its first look."""
_BUYERS = "revenue per user, CUPED", "revenue per user", "purchases per user"


class Shop(NamedTuple):
    """A simulated shop.

    A shopper sees lists as a Poisson process whose rate is gamma distributed (shape 0.5, mean `lists_per_day`), clicks
    0.4 times per list (shape 1) and orders 0.03 times per list (shape 0.5) on average. The value of an order is
    log-normal (median 30, sigma 1); one in a hundred is thirty times as large. clicks, orders: factors of the rates in
    the second arm. share: of the second arm. together: all shoppers come on the first day, do not differ, and order at
    a constant rate, so that the data grow without new users.
    """

    users: int
    days: int
    clicks: float = 1.0
    orders: float = 1.0
    share: float = 0.5
    lists_per_day: float = 0.15
    together: bool = False

    def test(self, rng: np.random.Generator) -> Moments:
        """An experiment, with sums over users up to the end of each day."""
        n, days = self.users, self.days
        rate, click, order = (
            mean * (np.ones(n) if self.together else rng.gamma(shape, 1 / shape, n))
            for mean, shape in ((self.lists_per_day, 0.5), (0.4, 1.0), (0.03, 0.5))
        )
        arm = (rng.random(n) < self.share).astype(np.int64)
        shown = rng.poisson(rate[:, None], (n, days))
        if self.together:
            shown[:, 0] = np.maximum(shown[:, 0], 1)
        user, day = np.nonzero(shown)
        lists = shown[user, day]
        clicks = rng.poisson(lists * click[user] * np.where(arm[user] == 1, self.clicks, 1.0))
        orders = rng.poisson(lists * order[user] * np.where(arm[user] == 1, self.orders, 1.0))
        seen_before = rng.poisson(days * rate)
        before = [rng.poisson(seen_before * click), (orders_before := rng.poisson(seen_before * order))]
        first = np.append(True, user[1:] != user[:-1])
        values = np.column_stack(
            [lists, clicks, orders, _value(rng, orders)]
            + [np.where(first, b[user], 0.0) for b in (*before, _value(rng, orders_before))]
        ).astype(np.float64)
        sums = np.zeros((days, 2, len(COLUMNS), len(COLUMNS)))
        add_days(sums, user, arm[user], day, values)
        return Moments(COLUMNS, sums.cumsum(axis=0))


def _value(rng: np.random.Generator, orders: np.ndarray) -> F64:
    """float64[n]: the value of this many orders."""
    each = rng.lognormal(np.log(30), 1.0, int(orders.sum())) * np.where(rng.random(int(orders.sum())) < 0.01, 30, 1)
    return np.bincount(np.repeat(np.arange(len(orders)), orders), each, len(orders)).astype(np.float64)


class Looks(NamedTuple):
    """p by look of the test with a fixed horizon, of the always-valid test, and of that with units as its time."""

    fixed: F64
    always: F64
    units: F64


def looks(found: Contrast, units: F64, days: F64, planned: float) -> Looks:
    """The p of each look; NaN before the first one. units: float64[looks], of both arms."""
    with np.errstate(divide="ignore", invalid="ignore"):
        z = found.value / np.sqrt(found.variance)
        by_units = np.where(np.isfinite(z), units, np.nan)
        return Looks(
            np.asarray(2 * ndtr(-np.abs(z))),
            sequential_p(z, found.time, tuned_target(found.time, days, planned)),
            sequential_p(z, by_units, tuned_target(by_units, days, planned)),
        )


def first_stop(p: F64) -> int | None:
    """The first look with p <= 0.05; None without."""
    found = np.flatnonzero(p <= ALPHA)
    return int(found[0]) if len(found) else None


def stops(shop: Shop, tests: int, seed: int, metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By metric: share of the tests that each method stops, and the mean day of those that it stops.

    `relative_se`: the standard error at the end relative to the mean, averaged over the tests.
    """
    days = np.arange(1.0, shop.days + 1)
    out: dict[str, list[list[Any]]] = {name: [] for name in metrics}
    with progress_bar("Tests") as on_progress:
        for number in range(tests):
            moments = shop.test(np.random.default_rng([seed, number]))
            for name, (numerator, denominator, covariates) in metrics.items():
                found = estimate(moments, numerator, denominator, covariates, LEAST)
                between = contrast(found, 1)
                p = looks(between, moments.units.sum(axis=1), days, shop.days)
                relative = np.sqrt(between.variance[-1]) / found.value[-1, 0]
                out[name].append(
                    [first_stop(p.fixed), first_stop(p.always), first_stop(p.units), p.fixed[-1], relative]
                )
            on_progress(number + 1, tests)
    return {name: _summary(rows) for name, rows in out.items()}


def _summary(rows: list[list[Any]]) -> dict[str, Any]:
    naive, always, units = ([r[k] for r in rows] for k in range(3))
    return {
        "always_valid": _share(always),
        "always_valid_day": _day(always),
        "units_as_time": _share(units),
        "naive": _share(naive),
        "naive_day": _day(naive),
        "fixed_horizon": round(float(np.mean([r[3] <= ALPHA for r in rows])), 4),
        "relative_se": round(float(np.mean([r[4] for r in rows])), 4),
    }


def _share(stopped: list[int | None]) -> float:
    return round(float(np.mean([s is not None for s in stopped])), 4)


def _day(stopped: list[int | None]) -> float | None:
    days = [s + 1 for s in stopped if s is not None]
    return round(float(np.mean(days)), 1) if days else None


def ratio_alarms(tests: int, units: int, days: int, share: float, seed: int) -> tuple[float, float]:
    """Share of tests with an alarm, sequential and by chi-square at p < LEVEL every day. share: of the second arm."""
    rng, size = np.random.default_rng([seed, 9]), units // days
    counts = rng.binomial(size, share, (tests, days)).cumsum(axis=1)
    arms = np.stack([size * np.arange(1, days + 1) - counts, counts], axis=-1)
    sequential = (log_bayes_factor(arms, (1, 1)) >= -np.log(LEVEL)).any(axis=1)
    z = (arms[..., 1] - arms[..., 0]) / np.sqrt(arms.sum(axis=-1))
    return round(float(sequential.mean()), 4), round(float((np.abs(z) >= -ndtri(LEVEL / 2)).any(axis=1).mean()), 4)


def simulated(tests: int, users: int, days: int, units: int) -> dict[str, Any]:
    """The figures of simulated experiments."""
    null = stops(Shop(users, days), tests, 1, METRICS)
    # The effect, in standard errors, that a test at level 5% finds with a probability of 80%.
    detectable = float(-ndtri(ALPHA / 2) + ndtri(0.8))
    power: dict[str, Any] = {}
    for number, (name, metric) in enumerate(METRICS.items()):
        # A larger effect has a larger variance, so it takes two steps to find the effect.
        lift, few = detectable * float(null[name]["relative_se"]), max(tests // 10, 2)
        for seed, count in ((30 + number, few), (20 + number, few), (10 + number, max(tests // 2, 2))):
            one = stops(Shop(users, days, *_factors(name, lift)), count, seed, {name: metric})[name]
            power[name] = {"lift": round(lift, 4)} | one
            lift = detectable * float(one["relative_se"])
    hard = {
        "shares 90:10": stops(Shop(users, days, share=0.1), max(tests // 2, 2), 2, METRICS),
        "all users from the first day, three times as long": stops(
            Shop(users // 4, 3 * days, together=True), max(tests // 4, 2), 3, METRICS
        ),
    }
    found, found_naive = ratio_alarms(tests, units, days, 0.51, 4)
    false, false_naive = ratio_alarms(tests, units, days, 0.5, 5)
    worst = max(null.values(), key=lambda m: m["always_valid"])
    main_metric = power["revenue per user"]
    return {
        "false_alarm_rate": worst["always_valid"],
        "naive_false_alarm_rate": null["revenue per user"]["naive"],
        "power": main_metric["always_valid"],
        "fixed_horizon_power": main_metric["fixed_horizon"],
        "srm_found": found,
        "srm_false": false,
        "srm_false_chi_square_daily": false_naive,
        "srm_found_chi_square_daily": found_naive,
        "a/a": null,
        "a/b": power,
        "hard a/a": hard,
        "settings": {
            "tests": tests,
            "users": users,
            "days": days,
            "level": 1 - ALPHA,
            "srm_units": units,
            "srm_level": LEVEL,
            "least_users_per_arm": LEAST,
        },
    }


def _factors(name: str, lift: float) -> tuple[float, float]:
    """Factors of clicks and of orders, for a lift of a metric."""
    return (1.0, 1 + lift) if name in _BUYERS else (1 + lift, 1.0)


def real(path: Path, planned: float = 28.0) -> dict[str, Any]:
    """How often the tests stop in real experiments, and when. planned: days, for the scale of the mixture."""
    rows = list(_real_tests(path))
    out: dict[str, Any] = {"experiments": len({r[0] for r in rows}), "tests": len(rows)}
    chances: list[dict[str, Any]] = []
    for _, days, z, time in rows:
        p_fixed = np.asarray(2 * ndtr(-np.abs(z)))
        p_always = sequential_p(z, time, tuned_target(time, days, planned))
        chances.append({"naive": p_fixed, "always_valid": p_always, "end": p_fixed[-1], "days": days})
    for name in ("naive", "always_valid"):
        at = [c["days"][s] for c in chances if (s := first_stop(c[name])) is not None]
        out[name] = round(len(at) / max(len(rows), 1), 4)
        out[f"{name}_median_day"] = round(float(np.median(at)), 1) if at else None
    significant = [c["end"] <= ALPHA for c in chances]
    out["fixed_horizon_at_the_end"] = round(float(np.mean(significant)), 4)
    reversed_ = [not s for c, s in zip(chances, significant, strict=True) if first_stop(c["naive"]) is not None]
    out["naive_stops_not_significant_at_the_end"] = round(float(np.mean(reversed_)), 4)
    kept = [not s for c, s in zip(chances, significant, strict=True) if first_stop(c["always_valid"]) is not None]
    out["always_valid_stops_not_significant_at_the_end"] = round(float(np.mean(kept)), 4)
    return out


def _real_tests(path: Path) -> Iterator[tuple[str, F64, F64, F64]]:
    """(experiment, days, z, time) of each arm and metric, from the checkpoints with a variance and enough users."""
    table = pq.read_table(path).sort_by(
        [(name, "ascending") for name in ("experiment_id", "variant_id", "metric_id", "time_since_start")]
    )
    key = list(zip(*(table[c].to_pylist() for c in ("experiment_id", "variant_id", "metric_id")), strict=True))
    columns = ("time_since_start", "count_c", "count_t", "mean_c", "mean_t", "variance_c", "variance_t")
    days, n_c, n_t, mean_c, mean_t, var_c, var_t = (table[c].to_numpy().astype(np.float64) for c in columns)
    bounds = [k for k in range(len(key)) if not k or key[k] != key[k - 1]] + [len(key)]
    for begin, end in pairwise(bounds):
        part = slice(begin, end)
        variance = var_c[part] / n_c[part] + var_t[part] / n_t[part]
        usable = (variance > 0) & (np.minimum(n_c[part], n_t[part]) >= LEAST)
        if usable.any():
            z = (mean_t[part] - mean_c[part])[usable] / np.sqrt(variance[usable])
            time = np.square(n_c[part] + n_t[part])[usable] * variance[usable]
            yield key[begin][0], days[part][usable], z, time


def main() -> None:
    """Print the figures; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=int, default=2000)
    parser.add_argument("--users", type=int, default=6000, help="shoppers of a test, of whom about two thirds come")
    parser.add_argument("--days", type=int, default=28)
    parser.add_argument("--units", type=int, default=100_000, help="users of a test of the sample ratio")
    parser.add_argument("--real", type=Path, default=REAL, help="checkpoints of real experiments; skipped if missing")
    options = parser.parse_args()
    out = simulated(options.tests, options.users, options.days, options.units)
    if options.real.is_file():
        out["real"] = real(options.real)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
