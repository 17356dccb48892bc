"""Tags implied by an item's words: tags that nobody entered, inferred from items that have the same words.

A catalogue tags only some of the items that deserve a tag; their texts reveal the others. The strongest word for a tag
is the one whose items have the tag most often; the probability that an item deserves the tag is estimated from all
items whose strongest word is about as strong. Learned from the catalogue alone, so it contains no information about
clicks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from features.arrays import F32, F64, I32, I64, Bool
from features.catalogue import Catalogue
from features.kernels.compiled import compiled
from features.text.tokens import tokenize

SHARES = {"tag": 0.3, "category": 0.15, "brand": 0.1}
"""Prior variance of taste, in squared log odds, due to having a value or not, before anything is learned."""
_MAX_VALUES = 512
"""The most common values of category, brand and tags are used, up to this number."""
_MAX_WORDS = 32_768
"""The most common words are used, up to this number; each takes 2 KiB of memory during fitting."""
_PRIOR_ITEMS = 6.0
"""Shrinkage of a tag's share among the items of a word toward its share among all items, in items."""
_BINS = 20
"""Calibration bins for the shares implied by words, from 0 to 1."""
_ENTERED_FRACTION = 0.5
"""Fraction of the items deserving a tag for which it was entered."""
_MIN_AMOUNT = 0.1
"""Implied tags with an amount below this are dropped."""


class ItemWords(NamedTuple):
    """Words of each item's text, ragged: item i has `word[start[i]:start[i + 1]]`, distinct word numbers, ascending.

    start: int64[n + 1]. word: int32[...] below `distinct`.
    """

    start: I64
    word: I32
    distinct: int

    @classmethod
    def of(cls, texts: Sequence[str]) -> ItemWords:
        """Words of texts: letters and digits, ignoring case. Keeps the most common ones that occur in several texts."""
        count: Counter[str] = Counter()
        for text in texts:
            count.update(set(tokenize(text)))
        common = sorted((word for word in count if count[word] > 1), key=lambda word: (-count[word], word))[:_MAX_WORDS]
        number = {word: k for k, word in enumerate(common)}
        # Tokenise twice: the words of a large catalogue, kept as strings, would take several times its memory.
        rows = [np.array(sorted(number[w] for w in set(tokenize(text)) if w in number), np.int32) for text in texts]
        start = np.concatenate(([0], np.cumsum([len(words) for words in rows]))).astype(np.int64)
        return cls(start, np.concatenate([np.empty(0, np.int32), *rows]), len(common))


class AttributeValues(NamedTuple):
    """Values of category, brand and tags of each item, ragged: item i has `value[start[i]:start[i + 1]]`.

    start: int64[n + 1]. value: int32[...]. amount: float32[...], 1 for an entered value, otherwise the degree to which
    the item's words imply it, above 0. share: float64[values], of `SHARES`.
    """

    start: I64
    value: I32
    amount: F32
    share: F64

    @classmethod
    def of(cls, catalogue: Catalogue, words: ItemWords | None = None) -> AttributeValues:
        """The most common values of a catalogue's items; with `words`, also the tags these imply."""
        start, value, share, is_tag = _entered_values(catalogue)
        if words is None or not (words.distinct and is_tag.any()):
            return cls(start, value, np.ones(len(value), np.float32), share)
        return cls(*_add_implied_tags(words.start, words.word, words.distinct, start, value, is_tag), share)


def _entered_values(c: Catalogue) -> tuple[I64, I32, F64, Bool]:
    """(start int64[n + 1], value int32[...], share float64[values], is_tag bool[values])."""
    n = len(c)
    tags = np.repeat(np.arange(n), np.diff(c.tag_start[: n + 1]))
    owners, codes, shares, offset = [], [], [], 0
    for name, owner, code, count in (
        ("category", np.arange(n), c.category[:n], len(c.category_names)),
        ("brand", np.arange(n), c.brand[:n], len(c.brand_names)),
        ("tag", tags, c.tag[: len(tags)], len(c.tag_names)),
    ):
        known = code < count
        owners.append(owner[known])
        codes.append(code[known].astype(np.int64) + offset)
        shares.append(np.full(count, SHARES[name]))
        offset += count
    owner, code, share = np.concatenate(owners), np.concatenate(codes), np.concatenate(shares)
    common = np.argsort(-np.bincount(code, minlength=offset), kind="stable")[:_MAX_VALUES]
    rank = np.full(offset, -1)
    rank[common] = np.arange(len(common))
    selected = rank[code] >= 0
    order = np.lexsort((rank[code[selected]], owner[selected]))
    owner, value = owner[selected][order], rank[code[selected]][order].astype(np.int32)
    is_tag = common >= offset - len(c.tag_names)
    return np.searchsorted(owner, np.arange(n + 1)).astype(np.int64), value, share[common], is_tag


