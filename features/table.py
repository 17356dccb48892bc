"""The feature table: every feature is declared once, and `rows` is the only function that computes them.

Replay calls `rows` for each list of the past and the service for each request, with the same arguments at the same
time. This alone keeps training and serving consistent.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np

from features.arrays import F32, F64, I32, Bool
from features.catalogue import Catalogue, Codes, Tags
from features.columns import Column
from features.context import DEVICES, NO_CONTEXT, NO_DEVICE, Context
from features.decay import HALF_LIFE_NAMES
from features.history import History
from features.kernels.ranks import rank_within_list
from features.log import Kind
from features.moment import Feature, Items, Moment, Reasons

__all__ = ["FEATURES", "Feature", "Items", "features", "groups", "in_group", "names", "rows", "schema_hash"]

_DAY_S = 86400.0
_YEAR_S = 365.25 * _DAY_S
_NO_HISTORY = "the user has no history"
_NO_LISTS_LOGGED = "the user was shown nothing yet, or lists are not logged"
_NO_TEXT = f"{_NO_HISTORY}, or the item has no text"
_SEPARATORS = re.compile(r'[\s",:\[\]{}]')
"""Characters that LightGBM's model text cannot have in the name of a feature."""
WITHIN_LIST = "within-list"
"""The group of features that compare a candidate with the others in its list."""


def _popularity_rows(m: Moment) -> F64:
    return m.popularity


def _popularity() -> Iterator[Feature]:
    declare = partial(Feature, group="popularity", compute=_popularity_rows)
    for kind, reasons in (
        (Kind.IMPRESSION, Reasons("shown often recently", "shown often but rarely chosen", "hardly shown yet")),
        (Kind.CLICK, Reasons("many recent clicks", "few recent clicks", "no clicks yet")),
        (Kind.PURCHASE, Reasons("many recent purchases", "few recent purchases", "no purchases yet")),
    ):
        name = f"{kind.name.lower()}s"
        for horizon in HALF_LIFE_NAMES:
            about = f"{name} of the item, half-life {horizon}"
            yield declare(f"item_{name}_{horizon}", about, "log(1 + decayed count)", "never", reasons=reasons)
    for horizon in HALF_LIFE_NAMES:
        yield declare(
            f"item_click_rate_{horizon}",
            f"click rate of the item, half-life {horizon}",
            "clicks per impression, shrunk toward item_prior",
            "the shop has shown nothing yet",
            reasons=Reasons("often clicked when shown", "rarely clicked when shown"),
        )
    yield declare(
        "item_views_30d",
        "views of the item, half-life 30d",
        "log(1 + decayed count)",
        "never",
        reasons=Reasons("many recent views", "few recent views", "no views yet"),
    )
    yield declare(
        "item_carts_30d",
        "cart additions of the item, half-life 30d",
        "log(1 + decayed count)",
        "never",
        reasons=Reasons("often in carts recently", "rarely in carts recently", "not in any cart yet"),
    )
    yield declare(
        "item_purchase_rate",
        "purchases per click of the item",
        "purchases per click, shrunk toward the shop's rate",
        "the shop has no click yet",
        reasons=Reasons("often bought once clicked", "rarely bought once clicked"),
    )
    yield declare(
        "item_prior",
        "click rate predicted from text and attributes",
        "clicks per impression",
        "the shop had shown nothing when the release was made",
        reasons=Reasons("similar products are often clicked", "similar products are rarely clicked"),
    )
    yield declare(
        "item_trend",
        "engagement of the last day relative to the last 30",
        "log ratio of decayed counts",
        "never",
        reasons=Reasons("gaining attention", "losing attention"),
    )
    yield declare(
        "category_click_rate",
        "click rate of the item's category",
        "clicks per impression, shrunk toward the shop's rate",
        "the shop has shown nothing yet",
        reasons=Reasons("its category is often clicked", "its category is rarely clicked"),
    )
    yield declare(
        "item_age",
        "time since the item became available",
        "log(1 + days)",
        "no available_from",
        reasons=Reasons("its time on sale counts in its favour", "its time on sale counts against it"),
    )
    yield declare(
        "item_price",
        "price",
        "log(1 + price)",
        "no price",
        group="price",
        reasons=Reasons("its price counts in its favour", "its price counts against it"),
    )


def _text_similarity(m: Moment) -> F32:
    return m.text_similarity


def _co_occurrence(m: Moment) -> F64:
    return m.co_occurrence


def _linear(m: Moment) -> F64:
    return m.linear


