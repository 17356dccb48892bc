"""Features of the sequence model: what they depend on, and which model replay reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from features.history import EMPTY, Histories
from features.log import Kind
from features.table import FEATURES_OF_SEQUENCE, names, rows
from tests.worlds import DAY, START, make_events, make_lists, make_replay, make_sequence_model, make_vectors

N = 12
EVERY = np.arange(-1, N, dtype=np.int32)
EVENTS = make_events([(0.1 * DAY * k, k % 3, k % N, list(Kind)[k % 6], k % 4) for k in range(90)], 3)
AT = START + 9.5 * DAY
MODELS = [make_sequence_model(N, make_vectors(N).shape[1], seed) for seed in range(2)]
REPLAY = replace(make_replay(EVENTS), sequence_models=((START + 2 * DAY, MODELS[0]), (START + 5 * DAY, MODELS[1])))
ITEMS = REPLAY.items_at(AT)
HISTORY = Histories.of(EVENTS).read(0, AT)
NAMES = [f.name for f in FEATURES_OF_SEQUENCE]
PLACE = [names(ITEMS).index(name) for name in NAMES]


def test_they_are_missing_for_an_unknown_item_and_an_unknown_user_alone() -> None:
    found = rows(ITEMS, HISTORY, EVERY, AT)[:, PLACE]
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1:]).all()
    assert np.isnan(rows(ITEMS, EMPTY, EVERY, AT)[:, PLACE]).all()


def test_they_do_not_depend_on_the_order_of_the_candidates() -> None:
    """To the bit."""
    forward, backward = (rows(ITEMS, HISTORY, order, AT)[:, PLACE] for order in (EVERY, EVERY[::-1].copy()))
    np.testing.assert_array_equal(forward, backward[::-1])


def test_they_compare_the_cosine_within_the_list() -> None:
    """Of two items, the nearer one has the higher rank."""
    cosine, rank, over_mean = rows(ITEMS, HISTORY, np.array([3, 4], np.int32), AT)[:, PLACE].T
    assert rank[cosine.argmax()] > rank[cosine.argmin()]
    np.testing.assert_allclose(over_mean, cosine - cosine.mean(), atol=1e-6)


def test_the_order_of_engagements_matters() -> None:
    """The same items in reverse, at the same times, place the next item elsewhere."""
    item = np.arange(len(HISTORY.item), dtype=np.int32) % N
    found = [rows(ITEMS, HISTORY._replace(item=order), EVERY, AT)[1:, PLACE[0]] for order in (item, item[::-1].copy())]
    assert (found[0] != found[1]).all()


def test_replay_reads_the_newest_model_that_was_trained_before_the_list() -> None:
    """None on day 1; the first from the refresh on day 2; the second from that on day 5. As `items_at` does."""
    days = [1.0, 3.0, 6.0]
    lists = make_lists([day * DAY for day in days], [0, 0, 0], [list(range(N))] * 3)
    found = REPLAY.rows(lists).reshape(3, N, -1)[:, :, PLACE[0]]
    assert np.isnan(found[0]).all()
    every = np.arange(N, dtype=np.int32)
    for number, model in ((1, MODELS[0]), (2, MODELS[1])):
        at = START + days[number] * DAY
        history = Histories.of(EVENTS).read(0, at)
        expected = rows(replace(ITEMS, sequence=model), history, every, at)[:, PLACE[0]]
        np.testing.assert_array_equal(found[number], expected)


def test_items_in_another_order_keep_their_embeddings() -> None:
    """As the gate reads the live release, whose catalogue lacks new items: these are unknown, as is the last row."""
    moved = MODELS[0].of_rows(np.array([2, -1, 0], np.int32))
    np.testing.assert_array_equal(moved.items.code[[0, 2]], MODELS[0].items.code[[2, 0]])
    assert np.isnan(moved.items.scale).tolist() == [False, True, False, True]


def test_a_shop_without_the_model_has_no_features_of_it() -> None:
    plain = make_replay(EVENTS).items_at(AT)
    assert plain.sequence is None
    assert names(plain) == tuple(name for name in names(ITEMS) if name not in NAMES)
