"""The simulated shop: what is on disk holds together, and the effects that everything else is shown by are there."""

from __future__ import annotations

import hashlib
import math
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
from features.text.vocabulary import tokenize
from offline.config.simulation import POSITION_BIAS, SimulateConfig
from offline.simulation.dataset import SimulationSummary, open_shop, simulate
from offline.simulation.products import Products, make_products
from offline.simulation.shop import DEVICES_IN_USE
from offline.simulation.shoppers import Mood, Response, Shoppers, response
from offline.simulation.vocabulary import ATTRIBUTES, BRANDS, CIRCLES, DEPARTMENTS, FACETS
from ranker.examination import power_law

SMALL = SimulateConfig(items=40, users=30, days=3, lists_per_user_day=0.5, new_items_per_day=3)
FILES = ("items", "events", "truth")


class Shop:
    """A written shop, read back."""

    def __init__(self, config: SimulateConfig, directory: Path) -> None:
        self.config = config
        self.directory = directory
        self.summary: SimulationSummary = simulate(config, directory)
        self.items, self.events, self.truth = (pq.read_table(directory / f"{f}.parquet").to_pandas() for f in FILES)

    def of(self, event: str) -> pd.DataFrame:
        return self.events[self.events.event == event]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The shop of the defaults: what `demo` shows."""
    return Shop(SimulateConfig(), tmp_path_factory.mktemp("shop"))


def _digests(directory: Path) -> list[str]:
    return [hashlib.sha256((directory / f"{f}.parquet").read_bytes()).hexdigest() for f in FILES]


# --- the same values, the same bytes ---


def test_the_same_config_writes_the_same_bytes(tmp_path: Path) -> None:
    simulate(SMALL, tmp_path / "a")
    simulate(SMALL, tmp_path / "b")
    assert _digests(tmp_path / "a") == _digests(tmp_path / "b")


def test_another_seed_is_another_shop(tmp_path: Path) -> None:
    simulate(SMALL, tmp_path / "a")
    simulate(SMALL.model_copy(update={"seed": 18}), tmp_path / "b")
    assert not set(_digests(tmp_path / "a")) & set(_digests(tmp_path / "b"))


def test_more_shoppers_leave_the_catalogue_as_it_was(tmp_path: Path) -> None:
    simulate(SMALL, tmp_path / "a")
    simulate(SMALL.model_copy(update={"users": 60}), tmp_path / "b")
    assert _digests(tmp_path / "a")[0] == _digests(tmp_path / "b")[0]


# --- a shop that goes on after its log ---

GOES_ON = SMALL.model_copy(update={"ahead": 4})


def test_of_a_shop_that_goes_on_only_the_log_is_written(tmp_path: Path) -> None:
    """Events end with the log, and items that arrive later are not in the catalogue yet."""
    written = Shop(GOES_ON, tmp_path)
    assert written.events.timestamp.max() < GOES_ON.end
    assert written.items.available_from.max() < GOES_ON.end
    assert len(written.items) < len(open_shop(GOES_ON).stock)
    assert written.summary.items == len(written.items)


def test_a_shop_opened_again_has_the_days_that_were_written(tmp_path: Path) -> None:
    written, again = Shop(GOES_ON, tmp_path), open_shop(GOES_ON)
    days = [again.day(day) for day in range(GOES_ON.days)]
    ids = again.stock.table["item_id"].to_pylist()
    assert [ids[item] for day in days for item in day.item.tolist()] == written.events.item_id.tolist()


def test_what_arrives_on_a_day_is_offered_the_next(tmp_path: Path) -> None:
    """Later days have all that was there before, and each item stands on the page of its department."""
    shop = open_shop(GOES_ON)
    arrived = np.array([(shop.opening_us + d * 86_400_000_000) for d in range(7)])
    for day in range(7):
        offered = shop.offered(day, -1)
        assert set(offered) == set(np.flatnonzero(shop.stock.available_us <= arrived[day]))
        assert set(offered) == {i for page in range(len(DEPARTMENTS)) for i in shop.offered(day, page).tolist()}
    assert len(shop.offered(6, -1)) > len(shop.offered(3, -1))


# --- searches ---


def test_where_nobody_searches_the_log_is_as_it_was_and_has_no_query(shop: Shop) -> None:
    assert "query" not in shop.events.columns


def test_some_lists_answer_what_was_typed_and_those_who_seek_click_what_they_sought(shop: Shop, tmp_path: Path) -> None:
    """The catalogue stays as it was; a list has one query, on its impressions; more is clicked where it was sought."""
    found = Shop(SimulateConfig(searches=0.25), tmp_path)
    assert _digests(tmp_path)[0] == _digests(shop.directory)[0]
    shown, clicked = found.of("impression"), found.of("click")
    assert found.events.loc[found.events.event != "impression", "query"].isna().all()
    query = shown.groupby("request_id")["query"].agg(["first", "nunique"])
    assert set(query["nunique"]) == {0, 1}
    searched = query["first"].notna()
    assert 0.22 < searched.mean() < 0.28
    # Of the products shown to a search, those with a sought word in the title are clicked more.
    titles = dict(zip(found.items.item_id, found.items.title.map(lambda t: set(tokenize(t))), strict=True))
    rows = shown[shown["query"].notna()]
    holds = np.array([bool(titles[i] & set(tokenize(q))) for i, q in zip(rows.item_id, rows["query"], strict=True)])
    pairs = set(zip(clicked.request_id, clicked.item_id, strict=True))
    took = np.array([pair in pairs for pair in zip(rows.request_id, rows.item_id, strict=True)])
    assert took[holds].mean() > 2 * took[~holds].mean()


def test_people_type_attributes_and_things_and_slip_now_and_then(tmp_path: Path) -> None:
    """Some words are in no product's title, as synonyms and slips are; most are."""
    found = Shop(SimulateConfig(searches=0.5), tmp_path)
    known = {w for title in found.items.title for w in tokenize(title)}
    typed = [w for q in found.events["query"].dropna().unique() for w in tokenize(q)]
    assert 0.8 < np.mean([w in known for w in typed]) < 0.97
    assert np.mean([any(n in q for d in DEPARTMENTS for n in d.nouns) for q in found.events["query"].dropna()]) > 0.5


