"""The compiled loops behind a request's rows: each agrees with a plain implementation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from features.catalogue import Codes, Tags
from features.history import History
from features.kernels.dots import LANES, dots
from features.kernels.ranks import rank_within_list
from features.kernels.slots import find, slots_of
from features.log import ATTRIBUTION_S, Kind
from features.moment import AFFINITY_STRENGTH, Moment, _clicked_after_shown
from features.popularity import RATE_STRENGTH, popularity
from features.table import features, names
from features.text.vectors import Vectors, top_similarities
from tests.worlds import DAY, START, make_events, make_replay

SEEDS = st.integers(0, 2**32 - 1)
SINGLES = st.floats(width=32, allow_infinity=False)
LOG = make_events([(0.05 * DAY * k, k % 3, k % 11, list(Kind)[k % 6], k % 4) for k in range(90)], 3)
ITEMS = make_replay(LOG).items_at(START + 5 * DAY)
N = len(ITEMS.catalogue)


def random_history(rng: np.random.Generator, engagements: int, shown: int) -> History:
    """A user's two lists over a catalogue so small that items repeat, with some items outside it."""
    at, shown_at = (np.sort(START + 5 * DAY * rng.random(n))[::-1].copy() for n in (engagements, shown))
    item, shown_item = (rng.integers(-1, N, n).astype(np.int32) for n in (engagements, shown))
    return History(item, rng.integers(1, 6, engagements).astype(np.int8), at, shown_item, shown_at)


class TestDots:
    """Integer dot products in tiles."""

    @given(SEEDS, st.integers(0, 40), st.integers(0, 20), st.integers(0, 3), st.integers(1, 70))
    @settings(max_examples=40, deadline=None)
    def test_match_64_bit_integers_at_every_size(self, seed: int, n: int, m: int, k: int, d: int) -> None:
        """Full and partial tiles, odd dimensions, no items, no directions, and row -1, the unknown item."""
        rng = np.random.default_rng(seed)
        code = rng.integers(-127, 128, (9, d)).astype(np.int8)
        rows, others = rng.integers(-1, 9, n).astype(np.int32), rng.integers(0, 9, m).astype(np.int32)
        directions = rng.integers(-32767, 32768, (k, d)).astype(np.int16)
        expected = np.vstack([code[others], directions]).astype(np.int64) @ code[rows].T.astype(np.int64)
        np.testing.assert_array_equal(dots(code, rows, others, directions)[: m + k, :n], expected)

    def test_the_largest_sum_fits_int32(self) -> None:
        """516 x 127 x 32767 = 2,147,287,044 is below 2^31, in every lane."""
        code = np.full((1, 516), 127, np.int8)
        rows = np.zeros(LANES + 1, np.int32)
        found = dots(code, rows, rows[:0], np.full((1, 516), 32767, np.int16))
        assert found[0, : LANES + 1].tolist() == [516 * 127 * 32767] * (LANES + 1)

    @pytest.mark.slow
    def test_are_the_same_if_numba_compiles_for_a_generic_processor(self, tmp_path: Path) -> None:
        """Multiplies pairs of int16 instead of four bytes, in another process; compiling the kernels takes seconds."""
        program = (
            "import sys, numpy as np, features.kernels.dots as it\n"
            "assert not it.BYTES and it.LANES == 8\n"
            "rng = np.random.default_rng(0)\n"
            "code, rows = rng.integers(-127, 128, (9, 37)).astype(np.int8), rng.integers(0, 9, 19).astype(np.int32)\n"
            "toward = rng.integers(-32767, 32768, (2, 37)).astype(np.int16)\n"
            "expected = np.vstack([code[rows], toward]).astype(np.int64) @ code[rows].T.astype(np.int64)\n"
            "np.testing.assert_array_equal(it.dots(code, rows, rows, toward)[:21, :19], expected)\n"
        )
        elsewhere = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(tmp_path)}
        subprocess.run([sys.executable, "-c", program], check=True, env=elsewhere)

    @given(SEEDS)
    @example(118045395)  # a dot product beyond 2^24, which float32 rounds
    @settings(max_examples=10, deadline=None)
    def test_cosines_with_items_and_with_directions_are_the_same_in_one_call(self, seed: int) -> None:
        """`interest` equals `cosines` and `cosines_to`, bit for bit; a zero direction has no cosine."""
        rng = np.random.default_rng(seed)
        v = Vectors.quantise(rng.normal(size=(30, 24)).astype(np.float32))
        rows, others = rng.integers(0, 30, 21).astype(np.int32), rng.integers(0, 30, 5).astype(np.int32)
        directions = np.stack((rng.normal(size=24), np.zeros(24)))
        found = v.interest(rows, others, directions)
        np.testing.assert_array_equal(found[:5].T, v.cosines(rows, others))
        np.testing.assert_array_equal(found[5], v.cosines_to(rows, directions[0]))
        assert np.isnan(found[6]).all()