def _history() -> Iterator[Feature]:
    text = partial(Feature, group="interest text", compute=_text_similarity, of_history=True)
    yield text(
        "text_pooled",
        "similarity to the user's history as a whole",
        "cosine",
        _NO_TEXT,
        reasons=Reasons("similar to the products in your history", "unlike the products in your history"),
    )
    yield text(
        "text_max",
        "similarity to the nearest item of the user's history",
        "cosine",
        _NO_TEXT,
        reasons=Reasons("very similar to a product in your history", "not similar to any product in your history"),
    )
    yield text(
        "text_top3",
        "similarity to the 3 nearest items of the user's history",
        "mean of 3 cosines",
        _NO_TEXT,
        reasons=Reasons("similar to several products in your history", "similar to few products in your history"),
    )
    yield text(
        "text_last",
        "similarity to the newest item of the user's history",
        "cosine",
        _NO_TEXT,
        reasons=Reasons("similar to your latest product", "unlike your latest product"),
    )
    yield text(
        "text_taste",
        "similarity to what the user chose rather than skipped",
        "cosine",
        _NO_LISTS_LOGGED,
        reasons=Reasons("similar to what you choose", "similar to what you skip"),
    )
    yield text(
        "text_taste_strength",
        "text_taste weighted by the evidence behind it",
        "cosine times weight of evidence",
        _NO_LISTS_LOGGED,
        reasons=Reasons("your choices clearly point to it", "your choices clearly point away from it"),
    )
    neighbours = partial(Feature, group="co-occurrence", compute=_co_occurrence, of_history=True)
    yield neighbours(
        "co_occurrence",
        "chosen by users who chose what this user did",
        "sum of neighbour weights",
        "never: 0 is no neighbour",
        reasons=Reasons(
            "chosen by people who chose what you did",
            "rarely chosen by people who chose what you did",
            "not chosen yet by people who chose what you did",
        ),
    )
    yield neighbours(
        "co_occurrence_max",
        "chosen together with one item of the user's history",
        "largest neighbour weight",
        "never: 0 is no neighbour",
        reasons=Reasons(
            "often chosen together with a product in your history",
            "rarely chosen together with products in your history",
            "not chosen yet together with products in your history",
        ),
    )
    for name, about in (("linear", "latest visits"), ("linear_all", "whole history")):
        yield Feature(
            name,
            f"linear model of what is chosen by users with such a history, from the {about}",
            "sum of weights of both signs",
            "never: 0 is no weight",
            _linear,
            group="co-occurrence",
            reasons=Reasons(
                "chosen by people with a history like yours",
                "rarely chosen by people with a history like yours",
                "not chosen yet by people with a history like yours",
            ),
            of_history=True,
        )


def _query_scores(m: Moment) -> F64:
    return m.query_scores


def _query() -> Iterator[Feature]:
    declare = partial(Feature, group="query", compute=_query_scores)
    yield declare(
        "query_cosine",
        "similarity to the meaning of the query",
        "cosine",
        "the request has no query, none of its words is known, or the item has no text",
        reasons=Reasons("matches your search", "does not match your search"),
    )
    yield declare(
        "query_match",
        "share of the query's words found in the item",
        "share of the query, rare words weighing more",
        "the request has no query",
        reasons=Reasons("contains your search words", "lacks some of your search words"),
    )


def _taste_logits(m: Moment) -> F32:
    return m.taste_logits


def _repeats(m: Moment) -> F64:
    return m.repeats


def _affinity() -> Iterator[Feature]:
    declare = partial(Feature, group="affinity", of_history=True)
    for name, these, tags in (
        ("category", "this category", lambda items: items.category),
        ("brand", "this brand", lambda items: items.brand),
        ("tag", "products like this", lambda items: items.catalogue.tags),
    ):

        def affinity(m: Moment, tags: Callable[[Items], Tags | Codes] = tags) -> F64:
            return m.affinity(tags(m.items))

        yield declare(
            f"{name}_share",
            f"share of the user's engagement with the item's {name}",
            "share of engagement",
            f"{_NO_HISTORY}, or no {name}",
            affinity,
            reasons=Reasons(f"you often choose {these}", f"you rarely choose {these}", f"{these} would be new to you"),
        )
        yield declare(
            f"{name}_residual",
            f"observed minus expected clicks of the user on the item's {name}",
            "clicks above expectation, shrunk",
            f"{_NO_LISTS_LOGGED}, or no {name}",
            affinity,
            reasons=Reasons(f"you choose {these} more than others do", f"you choose {these} less than others do"),
        )
    yield declare(
        "taste_logit",
        "the user's taste for the item, from taste factors",
        "log odds of a click beyond the item's own",
        f"{_NO_LISTS_LOGGED}, or the item is unknown",
        _taste_logits,
        reasons=Reasons("matches your taste", "does not match your taste"),
    )
    yield declare(
        "taste_click_logit",
        "the item's click rate and the user's taste together",
        "log odds of a click",
        "the shop has shown nothing yet",
        _taste_logits,
        reasons=Reasons("matches your taste and is often clicked", "a weaker match for your taste, or rarely clicked"),
    )
    yield Feature(
        "price_to_habit",
        "price relative to the user's usual price",
        "log ratio",
        f"{_NO_HISTORY}, or no price",
        lambda m: m.log_price - m.usual_log_price,
        group="price",
        reasons=Reasons("in your usual price range", "not in your usual price range"),
        of_history=True,
    )


