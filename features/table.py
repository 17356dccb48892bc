"""The feature table: every feature declared once, and `rows`, the only function that computes them.

Replay calls `rows` for each list of the past and the service for each request, with the same arguments at the same
moment: that is the whole of training-serving parity.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import groupby, islice, product
from typing import NamedTuple

import numpy as np

from features.catalogue import Catalogue, Codes, Tags
from features.context import DEVICES, NO_CONTEXT, NO_DEVICE, Context
from features.decay import HALF_LIFE_NAMES
from features.history import History
from features.log import F32, F64, I32, Kind
from features.moment import Feature, Items, Moment
from features.standing import standings

__all__ = ["FEATURES", "Feature", "Items", "features", "names", "rows", "schema_hash"]

_DAY_S = 86400.0
_YEAR_S = 365.25 * _DAY_S
_NO_LIST = "no items in the user's list"
_NO_LISTS_LOGGED = "the user was shown nothing yet, or lists are not logged"
_NO_TEXT = f"{_NO_LIST}, or the item has no text"


def _whoever_asks(m: Moment) -> F64:
    return m.popularity


def _popularity() -> list[Feature]:
    out = []
    for kind, horizon in product((Kind.IMPRESSION, Kind.CLICK, Kind.PURCHASE), HALF_LIFE_NAMES):
        name = kind.name.lower()
        about = f"many {name}s lately ({horizon})"
        out.append(Feature(f"item_{name}s_{horizon}", about, "log(1 + decayed count)", "never", _whoever_asks))
    return out + [
        Feature(
            f"item_click_rate_{horizon}",
            f"often clicked when shown ({horizon})",
            "clicks per impression, shrunk toward item_prior",
            "nothing was shown yet in the shop",
            _whoever_asks,
        )
        for horizon in HALF_LIFE_NAMES
    ]


_POPULARITY = (
    *_popularity(),
    Feature("item_views_30d", "many views lately", "log(1 + decayed count)", "never", _whoever_asks),
    Feature("item_carts_30d", "often put into carts lately", "log(1 + decayed count)", "never", _whoever_asks),
    Feature(
        "item_purchase_rate",
        "often bought once clicked",
        "purchases per click, shrunk",
        "nothing was clicked yet in the shop",
        _whoever_asks,
    ),
    Feature(
        "item_prior",
        "the kind of product that is clicked",
        "clicks per impression",
        "nothing was shown yet when the release was made",
        _whoever_asks,
    ),
    Feature("item_trend", "gaining attention", "log of one day's engagement over thirty's", "never", _whoever_asks),
    Feature(
        "category_click_rate",
        "its category is often clicked",
        "clicks per impression, shrunk",
        "nothing was shown yet in the shop",
        _whoever_asks,
    ),
    Feature("item_age", "time on sale", "log(1 + days)", "no available_from", _whoever_asks),
    Feature("item_price", "price", "log(1 + price)", "no price", _whoever_asks),
)


def _interest(m: Moment) -> F32:
    return m.closeness


def _co_occurrence(m: Moment) -> F64:
    return m.co_occurrence


_INTEREST = (
    Feature("text_pooled", "like what you looked at, on the whole", "cosine", _NO_TEXT, _interest),
    Feature("text_max", "much like one thing you looked at", "cosine", _NO_TEXT, _interest),
    Feature("text_top3", "like several things you looked at", "mean of 3 cosines", _NO_TEXT, _interest),
    Feature("text_last", "like the last thing you looked at", "cosine", _NO_TEXT, _interest),
    Feature("text_taste", "like what you choose, unlike what you pass over", "cosine", _NO_LISTS_LOGGED, _interest),
    Feature(
        "text_taste_strength",
        "how clearly your choices point to it",
        "cosine times weight of evidence",
        _NO_LISTS_LOGGED,
        _interest,
    ),
    Feature(
        "co_occurrence",
        "chosen by people who chose what you did",
        "sum of neighbour weights",
        "never: 0 is no neighbour",
        _co_occurrence,
    ),
    Feature(
        "co_occurrence_max",
        "often chosen together with one thing you chose",
        "largest neighbour weight",
        "never: 0 is no neighbour",
        _co_occurrence,
    ),
)


def _searched(m: Moment) -> F64:
    return m.searched


_QUERY = (
    Feature(
        "query_cosine",
        "what you searched for, by its meaning",
        "cosine",
        "the request has no query, none of its words is known, or the item has no text",
        _searched,
    ),
    Feature(
        "query_match",
        "what you searched for, word by word",
        "share of the query, rare words weighing more",
        "the request has no query",
        _searched,
    ),
)


def _affinity() -> list[Feature]:
    out = []
    for name, plural, tags in (
        ("category", "this category", lambda items: items.category),
        ("brand", "this brand", lambda items: items.brand),
        ("tag", "such things", lambda items: items.catalogue.tags),
    ):

        def affinity(m: Moment, tags: Callable[[Items], Tags | Codes] = tags) -> F64:
            return m.affinity(tags(m.items))

        out += [
            Feature(
                f"{name}_share",
                f"you often look at {plural}",
                "share of engagement",
                f"{_NO_LIST}, or no {name}",
                affinity,
            ),
            Feature(
                f"{name}_surprise",
                f"you choose {plural} more than others do",
                "clicks above expectation, shrunk",
                f"{_NO_LISTS_LOGGED}, or no {name}",
                affinity,
            ),
        ]
    return out


def _taste(m: Moment) -> F32:
    return m.taste_odds


def _repeats(m: Moment) -> F64:
    return m.repeats


_AFFINITY = (
    *_affinity(),
    Feature(
        "taste_odds", "your taste", "log odds of a click over the item's own", f"{_NO_LISTS_LOGGED}, or unknown", _taste
    ),
    Feature(
        "taste_click_odds",
        "your taste and how often it is clicked",
        "log odds of a click",
        "nothing was shown yet in the shop",
        _taste,
    ),
    Feature(
        "price_to_habit",
        "priced as you like it",
        "log ratio",
        f"{_NO_LIST}, or no price",
        lambda m: m.log_price - m.usual_log_price,
    ),
    Feature("repeat_engagements", "you looked at it before", "count", "an unknown item", _repeats),
    Feature("repeat_purchases", "you bought it before", "count", "an unknown item", _repeats),
    Feature("repeat_since", "looked at lately", "log(1 + seconds)", "not looked at before", _repeats),
    Feature("shown_times", "how often you saw it", "count", "an unknown item", _repeats),
    Feature("shown_since", "not shown to you lately", "log(1 + seconds)", "not shown before", _repeats),
)


def _user(m: Moment) -> F64:
    """float64[10, 1]: what is the same for every candidate."""
    at, visit, device = m.at, m.visit, m.context.device
    return np.array(
        [
            len(m.engaged.item),
            len(m.shown_item),
            m.residuals.eagerness if len(m.residuals.item) else np.nan,
            visit.engaged,
            visit.shown,
            math.log1p(at - visit.began),
            math.log1p(max(at - float(m.engaged.at[0]), 0.0)) if len(m.engaged.at) else np.nan,
            at // 3600 % 24,
            at // _DAY_S % 7,
            np.nan if device == NO_DEVICE else device,
        ],
        np.float64,
    )[:, None]


_USER = (
    Feature("user_engagements", "how much we know of you", "count in the list", "never", _user),
    Feature("user_shown", "how much you were shown", "count in the list", "never", _user),
    Feature("user_eagerness", "you click more than others", "log odds", _NO_LISTS_LOGGED, _user),
    Feature(
        "user_session_events",
        "busy in this visit",
        "engagements in the visit, which ends by 30 idle minutes",
        "never",
        _user,
    ),
    Feature("user_session_shown", "how much you were shown in this visit", "impressions in the visit", "never", _user),
    Feature("user_session_age", "how long this visit has lasted", "log(1 + seconds)", "never: 0 is just begun", _user),
    Feature("user_idle", "time since your last visit", "log(1 + seconds)", _NO_LIST, _user),
    Feature("hour", "time of day", "hour of the day, UTC", "never", _user),
    Feature("weekday", "day of the week", "0 is Thursday", "never", _user),
    Feature(
        "device",
        "what you shop on",
        ", ".join(f"{code} {name}" for code, name in enumerate(DEVICES)),
        "the request names no device",
        _user,
    ),
)


_COMPARED = ("item_click_rate_30d", "text_taste", "text_pooled", "co_occurrence", "item_price", "taste_click_odds")


def _standings(m: Moment) -> F32:
    return standings(np.stack([m.columns[name] for name in _COMPARED]))


def _within_list() -> list[Feature]:
    out = []
    for name in _COMPARED:
        about = next(f.about for f in (*_POPULARITY, *_INTEREST, *_AFFINITY) if f.name == name)
        missing = f"{name} is missing"
        out.append(Feature(f"{name}_rank", f"{about}, against this list", "rank, 0 to 1", missing, _standings))
        out.append(Feature(f"{name}_over_mean", f"{about}, against this list", "difference", missing, _standings))
    return out


FEATURES: tuple[Feature, ...] = (*_POPULARITY, *_INTEREST, *_QUERY, *_AFFINITY, *_USER, *_within_list())
"""The features of any shop, in column order; a catalogue's own attributes follow them (see `features`)."""


