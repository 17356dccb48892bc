"""The simulated shop: consistency of the files written, and presence of the simulated effects."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from features.log import GAIN, KINDS
from features.text.tokens import tokenize
from offline.config.simulation import POSITION_BIAS, SimulateConfig
from offline.simulation import chinese
from offline.simulation.complements import OCCASIONS, Complements
from offline.simulation.dataset import SimulationSummary, open_shop, simulate
from offline.simulation.day_log import DEVICES_IN_USE
from offline.simulation.products import Products, make_products
from offline.simulation.shoppers import Mood, Response, Shoppers, response
from offline.simulation.vocabulary import (
    ATTRIBUTES,
    BRANDS,
    DEPARTMENTS,
    FACETS,
    FACTS,
    LIFESTYLES,
    LINES,
    MIDDLES,
    OPENERS,
    SUFFIXES,
)
from ranker.examination import power_law

SMALL = SimulateConfig(items=40, users=30, days=3, lists_per_user_day=0.5, new_items_per_day=3)
FILES = ("items", "events", "truth")


class Shop:
    """A simulated data set, written to a directory and read back."""

    def __init__(self, config: SimulateConfig, directory: Path) -> None:
        self.config = config
        self.directory = directory
        self.summary: SimulationSummary = simulate(config, directory)
        self.items, self.events, self.truth = (pq.read_table(directory / f"{f}.parquet").to_pandas() for f in FILES)

    def of(self, event: str) -> pd.DataFrame:
        """Events of one kind."""
        found: pd.DataFrame = self.events[self.events.event == event]
        return found


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The shop with default settings."""
    return Shop(SimulateConfig(), tmp_path_factory.mktemp("shop"))


def _digests(directory: Path) -> list[str]:
    return [hashlib.sha256((directory / f"{f}.parquet").read_bytes()).hexdigest() for f in FILES]


# --- reproducibility ---


def test_the_same_config_writes_the_same_bytes(tmp_path: Path) -> None:
    simulate(SMALL, tmp_path / "a")
    simulate(SMALL, tmp_path / "b")
    assert _digests(tmp_path / "a") == _digests(tmp_path / "b")


def test_another_seed_writes_other_bytes(tmp_path: Path) -> None:
    simulate(SMALL, tmp_path / "a")
    simulate(SMALL.model_copy(update={"seed": 18}), tmp_path / "b")
    assert not set(_digests(tmp_path / "a")) & set(_digests(tmp_path / "b"))


def test_more_shoppers_do_not_change_the_catalogue(tmp_path: Path) -> None:
    simulate(SMALL, tmp_path / "a")
    simulate(SMALL.model_copy(update={"users": 60}), tmp_path / "b")
    assert _digests(tmp_path / "a")[0] == _digests(tmp_path / "b")[0]


# --- days after the log ---

WITH_AHEAD = SMALL.model_copy(update={"ahead": 4})


def test_days_after_the_log_are_not_written(tmp_path: Path) -> None:
    """Events end with the log, and items that arrive later are not in the catalogue."""
    written = Shop(WITH_AHEAD, tmp_path)
    assert written.events.timestamp.max() < WITH_AHEAD.end
    assert written.items.available_from.max() < WITH_AHEAD.end
    assert len(written.items) < len(open_shop(WITH_AHEAD).stock)
    assert written.summary.items == len(written.items)


def test_opening_a_shop_again_reproduces_the_written_days(tmp_path: Path) -> None:
    written, again = Shop(WITH_AHEAD, tmp_path), open_shop(WITH_AHEAD)
    days = [again.day(day) for day in range(WITH_AHEAD.days)]
    ids = again.stock.table["item_id"].to_pylist()
    assert [ids[item] for day in days for item in day.item.tolist()] == written.events.item_id.tolist()


def test_a_new_item_is_offered_from_the_next_day_on(tmp_path: Path) -> None:
    """Later days offer all earlier items too, and each item is on the page of its department."""
    shop = open_shop(WITH_AHEAD)
    arrived = np.array([(shop.opening_us + d * 86_400_000_000) for d in range(7)])
    for day in range(7):
        offered = shop.offered(day, -1)
        assert set(offered) == set(np.flatnonzero(shop.stock.available_us <= arrived[day]))
        assert set(offered) == {i for page in range(len(DEPARTMENTS)) for i in shop.offered(day, page).tolist()}
    assert len(shop.offered(6, -1)) > len(shop.offered(3, -1))