def _repetition() -> Iterator[Feature]:
    declare = partial(Feature, group="repeats", compute=_repeats, of_history=True)
    yield declare(
        "repeat_engagements",
        "times the user engaged with the item",
        "count",
        "the item is unknown",
        reasons=Reasons("in your history", "already in your history", "new to you"),
    )
    yield declare(
        "repeat_purchases",
        "times the user bought the item",
        "count",
        "the item is unknown",
        reasons=Reasons("bought before", "already bought", "not bought before"),
    )
    yield declare(
        "repeat_since",
        "time since the user last engaged with the item",
        "log(1 + seconds)",
        "the user never engaged with it",
        reasons=Reasons("in your recent history", "already in your recent history"),
    )
    yield declare(
        "shown_times",
        "times the item was shown to the user",
        "count",
        "the item is unknown",
        reasons=Reasons("shown to you before", "already shown to you", "not shown to you yet"),
    )
    yield declare(
        "shown_since",
        "time since the item was last shown to the user",
        "log(1 + seconds)",
        "it was never shown to the user",
        reasons=Reasons("shown to you a while ago", "shown to you recently"),
    )


def _user_context(m: Moment) -> F64:
    """User and request features, float64[10, 1]: one value for all candidates."""
    at, session, device = m.at, m.session, m.context.device
    return np.array(
        [
            len(m.engaged.item),
            len(m.shown_item),
            m.residuals.eagerness if len(m.residuals.item) else np.nan,
            session.engaged,
            session.shown,
            math.log1p(at - session.began),
            math.log1p(max(at - float(m.engaged.at[0]), 0.0)) if len(m.engaged.at) else np.nan,
            at // 3600 % 24,
            at // _DAY_S % 7,
            np.nan if device == NO_DEVICE else device,
        ],
        np.float64,
    )[:, None]


def _user() -> Iterator[Feature]:
    """User features have no reasons: a value shared by all candidates does not explain why one ranks above another."""
    declare = partial(Feature, group="user", compute=_user_context)
    yield declare("user_engagements", "length of the user's history", "count", "never")
    yield declare("user_shown", "stored impressions of the user", "count", "never")
    yield declare("user_eagerness", "how readily the user clicks", "log odds beyond the usual", _NO_LISTS_LOGGED)
    yield declare("user_session_events", "engagements in this session", "count, until 30 idle minutes", "never")
    yield declare("user_session_shown", "impressions in this session", "count", "never")
    yield declare("user_session_age", "age of this session", "log(1 + seconds)", "never: 0 is a session just begun")
    yield declare("user_idle", "time since the user's last engagement", "log(1 + seconds)", _NO_HISTORY)
    yield declare("hour", "hour of the day, UTC", "0 to 23", "never")
    yield declare("weekday", "day of the week, UTC", "0 is Thursday", "never")
    devices = ", ".join(f"{code} {name}" for code, name in enumerate(DEVICES))
    yield declare("device", "kind of device", devices, "the request names no device")


_COMPARED = (
    "item_click_rate_30d",
    "text_taste",
    "text_pooled",
    "co_occurrence",
    "linear",
    "linear_all",
    "item_price",
    "taste_click_logit",
)


def _ranks(m: Moment) -> F32:
    return rank_within_list(np.stack([m.columns[name] for name in _COMPARED]))