def _number(name: str, k: int, is_date: bool) -> tuple[Feature, Feature]:
    def both(m: Moment) -> F64:
        out = m.leanings[2 * k : 2 * k + 2]
        if is_date:
            out[0] = m.at / _YEAR_S - out[0]
        return out

    words = name.replace("_", " ")
    return (
        Feature(f"item_{name}_age", f"age by {words}", "years, negative in the future", f"no {name}", both)
        if is_date
        else Feature(f"item_{name}", words, "as in the catalogue", f"no {name}", both),
        Feature(
            f"{name}_slope",
            f"your leaning in {words}",
            "clicks above expectation x deviation",
            f"{_NO_LISTS_LOGGED}, or no {name}",
            both,
        ),
    )


def _attribute(name: str, a: int) -> tuple[Feature, Feature, Feature]:
    def rate(m: Moment) -> F32 | float:
        return m.items.attribute_rates[m.candidates, a] if m.items.attribute_rates.size else np.nan

    def affinity(m: Moment) -> F64:
        return m.affinity(m.items.catalogue.by_attribute[name])

    words = name.replace("_", " ")
    return (
        Feature(
            f"item_{name}_rate",
            f"its {words} is often clicked",
            "clicks per impression, shrunk",
            f"nothing was shown yet when the release was made, or no {name}",
            rate,
        ),
        Feature(
            f"{name}_share",
            f"you often look at this {words}",
            "share of engagement",
            f"{_NO_LIST}, or no {name}",
            affinity,
        ),
        Feature(
            f"{name}_surprise",
            f"you choose this {words} more than others do",
            "clicks above expectation, shrunk",
            f"{_NO_LISTS_LOGGED}, or no {name}",
            affinity,
        ),
    )