@given(st.integers(0, 6), st.integers(0, 5), st.data())
@settings(max_examples=40, deadline=None)
def test_top_similarities_ignore_missing_cosines(m: int, c: int, data: st.DataObject) -> None:
    """A missing cosine is not -1: with two of three known, the mean is that of two."""
    cosine = st.sampled_from([np.nan, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0])
    cosines = np.array(data.draw(st.lists(cosine, min_size=m * c, max_size=m * c)), np.float32).reshape(m, c)
    found = top_similarities(cosines)
    for i in range(c):
        known = np.sort(cosines[~np.isnan(cosines[:, i]), i])[::-1].astype(np.float64)
        expected = (known[0], known[:3].mean()) if len(known) else (np.nan, np.nan)
        np.testing.assert_allclose(found[:, i], expected, rtol=1e-6)


@given(st.lists(SINGLES | st.sampled_from([0.0, -0.0, 1.0, np.nan]), max_size=40))
@settings(max_examples=80, deadline=None)
def test_rank_counts_all_values_below_and_half_of_the_ties(values: list[float]) -> None:
    """Rank: (below + half of equal) / known, with 0 and -0 equal. Difference: from the mean of the known values."""
    value = np.array(values, np.float32)
    known = value[~np.isnan(value)]
    rank, over = rank_within_list(value[None])
    for i, v in enumerate(value):
        if np.isnan(v):
            assert np.isnan(rank[i])
            assert np.isnan(over[i])
        else:
            assert rank[i] == np.float32(((known < v).sum() + (known <= v).sum()) / (2 * len(known)))
            mean = np.sort(known).astype(np.float64).cumsum()[-1] / len(known)
            with np.errstate(over="ignore"):
                assert over[i] == np.float32(v - mean)


@given(st.lists(st.sampled_from([-1, 0, 1, 2, 4096, 8192, 12288, 2**31 - 1]), max_size=30), st.integers(-1, 5000))
@settings(max_examples=60, deadline=None)
def test_find_returns_the_first_position_of_an_item(items: list[int], other: int) -> None:
    """Items that share a slot are distinguished; `-1` is never found."""
    item = np.array(items, np.int32)
    slots = slots_of(item)
    for query in {*items, other}:
        expected = items.index(query) if query in items and query >= 0 else -1
        wanted: Any = np.int32(query)  # the type of the items, as in compiled code
        assert find(slots, item, wanted) == expected


def test_the_table_grows_with_the_list() -> None:
    """A search always ends at an empty slot."""
    item = np.arange(5000, dtype=np.int32)
    slots = slots_of(item)
    wanted: list[Any] = [np.int32(i) for i in (0, 4999, 5000)]
    assert [find(slots, item, i) for i in wanted] == [0, 4999, -1]


