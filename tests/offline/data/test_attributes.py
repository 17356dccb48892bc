"""Item attributes: conversion to the configured types, and the item and user features computed from them."""

from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pytest

from features.decay import ItemState
from features.history import EMPTY, Histories
from features.log import Kind
from features.moment import Moment
from features.prior import attribute_rates
from features.table import features, names, rows
from offline.config.imports import AttributeKind
from offline.data.attributes import convert_attributes
from offline.data.dataset import read_catalogue
from offline.runtime.errors import DataError
from tests.worlds import START, make_catalogue, make_events, make_replay

ITEMS = pa.table(
    {
        "item_id": ["a", "b", "c"],
        "title": ["A", "B", "C"],
        "year": ["1999", "2001", None],
        "maker": ["x", "y", None],
        "themes": ["sea, sky", "sky|sea; sand", ""],
        "released": ["2001-02-03", None, "2010-01-01"],
        "internal": [1, 2, 3],
    }
)
KINDS: dict[str, AttributeKind] = {
    "year": "number",
    "maker": "category",
    "themes": "tags",
    "released": "date",
    "internal": "ignore",
}


def test_attributes_are_converted_to_the_configured_kinds() -> None:
    """Strings become numbers, tags and dates; an ignored attribute is dropped."""
    catalogue = read_catalogue(convert_attributes(ITEMS, KINDS, "items.parquet"))
    assert list(catalogue.number_names) == ["year", "released"]
    assert list(catalogue.date_names) == ["released"]
    np.testing.assert_array_equal(catalogue.numbers[:, 0], [1999, 2001, np.nan, np.nan])
    day = datetime.datetime(2001, 2, 3, tzinfo=datetime.UTC).timestamp()
    assert catalogue.numbers[0, 1] == pytest.approx(day / 86400 / 365.25)
    assert set(catalogue.tag_names) == {"maker=x", "maker=y", "themes=sea", "themes=sky", "themes=sand"}
    assert list(catalogue.by_attribute) == ["maker", "themes"]
    assert np.diff(catalogue.by_attribute["themes"].start).tolist() == [2, 3, 0, 0]


def test_a_value_is_a_number_that_is_not_a_feature() -> None:
    items = ITEMS.append_column("margin", pa.array(["1.5", "-2", None]))
    catalogue = read_catalogue(convert_attributes(items, {"margin": "value", **KINDS}, "items.parquet"))
    assert list(catalogue.value_names) == ["margin"]
    np.testing.assert_array_equal(catalogue.values[:, 0], [1.5, -2, np.nan, np.nan])
    assert "margin" not in catalogue.number_names
    assert catalogue.amount_names == ["price", "year", "margin"]
    np.testing.assert_array_equal(catalogue.amounts("margin"), catalogue.values[:, 0])
    assert catalogue.amounts("released") is None, "a date is not an amount"


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (
            {"yaer": "number"},
            "features.attributes.yaer: no such attribute in items.parquet; its attributes are year,"
            " maker, themes, released, internal",
        ),
        (
            {"maker": "number"},
            "items.parquet, column 'maker', row 0: 'x' cannot be read as a number; correct the value,"
            " or choose another kind for the attribute",
        ),
        (
            {"maker": "date"},
            "items.parquet, column 'maker', row 0: 'x' cannot be read as a date; correct the value,"
            " or choose another kind for the attribute",
        ),
    ],
)
def test_an_invalid_value_is_an_error_with_its_row(kinds: dict[str, AttributeKind], message: str) -> None:
    """The message has file, column, row, value and fix."""
    with pytest.raises(DataError) as error:
        convert_attributes(ITEMS, kinds, "items.parquet")
    assert str(error.value) == message


def test_every_attribute_has_item_and_user_features() -> None:
    """Numbers and dates: the value and the user's slope. Tags: click rate, share and residual."""
    features = set(names(make_replay(make_events([], 1)).items_at(START)))
    assert {"item_stars", "stars_slope", "item_released_age", "released_slope"} <= features
    assert {f"{f}" for a in ("style", "use") for f in (f"item_{a}_rate", f"{a}_share", f"{a}_residual")} <= features


def test_the_rate_of_an_attribute_pools_the_items_that_share_it() -> None:
    """The only item with a style: 15 clicks in 30 impressions. Others: 0 in 60. (15 + 20 * 15 / 90) / (30 + 20)."""
    catalogue = make_catalogue()
    tags = catalogue.by_attribute["style"]
    item = next(i for i in range(12) if np.array_equal(tags.tag[tags.start[i] : tags.start[i + 1]], [0]))
    other = next(i for i in range(12) if 0 not in tags.tag[tags.start[i] : tags.start[i + 1]])
    state = ItemState.empty(catalogue.category, 3)
    for i, kind, times in ((item, Kind.IMPRESSION, 30), (item, Kind.CLICK, 15), (other, Kind.IMPRESSION, 60)):
        state.apply(np.full(times, i, np.int32), np.full(times, kind, np.int8), np.full(times, START))
    rate = attribute_rates(catalogue, state, START)
    column = list(catalogue.by_attribute).index("style")
    assert rate[item, column] == pytest.approx((15 + 20 * 15 / 90) / (30 + 20))
    assert np.isnan(rate[-1]).all()


def test_the_age_of_a_date_is_in_years() -> None:
    """An item released 50 years after 1970 is one year old when it is ranked 51 years after 1970."""
    items = make_replay(make_events([], 1)).items_at(START)
    items.catalogue.numbers[4, 1] = 50.0
    at = 51.0 * 365.25 * 86400
    found = rows(items, EMPTY, np.array([4], np.int32), at)[0, names(items).index("item_released_age")]
    assert found == pytest.approx(1.0)


def test_the_age_of_a_date_does_not_depend_on_how_often_it_is_computed() -> None:
    """A date 20 years after 1970, ranked 21 years after 1970, is one year old at the first and the second reading."""
    items = make_replay(make_events([], 1)).items_at(START)
    items.catalogue.numbers[4, 1] = 20.0
    moment = Moment(items, EMPTY, np.array([4], np.int32), 21.0 * 365.25 * 86400)
    declared = next(f for f in features(items) if f.name == "released_slope").compute
    assert np.asarray(declared(moment))[0, 0] == np.asarray(declared(moment))[0, 0] == pytest.approx(1.0)


def test_the_share_of_a_style_is_one_for_a_user_who_engaged_only_with_it() -> None:
    """Three clicks on items of one style."""
    catalogue = make_catalogue()
    tags = catalogue.by_attribute["style"]
    with_style = [i for i in range(12) if tags.start[i + 1] > tags.start[i]]
    events = make_events([(float(k), 0, with_style[0], Kind.CLICK, -1) for k in range(3)], 1)
    items = make_replay(events).items_at(START + 10)
    found = rows(items, Histories.of(events).read(0, START + 10), np.array(with_style, np.int32), START + 10)
    assert found[0, names(items).index("style_share")] == 1.0