def _add_implied_tags(
    words_start: I64, word: I32, count: int, start: I64, value: I32, is_tag: Bool
) -> tuple[I64, I32, F32]:
    """(start, value, amount) of `AttributeValues`: the entered values and the implied tags."""
    with_word, both = _count_cooccurrences(words_start, word, count, start, value, len(is_tag))
    base_rate = np.bincount(value, minlength=len(is_tag)) / (len(start) - 1)
    candidates, entered = _calibrate(words_start, word, start, value, is_tag, with_word, both, base_rate)
    rate = np.maximum.accumulate(entered / np.maximum(candidates, 1))
    # Fraction of the items without the tag that deserve it (Elkan and Noto, KDD 2008).
    deserving = rate * (1 - _ENTERED_FRACTION) / _ENTERED_FRACTION / np.maximum(1 - rate, 1e-9)
    amount = np.minimum(deserving, 1.0)
    amount[amount < _MIN_AMOUNT] = 0.0
    return _merge_implied(
        words_start, word, start, value, is_tag, with_word, both, base_rate, amount.astype(np.float32)
    )


@compiled
def _count_cooccurrences(
    words_start: I64, word: I32, count: int, start: I64, value: I32, values: int
) -> tuple[I32, I32]:
    """int32[words], int32[words, values]: items with each word, and with each word and value."""
    with_word, both = np.zeros(count, np.int32), np.zeros((count, values), np.int32)
    for i in range(len(start) - 1):
        for p in range(words_start[i], words_start[i + 1]):
            with_word[word[p]] += 1
            for v in range(start[i], start[i + 1]):
                both[word[p], value[v]] += 1
    return with_word, both


@compiled
def _implied_shares(words: I32, own: F32, with_word: I32, both: I32, base_rate: F64, out: F64) -> None:
    """Write into out, float64[values], the largest share of each value over an item's words, without the item."""
    out[:] = 0.0
    for k in words:
        scale = 1.0 / (with_word[k] - 1 + _PRIOR_ITEMS)
        for v in range(len(out)):
            out[v] = max(out[v], (both[k, v] - own[v] + _PRIOR_ITEMS * base_rate[v]) * scale)


@compiled
def _calibrate(
    words_start: I64, word: I32, start: I64, value: I32, is_tag: Bool, with_word: I32, both: I32, base_rate: F64
) -> tuple[I64, I64]:
    """int64[bins] each: the number of (item, tag) pairs by implied share, and how many of these were entered."""
    candidates, entered = np.zeros(_BINS, np.int64), np.zeros(_BINS, np.int64)
    implied, own = np.empty(len(is_tag)), np.zeros(len(is_tag), np.float32)
    for i in range(len(start) - 1):
        own[:] = 0
        own[value[start[i] : start[i + 1]]] = 1
        _implied_shares(word[words_start[i] : words_start[i + 1]], own, with_word, both, base_rate, implied)
        for v in range(len(implied)):
            if is_tag[v]:
                bin_ = min(int(implied[v] * _BINS), _BINS - 1)
                candidates[bin_] += 1
                entered[bin_] += own[v] > 0
    return candidates, entered


@compiled
def _merge_implied(
    words_start: I64,
    word: I32,
    start: I64,
    value: I32,
    is_tag: Bool,
    with_word: I32,
    both: I32,
    base_rate: F64,
    amount: F32,
) -> tuple[I64, I32, F32]:
    """(start, value, amount): the entered values, and each implied tag with the `amount` of its bin."""
    new_start = np.zeros(len(start), np.int64)
    values, amounts = [np.int32(0) for _ in range(0)], [np.float32(0) for _ in range(0)]
    implied, own = np.empty(len(is_tag)), np.zeros(len(is_tag), np.float32)
    for i in range(len(start) - 1):
        own[:] = 0
        own[value[start[i] : start[i + 1]]] = 1
        _implied_shares(word[words_start[i] : words_start[i + 1]], own, with_word, both, base_rate, implied)
        for v in range(len(implied)):
            degree = own[v]
            if degree == 0 and is_tag[v]:
                degree = amount[min(int(implied[v] * _BINS), _BINS - 1)]
            if degree > 0:
                values.append(np.int32(v))
                amounts.append(np.float32(degree))
        new_start[i + 1] = len(values)
    return new_start, np.array(values, np.int32), np.array(amounts, np.float32)
