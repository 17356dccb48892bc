"""What the words of an item say of the values it may have: a tag that nobody entered, read where others' words say it.

A catalogue gives tags to some of the items that deserve them, and the text says the rest. The word that tells most of a
tag is the one of whose items the largest part has it; an item is believed to have the tag as far as items with such a
word do. Learned of the catalogue alone, so nothing in it knows what anybody clicked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from features.arrays import F32, F64, I32, I64, Bool
from features.catalogue import Catalogue
from features.kernels.compiled import compiled

SHARES = {"tag": 0.3, "category": 0.15, "brand": 0.1}
"""Variance of taste, in squared log odds, that having a value or not makes before anything is learned."""
_VALUES = 512
"""Most common values of category, brand and tags that are looked at."""
_WORDS = 32_768
"""Most common words that are read; 2 KiB of memory each while it lasts."""
_USUAL = 6.0
"""Items of a word that its share of a tag is shrunk by toward all items' share."""
_STEPS = 20
"""Steps from 0 to 1 in which what words say is held against what is so."""
_ENTERED = 0.5
"""The part of the items that deserve a tag of which somebody entered it."""
_LEAST = 0.1
"""A value said less clearly than this is taken for not said."""


class ItemWords(NamedTuple):
    """Words of each item's text, ragged: item i has `word[start[i]:start[i + 1]]`, each once, by number, ascending.

    start: int64[n + 1]. word: int32[...] below `distinct`.
    """

    start: I64
    word: I32
    distinct: int

    @classmethod
    def of(cls, texts: Sequence[str]) -> ItemWords:
        """Words of texts, letters and digits without regard to case; those of two texts or more, the most common."""
        count: Counter[str] = Counter()
        for text in texts:
            count.update(_distinct_words(text))
        common = sorted((word for word in count if count[word] > 1), key=lambda word: (-count[word], word))[:_WORDS]
        number = {word: k for k, word in enumerate(common)}
        # Read twice: the words of a large catalogue as strings would be its memory several times over.
        kept = [np.array(sorted(number[w] for w in _distinct_words(text) if w in number), np.int32) for text in texts]
        start = np.concatenate(([0], np.cumsum([len(words) for words in kept]))).astype(np.int64)
        return cls(start, np.concatenate([np.empty(0, np.int32), *kept]), len(common))


def _distinct_words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", text.casefold()))


class AttributeValues(NamedTuple):
    """Values of category, brand and tags of each item, ragged: item i has `value[start[i]:start[i + 1]]`.

    start: int64[n + 1]. value: int32[...]. amount: float32[...], 1 where it was entered, else how far the item's words
    say it, above 0. share: float64[values], of `SHARES`.
    """

    start: I64
    value: I32
    amount: F32
    share: F64

    @classmethod
    def of(cls, catalogue: Catalogue, words: ItemWords | None = None) -> AttributeValues:
        """The most common values of a catalogue's items; with words, tags that these say as well."""
        start, value, share, is_tag = _entered_values(catalogue)
        if words is None or not (words.distinct and is_tag.any()):
            return cls(start, value, np.ones(len(value), np.float32), share)
        return cls(*_add_implied_tags(words.start, words.word, words.distinct, start, value, is_tag), share)


def _entered_values(c: Catalogue) -> tuple[I64, I32, F64, Bool]:
    """(start int64[n + 1], value int32[...], share float64[values], is_tag bool[values])."""
    n = len(c)
    tags = np.repeat(np.arange(n), np.diff(c.tag_start[: n + 1]))
    owners, codes, shares, base = [], [], [], 0
    for name, owner, code, count in (
        ("category", np.arange(n), c.category[:n], len(c.category_names)),
        ("brand", np.arange(n), c.brand[:n], len(c.brand_names)),
        ("tag", tags, c.tag[: len(tags)], len(c.tag_names)),
    ):
        known = code < count
        owners.append(owner[known])
        codes.append(code[known].astype(np.int64) + base)
        shares.append(np.full(count, SHARES[name]))
        base += count
    owner, code, share = np.concatenate(owners), np.concatenate(codes), np.concatenate(shares)
    common = np.argsort(-np.bincount(code, minlength=base), kind="stable")[:_VALUES]
    place = np.full(base, -1)
    place[common] = np.arange(len(common))
    kept = place[code] >= 0
    order = np.lexsort((place[code[kept]], owner[kept]))
    owner, value = owner[kept][order], place[code[kept]][order].astype(np.int32)
    is_tag = common >= base - len(c.tag_names)
    return np.searchsorted(owner, np.arange(n + 1)).astype(np.int64), value, share[common], is_tag