# --- margins ---


def test_margins_change_nothing_else_and_are_around_a_third_of_the_price(shop: Shop, tmp_path: Path) -> None:
    found = Shop(shop.config.model_copy(update={"margins": True}), tmp_path)
    pd.testing.assert_frame_equal(found.items.drop(columns="margin"), shop.items)
    pd.testing.assert_frame_equal(found.events, shop.events)
    share = found.items.margin / found.items.price
    assert 0.2 < share.median() < 0.4
    assert (share < 0).any()
    assert 0 < found.items.margin.isna().mean() < 0.15


# --- complements ---


def test_every_kind_of_product_has_a_complement_of_another_department() -> None:
    department = {noun: d.name for d in DEPARTMENTS for noun in d.nouns}
    named = {noun for occasion in OCCASIONS for noun in occasion}
    assert named == set(department)
    for noun in department:
        assert any(department[other] != department[noun] for o in OCCASIONS if noun in o for other in o)


def test_items_that_go_together_are_in_the_same_baskets(tmp_path: Path) -> None:
    """The catalogue and the number of lists do not change. What is added comes after an item of a list."""
    without, config = (SimulateConfig(items=300, users=200, days=6, complements=share) for share in (0.0, 0.5))
    found, stock = Shop(config, tmp_path / "with"), open_shop(config).stock
    plain = Shop(without, tmp_path / "without")
    pd.testing.assert_frame_equal(found.items, plain.items)
    assert len(found.of("impression")) == len(plain.of("impression"))
    noun = dict(zip(stock.table["item_id"].to_pylist(), stock.noun, strict=True))
    department = {name: d.name for d in DEPARTMENTS for name in d.nouns}
    carts = found.of("cart")
    added, listed = carts[carts.request_id.isna()], carts[carts.request_id.notna()]
    assert 0.4 < len(added) / len(listed) < 0.6
    pairs = added.merge(listed, on="session_id")
    together = [
        any({noun[a], noun[b]} <= set(o) for o in OCCASIONS) and department[noun[a]] != department[noun[b]]
        for a, b in zip(pairs.item_id_x, pairs.item_id_y, strict=True)
    ]
    earlier = pairs[np.array(together) & (pairs.timestamp_y < pairs.timestamp_x)]
    assert set(earlier.event_id_x) == set(added.event_id)
    bought = found.of("purchase")
    assert 0.3 < bought.request_id.isna().sum() / len(added) < 0.9
    assert bought.value.notna().all()


def test_the_hidden_probability_of_a_complement_is_the_share_in_which_it_is_taken() -> None:
    """Item 0 has two kinds of complements: each is chosen half of the time, and of a kind, items by P(click)."""
    stock = make_products(np.random.default_rng(3), 400, np.zeros(1, np.int64), 0)
    complements, everything = Complements(stock, np.random.default_rng(0)), np.ones(400, bool)
    kinds = complements.kinds_with(0, everything)
    click = np.random.default_rng(1).uniform(0.01, 0.3, 400)
    expected = complements.probability(0, everything, click)
    assert expected.sum() == pytest.approx(1)
    assert expected[kinds[0]].sum() == pytest.approx(1 / len(kinds))
    _, taken = complements.choose(np.zeros(20_000, np.int32), everything, lambda rows, items: click[items])
    share = np.bincount(taken, minlength=400) / 20_000
    # Of 20,000 draws, a share of 0.1 has the standard error sqrt(0.1 * 0.9 / 20,000) = 0.002.
    np.testing.assert_allclose(share, expected, atol=0.01)
    assert len(complements.choose(np.zeros(3, np.int32), np.zeros(400, bool), lambda rows, items: click[items])[0]) == 0


# --- searches ---


def test_a_shop_without_searches_has_no_query_column(shop: Shop) -> None:
    assert "query" not in shop.events.columns


