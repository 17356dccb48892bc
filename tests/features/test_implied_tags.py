"""Implied tags: examples computed by hand, values that stay as entered, and invariance to order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.catalogue import Catalogue
from features.text.implied_tags import AttributeValues, ItemWords
from tests.worlds import make_catalogue


def _tagged(tags: list[list[int]], names: int) -> Catalogue:
    """A catalogue of items with these tags and without categories and brands."""
    n = len(tags)
    none = np.zeros(n + 1, np.int32)
    start = np.concatenate(([0], np.cumsum([len(t) for t in tags]), [sum(map(len, tags))])).astype(np.int64)
    return replace(
        make_catalogue(n),
        category=none,
        category_names=[],
        brand=none,
        brand_names=[],
        tag_start=start,
        tag=np.array([t for item_tags in tags for t in item_tags], np.int32),
        tag_names=[f"style={k}" for k in range(names)],
    )


def _amounts(values: AttributeValues, item: int) -> dict[int, float]:
    rows = slice(values.start[item], values.start[item + 1])
    return dict(zip(values.value[rows].tolist(), values.amount[rows].tolist(), strict=True))


# --- words ---


def test_words_are_letters_and_digits_ignoring_case_and_distinct() -> None:
    """'oak' is in three texts, 'chair' and '2' are in two; a word that is in one text only is dropped."""
    words = ItemWords.of(["Oak chair, OAK!", "oak_chair 2", "Oak-2 lamp", ""])
    assert words.distinct == 3
    assert [words.word[a:b].tolist() for a, b in zip(words.start[:-1], words.start[1:], strict=True)] == [
        [0, 2],
        [0, 1, 2],
        [0, 1],
        [],
    ]


@given(st.lists(st.text(max_size=30), max_size=8))
def test_words_of_any_text_are_in_ascending_order(texts: list[str]) -> None:
    words = ItemWords.of(texts)
    assert len(words.start) == len(texts) + 1
    assert words.start[-1] == len(words.word)
    for a, b in zip(words.start[:-1], words.start[1:], strict=True):
        assert (np.diff(words.word[a:b]) > 0).all()
    assert ((words.word >= 0) & (words.word < words.distinct)).all()


# --- values ---


def test_without_words_only_entered_values_are_used() -> None:
    """Item 0 has tags 1 and 0, item 1 none, item 2 tag 1, which is the most common and so the first value."""
    found = AttributeValues.of(_tagged([[1, 0], [], [1]], 2))
    assert [_amounts(found, i) for i in range(3)] == [{0: 1.0, 1: 1.0}, {}, {0: 1.0}]
    assert found.share.tolist() == [0.3, 0.3]


def test_a_tag_is_implied_by_the_words_of_items_that_have_it() -> None:
    """The text of 40 items is 'oak', 20 of them are tagged; that of 40 others is 'steel'.

    For an item without the tag, 20 of the 39 others with 'oak' have it, and the base rate is 20 / 80: the share is
    (20 + 6 x .25) / (39 + 6) = .48. For an item with it: (19 + 1.5) / 45 = .46. Both are in the bin from .45 to .5, in
    which half of the items have the tag: the rate is .5, and .5 x .5 / .5 / (1 - .5) = 1 of those without deserve it.
    For 'steel' the share is 1.5 / 45 = .03, and no item in that bin has the tag.
    """
    catalogue = _tagged([[0]] * 20 + [[]] * 60, 1)
    found = AttributeValues.of(catalogue, ItemWords.of(["oak"] * 40 + ["steel"] * 40))
    assert all(_amounts(found, i) == {0: 1.0} for i in range(40))
    assert not any(_amounts(found, i) for i in range(40, 80))


def test_the_amount_of_an_implied_tag_is_calibrated() -> None:
    """80 texts are 'oak', with 20 tagged items, and 20 are 'steel': (20 + 6 x .2) / (79 + 6) = .249, tagged .238.

    Both are in the bin from .2 to .25; 20 of 80 have the tag, a rate of 1 / 4, so a third of those without deserve it.
    """
    catalogue = _tagged([[0]] * 20 + [[]] * 80, 1)
    found = AttributeValues.of(catalogue, ItemWords.of(["oak"] * 80 + ["steel"] * 20))
    assert [_amounts(found, i) for i in (0, 20, 99)] == [{0: 1.0}, {0: pytest.approx(1 / 3)}, {}]


def test_an_item_is_left_out_of_the_shares_that_imply_its_own_tags() -> None:
    """Each item has its own tag and all have the same words, so that no item's words imply more than any other's."""
    catalogue = _tagged([[k] for k in range(30)], 30)
    found = AttributeValues.of(catalogue, ItemWords.of(["plain words"] * 30))
    assert [_amounts(found, i) for i in range(30)] == [_amounts(AttributeValues.of(catalogue), i) for i in range(30)]


def test_categories_and_brands_are_never_implied() -> None:
    """Item 1 has no brand, but every word of the items that have one."""
    catalogue = replace(make_catalogue(), tag=np.empty(0, np.int32), tag_start=np.zeros(14, np.int64))
    with_words = AttributeValues.of(catalogue, ItemWords.of(["the same"] * 12))
    for a, b in zip(with_words, AttributeValues.of(catalogue), strict=True):
        np.testing.assert_array_equal(a, b)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 20))
def test_entered_values_stay_and_implied_amounts_are_at_most_1(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    catalogue = make_catalogue(n, seed % 1000) if n > 2 else _tagged([[0]] * n, 1)
    texts = [" ".join(f"w{k}" for k in rng.integers(0, 6, rng.integers(0, 5))) for _ in range(n)]
    entered, with_words = AttributeValues.of(catalogue), AttributeValues.of(catalogue, ItemWords.of(texts))
    for i in range(n):
        before, after = _amounts(entered, i), _amounts(with_words, i)
        assert {v for v, amount in after.items() if amount == 1.0} >= set(before)
        assert all(0.1 <= amount <= 1.0 for amount in after.values())


def test_implied_tags_do_not_depend_on_the_order_of_items_and_words() -> None:
    rng = np.random.default_rng(3)
    tags = [sorted(set(rng.integers(0, 4, 2).tolist())) for _ in range(40)]
    texts = [[f"w{k}" for k in (item_tags[0], 9, *rng.integers(4, 9, 2))] for item_tags in tags]
    reversed_ = AttributeValues.of(_tagged(tags[::-1], 4), ItemWords.of([" ".join(t[::-1]) for t in texts[::-1]]))
    found = AttributeValues.of(_tagged(tags, 4), ItemWords.of([" ".join(t) for t in texts]))
    assert [_amounts(found, i) for i in range(40)] == [_amounts(reversed_, 39 - i) for i in range(40)]