def _within_list(absolute: Sequence[Feature]) -> Iterator[Feature]:
    by_name = {f.name: f for f in absolute}
    for name in _COMPARED:
        of = by_name[name]
        declare = partial(Feature, compute=_ranks, group=WITHIN_LIST, reasons=of.reasons, of_history=of.of_history)
        yield declare(f"{name}_rank", f"rank of {name} in the list", "0 to 1", f"{name} is missing")
        yield declare(f"{name}_over_mean", f"{name} minus its mean in the list", "difference", f"{name} is missing")


def _all() -> tuple[Feature, ...]:
    absolute = (*_popularity(), *_history(), *_query(), *_affinity(), *_repetition(), *_user())
    return (*absolute, *_within_list(absolute))


def _seed_rows(m: Moment) -> F64:
    return m.of_seeds


def _seeds() -> Iterator[Feature]:
    """Features of the seeds, in the order of the rows of `compare`, and of what is bought again."""
    declare = partial(Feature, group="seeds", compute=_seed_rows)
    none = "the request names no known item"
    no_text = f"{none}, or no text is known"
    alike = Reasons("similar to this", "not similar to this")
    yield declare(
        "seed_text_max", "largest text similarity to the items of the request", "cosine", no_text, reasons=alike
    )
    yield declare(
        "seed_text_mean", "mean text similarity to the items of the request", "cosine", no_text, reasons=alike
    )
    yield declare(
        "seed_same_category",
        "share of the items of the request in the same category",
        "0 to 1",
        f"{none}, or a category is missing",
        reasons=Reasons("of the same kind", "of another kind", "of another kind"),
    )
    yield declare(
        "seed_price",
        "price compared with the mean of the items of the request",
        "difference of log(1 + price)",
        f"{none}, or a price is missing",
        reasons=Reasons("its price, compared with this", "its price, compared with this"),
    )
    yield declare(
        "seed_co_occurrence",
        "co-occurrence with the items of the request",
        "sum of weights",
        none,
        reasons=Reasons("often chosen by those who chose this", "rarely chosen by those who chose this"),
    )
    for name, about, reasons in (
        (
            "together",
            "bought together with the items of the request",
            ("often bought with this", "rarely bought with this"),
        ),
        ("goes_with", "complements the items of the request", ("goes with this", "does not go with this")),
        ("following", "next in sessions after the items of the request", ("often chosen next", "rarely chosen next")),
    ):
        missing = f"{none}, or nothing is known to go with any of them"
        for suffix, over in (("", "sum"), ("_max", "largest")):
            yield declare(
                f"seed_{name}{suffix}",
                f"{about}, {over} over these",
                "weight",
                missing,
                reasons=Reasons(*reasons, reasons[1]),
            )
    yield Feature(
        "buy_again_due",
        "how soon the user is likely to buy the item again",
        "expected purchases per day",
        "the user has not bought the item",
        lambda m: m.buy_again,
        "buy again",
        Reasons("you buy it again and again", "rarely bought again"),
        of_history=True,
    )


def _sequence_rows(m: Moment) -> F32:
    cosine = m.sequence_cosine
    return np.vstack((cosine, rank_within_list(cosine[None])))


def _sequence() -> Iterator[Feature]:
    """Features of the sequence model. Two of them compare within the list, as those of `WITHIN_LIST` do."""
    reasons = Reasons("a likely next choice after your latest ones", "an unlikely next choice after your latest ones")
    declare = partial(Feature, compute=_sequence_rows, group="sequence", reasons=reasons, of_history=True)
    missing = f"{_NO_HISTORY}, or the sequence model does not know the item"
    name = "sequence_cosine"
    yield declare(name, "similarity to the item expected next, from the order of engagements", "cosine", missing)
    yield declare(f"{name}_rank", f"rank of {name} in the list", "0 to 1", f"{name} is missing")
    yield declare(f"{name}_over_mean", f"{name} minus its mean in the list", "difference", f"{name} is missing")


FEATURES_OF_SEEDS = tuple(_seeds())
"""The features of items that have companions, after those of the catalogue and of requests."""
FEATURES_OF_SEQUENCE = tuple(_sequence())
"""The features of items that have a sequence model, after those of companions."""
FEATURES = _all()
"""The features of every shop, in column order; those of a catalogue's own attributes follow (see `features`)."""


