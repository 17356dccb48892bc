"""The feature table: every feature declared once, and `rows`, the only function that computes them.

Replay calls `rows` for each list of the past and the service for each request, with the same arguments at the same
moment: that is the whole of training-serving parity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from itertools import product

import numpy as np

from features.catalogue import Catalogue, Codes, Tags
from features.context import DEVICES, NO_CONTEXT, NO_DEVICE, Context
from features.decay import HALF_LIFE_NAMES
from features.history import History
from features.log import F32, F64, I32, Kind
from features.moment import LONGEST, RATES, Feature, Items, Moment
from features.taste import odds

__all__ = ["FEATURES", "Feature", "Items", "features", "names", "rows", "schema_hash"]

_DAY_S = 86400.0
_YEAR_S = 365.25 * _DAY_S
_NO_LIST = "no items in the user's list"
_NO_LISTS_LOGGED = "the user was shown nothing yet, or lists are not logged"
_NO_TEXT = f"{_NO_LIST}, or the item has no text"


def _popularity() -> list[Feature]:
    out = []
    for kind, h in product((Kind.IMPRESSION, Kind.CLICK, Kind.PURCHASE), range(len(HALF_LIFE_NAMES))):

        def count(m: Moment, kind: Kind = kind, h: int = h) -> F64:
            out: F64 = m.popularity.log_counts[kind, h]
            return out

        name, horizon = kind.name.lower(), HALF_LIFE_NAMES[h]
        about = f"many {name}s lately ({horizon})"
        out.append(Feature(f"item_{name}s_{horizon}", about, "log(1 + decayed count)", "never", count))
    for h in range(len(HALF_LIFE_NAMES)):

        def rate(m: Moment, h: int = h) -> F64:
            out: F64 = m.popularity.click_rates[h]
            return out

        out.append(
            Feature(
                f"item_click_rate_{HALF_LIFE_NAMES[h]}", f"often clicked when shown ({HALF_LIFE_NAMES[h]})",
                "clicks per impression, shrunk toward item_prior", "nothing was shown yet in the shop", rate,
            )
        )  # fmt: skip
    return out


def _views(m: Moment) -> F64:
    out: F64 = m.popularity.log_counts[Kind.VIEW, LONGEST]
    return out


def _carts(m: Moment) -> F64:
    out: F64 = m.popularity.log_counts[Kind.CART, LONGEST]
    return out


def _item_age(m: Moment) -> F64:
    # An item not yet available is as new as can be; the logarithm would have no value below -1 day.
    return np.log1p(np.maximum(m.at - m.items.catalogue.available_from.take(m.candidates), 0.0) / _DAY_S)


_POPULARITY = (
    *_popularity(),
    Feature("item_views_30d", "many views lately", "log(1 + decayed count)", "never", _views),
    Feature("item_carts_30d", "often put into carts lately", "log(1 + decayed count)", "never", _carts),
    Feature("item_purchase_rate", "often bought once clicked", "purchases per click, shrunk",
            "nothing was clicked yet in the shop", lambda m: m.popularity.purchase_rate),
    Feature("item_prior", "the kind of product that is clicked", "clicks per impression",
            "nothing was shown yet when the release was made", lambda m: m.items.prior.take(m.candidates)),
    Feature("item_trend", "gaining attention", "log of one day's engagement over thirty's", "never",
            lambda m: m.popularity.trend),
    Feature("category_click_rate", "its category is often clicked", "clicks per impression, shrunk",
            "nothing was shown yet in the shop", lambda m: m.popularity.category_click_rate),
    Feature("item_age", "time on sale", "log(1 + days)", "no available_from", _item_age),
    Feature("item_price", "price", "log(1 + price)", "no price", lambda m: m.log_price),
)  # fmt: skip


def _taste_strength(m: Moment) -> F64 | float:
    if not len(m.residuals.item):
        return np.nan
    length = float(np.sqrt((m.taste**2).sum()))
    return m.columns["text_taste"].astype(np.float64) * length / (len(m.residuals.item) + 10.0)


_INTEREST = (
    Feature("text_pooled", "like what you looked at, on the whole", "cosine", _NO_TEXT, lambda m: m.interest[-2]),
    Feature("text_max", "much like one thing you looked at", "cosine", _NO_TEXT, lambda m: m.nearest[0]),
    Feature("text_top3", "like several things you looked at", "mean of 3 cosines", _NO_TEXT, lambda m: m.nearest[1]),
    Feature("text_last", "like the last thing you looked at", "cosine", _NO_TEXT,
            lambda m: m.interest[0] if len(m.engaged.item) else np.nan),
    Feature("text_taste", "like what you choose, unlike what you pass over", "cosine", _NO_LISTS_LOGGED,
            lambda m: m.interest[-1]),
    Feature("text_taste_strength", "how clearly your choices point to it", "cosine times weight of evidence",
            _NO_LISTS_LOGGED, _taste_strength),
    Feature("co_occurrence", "chosen by people who chose what you did", "sum of neighbour weights",
            "never: 0 is no neighbour", lambda m: m.co_occurrence[0]),
    Feature("co_occurrence_max", "often chosen together with one thing you chose", "largest neighbour weight",
            "never: 0 is no neighbour", lambda m: m.co_occurrence[1]),
)  # fmt: skip


def _affinity() -> list[Feature]:
    out = []
    for name, plural, tags in (
        ("category", "this category", lambda items: items.category), ("brand", "this brand", lambda items: items.brand),
        ("tag", "such things", lambda items: items.catalogue.tags),
    ):  # fmt: skip

        def share(m: Moment, tags: Callable[[Items], Tags | Codes] = tags) -> F64:
            return m.share(tags(m.items))

        def surprise(m: Moment, tags: Callable[[Items], Tags | Codes] = tags) -> F64:
            return m.surprise(tags(m.items))

        out += [
            Feature(f"{name}_share", f"you often look at {plural}", "share of engagement", f"{_NO_LIST}, or no {name}",
                    share),
            Feature(f"{name}_surprise", f"you choose {plural} more than others do", "clicks above expectation, shrunk",
                    f"{_NO_LISTS_LOGGED}, or no {name}", surprise),
        ]  # fmt: skip
    return out


def _taste_odds(m: Moment) -> F64 | float:
    return odds(m.items.factors, m.candidates, m.leaning) if m.leaning is not None else np.nan


def _click_odds(m: Moment) -> F64:
    rate = np.clip(m.popularity.click_rates[LONGEST], *RATES)
    out: F64 = np.log(rate / (1.0 - rate)) + np.nan_to_num(m.columns["taste_odds"].astype(np.float64))
    return out


_AFFINITY = (
    *_affinity(),
    Feature("taste_odds", "your taste", "log odds of a click over the item's own", f"{_NO_LISTS_LOGGED}, or unknown",
            _taste_odds),
    Feature("taste_click_odds", "your taste and how often it is clicked", "log odds of a click",
            "nothing was shown yet in the shop", _click_odds),
    Feature("price_to_habit", "priced as you like it", "log ratio", f"{_NO_LIST}, or no price",
            lambda m: m.log_price - m.usual_log_price),
    Feature("repeat_engagements", "you looked at it before", "count", "an unknown item", lambda m: m.repeats.engaged),
    Feature("repeat_purchases", "you bought it before", "count", "an unknown item",
            lambda m: m.repeats.bought),
    Feature("repeat_since", "looked at lately", "log(1 + seconds)", "not looked at before",
            lambda m: np.log1p(m.repeats.engaged_s)),
    Feature("shown_times", "how often you saw it", "count", "an unknown item", lambda m: m.repeats.shown),
    Feature("shown_since", "not shown to you lately", "log(1 + seconds)", "not shown before",
            lambda m: np.log1p(m.repeats.shown_s)),
)  # fmt: skip


def _eagerness(m: Moment) -> float:
    return m.residuals.eagerness if len(m.residuals.item) else np.nan


def _idle(m: Moment) -> float:
    return float(np.log1p(max(m.at - m.engaged.at[0], 0.0))) if len(m.engaged.at) else np.nan


def _device(m: Moment) -> float:
    return np.nan if m.context.device == NO_DEVICE else float(m.context.device)


_USER = (
    Feature("user_engagements", "how much we know of you", "count in the list", "never",
            lambda m: float(len(m.engaged.item))),
    Feature("user_shown", "how much you were shown", "count in the list", "never", lambda m: float(len(m.shown_item))),
    Feature("user_eagerness", "you click more than others", "log odds", _NO_LISTS_LOGGED, _eagerness),
    Feature("user_session_events", "busy in this visit", "engagements in the visit, which ends by 30 idle minutes",
            "never", lambda m: float(m.visit.engaged)),
    Feature("user_session_shown", "how much you were shown in this visit", "impressions in the visit", "never",
            lambda m: float(m.visit.shown)),
    Feature("user_session_age", "how long this visit has lasted", "log(1 + seconds)", "never: 0 is just begun",
            lambda m: float(np.log1p(m.at - m.visit.began))),
    Feature("user_idle", "time since your last visit", "log(1 + seconds)", _NO_LIST, _idle),
    Feature("hour", "time of day", "hour of the day, UTC", "never", lambda m: float(m.at // 3600 % 24)),
    Feature("weekday", "day of the week", "0 is Thursday", "never", lambda m: float(m.at // _DAY_S % 7)),
    Feature("device", "what you shop on", ", ".join(f"{code} {name}" for code, name in enumerate(DEVICES)),
            "the request names no device", _device),
)  # fmt: skip


def _rank(name: str) -> Callable[[Moment], F32]:
    return lambda m: m.standing(name)[0]


def _over_mean(name: str) -> Callable[[Moment], F32]:
    return lambda m: m.standing(name)[1]


def _within_list() -> list[Feature]:
    out = []
    own = (*_POPULARITY, *_INTEREST, *_AFFINITY)
    for name in ("item_click_rate_30d", "text_taste", "text_pooled", "co_occurrence", "item_price", "taste_click_odds"):
        about = next(f.about for f in own if f.name == name)
        missing = f"{name} is missing"
        out.append(Feature(f"{name}_rank", f"{about}, against this list", "rank, 0 to 1", missing, _rank(name)))
        out.append(Feature(f"{name}_over_mean", f"{about}, against this list", "difference", missing, _over_mean(name)))
    return out


FEATURES: tuple[Feature, ...] = (*_POPULARITY, *_INTEREST, *_AFFINITY, *_USER, *_within_list())
"""The features of any shop, in column order; a catalogue's own attributes follow them (see `features`)."""


