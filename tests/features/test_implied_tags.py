"""Tags that nobody entered, read from words: one worked out by hand, what is left alone, and what does not matter."""

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
    """Items with these tags, and neither category nor brand."""
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
        tag=np.array([t for of in tags for t in of], np.int32),
        tag_names=[f"style={k}" for k in range(names)],
    )


def _amounts(values: AttributeValues, item: int) -> dict[int, float]:
    of = slice(values.start[item], values.start[item + 1])
    return dict(zip(values.value[of].tolist(), values.amount[of].tolist(), strict=True))


# --- words ---


def test_words_are_letters_and_digits_without_regard_to_case_each_once() -> None:
    """'oak' stands in three texts, 'chair' and '2' in two; what stands in one text alone tells nothing of others."""
    words = ItemWords.of(["Oak chair, OAK!", "oak_chair 2", "Oak-2 lamp", ""])
    assert words.distinct == 3
    assert [words.word[a:b].tolist() for a, b in zip(words.start[:-1], words.start[1:], strict=True)] == [
        [0, 2],
        [0, 1, 2],
        [0, 1],
        [],
    ]


@given(st.lists(st.text(max_size=30), max_size=8))
def test_any_text_has_words_in_ascending_order(texts: list[str]) -> None:
    words = ItemWords.of(texts)
    assert len(words.start) == len(texts) + 1
    assert words.start[-1] == len(words.word)
    for a, b in zip(words.start[:-1], words.start[1:], strict=True):
        assert (np.diff(words.word[a:b]) > 0).all()
    assert ((words.word >= 0) & (words.word < words.distinct)).all()


# --- values ---


def test_without_words_values_are_what_was_entered() -> None:
    """Item 0 has tags 1 and 0, item 1 none, item 2 tag 1, the most common and therefore the first value."""
    found = AttributeValues.of(_tagged([[1, 0], [], [1]], 2))
    assert [_amounts(found, i) for i in range(3)] == [{0: 1.0, 1: 1.0}, {}, {0: 1.0}]
    assert found.share.tolist() == [0.3, 0.3]


def test_a_tag_is_read_where_the_words_of_those_that_have_it_stand() -> None:
    """40 items say 'oak', 20 of them tagged, and 40 say 'steel'.

    An item without the tag: of 39 others with 'oak' 20 have it, usual is 20 / 80: (20 + 6 x .25) / (39 + 6) = .48. One
    with it: (19 + 1.5) / 45 = .46. Both are in the step from .45 to .5, in which half have it: rate .5, and of those
    without, .5 x .5 / .5 / (1 - .5) = 1 deserve it. 'steel': 1.5 / 45 = .03, of which none has it.
    """
    catalogue = _tagged([[0]] * 20 + [[]] * 60, 1)
    found = AttributeValues.of(catalogue, ItemWords.of(["oak"] * 40 + ["steel"] * 40))
    assert all(_amounts(found, i) == {0: 1.0} for i in range(40))
    assert not any(_amounts(found, i) for i in range(40, 80))


def test_what_words_say_is_worth_what_it_has_been_worth() -> None:
    """80 items say 'oak', 20 of them tagged, and 20 say 'steel': (20 + 6 x .2) / (79 + 6) = .249, with it .238.

    Both are in the step from .2 to .25; 20 of 80 have it, a rate of 1 / 4, so a third of those without deserve it.
    """
    catalogue = _tagged([[0]] * 20 + [[]] * 80, 1)
    found = AttributeValues.of(catalogue, ItemWords.of(["oak"] * 80 + ["steel"] * 20))
    assert [_amounts(found, i) for i in (0, 20, 99)] == [{0: 1.0}, {0: pytest.approx(1 / 3)}, {}]


def test_a_word_of_ones_own_proves_nothing() -> None:
    """Each item has a tag; all have the same words. Left out itself, no item's words say more than any other's."""
    catalogue = _tagged([[k] for k in range(30)], 30)
    found = AttributeValues.of(catalogue, ItemWords.of(["plain words"] * 30))
    assert [_amounts(found, i) for i in range(30)] == [_amounts(AttributeValues.of(catalogue), i) for i in range(30)]


def test_a_category_and_a_brand_are_never_read() -> None:
    """Item 1 has no brand, and every word of those that have one."""
    catalogue = replace(make_catalogue(), tag=np.empty(0, np.int32), tag_start=np.zeros(14, np.int64))
    read = AttributeValues.of(catalogue, ItemWords.of(["the same"] * 12))
    for a, b in zip(read, AttributeValues.of(catalogue), strict=True):
        np.testing.assert_array_equal(a, b)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 20))
def test_what_was_entered_stays_and_what_is_read_is_a_part_of_it(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    catalogue = make_catalogue(n, seed % 1000) if n > 2 else _tagged([[0]] * n, 1)
    texts = [" ".join(f"w{k}" for k in rng.integers(0, 6, rng.integers(0, 5))) for _ in range(n)]
    entered, read = AttributeValues.of(catalogue), AttributeValues.of(catalogue, ItemWords.of(texts))
    for i in range(n):
        held, found = _amounts(entered, i), _amounts(read, i)
        assert {v for v, amount in found.items() if amount == 1.0} >= set(held)
        assert all(0.1 <= amount <= 1.0 for amount in found.values())


def test_the_order_of_items_and_words_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    tags = [sorted(set(rng.integers(0, 4, 2).tolist())) for _ in range(40)]
    texts = [[f"w{k}" for k in (of[0], 9, *rng.integers(4, 9, 2))] for of in tags]
    turned = AttributeValues.of(_tagged(tags[::-1], 4), ItemWords.of([" ".join(t[::-1]) for t in texts[::-1]]))
    found = AttributeValues.of(_tagged(tags, 4), ItemWords.of([" ".join(t) for t in texts]))
    assert [_amounts(found, i) for i in range(40)] == [_amounts(turned, 39 - i) for i in range(40)]