def _number(name: str, k: int, is_date: bool) -> tuple[Feature, Feature]:
    def value_and_slope(m: Moment) -> F64:
        out = m.slopes[2 * k : 2 * k + 2]
        return np.stack((m.at / _YEAR_S - out[0], out[1])) if is_date else out

    words = name.replace("_", " ")
    declare = partial(Feature, compute=value_and_slope, group="attributes")
    column, unit = (f"item_{name}_age", "years, negative in the future") if is_date else (f"item_{name}", "as given")
    return (
        declare(
            column,
            f"age by {words}" if is_date else words,
            unit,
            f"no {name}",
            reasons=Reasons(f"its {words} counts in its favour", f"its {words} counts against it"),
        ),
        declare(
            f"{name}_slope",
            f"the user's preference for a higher or lower {words}",
            "clicks above expectation times deviation",
            f"{_NO_LISTS_LOGGED}, or no {name}",
            reasons=Reasons(f"the {words} you tend to choose", f"not the {words} you tend to choose"),
            of_history=True,
        ),
    )


def _attribute(name: str, a: int) -> tuple[Feature, Feature, Feature]:
    def rate(m: Moment) -> F32 | float:
        return m.items.attribute_rates[m.candidates, a] if m.items.attribute_rates.size else np.nan

    def affinity(m: Moment) -> F64:
        return m.affinity(m.items.catalogue.by_attribute[name])

    words = name.replace("_", " ")
    these = f"{'these' if words.endswith('s') else 'this'} {words}"
    declare = partial(Feature, group="attributes")
    return (
        declare(
            f"item_{name}_rate",
            f"click rate of items with the same {words}",
            "clicks per impression, shrunk",
            f"the shop had shown nothing when the release was made, or no {name}",
            rate,
            reasons=Reasons(f"products with {these} are often clicked", f"products with {these} are rarely clicked"),
        ),
        declare(
            f"{name}_share",
            f"share of the user's engagement with the item's {words}",
            "share of engagement",
            f"{_NO_HISTORY}, or no {name}",
            affinity,
            reasons=Reasons(f"you often choose {these}", f"you rarely choose {these}", f"{these} would be new to you"),
            of_history=True,
        ),
        declare(
            f"{name}_residual",
            f"observed minus expected clicks of the user on the item's {words}",
            "clicks above expectation, shrunk",
            f"{_NO_LISTS_LOGGED}, or no {name}",
            affinity,
            reasons=Reasons(f"you choose {these} more than others do", f"you choose {these} less than others do"),
            of_history=True,
        ),
    )


def _request_columns(m: Moment) -> F32:
    return m.request_columns


def _of_request(columns: Sequence[Column]) -> Iterator[Feature]:
    """The value of each column; then, for a number per candidate, its rank and difference within the list.

    The scale of a search engine's score depends on the query, so that only its order within the list compares.
    """
    reasons = {
        c: Reasons(f"its {c.name} counts in its favour", f"its {c.name} counts against it")
        for c in columns
        if c.per == "candidate"
    }
    for column in columns:
        about = f"{column.name.replace('_', ' ')} of the {column.per}"
        owner = "user" if column.per == "user" else "request"
        group = "user attributes" if column.per == "user" else "request"
        missing = f"the {owner} has no {column.name}"
        name = f"{owner}_{column.name}"
        yield Feature(name, about, column.unit, missing, _request_columns, group, reasons.get(column))
    ranked = [k for k, c in enumerate(columns) if c.per == "candidate" and c.kind == "number"]

    def ranks(m: Moment) -> F32:
        return rank_within_list(np.ascontiguousarray(m.request_columns[ranked]))

    for k in ranked:
        name, missing = columns[k].name, f"the request has no {columns[k].name}"
        within = partial(Feature, compute=ranks, group="request", reasons=reasons[columns[k]])
        yield within(f"request_{name}_rank", f"rank of {name} in the list", "0 to 1", missing)
        yield within(f"request_{name}_over_mean", f"{name} minus its mean in the list", "difference", missing)


def groups(columns: Sequence[Feature]) -> list[str]:
    """The groups of these features in column order; `WITHIN_LIST`, which is derived from the others, comes last."""
    distinct = dict.fromkeys(f.group for f in columns)
    return [*(g for g in distinct if g != WITHIN_LIST), *([WITHIN_LIST] if WITHIN_LIST in distinct else [])]


def in_group(columns: Sequence[Feature], group: str) -> Bool:
    """bool[columns]: the features of a group, and those of `WITHIN_LIST` that are derived from one of them."""
    members = {f.name for f in columns if f.group == group}
    return np.array(
        [
            f.name in members
            or (f.group == WITHIN_LIST and f.name.removesuffix("_rank").removesuffix("_over_mean") in members)
            for f in columns
        ],
        np.bool_,
    )