def test_searches_have_a_query_and_shoppers_click_items_that_match_it(shop: Shop, tmp_path: Path) -> None:
    """The catalogue does not change, and the query is on the impressions of a list. Matching items get more clicks."""
    found = Shop(SimulateConfig(searches=0.25), tmp_path)
    assert _digests(tmp_path)[0] == _digests(shop.directory)[0]
    shown, clicked = found.of("impression"), found.of("click")
    assert found.events.loc[found.events.event != "impression", "query"].isna().all()
    query = shown.groupby("request_id")["query"].agg(["first", "nunique"])
    assert set(query["nunique"]) == {0, 1}
    is_search = query["first"].notna()
    assert 0.22 < is_search.mean() < 0.28
    # Among search results, items with a word of the query in their title are clicked more.
    titles = dict(zip(found.items.item_id, found.items.title.map(lambda t: set(tokenize(t))), strict=True))
    rows = shown[shown["query"].notna()]
    matches = np.array([bool(titles[i] & set(tokenize(q))) for i, q in zip(rows.item_id, rows["query"], strict=True)])
    pairs = set(zip(clicked.request_id, clicked.item_id, strict=True))
    was_clicked = np.array([pair in pairs for pair in zip(rows.request_id, rows.item_id, strict=True)])
    assert was_clicked[matches].mean() > 2 * was_clicked[~matches].mean()


def test_queries_have_attributes_and_nouns_with_occasional_typos(tmp_path: Path) -> None:
    """Most words occur in product titles. Synonyms and typos do not."""
    found = Shop(SimulateConfig(searches=0.5), tmp_path)
    known = {w for title in found.items.title for w in tokenize(title)}
    words = [w for q in found.events["query"].dropna().unique() for w in tokenize(q)]
    assert 0.8 < np.mean([w in known for w in words]) < 0.97
    assert np.mean([any(n in q for d in DEPARTMENTS for n in d.nouns) for q in found.events["query"].dropna()]) > 0.5


# --- languages ---


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shop, Shop]:
    """A shop in English and in Chinese, without searches."""
    size = {"items": 200, "users": 60, "days": 3}
    english, chinese = (SimulateConfig(**size, language=language) for language in ("en", "zh"))
    return Shop(english, tmp_path_factory.mktemp("en")), Shop(chinese, tmp_path_factory.mktemp("zh"))


def test_the_chinese_shop_is_the_english_one_in_other_words(both: tuple[Shop, Shop]) -> None:
    """The same products, shoppers and actions: all but the texts is equal."""
    english, chinese = both
    pd.testing.assert_frame_equal(english.events, chinese.events)
    pd.testing.assert_frame_equal(english.truth, chinese.truth)
    same = ["item_id", "price", "available_from", "rating_average", "weight_kg"]
    pd.testing.assert_frame_equal(english.items[same], chinese.items[same])
    for column in ("description", "category", "brand"):
        assert (english.items[column].isna() == chinese.items[column].isna()).all()
        pairs = set(zip(english.items[column].dropna(), chinese.items[column].dropna(), strict=True))
        assert len(pairs) == len({a for a, _ in pairs}), column  # a text always has the same translation
    assert english.items["tags"].map(len).equals(chinese.items["tags"].map(len))


def test_all_texts_of_the_chinese_shop_are_chinese(both: tuple[Shop, Shop]) -> None:
    """Without spaces between words, and without Latin letters, apart from the T of a T-shirt."""
    items = both[1].items
    for column in ("title", "description", "category", "brand"):
        texts = items[column].dropna().str.replace("T恤", "")
        assert not texts.str.contains("[A-Za-z{}]").any(), column
    assert (items["title"].str.contains(" ") == items["title"].str.endswith(" 带盖")).all()
    assert items["description"].dropna().str.len().between(20, 200).all()


def test_every_phrase_of_the_grammar_has_a_chinese_one_with_the_same_gaps() -> None:
    gaps = re.compile(r"\{(mod|noun|line|p|q|n)\}")
    for frame in (*OPENERS, *MIDDLES, *FACTS):
        assert sorted(gaps.findall(chinese.PHRASES[frame])) == sorted(gaps.findall(frame)), frame
    words = [*BRANDS, *LINES, *SUFFIXES, *(n for d in DEPARTMENTS for n in (d.name, *d.nouns))]
    words += [w for a in ATTRIBUTES for w in (a.name, *a.modifiers, *a.predicates)]
    assert [w for w in words if w not in chinese.PHRASES] == []


