"""The feature table: one contract for every feature, generated from the table, and values computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.arrays import I32
from features.context import NO_DEVICE, Context, Device, device_code
from features.decay import ItemState
from features.history import EMPTY, SESSION_S, Histories, History, session
from features.log import Kind
from features.moment import Items, Moment
from features.neighbours import MAX_PER_USER, PER_GROUP, Neighbours, session_numbers
from features.popularity import RATE_STRENGTH
from features.prior import click_rate_prior
from features.table import FEATURES, declare, features, names, rows, schema_hash
from features.text.vectors import Vectors
from ranker.train import _check_names
from tests.worlds import DAY, START, LogRow, logs, make_catalogue, make_events, make_replay, make_vectors

N = 12
ALL = np.arange(-1, N, dtype=np.int32)
PLANTED = make_events([(0.1 * DAY * k, k % 3, k % N, list(Kind)[k % 6], k % 4) for k in range(90)], 3)
ITEMS = make_replay(PLANTED).items_at(START + 9.5 * DAY)
HISTORY = Histories.of(PLANTED).read(0, START + 9.5 * DAY)
COLUMNS = names(ITEMS)


def table(
    history: History = HISTORY, candidates: I32 = ALL, items: Items = ITEMS, at: float = START + 9.5 * DAY
) -> dict[str, np.ndarray]:
    return dict(zip(COLUMNS, rows(items, history, candidates, at).T, strict=True))


@given(st.lists(st.text(min_size=1), min_size=2, max_size=4, unique=True))
def test_the_trees_accept_the_features_of_an_attribute_of_any_name(attributes: list[str]) -> None:
    """Also where two attributes would give the same feature; the description has the name of the attribute."""
    numbers, texts = attributes[:1], attributes[1:]
    catalogue = replace(
        make_catalogue(),
        number_names=[*numbers, "released"],
        tag_names=[f"{texts[k % len(texts)]}=x" for k in range(5)],
    )
    declared = declare(catalogue, ())
    _check_names([f.name for f in declared], [])
    assert declared[len(FEATURES)].about == numbers[0].replace("_", " ")


def test_an_attribute_with_a_blank_is_renamed_for_the_trees_and_shown_as_it_is() -> None:
    """`Unit Weight` and `Unit_Weight` give two features, of which the second gets a number."""
    catalogue = replace(make_catalogue(), number_names=["Unit Weight", "Unit_Weight"], date_names=[])
    own = declare(catalogue, ())[len(FEATURES) :]
    assert [f.name for f in own[:4]] == [
        "item_Unit_Weight",
        "Unit_Weight_slope",
        "item_Unit_Weight_2",
        "Unit_Weight_slope_2",
    ]
    assert own[0].reasons is not None
    assert own[0].reasons.up == "its Unit Weight counts in its favour"


@pytest.mark.parametrize("name", COLUMNS)
class TestEveryFeature:
    """Rules for every feature of the table; a new feature is covered once it is declared."""

    def test_is_finite_or_nan_for_known_unknown_and_textless_items(self, name: str) -> None:
        """Values are float32 and never infinite, whatever is missing."""
        column = table()[name]
        assert column.dtype == np.float32
        assert not np.isinf(column).any()

    def test_is_defined_for_an_unknown_user(self, name: str) -> None:
        """A cold user gets a row, without errors or infinities."""
        assert not np.isinf(table(EMPTY)[name]).any()

    def test_is_defined_before_the_first_event(self, name: str) -> None:
        """A shop that opens today has an empty state, no prior and no neighbours."""
        catalogue = make_catalogue()
        state = ItemState.empty(catalogue.category, len(catalogue.category_names))
        prior = np.full(N + 1, np.nan, np.float32)
        cold = Items(catalogue, Vectors.quantise(make_vectors()), prior, Neighbours.none(N), state)
        assert not np.isinf(table(EMPTY, items=cold)[name]).any()

    def test_does_not_depend_on_the_order_of_candidates(self, name: str) -> None:
        """Each row depends only on the set of candidates, bit for bit."""
        forward, backward = table()[name], table(candidates=ALL[::-1].copy())[name]
        np.testing.assert_array_equal(forward, backward[::-1])

    def test_is_never_missing_if_declared_so(self, name: str) -> None:
        """A feature whose `missing` is "never" has a number for every candidate and user."""
        declared = next(f for f in features(ITEMS) if f.name == name)
        if declared.missing.startswith("never"):
            for history in (HISTORY, EMPTY):
                assert not np.isnan(table(history)[name]).any()

    def test_has_a_complete_declaration(self, name: str) -> None:
        """Description, unit and missing rule are all declared."""
        declared = next(f for f in features(ITEMS) if f.name == name)
        assert all((declared.about, declared.unit, declared.missing))


def test_computing_rows_does_not_change_the_inputs() -> None:
    """Histories, candidates, state and vectors are the same before and after."""

    def inputs() -> list[np.ndarray]:
        return [*HISTORY, ALL, ITEMS.state.value, ITEMS.vectors.code]

    before = [a.copy() for a in inputs()]
    table()
    assert all(np.array_equal(a, b) for a, b in zip(before, inputs(), strict=True))


def test_no_candidates_give_no_rows() -> None:
    """An empty list is allowed."""
    assert rows(ITEMS, HISTORY, np.empty(0, np.int32), START).shape == (0, len(COLUMNS))


def test_feature_names_are_distinct_and_the_schema_hash_is_stable() -> None:
    """The schema hash covers names, units and missing rules."""
    assert len(set(COLUMNS)) == len(COLUMNS)
    assert schema_hash(ITEMS) == schema_hash(make_replay(PLANTED).items_at(START))


def test_click_rate_is_shrunk_toward_the_prior() -> None:
    """Two clicks on four impressions just now, prior p: (2 + s p) / (4 + s) with s = RATE_STRENGTH."""
    shown = [(0.0, 0, 5, Kind.IMPRESSION, 0)] * 4 + [(0.0, 0, 5, Kind.CLICK, 0)] * 2
    replay = make_replay(make_events(shown, 1), ())
    items = replay.items_at(START + 1e-6)
    p = float(items.prior[5])
    found = table(EMPTY, np.array([5], np.int32), items, START + 1e-6)["item_click_rate_30d"][0]
    assert found == pytest.approx((2 + RATE_STRENGTH * p) / (4 + RATE_STRENGTH), rel=1e-6)


def test_text_interest_is_the_cosine_with_the_weighted_mean() -> None:
    """One old click on item 3: every text feature is the cosine of the candidate with item 3."""
    events = make_events([(0.0, 0, 3, Kind.CLICK, -1)], 1)
    items = make_replay(events, ()).items_at(START + DAY)
    found = table(Histories.of(events).read(0, START + DAY), ALL, items, START + DAY)
    v = make_vectors()
    expected = v[ALL] @ v[3]
    for name in ("text_pooled", "text_max", "text_last"):
        np.testing.assert_allclose(found[name], expected, atol=0.01)


def test_affinity_is_the_share_of_weighted_engagement() -> None:
    """A new purchase (weight 3) in category 0 and a new click (weight 1) in category 1: 3/4, 1/4, 0."""
    events = make_events([(0.0, 0, 0, Kind.PURCHASE, -1), (0.0, 0, 4, Kind.CLICK, -1)], 1)
    items = make_replay(events, ()).items_at(START + 1e-3)
    found = table(Histories.of(events).read(0, START + 1e-3), np.array([3, 4, 5, -1], np.int32), items, START + 1e-3)
    np.testing.assert_allclose(found["category_share"], [3 / 4, 1 / 4, 0, np.nan], rtol=1e-6)


def test_clicks_raise_and_skips_lower_the_residual() -> None:
    """Shown items of category 0 were clicked and those of category 1 skipped: residuals are above and below 0."""
    shown = [(0.0, 0, i, Kind.IMPRESSION, 0) for i in (0, 3, 6, 1, 4, 7)] + [(5.0, 0, i, Kind.CLICK, 0) for i in (0, 3)]
    events = make_events(shown, 1)
    items = make_replay(events, ()).items_at(START + 10)
    found = table(Histories.of(events).read(0, START + 10), np.array([9, 10, 11], np.int32), items, START + 10)
    assert found["category_residual"][0] > 0 > found["category_residual"][1]
    assert found["category_residual"][2] == 0


def test_eagerness_is_not_taken_for_taste() -> None:
    """A user who clicks everything has no particular taste: all residuals stay small.

    The click probabilities add up to the clicks minus the pull of the prior: sum(clicked) - eagerness = sum(chance).
    """
    shown = [(0.0, 0, i, Kind.IMPRESSION, 0) for i in range(12)] + [(5.0, 0, i, Kind.CLICK, 0) for i in range(12)]
    events = make_events(shown, 1)
    items = make_replay(events, ()).items_at(START + 10)
    found = Moment(items, Histories.of(events).read(0, START + 10), ALL, START + 10).residuals
    chance = 1 - found.residual
    assert 12 - found.eagerness == pytest.approx(chance.sum(), abs=1e-9)
    assert np.abs(found.residual).max() < 0.3


def test_rank_in_list_counts_ties_half() -> None:
    """Prices 1 < 2 = 2 < 3 have the ranks (0 + 1)/8, (1 + 3)/8 twice, and (3 + 4)/8."""
    catalogue = make_catalogue()
    catalogue.price[[0, 3, 4, 5]] = [1, 2, 2, 3]
    items = Items(catalogue, ITEMS.vectors, ITEMS.prior, ITEMS.neighbours, ITEMS.state)
    found = table(EMPTY, np.array([0, 3, 4, 5], np.int32), items)
    assert found["item_price_rank"].tolist() == [1 / 8, 4 / 8, 4 / 8, 7 / 8]
    assert found["item_price_over_mean"][0] == pytest.approx(
        math.log(2) - (math.log(2) + 2 * math.log(3) + math.log(4)) / 4, abs=1e-6
    )


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("mobile", 0),
        (" Tablet\n", 1),
        ("DESKTOP", 2),
        ("app", 3),
        ("smart tv", 4),
        ("-1", 4),
        ("", NO_DEVICE),
        ("  ", NO_DEVICE),
        (None, NO_DEVICE),
    ],
)
def test_a_device_is_one_of_five_or_missing_and_its_case_is_ignored(name: str | None, code: int) -> None:
    """Names that are not listed are OTHER, blank ones are missing."""
    assert device_code(name) == code


def test_the_device_of_a_request_changes_only_its_own_column() -> None:
    """Its code stands in every row, and all other columns are unchanged."""
    known, unknown = (rows(ITEMS, HISTORY, ALL, START, Context(d)) for d in (Device.DESKTOP, NO_DEVICE))
    column = COLUMNS.index("device")
    assert (known[:, column] == 2).all()
    assert np.isnan(unknown[:, column]).all()
    np.testing.assert_array_equal(np.delete(known, column, axis=1), np.delete(unknown, column, axis=1))


def test_a_session_starts_after_the_newest_idle_half_hour() -> None:
    """At 10,000 s: a click 100 s ago, a list 1,800 s earlier, and a click 1,801 s before that, in another session."""
    clicked, shown = np.array([9900.0, 6299.0]), np.array([8100.0, 8100.0])
    assert session(clicked, shown, 10_000.0) == (1, 2, 8100.0)
    assert session(clicked, shown, 9900 + SESSION_S + 1) == (0, 0, 9900 + SESSION_S + 1)


def test_session_features_are_counts_and_the_log_of_the_age() -> None:
    """Two items shown 600 s ago, one clicked 500 s ago, another click two hours before: 1, 2 and log(601)."""
    rows_ = [
        (0.0, 0, 5, Kind.CLICK, -1),
        (7200.0, 0, 3, Kind.IMPRESSION, 0),
        (7200.0, 0, 4, Kind.IMPRESSION, 0),
        (7300.0, 0, 3, Kind.CLICK, 0),
    ]
    found = table(Histories.of(make_events(rows_, 1)).read(0, START + 7800), at=START + 7800)
    values = [found[f"user_session_{name}"][0] for name in ("events", "shown", "age")]
    assert values == pytest.approx([1, 2, math.log(601)])
    assert [table(EMPTY)[f"user_session_{name}"][0] for name in ("events", "shown", "age")] == [0, 0, 0]


@given(st.lists(st.integers(0, 9000), max_size=12), st.lists(st.integers(0, 9000), max_size=12))
@settings(max_examples=60, deadline=None)
def test_a_session_equals_a_walk_back_in_time(clicked: list[int], shown: list[int]) -> None:
    """Event by event through both lists, until a gap of more than half an hour."""
    both, began = sorted([*((at, 0) for at in clicked), *((at, 1) for at in shown)], reverse=True), 9000
    counts = [0, 0]
    for at, which in both:
        if began - at > SESSION_S:
            break
        began, counts[which] = at, counts[which] + 1
    clicked_at, shown_at = (np.array(sorted(ats, reverse=True), np.float64) for ats in (clicked, shown))
    assert session(clicked_at, shown_at, 9000.0) == (*counts, began)


@given(logs(), logs())
@settings(max_examples=25, deadline=None)
def test_no_feature_sees_its_own_future(past: list[LogRow], other: list[LogRow]) -> None:
    """Events at or after a time do not change the row at that time by a single bit."""
    at = START + 5 * DAY
    before = [r for r in past if START + r[0] < at]
    found = []
    for later in ([], [(r[0] + 5 * DAY, *r[1:]) for r in other]):
        events = make_events(before + later, 3)
        items = make_replay(events, ()).items_at(at)
        found.append(rows(items, Histories.of(events).read(0, at), ALL, at))
    np.testing.assert_array_equal(found[0], found[1])


class TestVectors:
    """Vectors at one byte per dimension."""

    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=20, deadline=None)
    def test_cosines_match_those_of_the_originals_to_a_hundredth(self, seed: int) -> None:
        """Quantising a unit vector changes cosines little."""
        v = np.random.default_rng(seed).normal(size=(6, 384)).astype(np.float32)
        v /= np.linalg.norm(v, axis=1, keepdims=True)
        every = np.arange(6, dtype=np.int32)
        np.testing.assert_allclose(Vectors.quantise(v).cosines(every, every), v @ v.T, atol=0.01)

    @given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(0, 5), st.integers(1, 40))
    @settings(max_examples=40, deadline=None)
    def test_dot_products_of_the_codes_are_exact_at_every_size(self, seed: int, a: int, b: int, d: int) -> None:
        """Odd, even and zero counts and one dimension agree with 64-bit integers in numpy, times the two scales."""
        rng = np.random.default_rng(seed)
        v = Vectors.quantise(rng.normal(size=(9, d)).astype(np.float32))
        rows_, others = rng.integers(0, 9, a).astype(np.int32), rng.integers(0, 9, b).astype(np.int32)
        dots = v.code[rows_].astype(np.int64) @ v.code[others].astype(np.int64).T
        expected = (dots.astype(np.int32) * (v.scale[rows_][:, None] * v.scale[others])).astype(np.float32)
        np.testing.assert_array_equal(v.cosines(rows_, others), expected)

    def test_missing_zero_and_infinite_vectors_have_no_cosine(self) -> None:
        """NaN, zero and infinite vectors are missing and stay missing."""
        v = np.array([[1, 0], [np.nan, 0], [0, 0], [np.inf, 1]], np.float32)
        found = Vectors.quantise(v).cosines(np.arange(4, dtype=np.int32), np.array([0], np.int32))[:, 0]
        assert found[0] == pytest.approx(1)
        assert np.isnan(found[1:]).all()

    def test_a_zero_direction_has_no_cosine(self) -> None:
        """A user whose vectors cancel out has no interest, which differs from an interest of 0."""
        v = Vectors.quantise(np.eye(2, dtype=np.float32))
        assert np.isnan(v.cosines_to(np.array([0, 1], np.int32), np.zeros(2))).all()

    def test_too_many_dimensions_are_rejected(self) -> None:
        """int32 holds a dot product of up to 516 dimensions."""
        with pytest.raises(ValueError, match="600 dimensions; the maximum is 516"):
            Vectors.quantise(np.ones((1, 600), np.float32))


class TestNeighbours:
    """Co-occurrence."""

    def test_items_of_the_same_users_are_neighbours(self) -> None:
        """A checkerboard: even users take even items, odd users odd ones, and no neighbours are of different parity."""
        rows_ = [(float(u), u, i, Kind.CLICK, -1) for u in range(6) for i in range(12) if u % 2 == i % 2]
        found = Neighbours.build(make_events(rows_, 6), 12, START + DAY, k=5)
        for item in range(12):
            assert all(n % 2 == item % 2 for n in found.item[item])
        assert (found.item[12] == -1).all()

    def test_items_of_one_shown_list_are_not_paired(self) -> None:
        """Two clicks in one list do not make a pair; the same clicks in two lists do."""
        same = [(0.0, 0, 0, Kind.CLICK, 7), (1.0, 0, 1, Kind.CLICK, 7)]
        other = [(0.0, 0, 0, Kind.CLICK, 7), (1.0, 0, 1, Kind.CLICK, 8)]
        assert (Neighbours.build(make_events(same, 1), 12, START + DAY).item == -1).all()
        assert Neighbours.build(make_events(other, 1), 12, START + DAY).item[0, 0] == 1

    def test_a_pair_of_many_years_ago_has_no_weight_and_is_skipped(self) -> None:
        """After 3,000 days, a weight is 3 * 2^-214, and the product of two is 0 in float32. 50 users have the pair."""
        rows_ = [(0.0, user, i, Kind.PURCHASE, -1) for user in range(50) for i in (0, 1)]
        found = Neighbours.build(make_events(rows_, 50), 2, START + 3000 * DAY)
        assert (found.item == -1).all()

    def test_the_weight_is_a_shrunk_cosine(self) -> None:
        """Two users take both items and one only the first, all with weight w: 2 w w / (sqrt(3) w sqrt(2) w + 1)."""
        rows_ = [(0.0, u, i, Kind.CLICK, -1) for u, i in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0))]
        found = Neighbours.build(make_events(rows_, 3), 12, START)
        assert (found.item == -1).all()  # only events strictly before `at` count
        at = START + 14 * DAY  # one half-life: every weight is 1/2
        found = Neighbours.build(make_events(rows_, 3), 12, at, session_weight=0)
        assert found.weight[0, 0] == pytest.approx(2 / 4 / (math.sqrt(3) / 2 * math.sqrt(2) / 2 + 1))

    def test_pairs_in_a_session_add_to_pairs_of_a_user(self) -> None:
        """One user has items 0 and 1 in a session and 0 and 2 in another; all weights are 1/2, session_weight is 0.5.

        A session adds 0.5/4 to the pair and to both squared norms: item 1 has 1/4 + 0.5/4, and item 0, which is in both
        sessions, has 1/4 + 2 * 0.5/4. Items 1 and 2 are only a pair of the user: 1/4.
        """
        rows_ = [
            (0.0, 0, 0, Kind.CLICK, -1),
            (0.0, 0, 1, Kind.CLICK, -1),
            (0.0, 0, 0, Kind.VIEW, -1),
            (0.0, 0, 2, Kind.CLICK, -1),
        ]
        events = make_events(rows_, 1, sessions=[7, 7, 8, 8])
        found = Neighbours.build(events, 12, START + 14 * DAY, session_weight=0.5)
        norm = math.sqrt(1 / 4 + 2 * 0.5 / 4), math.sqrt(1 / 4 + 0.5 / 4)
        assert found.item[0, :3].tolist() == [1, 2, -1]
        assert found.weight[0, 0] == pytest.approx((1 / 4 + 0.5 / 4) / (norm[0] * norm[1] + 1))
        assert found.weight[1, 1] == pytest.approx((1 / 4) / (norm[1] * norm[1] + 1))

    def test_sessions_of_one_item_have_no_effect_on_neighbours(self) -> None:
        """Engagements hours apart without logged sessions give the same neighbours for every session_weight."""
        rows_ = [(u + 7200.0 * i, u, i, Kind.CLICK, -1) for u in range(3) for i in range(u, u + 4)]
        found = [
            Neighbours.build(make_events(rows_, 3), 12, START + DAY, session_weight=weight) for weight in (0.0, 9.0)
        ]
        np.testing.assert_array_equal(found[0].item, found[1].item)
        np.testing.assert_array_equal(found[0].weight, found[1].weight)

    def test_a_session_is_logged_or_ends_after_an_idle_half_hour_and_has_one_user(self) -> None:
        """A gap of 1,800 s continues a session and 1,801 s ends it; a session id joins events hours apart, per user."""
        rows_ = [
            (0.0, 0, 0, Kind.VIEW, -1),
            (1800.0, 0, 1, Kind.VIEW, -1),
            (3601.0, 0, 2, Kind.VIEW, -1),
            (4000.0, 1, 2, Kind.VIEW, -1),
            (9e4, 0, 3, Kind.VIEW, -1),
            (18e4, 0, 4, Kind.VIEW, -1),
            (27e4, 1, 5, Kind.VIEW, -1),
        ]
        a, b, c, d, e, f, g = session_numbers(make_events(rows_, 2, sessions=[-1, -1, -1, -1, 3, 3, 3])).tolist()
        assert a == b
        assert e == f
        assert len({a, c, d, e, g}) == 5

    def test_items_of_one_shown_list_are_not_paired_in_a_session(self) -> None:
        """In one session, two clicks in the same list do not make a pair, and two clicks in different lists do."""
        for lists, paired in (((7, 7), False), ((7, 8), True)):
            rows_ = [(float(k), 0, k, Kind.CLICK, lists[k]) for k in range(2)]
            found = Neighbours.build(make_events(rows_, 1, sessions=[4, 4]), 12, START + DAY)
            assert bool((found.item[0] == 1).any()) == paired

    def test_only_the_newest_items_of_a_user_and_of_a_session_are_paired(self) -> None:
        """Of PER_GROUP + 10 items in one session, the ten oldest have no neighbours and all others have each other."""
        n = PER_GROUP + 10
        rows_ = [(float(k), 0, k, Kind.CLICK, -1) for k in range(n)]
        for session_weight in (0.0, 0.5):
            found = Neighbours.build(make_events(rows_, 1), n, START + DAY, k=n, session_weight=session_weight)
            assert (found.item >= 0).sum(axis=1).tolist() == [0] * 10 + [PER_GROUP - 1] * PER_GROUP + [0]

    def test_only_the_newest_engagements_of_a_user_count_in_sessions(self) -> None:
        """A pair in an early session counts only while both are among the newest MAX_PER_USER engagements."""
        early = [(0.0, 0, 0, Kind.CLICK, -1), (1.0, 0, 1, Kind.CLICK, -1)]
        for later, counted in ((MAX_PER_USER - 2, 1), (MAX_PER_USER - 1, 0)):
            rows_ = early + [(1e5 + k, 0, 2 + k % 3, Kind.CLICK, -1) for k in range(later)]
            with_, without = (
                Neighbours.build(make_events(rows_, 1), 12, START + 14 * DAY, session_weight=w) for w in (0.5, 0.0)
            )
            assert bool(with_.weight[0, 0] > without.weight[0, 0]) == counted

    @given(logs(), st.data())
    @settings(max_examples=30, deadline=None)
    def test_the_order_of_events_does_not_change_neighbours(self, log: list[LogRow], data: st.DataObject) -> None:
        """Any arrival order of the same log gives the same neighbours, and the same weights up to rounding."""
        log = list({row[:4]: row for row in log}.values())
        sessions = [row[4] for row in log]
        order = data.draw(st.permutations(range(len(log))))
        original = Neighbours.build(make_events(log, 3, sessions=sessions), 12, START + 9 * DAY)
        shuffled = [log[k] for k in order], [sessions[k] for k in order]
        from_shuffled = Neighbours.build(make_events(shuffled[0], 3, sessions=shuffled[1]), 12, START + 9 * DAY)
        for i in range(12):
            found, expected = (
                dict(zip(n.item[i].tolist(), n.weight[i].tolist(), strict=True)) for n in (original, from_shuffled)
            )
            assert found == pytest.approx(expected, rel=1e-5)

    @given(logs())
    @settings(max_examples=30, deadline=None)
    def test_neighbours_are_the_best_of_all_pairs(self, log: list[LogRow]) -> None:
        """With small k, the neighbours are the first k of those with large k: best first, distinct, in (0, 1]."""
        events = make_events(log, 3)
        few, all_ = (Neighbours.build(events, 12, START + 9 * DAY, k=k) for k in (3, 12))
        np.testing.assert_array_equal(few.item, all_.item[:, :3])
        for i in range(12):
            known = all_.item[i] >= 0
            assert (np.diff(all_.weight[i][known]) <= 0).all()
            assert len(set(all_.item[i][known].tolist())) == known.sum()
            assert ((all_.weight[i][known] > 0) & (all_.weight[i][known] <= 1)).all()

    def test_scores_are_the_sum_and_the_maximum_over_the_users_list(self) -> None:
        """Two listed items are neighbours of the candidate."""
        near = Neighbours(
            np.array([[1, 2], [-1, -1], [-1, -1], [-1, -1]], np.int32),
            np.array([[0.5, 0.25], [0, 0], [0, 0], [0, 0]], np.float32),
        )
        total, top = near.scores(np.array([0, 1, -1], np.int32), np.array([1, 2, -1], np.int32), np.array([1.0, 4, 9]))
        assert total.tolist() == [0.5 * 1 + 0.25 * 4, 0, 0]
        assert top.tolist() == [0.25 * 4, 0, 0]


class TestPrior:
    """The click rate predicted from text and attributes."""

    def test_the_prior_predicts_unshown_items_from_their_text(self) -> None:
        """Items on one side of the vector space are clicked: unshown items on that side get a rate above the mean."""
        n, d = 200, 8
        rng = np.random.default_rng(0)
        v = rng.normal(size=(n + 1, d)).astype(np.float32)
        v /= np.linalg.norm(v, axis=1, keepdims=True)
        v[n] = np.nan
        catalogue = make_catalogue(n)
        state = ItemState.empty(catalogue.category, 3)
        shown = np.repeat(np.arange(10, n, dtype=np.int32), 50)
        clicked = shown[rng.random(len(shown)) < np.where(v[shown, 0] > 0, 0.4, 0.05)]
        for item, kind in ((shown, Kind.IMPRESSION), (clicked, Kind.CLICK)):
            state.apply(item, np.full(len(item), kind, np.int8), np.full(len(item), START))
        prior = click_rate_prior(catalogue, v, state, START)
        unseen = np.arange(10)
        assert prior[unseen][v[unseen, 0] > 0.2].mean() > 2 * prior[unseen][v[unseen, 0] < -0.2].mean()

    def test_without_impressions_the_prior_is_missing(self) -> None:
        """A log of purchases has no click rate, which is missing and not zero."""
        catalogue = make_catalogue()
        assert np.isnan(
            click_rate_prior(catalogue, make_vectors(), ItemState.empty(catalogue.category, 3), START)
        ).all()