def features(items: Items) -> tuple[Feature, ...]:
    """The columns of `rows`, in order: `FEATURES`, then those of the catalogue's attributes, of the request's columns,
    of its seeds, of the sequence model, and custom features.

    A number or date has two columns (its value, and the user's slope in it), any other attribute has three (its click
    rate, and the user's share and residual in it). An attribute may have any name: `Unit Weight` has the column
    `item_Unit_Weight`.
    """
    return _layout_of(items)[0]


def declare(
    catalogue: Catalogue,
    custom: tuple[Feature, ...],
    columns: tuple[Column, ...] = (),
    seeds: bool = False,
    sequence: bool = False,
) -> tuple[Feature, ...]:
    """`features` from the catalogue, custom features and columns of the request alone, without any state of items.

    seeds, sequence: whether the items have companions, and a sequence model.
    """
    return _layout(*_attribute_names(catalogue), columns, custom, seeds, sequence)[0]


def _attribute_names(c: Catalogue) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    return tuple(c.number_names), tuple(c.date_names), tuple(c.by_attribute)


class _Block(NamedTuple):
    """Adjacent features that one function computes, and the range of their columns."""

    compute: Callable[[Moment], F64 | F32 | float]
    first: int
    end: int


class _ComputedColumns(Mapping[str, F32]):
    """The columns below `known` by name; each is sliced on access, because hardly any are read."""

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


def _renamed(own: Sequence[Feature]) -> Iterator[Feature]:
    """Features of attributes and columns with names that the trees can hold, each used once.

    Their texts keep the name of the attribute or column. A character that the model text separates names with becomes
    `_`; a name that is taken gets a number, from 2.
    """
    taken = {f.name for f in (*FEATURES, *FEATURES_OF_SEEDS, *FEATURES_OF_SEQUENCE)}
    for feature in own:
        base = name = _SEPARATORS.sub("_", feature.name)
        number = 1
        while name in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(name)
        yield feature._replace(name=name)


@lru_cache(maxsize=16)
def _layout(
    numbers: tuple[str, ...],
    dates: tuple[str, ...],
    attributes: tuple[str, ...],
    sent: tuple[Column, ...],
    custom: tuple[Feature, ...],
    seeds: bool,
    sequence: bool,
) -> tuple[tuple[Feature, ...], tuple[_Block, ...], dict[str, int]]:
    own = (
        *(f for k, name in enumerate(numbers) for f in _number(name, k, name in dates)),
        *(f for a, name in enumerate(attributes) for f in _attribute(name, a)),
        *_of_request(sent),
    )
    declared = (*(FEATURES_OF_SEEDS if seeds else ()), *(FEATURES_OF_SEQUENCE if sequence else ()))
    out = (*FEATURES, *_renamed(own), *declared, *custom)
    blocks, first = [], 0
    for compute, together in groupby(out, lambda f: f.compute):
        end = first + len(tuple(together))
        blocks.append(_Block(compute, first, end))
        first = end
    return out, tuple(blocks), {f.name: k for k, f in enumerate(out)}


def _layout_of(items: Items) -> tuple[tuple[Feature, ...], tuple[_Block, ...], dict[str, int]]:
    parts = items.companions is not None, items.sequence is not None
    return _layout(*_attribute_names(items.catalogue), items.columns, items.custom, *parts)


def names(items: Items) -> tuple[str, ...]:
    """Names of the columns of `rows`, in order."""
    return tuple(f.name for f in features(items))


def schema_hash(items: Items) -> str:
    """SHA-256 of the names, units and missing rules of all features; equal if and only if rows mean the same."""
    schema = [[f.name, f.unit, f.missing] for f in features(items)]
    return hashlib.sha256(json.dumps(schema).encode()).hexdigest()


def rows(items: Items, history: History, candidates: I32, at: float, context: Context = NO_CONTEXT) -> F32:
    """float32[candidates, features]: features of each candidate for this user, from events strictly before `at`.

    candidates: int32[c] catalogue rows, `-1` unknown. at: Unix seconds. context: device, query and columns of the
    request. Missing values are NaN. The order of the candidates does not matter: each row depends only on their set.
    """
    moment = Moment(items, history, candidates, at, context)
    columns, blocks, place = _layout_of(items)
    out = np.empty((len(columns), len(candidates)), np.float32)
    moment.columns = computed = _ComputedColumns(out, place)
    for compute, first, end in blocks:
        out[first:end] = compute(moment)
        computed.known = end
    return np.ascontiguousarray(out.T)