# --- the layout ---


def test_the_directory_holds_the_three_files_and_nothing_hidden(shop: Shop) -> None:
    assert {f"{f}.parquet" for f in FILES} == {p.name for p in shop.directory.iterdir()}


def test_columns_and_types_are_those_of_the_layout(shop: Shop) -> None:
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


def test_items_are_sorted_by_unique_ids(shop: Shop) -> None:
    assert shop.items.item_id.is_unique
    assert shop.items.item_id.is_monotonic_increasing


def test_events_are_sorted_by_time_then_event_then_item(shop: Shop) -> None:
    expected = shop.events.sort_values(["timestamp", "event", "item_id"], kind="stable")
    assert expected.index.equals(shop.events.index)
    assert shop.events.event_id.is_unique


def test_every_event_is_of_a_known_kind_and_item_within_the_span(shop: Shop) -> None:
    assert set(shop.events.event) <= set(KINDS)
    assert set(shop.events.item_id) <= set(shop.items.item_id)
    assert shop.config.start <= shop.events.timestamp.min()
    assert shop.events.timestamp.max() < shop.config.end


def test_a_list_is_one_row_an_item_of_one_user_at_one_moment_in_one_session(shop: Shop) -> None:
    lists = shop.of("impression").groupby("request_id")
    one = lists[["user_id", "timestamp", "session_id"]].nunique()
    assert (one == 1).all(axis=None)
    assert (lists.item_id.nunique() == 24).all()
    assert (lists.position.apply(sorted).apply(tuple) == tuple(range(24))).all()