def test_chinese_queries_name_attributes_and_nouns_without_spaces(tmp_path: Path) -> None:
    found = Shop(SimulateConfig(items=200, users=200, days=4, searches=0.5, language="zh"), tmp_path)
    queries = found.events["query"].dropna().unique()
    assert len(queries) > 40
    assert not any(" " in q for q in queries)
    nouns = [chinese.PHRASES[n] for d in DEPARTMENTS for n in d.nouns]
    assert np.mean([any(n in q for n in nouns) for q in queries]) > 0.5
    known = {c for title in found.items.title for c in title}
    assert np.mean([c in known for q in queries for c in q]) > 0.9


# --- files and columns ---


def test_the_directory_has_exactly_three_files(shop: Shop) -> None:
    assert {f"{f}.parquet" for f in FILES} == {p.name for p in shop.directory.iterdir()}


def test_files_have_the_expected_columns_and_types(shop: Shop) -> None:
    at = pa.timestamp("us", tz="UTC")
    expected = {
        "items": [
            ("item_id", pa.string()),
            ("title", pa.string()),
            ("description", pa.string()),
            ("category", pa.string()),
            ("brand", pa.string()),
            ("price", pa.float64()),
            ("available_from", at),
            ("tags", pa.list_(pa.string())),
            ("rating_average", pa.float64()),
            ("weight_kg", pa.float64()),
        ],
        "events": [
            ("event_id", pa.string()),
            ("event", pa.string()),
            ("user_id", pa.string()),
            ("item_id", pa.string()),
            ("timestamp", at),
            ("request_id", pa.string()),
            ("position", pa.int16()),
            ("value", pa.float64()),
            ("session_id", pa.string()),
            ("device", pa.string()),
        ],
        "truth": [("request_id", pa.string()), ("item_id", pa.string()), ("utility", pa.float64())],
    }
    for name, columns in expected.items():
        schema = pq.read_schema(shop.directory / f"{name}.parquet")
        assert columns == [(f.name, f.type) for f in schema]


def test_items_are_sorted_by_unique_id(shop: Shop) -> None:
    assert shop.items.item_id.is_unique
    assert shop.items.item_id.is_monotonic_increasing


def test_events_are_sorted_by_time_then_event_then_item(shop: Shop) -> None:
    expected = shop.events.sort_values(["timestamp", "event", "item_id"], kind="stable")
    assert expected.index.equals(shop.events.index)
    assert shop.events.event_id.is_unique


def test_every_event_has_a_known_kind_and_item_and_is_in_the_time_span(shop: Shop) -> None:
    assert set(shop.events.event) <= set(KINDS)
    assert set(shop.events.item_id) <= set(shop.items.item_id)
    assert shop.config.start <= shop.events.timestamp.min()
    assert shop.events.timestamp.max() < shop.config.end


def test_a_list_has_one_user_time_and_session_and_one_row_per_item(shop: Shop) -> None:
    lists = shop.of("impression").groupby("request_id")
    one = lists[["user_id", "timestamp", "session_id"]].nunique()
    assert (one == 1).all(axis=None)
    assert (lists.item_id.nunique() == 24).all()
    assert (lists.position.apply(sorted).apply(tuple) == tuple(range(24))).all()


def test_the_summary_matches_the_files(shop: Shop) -> None:
    summary = shop.summary
    clicks = shop.of("click")
    assert {kind: int((shop.events.event == kind).sum()) for kind in KINDS} == summary.events
    assert (len(shop.items), shop.events.user_id.nunique()) == (summary.items, summary.users)
    assert shop.of("impression").request_id.nunique() == summary.lists
    assert clicks.request_id.nunique() == summary.lists_with_click
    assert len(clicks) / len(shop.of("impression")) == summary.click_rate
    assert (shop.config.start, shop.config.end) == (summary.first_at, summary.last_at)


