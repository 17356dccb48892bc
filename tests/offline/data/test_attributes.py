"""Any attribute of an item is a feature, with a user's twin of it, as the configuration or its column says."""

from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pytest

from features.decay import ItemState
from features.history import EMPTY, Histories
from features.log import Kind
from features.prior import attribute_rates
from features.table import names, rows
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
KINDS = {"year": "number", "maker": "category", "themes": "tags", "released": "date", "internal": "ignore"}


def test_attributes_are_read_as_the_configuration_says() -> None:
    """A text becomes a number, a list, a moment; what is ignored is gone."""
    found = read_catalogue(convert_attributes(ITEMS, KINDS, "items.parquet"))
    assert list(found.number_names) == ["year", "released"]
    assert list(found.date_names) == ["released"]
    np.testing.assert_array_equal(found.numbers[:, 0], [1999, 2001, np.nan, np.nan])
    day = datetime.datetime(2001, 2, 3, tzinfo=datetime.UTC).timestamp()
    assert found.numbers[0, 1] == pytest.approx(day / 86400 / 365.25)
    assert set(found.tag_names) == {"maker=x", "maker=y", "themes=sea", "themes=sky", "themes=sand"}
    assert list(found.by_attribute) == ["maker", "themes"]
    assert np.diff(found.by_attribute["themes"].start).tolist() == [2, 3, 0, 0]


@pytest.mark.parametrize(
    ("kinds", "why"),
    [
        (
            {"yaer": "number"},
            "features.attributes.yaer: items.parquet has no such attribute; its attributes are year,"
            " maker, themes, released, internal",
        ),
        (
            {"maker": "number"},
            "items.parquet, column 'maker': cannot be read as a number: row 0 holds 'x'; correct it,"
            " or read the attribute as something else",
        ),
        (
            {"maker": "date"},
            "items.parquet, column 'maker': cannot be read as a date: row 0 holds 'x'; correct it,"
            " or read the attribute as something else",
        ),
    ],
)
def test_what_cannot_be_read_so_is_refused_with_the_row(kinds: dict, why: str) -> None:
    """File, column, row, value, remedy."""
    with pytest.raises(DataError) as error:
        convert_attributes(ITEMS, kinds, "items.parquet")
    assert str(error.value) == why


def test_every_attribute_has_a_feature_and_a_twin() -> None:
    """A number and a date: itself and the leaning; tags: their click rate, share and residual."""
    found = set(names(make_replay(make_events([], 1)).items_at(START)))
    assert {"item_stars", "stars_slope", "item_released_age", "released_slope"} <= found
    assert {f"{f}" for a in ("style", "use") for f in (f"item_{a}_rate", f"{a}_share", f"{a}_residual")} <= found


def test_the_rate_of_an_attribute_is_that_of_the_items_that_share_it() -> None:
    """Style 1 shown 30 times and clicked 15 times, the rest 60 and 0: (15 + 20/6) / (30 + 20) for its only bearer."""
    planted = make_catalogue()
    tags = planted.by_attribute["style"]
    item = next(i for i in range(12) if np.array_equal(tags.tag[tags.start[i] : tags.start[i + 1]], [0]))
    other = next(i for i in range(12) if 0 not in tags.tag[tags.start[i] : tags.start[i + 1]])
    state = ItemState.empty(planted.category, 3)
    for who, kind, times in ((item, Kind.IMPRESSION, 30), (item, Kind.CLICK, 15), (other, Kind.IMPRESSION, 60)):
        state.apply(np.full(times, who, np.int32), np.full(times, kind, np.int8), np.full(times, START))
    rate = attribute_rates(planted, state, START)
    column = list(planted.by_attribute).index("style")
    assert rate[item, column] == pytest.approx((15 + 20 * 15 / 90) / (30 + 20))
    assert np.isnan(rate[-1]).all()


def test_a_dates_age_is_in_years_at_the_moment() -> None:
    """An item released at 50.0 years since 1970, looked at one year later, is one year old."""
    items = make_replay(make_events([], 1)).items_at(START)
    items.catalogue.numbers[4, 1] = 50.0
    at = 51.0 * 365.25 * 86400
    found = rows(items, EMPTY, np.array([4], np.int32), at)[0, names(items).index("item_released_age")]
    assert found == pytest.approx(1.0)


def test_a_users_taste_in_an_attribute_is_told_apart_from_that_in_others() -> None:
    """Items of one style engaged with: the share of that style is high, that of a use they lack is missing or low."""
    planted = make_catalogue()
    tags = planted.by_attribute["style"]
    bearers = [i for i in range(12) if tags.start[i + 1] > tags.start[i]]
    events = make_events([(float(k), 0, bearers[0], Kind.CLICK, -1) for k in range(3)], 1)
    items = make_replay(events).items_at(START + 10)
    found = rows(items, Histories.of(events).read(0, START + 10), np.array(bearers, np.int32), START + 10)
    assert found[0, names(items).index("style_share")] == 1.0