class TestMoment:
    """Results that a moment computes in loops over lists."""

    @given(SEEDS, st.integers(0, 30), st.integers(0, 40))
    @settings(max_examples=40, deadline=None)
    def test_a_shown_item_counts_as_clicked_if_an_engagement_followed_in_time(self, seed: int, m: int, s: int) -> None:
        """Compared with checking every pair."""
        h = random_history(np.random.default_rng(seed), m, s)
        expected = [
            float(any(a == i and 0 <= at - shown <= ATTRIBUTION_S for a, at in zip(h.item, h.at, strict=True)))
            for i, shown in zip(h.shown_item, h.shown_at, strict=True)
            if i >= 0
        ]
        known = h.shown_item >= 0
        found = _clicked_after_shown(h.shown_item[known], h.shown_at[known], h.item, h.at, ATTRIBUTION_S)
        assert found.tolist() == expected

    @given(SEEDS, st.integers(0, 30), st.integers(0, 40))
    @settings(max_examples=40, deadline=None)
    def test_repeats_are_counts_and_ages_of_each_candidate(self, seed: int, m: int, s: int) -> None:
        """Number of events, number of purchases and age of the newest event in either list."""
        h = random_history(np.random.default_rng(seed), m, s)
        at = START + 6 * DAY
        every = np.arange(-1, N, dtype=np.int32)
        found = Moment(ITEMS, h, every, at).repeats
        for c in every[1:]:
            mine, shown = h.item == c, h.shown_item == c
            since, since_shown = (np.log1p(at - t[:1]) if len(t) else [np.nan] for t in (h.at[mine], h.shown_at[shown]))
            expected = [mine.sum(), (h.kind[mine] == Kind.PURCHASE).sum(), *since, shown.sum(), *since_shown]
            np.testing.assert_allclose(found[:, c + 1], expected, rtol=1e-12)
        assert np.isnan(found[:, 0]).all()

    @given(SEEDS)
    @settings(max_examples=20, deadline=None)
    def test_codes_give_the_same_affinity_as_lists_of_one_tag(self, seed: int) -> None:
        """Share and residual do not depend on how an attribute is stored; NaN without a value."""
        rng = np.random.default_rng(seed)
        code = np.append(rng.integers(0, 4, N), 3).astype(np.int32)
        known = code != 3
        tags = Tags(np.concatenate(([0], np.cumsum(known))), code[known], 3)
        m = Moment(ITEMS, random_history(rng, 8, 12), np.arange(-1, N, dtype=np.int32), START + 6 * DAY)
        codes = Codes(code, 3)
        np.testing.assert_array_equal(m.share(codes), m.share(tags))
        np.testing.assert_array_equal(m.residual(codes), m.residual(tags))
        item, residual = m.residuals.item, m.residuals.residual
        same_value = code[item] == code[0]
        if known[0]:
            expected = residual[same_value].sum() / (same_value.sum() + AFFINITY_STRENGTH)
            assert m.residual(codes)[1] == pytest.approx(expected)


def test_popularity_follows_from_the_decayed_counts() -> None:
    """Every count and rate equals its formula on the decayed sums of item, category and shop."""
    at, every = START + 5.5 * DAY, np.arange(-1, N, dtype=np.int32)
    state, catalogue = ITEMS.state, ITEMS.catalogue
    p = popularity(state, ITEMS.prior, catalogue.price, catalogue.available_from, every, at)
    counts, category = state.of_items(every, at), state.of_categories(every, at)[:, :, 3]
    shop = state.of_shop(at)[:, 3]
    logs = np.log1p(counts)
    counts_by_kind = [logs[:, kind].T for kind in (Kind.IMPRESSION, Kind.CLICK, Kind.PURCHASE)]
    np.testing.assert_allclose(p[:12], np.concatenate(counts_by_kind), rtol=1e-12)
    np.testing.assert_allclose(p[16:18], logs[:, [Kind.VIEW, Kind.CART], 3].T, rtol=1e-12)
    s = RATE_STRENGTH
    clicks, shown = counts[:, Kind.CLICK], counts[:, Kind.IMPRESSION]
    np.testing.assert_allclose(p[12:16], ((clicks + s * ITEMS.prior[every][:, None]) / (shown + s)).T, rtol=1e-12)
    np.testing.assert_allclose(
        p[18],
        (counts[:, Kind.PURCHASE, 3] + s * shop[Kind.PURCHASE] / shop[Kind.CLICK]) / (clicks[:, 3] + s),
        rtol=1e-12,
    )
    expected = (category[:, Kind.CLICK] + s * shop[Kind.CLICK] / shop[0]) / (category[:, 0] + s)
    np.testing.assert_allclose(p[21], expected, rtol=1e-12)
    engaged = np.log1p(counts[:, Kind.VIEW :].sum(axis=1))
    np.testing.assert_allclose(p[20], engaged[:, 1] - engaged[:, 3], rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(p[19], ITEMS.prior[every])
    np.testing.assert_allclose(p[23], np.log1p(catalogue.price[every]), rtol=1e-12)


def test_a_replay_names_its_columns_without_reading_the_log() -> None:
    """The columns depend only on the catalogue and the custom features."""
    replay = make_replay(make_events([(0.0, 0, 3, Kind.CLICK, -1)], 1))
    assert [f.name for f in replay.features] == list(names(replay.items_at(START))) == [f.name for f in features(ITEMS)]