# --- invariants of shops of any size ---


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    items=st.integers(24, 60),
    users=st.integers(1, 30),
    days=st.integers(1, 3),
    lists=st.floats(0.05, 2),
    length=st.integers(2, 24),
    arrivals=st.floats(0, 10),
)
def test_any_shop_is_consistent(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    items: int,
    users: int,
    days: int,
    lists: float,
    length: int,
    arrivals: float,
) -> None:
    """Engagements follow their impression, no event precedes its item, and truth covers exactly the impressions."""
    config = SimulateConfig(
        seed=seed,
        items=items,
        users=users,
        days=days,
        lists_per_user_day=lists,
        list_length=length,
        new_items_per_day=arrivals,
    )
    any_shop = Shop(config, tmp_path_factory.mktemp("any"))
    _assert_consistent(any_shop)


def test_the_default_shop_is_consistent(shop: Shop) -> None:
    _assert_consistent(shop)


def _assert_consistent(shop: Shop) -> None:
    shown = shop.of("impression").set_index(["request_id", "item_id"])
    assert shown.index.is_unique
    for earlier, later in (("impression", "click"), ("click", "cart"), ("cart", "purchase")):
        before = shop.of(earlier).set_index(["request_id", "item_id"])
        after = shop.of(later).set_index(["request_id", "item_id"])
        assert after.index.is_unique
        assert after.index.isin(before.index).all()
        same = before.loc[after.index]
        assert (after.timestamp > same.timestamp).all()
        for column in ("user_id", "position", "session_id"):
            assert (after[column] == same[column]).all()
    available = shop.events.item_id.map(shop.items.set_index("item_id").available_from)
    assert not (shop.events.timestamp < available).any()
    assert list(zip(shop.truth.request_id, shop.truth.item_id, strict=True)) == list(shown.index)
    # The best action is a purchase with gain 3, and its probability is below 1.
    assert shop.truth.utility.between(0, 3, inclusive="left").all()
    views = shop.of("view")
    assert views[["request_id", "position", "value"]].isna().all(axis=None)
    assert (shop.of("purchase").value > 0).all()
    assert shop.events[shop.events.event != "purchase"].value.isna().all()


def test_a_session_has_one_device_usually_the_same_for_a_shopper(shop: Shop) -> None:
    """Some sessions have no logged device. The usual device has 0.8 of the sessions, plus its share of the others."""
    sessions = shop.events.groupby("session_id").device
    assert (sessions.nunique(dropna=False) == 1).all()
    device = sessions.first()
    assert 0 < device.isna().mean() < 0.1
    assert set(device.dropna()) <= set(DEVICES_IN_USE)
    user = shop.events.groupby("session_id").user_id.first()
    share = device.groupby(user).agg(lambda d: d.value_counts(normalize=True).max() if len(d) >= 5 else np.nan)
    assert share.mean() > 0.7


def test_the_value_of_a_purchase_is_the_price(shop: Shop) -> None:
    """Purchases of items without a price in the catalogue have a value too."""
    bought = shop.of("purchase")
    price = bought.item_id.map(shop.items.set_index("item_id").price)
    assert price.isna().any()
    assert (bought.value == price)[price.notna()].all()


def test_a_shop_without_sessions_writes_empty_files(tmp_path: Path) -> None:
    config = SimulateConfig(items=24, users=1, days=1, lists_per_user_day=1e-6, new_items_per_day=0)
    empty = Shop(config, tmp_path)
    assert (len(empty.items), len(empty.events), len(empty.truth)) == (24, 0, 0)
    assert math.isnan(empty.summary.click_rate)


# --- simulated effects ---


def test_the_default_shop_is_small_and_most_lists_have_a_click(shop: Shop) -> None:
    assert 60_000 <= len(shop.events) <= 120_000
    assert 0.06 <= shop.summary.click_rate <= 0.11
    assert shop.summary.lists_with_click / shop.summary.lists > 0.75


def test_many_shoppers_have_at_least_five_clicks(shop: Shop) -> None:
    clicks = shop.of("click").user_id.value_counts()
    assert (clicks >= 5).sum() > 300


def test_upper_positions_are_examined_more() -> None:
    """(1 + position)^-0.3: the first position always, the eighth with probability 8^-0.3 = 2^-0.9."""
    examined = power_law(24, POSITION_BIAS)
    assert examined[[0, 7]] == pytest.approx([1, 2**-0.9])
    assert (np.diff(examined) < 0).all()


