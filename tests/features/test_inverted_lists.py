"""Inverted lists: what a text search compares in a large catalogue, and that nothing else changes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import retrieval
from features.log import Kind
from features.moment import Items
from features.retrieval import interest_vector, nearest_by_text, retrieve
from features.text.inverted_lists import InvertedLists
from features.text.vectors import Vectors
from offline.training.inverted_lists import build_inverted_lists
from serving.ranking.live import Live
from serving.release.manifest import ReleaseError
from serving.release.release import load_release
from tests.serving.test_release import CUT_OFF, planted_items, planted_model, publish
from tests.serving.test_rules import history


def topics(n: int, count: int = 8, seed: int = 0) -> np.ndarray:
    """float32[n + 1, 16] unit vectors around `count` directions in turn; every seventh and the last are missing."""
    rng = np.random.default_rng(seed)
    centre = np.linalg.qr(rng.normal(size=(16, 16)))[0][:count]
    out = (centre[np.arange(n + 1) % count] + 0.05 * rng.normal(size=(n + 1, 16))).astype(np.float32)
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    out[::7] = out[n] = np.nan
    return out


def with_lists(items: Items) -> Items:
    """The planted shop with two lists: one of blue and one of red items."""
    vectors = items.vectors.code * items.vectors.scale[:, None]
    return replace(items, inverted=InvertedLists.assigned(vectors.astype(np.float32), np.eye(16, dtype=np.float32)[:2]))


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 60), st.integers(1, 9), st.integers(0, 99))
def test_every_item_with_text_is_in_exactly_one_list(n: int, count: int, seed: int) -> None:
    vectors = topics(n, seed=seed)
    lists = InvertedLists.assigned(vectors, np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32))
    known = np.flatnonzero(np.isfinite(vectors).all(axis=1))
    assert sorted(lists.row.tolist()) == known.tolist()
    assert lists.near(np.ones(16), look_at=count).tolist() == known.tolist()
    assert (np.diff(lists.near(np.ones(16), look_at=1)) > 0).all()


def test_an_item_is_in_the_list_of_its_nearest_centre() -> None:
    vectors = np.array([[1, 0], [0, 1], [0.8, 0.6], [np.nan, 0], [np.nan, np.nan]], np.float32)
    lists = InvertedLists.assigned(vectors, np.array([[0, 3], [1, 0]], np.float32))
    assert lists.start.tolist() == [0, 1, 3]
    assert lists.row.tolist() == [1, 0, 2]
    assert lists.near(np.array([1.0, 0.1]), look_at=1).tolist() == [0, 2]
    assert lists.near(np.array([1.0, 0.1]), np.array([False, True, True, True]), look_at=1).tolist() == [2]
    assert lists.near(np.zeros(2), look_at=1).shape[0] > 0, "any list may be returned for a zero direction"


def test_clustering_finds_the_topics_and_is_deterministic() -> None:
    """For 2,000 items of 8 topics, the nearest lists contain all items of the queried topic and few others."""
    vectors = topics(2000)
    lists = build_inverted_lists(vectors, seed=17, above=100)
    assert lists is not None
    again = build_inverted_lists(vectors, seed=17, above=100)
    assert again is not None
    assert lists.row.tobytes() == again.row.tobytes()
    assert lists.centre.code.tobytes() == again.centre.code.tobytes()
    wanted = [i for i in range(2000) if i % 8 == 3 and i % 7]
    direction = np.nanmean(vectors[3::8], axis=0).astype(np.float64)
    found = set(lists.near(direction, look_at=len(lists.start) // 4).tolist())
    assert found >= set(wanted)
    assert len(found) < 2000 // 2


def test_a_small_catalogue_gets_no_inverted_lists() -> None:
    assert build_inverted_lists(topics(200), seed=0) is None
    assert build_inverted_lists(topics(200), seed=0, above=172) is None, "200 minus 29 without text are 171"
    assert build_inverted_lists(np.full((301, 16), np.nan, np.float32), seed=0, above=0) is None


def test_retrieval_compares_only_the_nearest_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one of two lists searched, a user of red items gets red ones by text, in the order of an exact search."""
    monkeypatch.setattr(retrieval, "EXACT_UP_TO", 5)
    monkeypatch.setattr("features.text.inverted_lists.InvertedLists.near.__defaults__", (None, 1))
    items = planted_items()
    red = items.catalogue.category[:-1] == 1
    known = history((int(np.flatnonzero(red)[0]), Kind.CLICK, 1.0))
    direction = interest_vector(items, known, CUT_OFF)
    every = nearest_by_text(items, direction, CUT_OFF, 20)
    found = nearest_by_text(with_lists(items), direction, CUT_OFF, 20)
    assert found.tolist() == [r for r in every.tolist() if red[r]]
    few = np.zeros(20, np.bool_)
    few[:4] = True
    assert nearest_by_text(with_lists(items), direction, CUT_OFF, 20, few).tolist() == [
        r for r in every.tolist() if few[r]
    ], "if a filter leaves few items, all of them are compared"
    assert len(retrieve(with_lists(items), known, CUT_OFF, 20).item) > 0


def test_similar_items_also_use_the_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "EXACT_UP_TO", 5)
    monkeypatch.setattr("features.text.inverted_lists.InvertedLists.near.__defaults__", (None, 1))
    items = planted_items()
    exact, lists = Live(None, items, (), ""), Live(None, with_lists(items), (), "")  # type: ignore[arg-type]
    assert lists.similar(3, 5) == exact.similar(3, 5)
    assert len(lists.similar(3, 50)) == 9, "the other items of its colour"
    assert len(exact.similar(3, 50)) == 19


def test_a_release_stores_its_inverted_lists(tmp_path: Path) -> None:
    items = planted_items()
    model = planted_model(items)
    plain = load_release(publish(tmp_path, items=items, model_text=model))
    assert plain.items.inverted is None
    path = publish(tmp_path, items=with_lists(items), model_text=model)
    loaded, original = load_release(path).items.inverted, with_lists(items).inverted
    assert loaded is not None
    assert original is not None
    for a, b in zip(arrays_of(loaded), arrays_of(original), strict=True):
        assert a.tobytes() == b.tobytes()
    damaged = Path(shutil.copytree(path, tmp_path / "damaged"))
    rows = np.load(damaged / "arrays/list_row.npy")
    rows[0] = 999
    np.save(damaged / "arrays/list_row.npy", rows)
    with pytest.raises(ReleaseError, match=r"list_row\.npy: holds 1 to 999, expected 0 to 19"):
        load_release(damaged, verify=False)


def arrays_of(lists: InvertedLists) -> tuple[np.ndarray, ...]:
    return lists.row, lists.start, lists.centre.code, lists.centre.scale


def test_the_length_of_a_centre_does_not_matter() -> None:
    vectors = topics(50)
    centres = np.random.default_rng(1).normal(size=(4, 16)).astype(np.float32)
    one, other = InvertedLists.assigned(vectors, centres), InvertedLists.assigned(vectors, centres * 7)
    assert one.row.tolist() == other.row.tolist()
    assert isinstance(one.centre, Vectors)
