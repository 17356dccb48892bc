"""Reading a query: the words in it, their meaning as item vectors, and the items that contain them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from features.context import Context
from features.history import EMPTY
from features.kernels.strings import Strings
from features.moment import Items
from features.replay import Replay
from features.retrieval import SOURCES, retrieve
from features.table import names, rows
from features.text.tokens import WORD_CHARACTERS, tokenize
from features.text.vocabulary import MAX_QUERY_PARTS, MAX_QUERY_WORDS, Vocabulary
from tests.worlds import START, make_catalogue, make_events, make_lists, make_replay, make_vectors

TITLES = [
    "Walnut Bird Feeder",
    "Walnut Bird Bath",
    "Oak Feeder",
    "Steel Lamp",
    "Kids' Café Lamp",
    "Steel Kettle",
    "Bird",
    "Walnut Desk",
    "Oak Desk",
    "Steel Desk",
    "",
    "Lantern",
]
N = len(TITLES)


def items() -> Items:
    """Items whose vectors follow from their titles: one direction each for wood, birds and metal."""
    base = make_replay(make_events([], 1)).items_at(START)
    wood, bird, metal = np.eye(8, dtype=np.float32)[:3]
    direction_of = {"walnut": wood, "oak": wood, "bird": bird, "steel": metal}
    vectors = np.full((N + 1, 8), np.nan, np.float32)
    for k, title in enumerate(TITLES):
        directions = [direction_of[w] for w in tokenize(title) if w in direction_of]
        vectors[k] = np.sum(directions, axis=0) if directions else np.nan
    none = np.zeros(N + 2, np.int64)
    catalogue = replace(
        base.catalogue,
        titles=TITLES,
        tag_start=none,
        tag=np.empty(0, np.int32),
        category=np.full(N + 1, 3, np.int32),
        brand=np.full(N + 1, 2, np.int32),
    )
    replay = Replay(catalogue, vectors, make_events([], 1), np.array([START]))
    return replay.items_at(START)


ITEMS = items()
assert ITEMS.words is not None
WORDS = ITEMS.words
EVERY = np.arange(N, dtype=np.int32)


def holding(text: str) -> list[str]:
    return [TITLES[k] for k in WORDS.holding(WORDS.read(text)).tolist()]


def titles_by_meaning(text: str) -> list[str]:
    """Titles by cosine with a query, best first, only those above 0."""
    cosine = np.nan_to_num(ITEMS.vectors.cosines_to(EVERY, WORDS.read(text).direction))
    return [TITLES[k] for k in np.argsort(-cosine, kind="stable").tolist() if cosine[k] > 0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Walnut bird-feeder, 30 cm!", ["walnut", "bird", "feeder", "30", "cm"]),
        ("Kids' Café-crème", ["kids", "cafe", "creme"]),
        ("maker’s", ["makers"]),
        ("\uff37ALNUT", ["walnut"]),
        ("  \t\n", []),
        ("🦄 -- _ ?", []),
        ("<b>x</b>", ["b", "x", "b"]),
        ("дуб", ["дуб"]),
        ("x" * 99, ["x" * WORD_CHARACTERS]),
    ],
)
def test_words_are_letters_and_digits_without_case_accents_and_apostrophes(text: str, found: list[str]) -> None:
    assert tokenize(text) == found


def test_a_query_matches_words_in_title_category_brand_and_tags() -> None:
    assert holding("lamp") == ["Steel Lamp", "Kids' Café Lamp"]
    planted = Vocabulary.build(make_catalogue(), make_vectors())
    assert {"item", "a", "b", "c", "x", "y", "0", "1"} <= set(planted.names)


def test_the_match_is_the_share_of_query_words_weighted_by_rarity() -> None:
    """3 of 12 items contain walnut: log(1 + 9.5 / 3.5) = 1.312; 2 contain feeder: log(1 + 10.5 / 2.5) = 1.649."""
    walnut, feeder = np.log1p(9.5 / 3.5), np.log1p(10.5 / 2.5)
    found = WORDS.match(WORDS.read("walnut feeder"), np.array([0, 1, 2, 3, -1], np.int32))
    share = walnut / (walnut + feeder)
    np.testing.assert_allclose(found, [1.0, share, 1 - share, 0.0, 0.0], rtol=1e-6)


def vectors_of(words: Vocabulary) -> np.ndarray:
    return words.vectors.code * words.vectors.scale[:, None] * (words.strength / words.rarity)[:, None]


def test_a_word_vector_is_half_the_mean_of_its_items_and_half_the_encoders_vector() -> None:
    """Of two items at (1, 0) and (0, 1), the one with the word x is (.5, -.5) from their mean.

    The encoder has x at (0, 1) and y at (0, -1), so x is (0, 1) from the mean of both: (.25, .25) in all. Of z, which
    it has not read, the vector is that of its items alone.
    """
    none = np.zeros(4, np.int64)
    catalogue = replace(
        ITEMS.catalogue, item_ids=["a", "b"], titles=["x", "y z"], tag_start=none, tag=np.empty(0, np.int32)
    )
    catalogue = replace(catalogue, category=np.full(3, 3, np.int32), brand=np.full(3, 2, np.int32))
    words = Vocabulary.without_vectors(catalogue)
    assert list(words.names) == ["x", "y", "z"]
    items = np.array([[1, 0], [0, 1], [np.nan, np.nan]], np.float32)
    own = np.array([[0, 1], [0, -1], [np.nan, np.nan]], np.float16)
    mixed = vectors_of(words.with_vectors(items, own))
    np.testing.assert_allclose(mixed, [[0.25, 0.25], [-0.25, -0.25], [-0.5, 0.5]], atol=0.01)
    unread = vectors_of(words.with_vectors(items, np.full((3, 2), np.nan, np.float16)))
    np.testing.assert_allclose(unread, [[0.5, -0.5], [-0.5, 0.5], [-0.5, 0.5]], atol=0.01)


def test_a_vocabulary_takes_the_vectors_of_another_by_word() -> None:
    """A word that the other lacks has none, so it adds nothing to the direction of a query."""
    catalogue = replace(ITEMS.catalogue, titles=["Walnut Zither", *TITLES[1:]])
    taken = Vocabulary.without_vectors(catalogue).with_vectors_of(WORDS)
    np.testing.assert_array_equal(taken.read("walnut lamp").direction, WORDS.read("walnut lamp").direction)
    assert "zither" in list(taken.names)
    assert not taken.read("zither").direction.any()
    nothing = Vocabulary.without_vectors(catalogue).with_vectors_of(replace(WORDS, names=Strings.of([])))
    assert not nothing.read("walnut").direction.any()


@given(st.integers(0, 40))
def test_the_most_common_words_are_in_at_least_as_many_items_as_all_others(most: int) -> None:
    chosen, items_with = WORDS.most_common(most), np.bincount(WORDS.word, minlength=len(WORDS.names))
    others = np.setdiff1d(np.arange(len(items_with)), chosen)
    assert len(chosen) == min(most, len(items_with))
    assert items_with[chosen].min(initial=99) >= items_with[others].max(initial=0)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("feder", "feeder"),
        ("feedre", "feeder"),
        ("feeeder", "feeder"),
        ("fedeer", "feeder"),
        ("walnuts", "walnut"),
        ("lmap", "lamp"),
        ("lant", "lantern"),
        ("kettel", "kettle"),
        ("LANTERM", "lantern"),
    ],
)
def test_an_unknown_word_is_replaced_by_words_it_misspells_or_begins(typed: str, meant: str) -> None:
    assert holding(typed) == holding(meant) != []
    # Less certain than the word itself, but with the same weight.
    exact, guessed = (WORDS.match(WORDS.read(w), EVERY) for w in (meant, typed))
    assert 0.5 <= guessed.max() < exact.max() == 1.0


@pytest.mark.parametrize("other", ["xyzzy", "be", "reeder", "lantana", "walnutwood", "deskjets"])
def test_a_word_that_is_unlike_every_word_matches_nothing_but_has_weight(other: str) -> None:
    assert holding(other) == []
    query = WORDS.read(f"walnut {other}")
    assert len(query.weight) == 2
    assert WORDS.match(query, EVERY).max() < 0.5
    assert not WORDS.read(other).direction.any()


def test_a_query_means_what_the_items_with_its_words_have_in_common() -> None:
    assert set(titles_by_meaning("walnut")) >= {"Walnut Desk", "Oak Desk"}
    assert "Steel Desk" not in titles_by_meaning("walnut")
    assert set(titles_by_meaning("bird walnut")[:3]) == {"Walnut Bird Feeder", "Walnut Bird Bath", "Bird"}
    # Oak items do not contain walnut, but both are wood.
    assert "Oak Feeder" in titles_by_meaning("walnut")


@given(st.text(max_size=300))
@example("\ud800\0' ﷺ" * 40)
@example("a " * 300)
def test_any_text_gives_a_valid_query(text: str) -> None:
    query = WORDS.read(text)
    assert len(query.weight) <= MAX_QUERY_WORDS + MAX_QUERY_PARTS
    assert len(query.weight) == 0 or query.weight.sum() == pytest.approx(1)
    assert np.isfinite(query.direction).all()
    match = WORDS.match(query, EVERY)
    assert np.isnan(match).all() if not len(query.weight) else ((match >= 0) & (match <= 1 + 1e-12)).all()


def test_query_features_are_missing_without_a_query_or_without_words() -> None:
    column = [names(ITEMS).index(name) for name in ("query_cosine", "query_match")]
    for query in ("", "?!"):
        assert np.isnan(rows(ITEMS, EMPTY, EVERY, START, Context(query=query))[:, column]).all()
    assert np.isnan(rows(replace(ITEMS, words=None), EMPTY, EVERY, START, Context(query="oak"))[:, column]).all()
    cosine, match = rows(ITEMS, EMPTY, np.append(EVERY, np.int32(-1)), START, Context(query="oak xyzzy"))[:, column].T
    assert np.isnan(cosine[[10, 12]]).all()  # an item without text, and the unknown item
    assert match[10] == match[12] == 0
    # For a query of unknown words the cosine is missing and the match is 0.
    cosine, match = rows(ITEMS, EMPTY, EVERY, START, Context(query="xyzzy"))[:, column].T
    assert np.isnan(cosine).all()
    assert (match == 0).all()


def test_a_list_is_replayed_with_its_query() -> None:
    """The first list has no query and the second has one; its rows equal those of `rows` at the same time."""
    replay = Replay(ITEMS.catalogue, _vectors(), make_events([], 2), np.array([START]))
    lists = make_lists([10.0, 20.0], [0, 0], [list(range(N))] * 2, queries=["", "walnut feedre"])
    replayed = replay.rows(lists).reshape(2, N, -1)
    column = names(ITEMS).index("query_match")
    assert np.isnan(replayed[0, :, column]).all()
    expected = rows(replay.items_at(START), EMPTY, EVERY, START + 20.0, Context(query="walnut feedre"))
    np.testing.assert_array_equal(replayed[1, :, column], expected[:, column])
    np.testing.assert_array_equal(replayed[1, :, column - 1], expected[:, column - 1])


def _vectors() -> np.ndarray:
    return (ITEMS.vectors.code * ITEMS.vectors.scale[:, None]).astype(np.float32)


def test_retrieval_uses_both_the_meaning_and_the_words_of_a_query() -> None:
    found = retrieve(ITEMS, EMPTY, START, N, Context(query="oak"))
    sources = {
        TITLES[row]: {s for k, s in enumerate(SOURCES) if bits >> k & 1}
        for row, bits in zip(found.item.tolist(), found.source_bits.tolist(), strict=True)
    }
    assert sources["Oak Desk"] == sources["Oak Feeder"] == {"query", "query_words", "new"}
    assert "query" in sources["Walnut Desk"]
    assert "query_words" not in sources["Walnut Desk"]


def test_changed_and_added_items_get_new_words_and_others_keep_theirs() -> None:
    kettle, lantern = (np.sort(WORDS.read(text).word) for text in ("oak kettle", "walnut lantern"))
    over = WORDS.over({3: kettle}, [lantern])
    match = over.match(over.read("kettle"), np.arange(N + 1, dtype=np.int32))
    assert [k for k in range(N + 1) if match[k] == 1] == [3, TITLES.index("Steel Kettle")]
    assert over.match(over.read("lantern"), np.array([N, -1], np.int32)).tolist() == [1.0, 0.0]
    assert over.holding(over.read("walnut")).tolist() == [0, 1, 7, N]