def features(items: Items) -> tuple[Feature, ...]:
    """The columns of `rows`, in order: `FEATURES`, then those of the catalogue's attributes, then the user's own.

    A number or date has two (itself, and the user's leaning in it), any other attribute three (its click rate, and the
    user's share and surprise in it).
    """
    return declared(items.catalogue, items.custom)


def declared(catalogue: Catalogue, custom: tuple[Feature, ...]) -> tuple[Feature, ...]:
    """The same of a catalogue alone, before anything is known of its items."""
    return _declared(*_own(catalogue), custom)[0]


def _own(c: Catalogue) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    return tuple(c.number_names), tuple(c.date_names), tuple(c.by_attribute)


class _Block(NamedTuple):
    """Features next to each other that one function computes, and where their columns begin and end."""

    compute: Callable[[Moment], F64 | F32 | float]
    first: int
    end: int


class _SoFar(Mapping[str, F32]):
    """The columns below `known` by name: made when asked for, as hardly any are."""

    def __init__(self, out: F32, place: dict[str, int]) -> None:
        self._out, self._place, self.known = out, place, 0

    def __getitem__(self, name: str) -> F32:
        if self._place[name] >= self.known:
            raise KeyError(name)
        column: F32 = self._out[self._place[name]]
        return column

    def __len__(self) -> int:
        return self.known

    def __iter__(self) -> Iterator[str]:
        return islice(self._place, self.known)


@lru_cache(maxsize=16)
def _declared(
    numbers: tuple[str, ...], dates: tuple[str, ...], attributes: tuple[str, ...], custom: tuple[Feature, ...]
) -> tuple[tuple[Feature, ...], tuple[_Block, ...], dict[str, int]]:
    out = (
        *FEATURES,
        *(f for k, name in enumerate(numbers) for f in _number(name, k, name in dates)),
        *(f for a, name in enumerate(attributes) for f in _attribute(name, a)),
        *custom,
    )
    blocks, first = [], 0
    for compute, together in groupby(out, lambda f: f.compute):
        end = first + len(tuple(together))
        blocks.append(_Block(compute, first, end))
        first = end
    return out, tuple(blocks), {f.name: k for k, f in enumerate(out)}


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
    columns, blocks, place = _declared(*_own(items.catalogue), items.custom)
    out = np.empty((len(columns), len(candidates)), np.float32)
    moment.columns = so_far = _SoFar(out, place)
    for compute, first, end in blocks:
        out[first:end] = compute(moment)
        so_far.known = end
    return np.ascontiguousarray(out.T)