def _slope(m: Moment, k: int) -> F64 | float:
    return m.slopes[k] if len(m.residuals.item) else np.nan


def _number(name: str, k: int, is_date: bool) -> tuple[Feature, Feature]:
    def value(m: Moment) -> F64:
        return m.numbers[:, k]

    def age(m: Moment) -> F64:
        return m.at / _YEAR_S - m.numbers[:, k]

    words = name.replace("_", " ")
    return (
        Feature(f"item_{name}_age", f"age by {words}", "years, negative in the future", f"no {name}", age) if is_date
        else Feature(f"item_{name}", words, "as in the catalogue", f"no {name}", value),
        Feature(f"{name}_slope", f"your leaning in {words}", "clicks above expectation x deviation",
                f"{_NO_LISTS_LOGGED}, or no {name}", lambda m: _slope(m, k)),
    )  # fmt: skip


def _attribute(name: str, a: int) -> tuple[Feature, Feature, Feature]:
    def rate(m: Moment) -> F32 | float:
        return m.items.attribute_rates[m.candidates, a] if m.items.attribute_rates.size else np.nan

    words = name.replace("_", " ")
    return (
        Feature(f"item_{name}_rate", f"its {words} is often clicked", "clicks per impression, shrunk",
                f"nothing was shown yet when the release was made, or no {name}", rate),
        Feature(f"{name}_share", f"you often look at this {words}", "share of engagement", f"{_NO_LIST}, or no {name}",
                lambda m: m.share(m.items.catalogue.by_attribute[name])),
        Feature(f"{name}_surprise", f"you choose this {words} more than others do", "clicks above expectation, shrunk",
                f"{_NO_LISTS_LOGGED}, or no {name}", lambda m: m.surprise(m.items.catalogue.by_attribute[name])),
    )  # fmt: skip