def test_the_summary_counts_what_is_in_the_files(shop: Shop) -> None:
    summary = shop.summary
    clicks = shop.of("click")
    assert {kind: int((shop.events.event == kind).sum()) for kind in KINDS} == summary.events
    assert (len(shop.items), shop.events.user_id.nunique()) == (summary.items, summary.users)
    assert shop.of("impression").request_id.nunique() == summary.lists
    assert clicks.request_id.nunique() == summary.lists_with_click
    assert len(clicks) / len(shop.of("impression")) == summary.click_rate
    assert (shop.config.start, shop.config.end) == (summary.first_at, summary.last_at)


# --- what must hold of any shop, whatever its size ---


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
def test_any_shop_holds_together(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    items: int,
    users: int,
    days: int,
    lists: float,
    length: int,
    arrivals: float,
) -> None:
    """Engagement follows its impression, nothing precedes its item, and truth covers exactly what was shown."""
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
    _assert_holds_together(any_shop)


def test_the_default_shop_holds_together(shop: Shop) -> None:
    _assert_holds_together(shop)


def _assert_holds_together(shop: Shop) -> None:
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
    # The best act is a purchase, worth 3; nothing is certain.
    assert shop.truth.utility.between(0, 3, inclusive="left").all()
    views = shop.of("view")
    assert views[["request_id", "position", "value"]].isna().all(axis=None)
    assert (shop.of("purchase").value > 0).all()
    assert shop.events[shop.events.event != "purchase"].value.isna().all()


def test_a_visit_is_made_with_one_device_mostly_the_shoppers_usual_one(shop: Shop) -> None:
    """Of some visits none was logged. The usual one has 0.8 of the visits, and its share of the others."""
    visits = shop.events.groupby("session_id").device
    assert (visits.nunique(dropna=False) == 1).all()
    device = visits.first()
    assert 0 < device.isna().mean() < 0.1
    assert set(device.dropna()) <= set(DEVICES_IN_USE)
    user = shop.events.groupby("session_id").user_id.first()
    share = device.groupby(user).agg(lambda d: d.value_counts(normalize=True).max() if len(d) >= 5 else np.nan)
    assert share.mean() > 0.7


def test_a_purchase_costs_the_price(shop: Shop) -> None:
    """Where the catalogue has no price, the purchase still says what was paid."""
    bought = shop.of("purchase")
    price = bought.item_id.map(shop.items.set_index("item_id").price)
    assert price.isna().any()
    assert (bought.value == price)[price.notna()].all()


def test_a_shop_nobody_came_to_has_files_without_rows(tmp_path: Path) -> None:
    config = SimulateConfig(items=24, users=1, days=1, lists_per_user_day=1e-6, new_items_per_day=0)
    empty = Shop(config, tmp_path)
    assert (len(empty.items), len(empty.events), len(empty.truth)) == (24, 0, 0)
    assert math.isnan(empty.summary.click_rate)


# --- the effects ---


def test_the_default_shop_is_small_and_most_lists_have_a_click(shop: Shop) -> None:
    assert 60_000 <= len(shop.events) <= 120_000
    assert 0.06 <= shop.summary.click_rate <= 0.11
    assert shop.summary.lists_with_click / shop.summary.lists > 0.75


def test_many_shoppers_have_a_past_to_learn_from(shop: Shop) -> None:
    clicks = shop.of("click").user_id.value_counts()
    assert (clicks >= 5).sum() > 300


def test_the_upper_places_are_looked_at_more() -> None:
    """(1 + position)^-0.3: the first place always, the eighth at 8^-0.3 = 2^-0.9."""
    looked = power_law(24, POSITION_BIAS)
    assert looked[[0, 7]] == pytest.approx([1, 2**-0.9])
    assert (np.diff(looked) < 0).all()


