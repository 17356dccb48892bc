"""Training of the sequence model, and the served model compared with the trained network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from features.log import Kind
from features.sequence import LENGTH, SequenceModel, age_buckets
from features.text.vectors import Vectors
from offline.config import SequenceConfig
from offline.training.sequence import Batch, Engagements, train_models
from offline.training.sequence_network import SequenceNetwork
from tests.worlds import DAY, START, make_events

ITEMS, DIMENSION = 30, 16


def text_vectors(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(ITEMS, DIMENSION)).astype(np.float32)
    vectors[4] = np.nan
    out: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return out


def network(id_share: float = 0.5) -> SequenceNetwork:
    """With random weights everywhere, so that no part is without effect."""
    out = SequenceNetwork(text_vectors(), 0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in out.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    out.use(text_vectors(), np.full(ITEMS, id_share, np.float32))
    return out


@pytest.mark.parametrize("length", [1, 2, 7, LENGTH])
def test_the_served_model_is_the_trained_network(length: int) -> None:
    """The direction of the kernel and of torch differ by rounding alone; the list is newest first when served."""
    rng = np.random.default_rng(length)
    trained = network()
    model = trained.export()
    item = rng.integers(0, ITEMS, length)
    kind = rng.integers(1, 6, length)
    age_s = np.sort(rng.uniform(0, 1e7, length))[::-1]
    embedded = torch.from_numpy((model.items.code * np.nan_to_num(model.items.scale)[:, None]).astype(np.float32))
    ages = np.repeat(age_buckets(age_s)[None, None], length, axis=1)
    real = torch.ones(1, length, dtype=torch.bool)
    with torch.no_grad():
        expected = trained.users(
            embedded[torch.from_numpy(item)][None], torch.from_numpy(kind)[None], torch.from_numpy(ages), real
        )[0, -1].numpy()
    served = model.user_vector(
        item[::-1].astype(np.int32).copy(), kind[::-1].astype(np.int8).copy(), (1e9 - age_s[::-1]).copy(), 1e9
    )
    np.testing.assert_allclose(served / np.linalg.norm(served), expected, atol=2e-5)


def test_a_user_without_history_has_no_direction() -> None:
    nothing = network().export().user_vector(np.empty(0, np.int32), np.empty(0, np.int8), np.empty(0), 0.0)
    assert not nothing.any()


def test_only_the_newest_engagements_are_read() -> None:
    model = network().export()
    item = np.arange(LENGTH + 5, dtype=np.int32) % ITEMS
    kind, at = np.full(len(item), Kind.CLICK, np.int8), np.linspace(1e6, 0, len(item))
    whole = model.user_vector(item, kind, at, 2e6)
    np.testing.assert_array_equal(whole, model.user_vector(item[:LENGTH], kind[:LENGTH], at[:LENGTH], 2e6))


def test_a_new_item_is_placed_by_its_text() -> None:
    """An item whose ID does not count has the embedding that its text vector gets after the training."""
    model = network(id_share=0.0).export()
    embedded = Vectors.quantise(model.embed(text_vectors()))
    known = np.isfinite(text_vectors()).all(axis=1)
    assert np.abs(embedded.code[known].astype(int) - model.items.code[:-1][known]).max() <= 1
    assert np.isnan(embedded.scale[~known]).all()
    assert np.isnan(model.items.scale[[4, -1]]).all()


def test_targets_are_new_items_and_contexts_are_earlier_moments() -> None:
    """A user has item 0, then 1 and 2 in a basket, then 1 again, then 3.

    0 has nothing before it; 1 and 2 follow 0; the second 1 is no target; 3 follows the second 1.
    """
    rows = [(0, 0, 0), (1, 0, 1), (1, 0, 2), (2, 0, 1), (3, 0, 3), (3, 1, 3)]
    events = make_events([(day * DAY, user, item, Kind.CLICK, -1) for day, user, item in rows], 2)
    engagements = Engagements.of(events, np.inf, 100)
    assert engagements.start.tolist() == [0, 5]  # the other user has a single engagement
    batch = Batch.of(engagements, engagements.start[:1], engagements.start[1:])
    assert list(zip(batch.context.tolist(), batch.place.tolist(), strict=True)) == [(0, 1), (0, 2), (3, 4)]
    # At the basket, the click is a day old; at the end it is three.
    day = int(np.log2(1 + DAY / 60))
    assert batch.age[0, 0, 0] == day
    assert batch.age[0, 3, 0] == int(np.log2(1 + 3 * DAY / 60))


def cycle(users: int = 60, length: int = 8) -> list[tuple[float, int, int, Kind, int]]:
    """Users who go through the items in a fixed order, each from another place."""
    return sorted(
        (step * DAY, user, (user + step) % (ITEMS - 1), Kind.CLICK, -1)
        for user in range(users)
        for step in range(length)
    )


@pytest.mark.slow
def test_the_order_of_engagements_is_learned() -> None:
    """In a fixed cycle, the item that follows the newest is nearer than all others for most users."""
    events = make_events(cycle(), 60)
    vectors = text_vectors()
    vectors[4] = vectors[5]
    ((model, _),) = train_models(events, vectors[None], [np.inf], SequenceConfig(epochs=150), lambda done, total: None)
    every, right = np.arange(ITEMS - 1, dtype=np.int32), 0
    for first in range(ITEMS - 1):
        item = np.array([(first + k) % (ITEMS - 1) for k in range(5)][::-1], np.int32)
        at = START + DAY * np.arange(5.0)[::-1]
        direction = model.user_vector(item, np.full(5, Kind.CLICK, np.int8), at, START + 5 * DAY)
        cosine = model.items.cosines_to(every, direction)
        cosine[item] = -1
        right += int(cosine.argmax()) == (first + 5) % (ITEMS - 1)
    assert right > 20


def test_training_again_gives_the_same_bits_and_later_events_change_nothing() -> None:
    vectors, moment = text_vectors()[None], [START + 6 * DAY]
    config = SequenceConfig(epochs=2)

    def trained(rows: list[tuple[float, int, int, Kind, int]]) -> SequenceModel:
        return train_models(make_events(rows, 60), vectors, moment, config, lambda done, total: None)[0].model

    first, again = trained(cycle()), trained(cycle())
    until = trained([row for row in cycle() if row[0] < 6 * DAY])
    for other in (again, until):
        np.testing.assert_array_equal(first.weights, other.weights)
        np.testing.assert_array_equal(first.items.code, other.items.code)
        np.testing.assert_array_equal(first.tower, other.tower)


def test_no_model_is_trained_unless_asked_for() -> None:
    events = make_events(cycle(), 60)
    assert train_models(events, text_vectors()[None], [np.inf], SequenceConfig(), lambda d, t: None) == []


def test_a_budget_that_is_used_up_ends_every_training_early() -> None:
    """A model that was not trained still places every item by its text."""
    config = SequenceConfig(epochs=3, budget_s=1e-9)
    trained = train_models(make_events(cycle(), 60), text_vectors()[None], [np.inf], config, lambda d, t: None)
    assert [epochs for _, epochs in trained] == [0]
    assert np.isfinite(trained[0].model.items.scale[:4]).all()


def test_a_log_without_engagements_leaves_the_model_untrained() -> None:
    done: list[tuple[int, int]] = []
    nothing = make_events([(0.0, 0, 1, Kind.IMPRESSION, -1)], 1)
    train_models(nothing, text_vectors()[None], [np.inf], SequenceConfig(epochs=2), lambda *at: done.append(at))
    assert done[-1] == (2, 2)
