"""What an objective earns in the simulated shop, by its hidden truth: `python -m tests.bench.objective`.

A shop whose items have margins is simulated; with `--complements`, its shoppers also add complements to their carts. A
nightly run trains a ranker and fits the probabilities of outcomes. The lists of the test window are then ordered for an
objective, at many weights. The simulation knows the probability of every click and purchase, so the expected clicks,
sales (price) and margin of an order are exact, and only the choice of lists and shoppers is random. As in a placement
with `limit: 10`, the first ten of the 24 items are shown, and examined as in the simulation.

Compared are, at the same loss of clicks, from the order without an objective:

- calibrated: the objective as served, whose probabilities are maps of the ranker's score.
- second model: the same with purchase probabilities of LightGBM trained on purchases, of the rows of the ranker.
- added value: the standardised score plus the standardised value times a factor, without probabilities.
- truth: the same objective with the true probabilities, from its own order without an objective.

Also printed: log loss and calibration error of the maps, of other scalings of the score, and of the second model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import lightgbm
import numpy as np
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from features.arrays import F32, F64, Bool
from features.log import Lists
from features.table import rows
from offline.config import POSITION_BIAS, Config, SimulateConfig
from offline.data import query_groups
from offline.evaluation.objectives import reordered
from offline.evaluation.outcomes import ScoredLists, log_loss
from offline.evaluation.systems import SHOWN
from offline.nightly import Night
from offline.nightly.artefacts import Artefacts
from offline.simulation import simulate
from offline.simulation.dataset import open_shop
from ranker.calibration import OUTCOMES, calibration, click_probability
from ranker.examination import power_law
from ranker.metrics import intervals, tie_break
from ranker.offpolicy import places
from serving.config import ObjectiveConfig
from serving.ranking import Objective, Worth

WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
SERVED = "calibrated, floor 0.2"
LOSSES = (0.5, 1.0, 2.0, 5.0)
"""Losses of clicks, in percent, at which the earnings are compared."""
FACTORS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 2.0)


class Log(NamedTuple):
    """Shown lists of the ranker, validation and test window, with and without gain, and their feature rows."""

    lists: Lists
    table: F32
    warm: Bool


def record_truth(config: Config) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Items, P(click) and P(purchase) of each list by its number, as the simulation draws from them."""
    shop, out = open_shop(config.simulate), {}
    shown, would = shop.shown, shop.would
    last: dict[str, Any] = {}

    def recorded_would(*args: Any, **options: Any) -> Any:
        found = would(*args, **options)
        last.setdefault("of the list", found)  # later calls are for what shoppers add to the cart
        return found

    def recorded_shown(day: int, lists: Any, first: int, item: Any, *args: Any, **options: Any) -> Any:
        last.clear()
        log = shown(day, lists, first, item, *args, **options)
        r = last["of the list"]
        for k in range(len(item)):
            out[first + k] = (item[k], r.click[k], r.click[k] * r.cart[k] * r.purchase[k])
        return log

    shop.would, shop.shown = recorded_would, recorded_shown  # type: ignore[method-assign]
    for day in range(config.simulate.days):
        shop.day(day)
    return out


def replayed(a: Artefacts) -> Log:
    """All logged lists from the start of the ranker window on."""
    lists = query_groups.concat(list(a.inputs.short_lists()))
    lists = lists.take(np.flatnonzero(lists.at >= a.windows.ranker))
    table, warm = np.empty((lists.rows, len(a.replay.features)), np.float32), np.empty(len(lists), bool)
    for r in a.replay.snapshots(lists):
        table[lists.start[r.number] : lists.start[r.number + 1]] = rows(
            r.items, r.history, r.candidates, r.at, r.context
        )
        warm[r.number] = bool(len(r.history.item) or len(r.history.shown_item))
    return Log(lists, table, warm)


def list_means(lists: Lists, values: F64) -> F64:
    """float64[rows]: the mean of each list."""
    mean: F64 = (np.add.reduceat(values, lists.start[:-1]) / np.diff(lists.start))[lists.group]
    return mean


def scaled(lists: Lists, score: F64, how: str) -> F64:
    """Scores on another scale within each list."""
    centred = score - list_means(lists, score)
    if how == "minus the mean of its list":
        return centred
    if how == "standardised in its list":
        return centred / np.maximum(np.sqrt(list_means(lists, centred**2)), 1e-9)
    if how == "as log softmax of its list":
        out: F64 = score - np.log(np.add.reduceat(np.exp(score), lists.start[:-1]))[lists.group]
        return out
    return score