def test_clicks_are_biased_by_position_beyond_what_truth_explains(shop: Shop) -> None:
    """Among items of like utility, those at the top are clicked more often than those at the bottom."""
    rows = shop.of("impression").reset_index(drop=True)
    clicked = shop.of("click").set_index(["request_id", "item_id"]).index
    rows["clicked"] = pd.MultiIndex.from_frame(rows[["request_id", "item_id"]]).isin(clicked)
    rows["band"] = pd.qcut(shop.truth.utility, 5, labels=False)
    rate = rows.assign(top=rows.position < 6, bottom=rows.position >= 18).groupby("band")
    for _, band in rate:
        assert band[band.top].clicked.mean() > 1.3 * band[band.bottom].clicked.mean()


def test_popularity_is_skewed(shop: Shop) -> None:
    """A tenth of the items has more than a third of the clicks; at equal shares it would be a tenth."""
    clicks = shop.of("click").item_id.value_counts()
    assert clicks.iloc[: len(shop.items) // 10].sum() > len(shop.of("click")) / 3


def test_new_items_arrive_every_day_and_get_seen(shop: Shop) -> None:
    new = shop.items[shop.items.available_from >= shop.config.start]
    assert new.available_from.dt.date.nunique() >= 18
    shown = shop.of("impression").item_id
    before_last_day = new[new.available_from < shop.config.end - timedelta(days=1)]
    assert before_last_day.item_id.isin(shown).mean() > 0.9


def test_truth_is_far_above_popularity_which_is_above_chance(shop: Shop) -> None:
    """ndcg@10 of what was done on the last fifth of lists; popularity may even count the future."""
    rows = shop.of("impression").reset_index(drop=True)
    rows["utility"] = shop.truth.utility
    acts = shop.events[shop.events.event.isin(["click", "cart", "purchase"])]
    acts = acts.assign(gain=acts.event.map(dict(zip(KINDS, GAIN.tolist(), strict=True))))
    rows = rows.merge(
        acts.groupby(["request_id", "item_id"]).gain.max().reset_index(), how="left", on=["request_id", "item_id"]
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


# --- what shoppers do ---


def _world() -> tuple[Shoppers, Products]:
    """Two items alike but for what a test changes, and one shopper with no taste, budget 0, tolerance 0."""
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


def _liked_more(
    change: Callable[[Shoppers, Products], None], use: int = -1, owned: bool = False, fashion: float = 0.0
) -> float:
    """Expected gain of item 1 over that of item 0, when both were alike but for the change."""
    shopper, stock = _world()
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


def _dear(level: float) -> Callable[[Shoppers, Products], None]:
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

    assert _liked_more(_same) == 1
    assert _liked_more(_taste(2)) > 3
    assert _liked_more(_taste(-2)) < 1 / 3
    assert _liked_more(useful) == 1
    assert _liked_more(useful, use=use) > 1.5
    assert _liked_more(_taste(0), fashion=0.5) > 1.2
    assert _liked_more(_appealing) > 1.5
    assert _liked_more(_dear(1)) < 0.6
    assert _liked_more(_dear(-2)) < 1
    assert _liked_more(_same, owned=True) < 0.1


def test_expected_gain_is_that_of_the_best_act() -> None:
    """Click .5, cart .4 of those, purchase .5 of those: .5 * .6 * 1 + .5 * .4 * .5 * 2 + .5 * .4 * .5 * 3 = .8."""
    assert Response(np.array(0.5), np.array(0.4), np.array(0.5)).expected_gain == pytest.approx(0.8)


# --- words ---


def test_titles_and_descriptions_are_varied(shop: Shop) -> None:
    descriptions = shop.items.description.dropna()
    assert shop.items.title.is_unique
    assert descriptions.is_unique
    sentences = descriptions.str.split(r"(?<=[.?]) ", regex=True).explode()
    assert sentences.nunique() / len(sentences) > 0.75
    words = {w.strip(".,;:?").lower() for d in descriptions for w in d.split()}
    assert len(words) > 900


def test_descriptions_have_25_to_60_words_and_whole_sentences(shop: Shop) -> None:
    descriptions = shop.items.description.dropna()
    assert descriptions.str.split().str.len().between(25, 60).all()
    assert descriptions.str.fullmatch(r"[A-Z].*[.?]").all()
    assert not descriptions.str.contains(r"[{}]|\s\s|\b[Aa] [aeiou]|\b[Aa]n [^aeiouAEIOU]").any()


def test_text_and_numbers_are_missing_here_and_there(shop: Shop) -> None:
    missing = shop.items.isna().mean()
    assert missing[["item_id", "title", "tags"]].eq(0).all()
    for column in ("description", "brand", "price", "rating_average"):
        assert 0.01 < missing[column] < 0.2


def test_taste_can_be_read_from_the_text() -> None:
    """The words of an attribute stand in the text of items that have it, and seldom elsewhere, in one department."""
    stock = make_products(np.random.default_rng(3), 400, np.zeros(1, np.int64), 0)
    rows = np.flatnonzero(stock.department == np.bincount(stock.department).argmax())
    text = [
        f"{t} {d or ''}"
        for t, d in zip(*(stock.table.column(c).to_pylist() for c in ("title", "description")), strict=True)
    ]
    told = np.array([[any(s in text[i] for s in (*a.modifiers, *a.predicates)) for a in ATTRIBUTES] for i in rows])
    has = stock.latent[rows] > 0
    assert told[has].mean() > 0.5
    assert told[has].mean() > 5 * told[~has].mean()


def test_every_word_list_names_attributes_that_exist() -> None:
    names = {a.name: a.facet for a in ATTRIBUTES}
    assert len(names) == len(ATTRIBUTES)
    assert set(FACETS) == set(names.values())
    for department in DEPARTMENTS:
        assert {"material"} == {names[m] for m in department.materials}
        assert {"use"} == {names[u] for u in department.uses}
    for circle in CIRCLES:
        assert set(circle.likes) | set(circle.dislikes) <= set(names)
        assert not set(circle.likes) & set(circle.dislikes)
    assert len(set(BRANDS)) == len(BRANDS)


def test_every_attribute_can_be_said_in_several_ways() -> None:
    for attribute in ATTRIBUTES:
        assert len(set(attribute.modifiers)) >= 4, attribute.name
        assert len(set(attribute.predicates)) >= 3, attribute.name


# --- flags, progress, refusals ---


def test_the_flags_set_the_size(tmp_path: Path) -> None:
    """100 users, 4 days, 1.5 lists a day: 600 lists on average, of 10 items each."""
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


def test_a_second_run_replaces_the_first_and_leaves_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    simulate(SMALL.model_copy(update={"seed": 1}), tmp_path)
    simulate(SMALL, tmp_path)
    simulate(SMALL, tmp_path / "fresh" / "deeper")
    assert _digests(tmp_path / "fresh" / "deeper") == _digests(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_is_no_directory(tmp_path: Path) -> None:
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
def test_an_impossible_value_is_refused_with_the_name_of_its_field(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as error:
        SimulateConfig.model_validate({field: value})
    assert (field,) == error.value.errors()[0]["loc"]


def test_fewer_items_than_a_list_needs_are_refused() -> None:
    with pytest.raises(ValidationError, match="items is 10, below list_length 24"):
        SimulateConfig(items=10)


def test_midnight_may_be_told_in_any_zone() -> None:
    east = datetime(2026, 6, 1, 9, tzinfo=timezone(timedelta(hours=9)))
    assert SimulateConfig(end=east).end == datetime(2026, 6, 1, tzinfo=UTC)


@pytest.mark.slow
def test_a_million_events_take_a_few_minutes_at_most(tmp_path: Path) -> None:
    """20,000 items and 50,000 shoppers: days are written as they come."""
    config = SimulateConfig(items=20_000, users=50_000, days=10, lists_per_user_day=0.08, new_items_per_day=100)
    summary = simulate(config, tmp_path)
    assert sum(summary.events.values()) > 1_000_000
    assert pq.read_metadata(tmp_path / "events.parquet").num_rows == sum(summary.events.values())