def _add_implied_tags(
    words_start: I64, word: I32, count: int, start: I64, value: I32, is_tag: Bool
) -> tuple[I64, I32, F32]:
    """(start, value, amount) of `Values`: the values entered, and the tags that words say."""
    with_word, both = _count_cooccurrences(words_start, word, count, start, value, len(is_tag))
    usual = np.bincount(value, minlength=len(is_tag)) / (len(start) - 1)
    items, holders = _calibrate(words_start, word, start, value, is_tag, with_word, both, usual)
    rate = np.maximum.accumulate(holders / np.maximum(items, 1))
    # Of the items without the tag, the part that deserves it (Elkan and Noto, KDD 2008).
    lacking = rate * (1 - _ENTERED) / _ENTERED / np.maximum(1 - rate, 1e-9)
    amount = np.minimum(lacking, 1.0)
    amount[amount < _LEAST] = 0.0
    return _merge_implied(words_start, word, start, value, is_tag, with_word, both, usual, amount.astype(np.float32))


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
def _implied_shares(words: I32, own: F32, with_word: I32, both: I32, usual: F64, out: F64) -> None:
    """Into out, float64[values]: the largest share that any of an item's words has of each value, itself left out."""
    out[:] = 0.0
    for k in words:
        others = 1.0 / (with_word[k] - 1 + _USUAL)
        for v in range(len(out)):
            out[v] = max(out[v], (both[k, v] - own[v] + _USUAL * usual[v]) * others)


@compiled
def _calibrate(
    words_start: I64, word: I32, start: I64, value: I32, is_tag: Bool, with_word: I32, both: I32, usual: F64
) -> tuple[I64, I64]:
    """int64[steps] each: items and tags of which words say so much, and those of them that were entered."""
    items, holders = np.zeros(_STEPS, np.int64), np.zeros(_STEPS, np.int64)
    said, own = np.empty(len(is_tag)), np.zeros(len(is_tag), np.float32)
    for i in range(len(start) - 1):
        own[:] = 0
        own[value[start[i] : start[i + 1]]] = 1
        _implied_shares(word[words_start[i] : words_start[i + 1]], own, with_word, both, usual, said)
        for v in range(len(said)):
            if is_tag[v]:
                step = min(int(said[v] * _STEPS), _STEPS - 1)
                items[step] += 1
                holders[step] += own[v] > 0
    return items, holders


@compiled
def _merge_implied(
    words_start: I64,
    word: I32,
    start: I64,
    value: I32,
    is_tag: Bool,
    with_word: I32,
    both: I32,
    usual: F64,
    amount: F32,
) -> tuple[I64, I32, F32]:
    """(start, value, amount): what was entered, and each tag that words say by `amount` of its step."""
    new_start = np.zeros(len(start), np.int64)
    values, amounts = [np.int32(0) for _ in range(0)], [np.float32(0) for _ in range(0)]
    said, own = np.empty(len(is_tag)), np.zeros(len(is_tag), np.float32)
    for i in range(len(start) - 1):
        own[:] = 0
        own[value[start[i] : start[i + 1]]] = 1
        _implied_shares(word[words_start[i] : words_start[i + 1]], own, with_word, both, usual, said)
        for v in range(len(said)):
            much = own[v]
            if much == 0 and is_tag[v]:
                much = amount[min(int(said[v] * _STEPS), _STEPS - 1)]
            if much > 0:
                values.append(np.int32(v))
                amounts.append(np.float32(much))
        new_start[i + 1] = len(values)
    return new_start, np.array(values, np.int32), np.array(amounts, np.float32)