def logistic(x: F64) -> F64:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))


def shifted_loss(lists: Lists, probability: F64, occurred: Bool) -> F64:
    """float64[lists]: log loss after a shift of the log odds of each list to its own number of outcomes.

    What is left is how well the items of a list are told apart, which is all that orders them. NaN for a list with
    none, or all.
    """
    odds, begin = np.log(probability / (1 - probability)), lists.start[:-1]
    count = np.add.reduceat(occurred.astype(np.float64), begin)
    low, high = np.full(len(lists), -30.0), np.full(len(lists), 30.0)
    for _ in range(50):
        middle = (low + high) / 2
        too_low = np.add.reduceat(logistic(odds + middle[lists.group]), begin) < count
        low, high = np.where(too_low, middle, low), np.where(too_low, high, middle)
    p = logistic(odds + low[lists.group]).clip(1e-9, 1 - 1e-9)
    loss = np.add.reduceat(-np.where(occurred, np.log(p), np.log1p(-p)), begin) / np.diff(lists.start)
    return np.where((count > 0) & (count < np.diff(lists.start)), loss, np.nan)


def second_model(log: Log, least: int, learn: Bool, valid: Bool) -> F64:
    """float64[rows]: probability of an outcome by a model of its own, trained like the ranker, with a refit."""
    settings = {"objective": "binary", "num_leaves": 15, "learning_rate": 0.05, "min_data_in_leaf": 100}
    settings |= {"feature_fraction": 0.6, "lambda_l2": 10.0, "num_threads": 1, "verbosity": -1, "seed": 0}
    y = log.lists.gain > least
    data = lightgbm.Dataset(log.table[learn], y[learn])
    stop = lightgbm.early_stopping(50, verbose=False)
    found = lightgbm.train(
        settings, data, 500, valid_sets=[lightgbm.Dataset(log.table[valid], y[valid], reference=data)], callbacks=[stop]
    )
    both = lightgbm.Dataset(log.table[learn | valid], y[learn | valid])
    return np.asarray(lightgbm.train(settings, both, found.best_iteration).predict(log.table))


def compare_probabilities(a: Artefacts, log: Log, learn: Bool, valid: Bool, tested: Bool) -> F64:
    """Print errors of the probabilities on the test lists; returns those of purchases by the second model."""
    before, after = a.trees_before_refit.score(log.table), a.trees.score(log.table)
    lists, out = log.lists, np.empty(0)
    for least, outcome in enumerate(OUTCOMES):
        y = lists.gain > least
        found = {"rate of the validation lists": np.full(lists.rows, y[valid].mean())}
        for how in ("score", "minus the mean of its list", "standardised in its list", "as log softmax of its list"):
            slope, intercept = click_probability(scaled(lists, before, how)[valid], y[valid])
            found["map of the score" if how == "score" else f"map of the score {how}"] = logistic(
                slope * scaled(lists, after, how) + intercept
            )
        isotonic = IsotonicRegression(out_of_bounds="clip").fit(before[valid], y[valid])
        found["isotonic map of the score"] = isotonic.predict(after).clip(1e-6, 1 - 1e-6)
        old, new = (np.column_stack([s, list_means(lists, s)]) for s in (before, after))
        both = LogisticRegression(C=1e6).fit(old[valid], y[valid])
        found["map of the score and the mean"] = both.predict_proba(new)[:, 1]
        out = found["second model"] = second_model(log, least, learn, valid)
        loss = {name: np.where(y, -np.log(p), -np.log1p(-p)) for name, p in found.items()}
        for name, p in found.items():
            error = calibration(p[tested], y[tested]).error
            mean = np.add.reduceat(loss[name] - loss["map of the score"], lists.start[:-1]) / np.diff(lists.start)
            of_tests = tested[lists.start[:-1]]
            d, low, high = (x[0] for x in intervals(mean[of_tests, None], lists.user[of_tests]))
            total = log_loss(p[tested], y[tested])
            print(
                f"{outcome:9s} {name:42s} error {error:.4f}  log loss {total:.5f}  {d:+.5f} [{low:+.5f}, {high:+.5f}]"
            )
        one, two = (shifted_loss(lists, found[name], y) for name in ("map of the score", "second model"))
        used = tested[lists.start[:-1]] & np.isfinite(one)
        d, low, high = (x[0] for x in intervals((two - one)[used, None], lists.user[used]))
        print(
            f"{outcome:9s} each list shifted to its number of outcomes: map {one[used].mean():.5f}, "
            f"second model {d:+.5f} [{low:+.5f}, {high:+.5f}]"
        )
    return out