def test_clicks_have_position_bias_at_equal_utility(shop: Shop) -> None:
    """Among items of similar utility, those at the top are clicked more often than those at the bottom."""
    rows = shop.of("impression").reset_index(drop=True)
    clicked = shop.of("click").set_index(["request_id", "item_id"]).index
    rows["clicked"] = pd.MultiIndex.from_frame(rows[["request_id", "item_id"]]).isin(clicked)
    rows["band"] = pd.qcut(shop.truth.utility, 5, labels=False)
    rate = rows.assign(top=rows.position < 6, bottom=rows.position >= 18).groupby("band")
    for _, band in rate:
        assert band[band.top].clicked.mean() > 1.3 * band[band.bottom].clicked.mean()


def test_popularity_is_skewed(shop: Shop) -> None:
    """The top tenth of the items has more than a third of the clicks."""
    clicks = shop.of("click").item_id.value_counts()
    assert clicks.iloc[: len(shop.items) // 10].sum() > len(shop.of("click")) / 3


def test_new_items_arrive_daily_and_are_shown(shop: Shop) -> None:
    new = shop.items[shop.items.available_from >= shop.config.start]
    assert new.available_from.dt.date.nunique() >= 18
    shown = shop.of("impression").item_id
    before_last_day = new[new.available_from < shop.config.end - timedelta(days=1)]
    assert before_last_day.item_id.isin(shown).mean() > 0.9


def test_utility_ranks_better_than_popularity_and_popularity_better_than_random(shop: Shop) -> None:
    """ndcg@10 on the last fifth of the lists. Popularity even includes future clicks."""
    rows = shop.of("impression").reset_index(drop=True)
    rows["utility"] = shop.truth.utility
    actions = shop.events[shop.events.event.isin(["click", "cart", "purchase"])]
    actions = actions.assign(gain=actions.event.map(dict(zip(KINDS, GAIN.tolist(), strict=True))))
    rows = rows.merge(
        actions.groupby(["request_id", "item_id"]).gain.max().reset_index(), how="left", on=["request_id", "item_id"]
    ).fillna({"gain": 0})
    rows["popularity"] = rows.item_id.map(shop.of("click").item_id.value_counts()).fillna(0)
    rows["chance"] = np.random.default_rng(0).random(len(rows))
    rows = rows.iloc[-rows.request_id.nunique() // 5 * 24 :]
    rows = rows[rows.groupby("request_id").gain.transform("max") > 0]
    ndcg = {name: _ndcg(rows, name) for name in ("chance", "popularity", "utility")}
    assert ndcg["chance"] + 0.08 < ndcg["popularity"]
    assert ndcg["popularity"] + 0.2 < ndcg["utility"]


def _ndcg(rows: pd.DataFrame, by: str) -> float:
    discount = 1 / np.log2(np.arange(2, 12))
    gain = rows.sort_values(["request_id", by], ascending=[True, False]).gain.to_numpy().reshape(-1, 24)
    best = -np.sort(-gain, axis=1)
    return float(np.mean((gain[:, :10] @ discount) / (best[:, :10] @ discount)))


# --- click model ---


def _neutral_world() -> tuple[Shoppers, Products]:
    """One shopper without any taste, with budget and tolerance 0, and two identical items."""
    k, d = len(ATTRIBUTES), len(DEPARTMENTS)
    zero = np.zeros(1)
    shopper = Shoppers(np.zeros((1, k), np.float32), np.zeros((1, d), np.float32), zero, zero, zero, np.ones(1))
    stock = Products(
        np.zeros((2, k), np.float32),
        np.zeros(2),
        np.full(2, 10.0),
        np.zeros(2),
        np.zeros(2, np.int32),
        ["", ""],
        np.zeros(2, np.int64),
        pa.table({}),
    )
    return shopper, stock


def _gain_ratio(
    change: Callable[[Shoppers, Products], None], use: int = -1, owned: bool = False, fashion: float = 0.0
) -> float:
    """Expected gain of item 1 relative to that of item 0, which differ only by the change."""
    shopper, stock = _neutral_world()
    change(shopper, stock)
    mood = Mood(np.array([-1], np.int32), np.array([use], np.int32))
    trend = np.full(len(ATTRIBUTES), fashion)
    has = np.array([[False, owned]])
    gain = response(shopper, stock, np.zeros(1, np.int32), mood, np.array([[0, 1]]), trend, has).expected_gain[0]
    return float(gain[1] / gain[0])


def _taste(like: float) -> Callable[[Shoppers, Products], None]:
    def change(shopper: Shoppers, stock: Products) -> None:
        shopper.taste[0, 3] = like
        stock.latent[1, 3] = 1

    return change


def _expensive(level: float) -> Callable[[Shoppers, Products], None]:
    def change(shopper: Shoppers, stock: Products) -> None:
        stock.price_level[1] = level

    return change


def _appealing(shopper: Shoppers, stock: Products) -> None:
    stock.appeal[1] = 1


def _same(shopper: Shoppers, stock: Products) -> None:
    pass


def test_utility_follows_taste_mood_fashion_appeal_and_price() -> None:
    use = next(k for k, a in enumerate(ATTRIBUTES) if a.facet == "use")

    def useful(shopper: Shoppers, stock: Products) -> None:
        stock.latent[1, use] = 1

    assert _gain_ratio(_same) == 1
    assert _gain_ratio(_taste(2)) > 3
    assert _gain_ratio(_taste(-2)) < 1 / 3
    assert _gain_ratio(useful) == 1
    assert _gain_ratio(useful, use=use) > 1.5
    assert _gain_ratio(_taste(0), fashion=0.5) > 1.2
    assert _gain_ratio(_appealing) > 1.5
    assert _gain_ratio(_expensive(1)) < 0.6
    assert _gain_ratio(_expensive(-2)) < 1
    assert _gain_ratio(_same, owned=True) < 0.1


def test_expected_gain_counts_the_best_action() -> None:
    """Click .5, cart given click .4, purchase given cart .5: .5 * .6 * 1 + .5 * .4 * .5 * 2 + .5 * .4 * .5 * 3 = .8."""
    assert Response(np.array(0.5), np.array(0.4), np.array(0.5)).expected_gain == pytest.approx(0.8)


# --- product texts ---


def test_titles_and_descriptions_are_varied(shop: Shop) -> None:
    descriptions = shop.items.description.dropna()
    assert shop.items.title.is_unique
    assert descriptions.is_unique
    sentences = descriptions.str.split(r"(?<=[.?]) ", regex=True).explode()
    assert sentences.nunique() / len(sentences) > 0.75
    words = {w.strip(".,;:?").lower() for d in descriptions for w in d.split()}
    assert len(words) > 900


def test_descriptions_have_25_to_60_words_in_complete_sentences(shop: Shop) -> None:
    descriptions = shop.items.description.dropna()
    assert descriptions.str.split().str.len().between(25, 60).all()
    assert descriptions.str.fullmatch(r"[A-Z].*[.?]").all()
    assert not descriptions.str.contains(r"[{}]|\s\s|\b[Aa] [aeiou]|\b[Aa]n [^aeiouAEIOU]").any()


def test_some_texts_and_numbers_are_missing(shop: Shop) -> None:
    missing = shop.items.isna().mean()
    assert missing[["item_id", "title", "tags"]].eq(0).all()
    for column in ("description", "brand", "price", "rating_average"):
        assert 0.01 < missing[column] < 0.2


def test_attributes_can_be_recognised_in_the_text() -> None:
    """Within a department, the phrases of an attribute occur in texts of items with it, and rarely in others."""
    stock = make_products(np.random.default_rng(3), 400, np.zeros(1, np.int64), 0)
    rows = np.flatnonzero(stock.department == np.bincount(stock.department).argmax())
    text = [
        f"{t} {d or ''}"
        for t, d in zip(*(stock.table.column(c).to_pylist() for c in ("title", "description")), strict=True)
    ]
    mentioned = np.array([[any(s in text[i] for s in (*a.modifiers, *a.predicates)) for a in ATTRIBUTES] for i in rows])
    has = stock.latent[rows] > 0
    assert mentioned[has].mean() > 0.5
    assert mentioned[has].mean() > 5 * mentioned[~has].mean()


def test_departments_and_lifestyles_use_existing_attributes() -> None:
    names = {a.name: a.facet for a in ATTRIBUTES}
    assert len(names) == len(ATTRIBUTES)
    assert set(FACETS) == set(names.values())
    for department in DEPARTMENTS:
        assert {"material"} == {names[m] for m in department.materials}
        assert {"use"} == {names[u] for u in department.uses}
    for lifestyle in LIFESTYLES:
        assert set(lifestyle.likes) | set(lifestyle.dislikes) <= set(names)
        assert not set(lifestyle.likes) & set(lifestyle.dislikes)
    assert len(set(BRANDS)) == len(BRANDS)


def test_every_attribute_has_several_phrases() -> None:
    for attribute in ATTRIBUTES:
        assert len(set(attribute.modifiers)) >= 4, attribute.name
        assert len(set(attribute.predicates)) >= 3, attribute.name


# --- settings, progress and errors ---


def test_the_settings_determine_the_size(tmp_path: Path) -> None:
    """100 users, 4 days and 1.5 lists per user and day: 600 lists on average, with 10 items each."""
    config = SimulateConfig(
        items=50,
        users=100,
        days=4,
        lists_per_user_day=1.5,
        list_length=10,
        new_items_per_day=0,
        end=datetime(2025, 3, 1, tzinfo=UTC),
    )
    sized = Shop(config, tmp_path)
    assert len(sized.items) == 50
    assert 450 < sized.summary.lists < 750
    assert sized.summary.events["impression"] == 10 * sized.summary.lists
    assert sized.events.timestamp.min() >= datetime(2025, 2, 25, tzinfo=UTC)


def test_progress_counts_the_catalogue_and_each_day(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    simulate(SMALL, tmp_path, lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_second_run_replaces_the_first_and_keeps_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    simulate(SMALL.model_copy(update={"seed": 1}), tmp_path)
    simulate(SMALL, tmp_path)
    simulate(SMALL, tmp_path / "fresh" / "deeper")
    assert _digests(tmp_path / "fresh" / "deeper") == _digests(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_instead_of_a_directory_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "shop"
    path.write_text("")
    with pytest.raises(NotADirectoryError, match="is a file; give a directory"):
        simulate(SMALL, path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("items", 1),
        ("items", 10**9),
        ("users", 0),
        ("days", 0),
        ("days", 2.5),
        ("lists_per_user_day", 0),
        ("lists_per_user_day", math.nan),
        ("lists_per_user_day", math.inf),
        ("list_length", 1),
        ("list_length", 241),
        ("complements", 1.1),
        ("new_items_per_day", -1),
        ("seed", -1),
        ("seed", "x"),
        ("end", datetime(2026, 6, 1)),
        ("end", datetime(2026, 6, 1, 12, tzinfo=UTC)),
        ("end", datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=9)))),
        ("end", datetime(9999, 12, 31, tzinfo=UTC)),
        ("unknown", 1),
    ],
)
def test_an_invalid_value_is_an_error_with_its_field(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as error:
        SimulateConfig.model_validate({field: value})
    assert (field,) == error.value.errors()[0]["loc"]


def test_fewer_items_than_the_list_length_are_an_error() -> None:
    with pytest.raises(ValidationError, match="items is 10, below list_length 24"):
        SimulateConfig(items=10)


def test_midnight_utc_can_be_given_in_any_time_zone() -> None:
    east = datetime(2026, 6, 1, 9, tzinfo=timezone(timedelta(hours=9)))
    assert SimulateConfig(end=east).end == datetime(2026, 6, 1, tzinfo=UTC)


@pytest.mark.slow
def test_a_million_events_can_be_simulated(tmp_path: Path) -> None:
    """20,000 items and 50,000 shoppers. Days are written one at a time."""
    config = SimulateConfig(items=20_000, users=50_000, days=10, lists_per_user_day=0.08, new_items_per_day=100)
    summary = simulate(config, tmp_path)
    assert sum(summary.events.values()) > 1_000_000
    assert pq.read_metadata(tmp_path / "events.parquet").num_rows == sum(summary.events.values())