def features(items: Items) -> tuple[Feature, ...]:
    """The columns of `rows`, in order: `FEATURES`, then those of the catalogue's attributes, then the user's own.

    A number or date has two (itself, and the user's leaning in it), any other attribute three (its click rate, and the
    user's share and surprise in it).
    """
    return declared(items.catalogue, items.custom)


def declared(catalogue: Catalogue, custom: tuple[Feature, ...]) -> tuple[Feature, ...]:
    """The same of a catalogue alone, before anything is known of its items."""
    c = catalogue
    return _declared(tuple(c.number_names), frozenset(c.date_names), tuple(c.by_attribute), custom)


@lru_cache(maxsize=16)
def _declared(
    numbers: tuple[str, ...], dates: frozenset[str], attributes: tuple[str, ...], custom: tuple[Feature, ...]
) -> tuple[Feature, ...]:
    return (
        *FEATURES,
        *(f for k, name in enumerate(numbers) for f in _number(name, k, name in dates)),
        *(f for a, name in enumerate(attributes) for f in _attribute(name, a)),
        *custom,
    )


def names(items: Items) -> tuple[str, ...]:
    """Names of the columns of `rows`, in order."""
    return tuple(f.name for f in features(items))


def schema_hash(items: Items) -> str:
    """SHA-256 over names, units and missing rules: equal exactly when rows mean the same."""
    said = [[f.name, f.unit, f.missing] for f in features(items)]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def rows(items: Items, history: History, candidates: I32, at: float, context: Context = NO_CONTEXT) -> F32:
    """float32[candidates, features]: what is known of each candidate for this user strictly before `at`.

    candidates: int32[c] rows of the catalogue, `-1` unknown. at: Unix seconds. context: what the request says of
    itself. Missing is NaN.
    The order of the candidates does not matter: each row depends on the set.
    """
    moment = Moment(items, history, candidates, at, context)
    columns = features(items)
    out = np.empty((len(columns), len(candidates)), np.float32)
    for row, feature in zip(out, columns, strict=True):
        row[:] = feature.compute(moment)
        moment.columns[feature.name] = row
    return np.ascontiguousarray(out.T)