class Earned(NamedTuple):
    """Expected clicks, sales and margin of each list, float64[lists], if it had been shown in an order."""

    clicks: F64
    sales: F64
    margin: F64


class Judge:
    """The true expectation of orders of lists."""

    def __init__(
        self, scored: ScoredLists, truth: Mapping[int, Any], amounts: Mapping[str, F64], item_ids: Any
    ) -> None:
        lists = self.lists = scored.lists
        width = len(item_ids[0]) - 1
        number = {int(i[-width:]): k for k, i in enumerate(item_ids)}
        self.click, self.purchase = np.empty(lists.rows), np.empty(lists.rows)
        for g, request in enumerate(lists.request_ids):
            item, click, purchase = truth[int(str(request)[1:])]
            row = {number[i]: k for k, i in enumerate(item.tolist()) if i in number}
            at = [row[i] for i in lists.item[lists.start[g] : lists.start[g + 1]].tolist()]
            self.click[lists.start[g] : lists.start[g + 1]] = click[at]
            self.purchase[lists.start[g] : lists.start[g + 1]] = purchase[at]
        self.amounts = {name: amount[lists.item] for name, amount in amounts.items()}
        self.ties = tie_break(lists.item, lists.start)

    def earned(self, score: F64) -> Earned:
        """What an order is expected to earn."""
        place = places(score, self.lists.start, self.ties)
        seen = np.where(place < SHOWN, power_law(int(place.max()) + 1, POSITION_BIAS)[place], 0.0)
        values = (self.click, self.purchase * self.amounts["price"], self.purchase * self.amounts["margin"])
        return Earned(*(np.add.reduceat(seen * v, self.lists.start[:-1]) for v in values))


def at_loss(curve: list[Earned], loss: float) -> Earned | None:
    """What each list earns where mean clicks are `loss` percent below the first, between two points of a curve."""
    target = curve[0].clicks.mean() * (1 - loss / 100)
    for one, two in pairwise(curve):
        high, low = one.clicks.mean(), two.clicks.mean()
        if high >= target > low:
            share = (high - target) / (high - low)
            return Earned(*((1 - share) * x + share * y for x, y in zip(one, two, strict=True)))
    return None


def change(new: Earned, old: Earned, field: str, user: Any) -> str:
    """Relative change of a mean in percent, with the interval of a bootstrap over shoppers."""
    a, b = getattr(new, field), getattr(old, field)
    d, low, high = (float(x[0]) * 100 / b.mean() for x in intervals((a - b)[:, None], user))
    return f"{d:+6.2f}% [{low:+.2f}, {high:+.2f}]"


def main() -> None:
    """Parse arguments, run the night if needed, and print the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--users", type=int, default=2500)
    parser.add_argument("--days", type=int, default=28)
    parser.add_argument("--items", type=int, default=SimulateConfig().items)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--complements", type=float, default=0.0, help="as `simulate.complements`")
    parser.add_argument("--workspace", type=Path, help="kept and used again; by default a temporary folder")
    parser.add_argument("--quick", action="store_true", help="a tiny shop, only to show that it runs")
    given = parser.parse_args()
    if given.quick:
        given.users, given.days, given.items = 200, 12, 150
    with tempfile.TemporaryDirectory() as folder:
        run(given, given.workspace or Path(folder))


def run(given: argparse.Namespace, workspace: Path) -> None:
    shop = {"users": given.users, "days": given.days, "lists_per_user_day": 0.3, "explore": 0.1, "margins": True}
    shop |= {"complements": given.complements, "items": given.items}
    config = Config.model_validate(
        {
            "workspace": str(workspace),
            "simulate": shop | {"seed": given.seed},
            "features": {"attributes": {"margin": "value"}},
            "encoder": {"refreshes": 0, "budget_s": 2 if given.quick else 40},
        }
    )
    if not (config.data / "items.parquet").is_file():
        simulate(config.simulate, config.data)
    a = Night(config).run_to("probabilities")
    log = replayed(a)
    of_row = log.lists.at[log.lists.group]
    learn, tested = of_row < a.windows.validation, of_row >= a.windows.test
    valid = ~learn & ~tested
    print(f"{len(log.lists):,} lists; rows: {learn.sum():,} ranker, {valid.sum():,} validation, {tested.sum():,} test")
    purchase = compare_probabilities(a, log, learn, valid, tested)
    chosen = np.flatnonzero(log.lists.at >= a.windows.test)
    scored = ScoredLists(log.lists.take(chosen), a.trees.score(log.table[tested]), log.warm[chosen])
    print(json.dumps(compare_orders(a, scored, purchase[tested], record_truth(config))))


def compare_orders(a: Artefacts, scored: ScoredLists, purchase: F64, truth: Mapping[int, Any]) -> dict[str, float]:
    """Print what each way of ordering earns by weight, and at equal losses of clicks."""
    out: dict[str, float] = {}
    catalogue = a.inputs.data.catalogue
    objectives = {
        value: Objective.of(ObjectiveConfig(value=value, weight=0.5, floor=0), a.maps, catalogue, "objective")
        for value in ("price", "margin")
    }
    judge = Judge(scored, truth, {n: o.amount for n, o in objectives.items()}, catalogue.item_ids)
    base, user = judge.earned(scored.score), scored.lists.user
    print(f"per list: clicks {base.clicks.mean():.3f}, sales {base.sales.mean():.3f}, margin {base.margin.mean():.3f}")
    for value, field in (("price", "sales"), ("margin", "margin")):
        curves = curves_of(judge, objectives[value], scored, purchase)
        print(f"\nobjective: purchases times {value}; by weight, calibrated, floor 0.2")
        for weight, point in zip(WEIGHTS, curves[SERVED], strict=True):
            figures = "  ".join(f"{n} {change(point, base, n, user)}" for n in Earned._fields)
            print(f"weight {weight:4.2f}  {figures}")
            earned = [100 * (getattr(point, n).mean() / getattr(base, n).mean() - 1) for n in ("clicks", field)]
            out |= {f"{n} at {value} {weight:g}": round(x, 3) for n, x in zip(("clicks", field), earned, strict=True)}
        for loss in LOSSES:
            at = {name: at_loss(curve, loss) for name, curve in curves.items()}
            for name, found in at.items():
                text = "not reached" if found is None else change(found, curves[name][0], field, user)
                print(f"clicks -{loss:g}%: {name:24s} {field} {text}")
            one, two = at[SERVED], at["second model, floor 0.2"]
            if one and two:
                more = Earned(*(x - y + z for x, y, z in zip(two, one, base, strict=True)))
                print(f"clicks -{loss:g}%: second model more than calibrated: {change(more, base, field, user)}")
    return out


def curves_of(judge: Judge, objective: Objective, scored: ScoredLists, purchase: F64) -> dict[str, list[Earned]]:
    """What each way of ordering earns, by its weight. purchase: float64[rows], of the second model."""
    lists, amount = scored.lists, objective.amount[scored.lists.item]
    worth = objective.worth(scored.score, lists.item)
    out = {f"calibrated, floor {floor:g}": _curve(judge, objective, scored, worth, floor) for floor in (0, 0.2, 0.5)}
    other = worth._replace(value=purchase * amount / objective.scale)
    out["second model, floor 0.2"] = _curve(judge, objective, scored, other, 0.2)
    score, value = (scaled(lists, x, "standardised in its list") for x in (scored.score, amount))
    out["added value"] = [judge.earned(score + factor * value) for factor in FACTORS]
    relevance = judge.click / judge.click.mean()
    expected = judge.purchase * amount / (judge.purchase.mean() * np.abs(objective.amount).mean())
    out["truth"] = [judge.earned((1 - w) * relevance + w * expected) for w in WEIGHTS]
    return out


def _curve(judge: Judge, objective: Objective, scored: ScoredLists, worth: Worth, floor: float) -> list[Earned]:
    config = objective.config.model_copy(update={"floor": floor})
    at = Objective(config, objective.maps, objective.amount, objective.assumed, objective.scale)
    return [judge.earned(reordered(at, scored, worth, weight)) for weight in WEIGHTS]


if __name__ == "__main__":
    main()
