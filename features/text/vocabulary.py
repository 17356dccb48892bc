"""The words of a catalogue: what a typed query means in vectors, and which items say it, without the text encoder.

A request cannot wait for an encoder, so every word gets a vector at night: the mean of the items that hold it. A query
is the sum of its words, the rare ones weighing more. A word that no item has is taken for the words it is a slip of
(Damerau-Levenshtein, with the distances Lucene allows) or the beginning of.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from features.arrays import F32, F64, I32, I64, U64
from features.catalogue import Catalogue
from features.kernels.compiled import compiled
from features.kernels.dots import I8Matrix
from features.kernels.strings import U8, Places, Strings
from features.text.vectors import Vectors

MAX_QUERY_WORDS = 16
"""Words of a query that are read; what follows them is left aside."""
WORD_CHARACTERS = 40
"""A longer word is cut here."""
_MAX_SUGGESTIONS = 4
"""Words that one unknown word is taken for, at most."""
_MIN_CHARACTERS = 3
"""Characters of an unknown word below which it is taken for no other."""

_APOSTROPHES = re.compile("['’ʼ`]")
_ACCENTS = re.compile("[̀-ͯ]")
_WORD = re.compile(r"[^\W_]+")


def tokenize(text: str) -> list[str]:
    """The words of a text in their order: letters and digits, without case, accents and apostrophes.

    "Kids' Café-crème" is kids, cafe, creme. Text without spaces between words is one word, up to the next sign.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _ACCENTS.sub("", unicodedata.normalize("NFKD", text)))
    return [word[:WORD_CHARACTERS] for word in _WORD.findall(_APOSTROPHES.sub("", text.casefold()))]


class Query(NamedTuple):
    """A query in a catalogue's words.

    weight: float64[t], what each of its words counts for; they add up to 1, and are empty where there is no word in it.
    word, term, credit: int32[k], int32[k], float64[k]: words of the catalogue, which of the query's words each stands
    for, and how well: 1 for itself, less for what it may be a slip of. direction: float64[d], the meaning of all, not
    of unit length; all 0 where no word is known.
    """

    weight: F64
    word: I32
    term: I32
    credit: F64
    direction: F64


@dataclass(frozen=True)
class Vocabulary:
    """The words of a catalogue.

    names: in ascending order of their bytes. rarity: float32[w], what holding the word tells, as BM25 has it (Robertson
    and Zaragoza, 2009). vectors: of words, no row for the unknown. strength: float32[w], what each word's unit vector
    counts for in a query's: how alike the items are that hold it, times `rarity`. start, word: the words of item i are
    `word[start[i]:start[i + 1]]`, ascending, each once; int64[n + 2], the unknown item has none, and int32.
    """

    names: Strings
    rarity: F32
    vectors: Vectors
    strength: F32
    start: I64
    word: I32

    @classmethod
    def build(cls, catalogue: Catalogue, vectors: F32) -> Vocabulary:
        """The words of titles, brands, categories and tags, and what they say of `vectors` (float32[n + 1, d])."""
        return cls.spelt(catalogue).meaning(vectors)

    @classmethod
    def spelt(cls, catalogue: Catalogue) -> Vocabulary:
        """The same words without a meaning: vectors have no dimension."""
        names, start, word = _index_words(_catalogue_words(catalogue))
        held = np.bincount(word, minlength=len(names))
        rarity = np.log1p((len(catalogue) - held + 0.5) / (held + 0.5)).astype(np.float32)
        none = np.zeros(len(names), np.float32)
        return cls(names, rarity, Vectors(np.empty((len(names), 0), np.int8), none), none, start, word)

    def meaning(self, vectors: F32) -> Vocabulary:
        """The same words with what they say of item vectors, float32[n + 1, d]."""
        made = _word_vectors(self.start, self.word, len(self.names), np.ascontiguousarray(vectors))
        strength = self.rarity * np.sqrt((made.astype(np.float64) ** 2).sum(axis=1)).astype(np.float32)
        return replace(self, vectors=Vectors.quantise(made), strength=strength)

    def of(self, catalogue: Catalogue, rows: Sequence[int]) -> list[I32]:
        """int32 for each of these items, ascending: the words of its texts as they are now; unknown ones left out."""
        out = []
        for row in rows:
            found = self._places.find(sorted(set(_item_words(catalogue, row))))
            out.append(np.sort(found[found >= 0]))
        return out

    def over(self, changed: Mapping[int, I32], added: Sequence[I32]) -> Vocabulary:
        """The same words with those of some items replaced, and of others put before the unknown item."""
        parts = [self.word[a:b] for a, b in pairwise(self.start[:-1].tolist())]
        for row, mine in changed.items():
            parts[row] = mine
        parts += added
        start = np.zeros(len(parts) + 2, np.int64)
        np.cumsum([len(p) for p in parts], out=start[1:-1])
        start[-1] = start[-2]
        return replace(self, start=start, word=np.concatenate([*parts, np.empty(0, np.int32)]).astype(np.int32))

    @cached_property
    def _places(self) -> Places:
        return Places.of(self.names)

    @cached_property
    def _letters(self) -> U64:
        return _letter_bits(self.names.start, self.names.text)

    @cached_property
    def _by_initial(self) -> I64:
        """int64[257]: where the words that begin with each byte begin."""
        initial = self.names.text[self.names.start[:-1]]
        return np.searchsorted(initial, np.arange(257)).astype(np.int64)

    def read(self, text: str) -> Query:
        """What a query means; nothing in it is too odd to be read."""
        typed = list(dict.fromkeys(tokenize(text)[: 4 * MAX_QUERY_WORDS]))[:MAX_QUERY_WORDS]
        # A word that no item has tells most of all: that what is sought is not here.
        weight = np.full(len(typed), math.log1p(2 * len(self.start)))
        word: list[int] = []
        term: list[int] = []
        credit: list[float] = []
        for t, (known, name) in enumerate(zip(self._places.find(typed).tolist(), typed, strict=True)):
            close, similar = ([known], [1.0]) if known >= 0 else self._close(name)
            word += close
            credit += similar
            term += [t] * len(close)
            if close:
                weight[t] = self.rarity[close[0]]
        if len(weight):
            weight /= weight.sum()
        words, terms, credits = np.array(word, np.int32), np.array(term, np.int32), np.array(credit, np.float64)
        code, scale = self.vectors.code, self.vectors.scale
        return Query(weight, words, terms, credits, _query_vector(code, scale, self.strength, words, terms, credits))

    def _close(self, name: str) -> tuple[list[int], list[float]]:
        """The words that one which no item has may stand for, and how well each."""
        given = np.frombuffer(name.encode("utf-8", "surrogatepass"), np.uint8)
        if len(given) < _MIN_CHARACTERS:
            return [], []
        low, high = self._by_initial[int(given[0])], self._by_initial[int(given[0]) + 1]
        found, similar = _similar_words(self.names.start, self.names.text, self._letters, low, high, given)
        # The commoner of two that are as close is likelier meant.
        best = np.lexsort((found, self.rarity[found], -similar))[:_MAX_SUGGESTIONS]
        return found[best].tolist(), similar[best].tolist()

    def holding(self, query: Query) -> I32:
        """int32, ascending: the items that hold one of the words sought."""
        first, row = self._holders
        found = [row[first[w] : first[w + 1]] for w in np.unique(query.word).tolist()]
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int32)

    @cached_property
    def _holders(self) -> tuple[I64, I32]:
        return _items_by_word(self.start, self.word, len(self.rarity))

    def match(self, query: Query, items: I32) -> F64:
        """float64, like `items`, 0 to 1: the share of the query's weight that is found in each item's words.

        items: int32[c] rows of the catalogue, `-1` unknown, which has no words. NaN throughout for a query without
        words.
        """
        if not len(query.weight):
            return np.full(len(items), np.nan)
        return _match_share(self.start, self.word, len(self.rarity), *query[:4], items)


def _catalogue_words(c: Catalogue) -> Iterator[list[str]]:
    return (_item_words(c, row) for row in range(len(c)))


def _item_words(c: Catalogue, row: int) -> list[str]:
    """The words of an item's title, category, brand and tags, with repeats."""
    parts = [c.titles[row]]
    parts += [
        names[code]
        for code, names in ((c.category[row], c.category_names), (c.brand[row], c.brand_names))
        if code < len(names)
    ]
    parts += [c.tag_names[t].split("=", 1)[1] for t in c.tag[c.tag_start[row] : c.tag_start[row + 1]].tolist()]
    return tokenize("\n".join(parts))


def _index_words(texts: Iterator[list[str]]) -> tuple[Strings, I64, I32]:
    """All words in order, then `start` and `word` of `Vocabulary`."""
    number: dict[str, int] = {}
    of_item = [[number.setdefault(word, len(number)) for word in dict.fromkeys(words)] for words in texts]
    names = sorted(number, key=lambda word: word.encode("utf-8", "surrogatepass"))
    place = np.empty(len(number), np.int32)
    place[[number[name] for name in names]] = np.arange(len(names), dtype=np.int32)
    start = np.zeros(len(of_item) + 2, np.int64)
    np.cumsum([len(words) for words in of_item], out=start[1:-1])
    start[-1] = start[-2]
    parts = [np.sort(place[words]) for words in of_item if words]
    return Strings.of(names), start, np.concatenate(parts) if parts else np.empty(0, np.int32)


@compiled
def _word_vectors(start: I64, word: I32, n_words: int, vectors: F32) -> F32:
    """float32[w, d]: the mean vector of the items that hold each word, less the mean of all; 0 where none has one."""
    d = vectors.shape[1]
    total, count = np.zeros((n_words, d)), np.zeros(n_words)
    mean, known = np.zeros(d), 0
    for i in range(len(start) - 2):
        if not np.isfinite(vectors[i]).all():
            continue
        known += 1
        for k in range(d):
            mean[k] += vectors[i, k]
        for p in range(start[i], start[i + 1]):
            count[word[p]] += 1.0
            for k in range(d):
                total[word[p], k] += vectors[i, k]
    out = np.zeros((n_words, d), np.float32)
    for w in range(n_words):
        if count[w] > 0.0:
            for k in range(d):
                out[w, k] = total[w, k] / count[w] - mean[k] / known
    return out


@compiled
def _items_by_word(start: I64, word: I32, n_words: int) -> tuple[I64, I32]:
    """Where the items of each word begin, int64[w + 1], and those items, int32, ascending within a word."""
    first = np.zeros(n_words + 1, np.int64)
    for p in range(len(word)):
        first[word[p] + 1] += 1
    for w in range(n_words):
        first[w + 1] += first[w]
    at, row = first[:-1].copy(), np.empty(len(word), np.int32)
    for i in range(len(start) - 2):
        for p in range(start[i], start[i + 1]):
            row[at[word[p]]] = i
            at[word[p]] += 1
    return first, row


@compiled
def _letter_bits(start: I64, text: U8) -> U64:
    """uint64[w]: a bit for each byte that a word holds, up to 64 told apart."""
    out = np.zeros(len(start) - 1, np.uint64)
    for w in range(len(out)):
        for p in range(start[w], start[w + 1]):
            out[w] |= np.uint64(1) << np.uint64(text[p] & 63)
    return out


@compiled
def _similar_words(start: I64, text: U8, letters: U64, low: int, high: int, given: U8) -> tuple[I32, F64]:
    """The words that a word may be a slip of or begins, and how well each does: 1 less slips per byte, or the share
    of the word that was typed. int32[k] and float64[k].

    Slips are letters left out, put in, exchanged, and neighbours swapped; one is allowed to 5 bytes, two above, none in
    the first byte: only words `low` to below `high` are looked at.
    """
    n, most = len(given), 1 if len(given) <= 5 else 2
    mine = np.uint64(0)
    for p in range(n):
        mine |= np.uint64(1) << np.uint64(given[p] & 63)
    word, credit = np.empty(high - low, np.int32), np.empty(high - low)
    count = 0
    for w in range(low, high):
        first, length = start[w], start[w + 1] - start[w]
        share = 0.0
        if length > n and (mine & ~letters[w]) == 0:
            same = True
            for p in range(n):
                same = same and text[first + p] == given[p]
            share = n / length if same else 0.0
        # A slip changes at most one letter on either side.
        if abs(length - n) <= most and _popcount(mine ^ letters[w]) <= 2 * most:
            slips = _edit_distance(text[first : first + length], given, most)
            if slips <= most:
                share = max(share, 1.0 - slips / max(length, n))
        if share > 0.0:
            word[count], credit[count] = w, share
            count += 1
    return word[:count].copy(), credit[:count].copy()


@compiled
def _popcount(x: np.uint64) -> int:
    count = 0
    while x:
        x &= x - np.uint64(1)
        count += 1
    return count


@compiled
def _edit_distance(a: U8, b: U8, most: int) -> int:
    """The restricted Damerau-Levenshtein distance of two words, or anything above `most`."""
    before, last, now = np.arange(len(b) + 1), np.arange(len(b) + 1), np.arange(len(b) + 1)
    for i in range(1, len(a) + 1):
        now[0] = i
        least = i
        for j in range(1, len(b) + 1):
            cost = last[j - 1] + (a[i - 1] != b[j - 1])
            cost = min(cost, last[j] + 1, now[j - 1] + 1)
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                cost = min(cost, before[j - 2] + 1)
            now[j] = cost
            least = min(least, cost)
        if least > most:
            return most + 1
        before, last, now = last, now, before
    return int(last[len(b)])


@compiled
def _query_vector(code: I8Matrix, scale: F32, strength: F32, word: I32, term: I32, credit: F64) -> F64:
    """float64[d]: the sum of words; what one of the query's words may stand for counts as one word, by credit."""
    out = np.zeros(code.shape[1])
    for j in range(len(word)):
        if np.isnan(scale[word[j]]):
            continue
        whole = 0.0
        for i in range(len(word)):
            if term[i] == term[j]:
                whole += credit[i]
        far = credit[j] * credit[j] / whole * strength[word[j]] * scale[word[j]]
        for k in range(len(out)):
            out[k] += far * code[word[j], k]
    return out


@compiled
def _match_share(
    start: I64, word: I32, n_words: int, weight: F64, sought: I32, term: I32, credit: F64, items: I32
) -> F64:
    """See `Vocabulary.match`. Each word of the query counts by the word of the item that stands for it best."""
    place = np.full(n_words, -1, np.int32)
    for j in range(len(sought)):
        place[sought[j]] = j
    # Two slips may mean the same word: of each, the words that stand for it.
    out = np.zeros(len(items))
    best = np.empty(len(weight))
    for c in range(len(items)):
        row = items[c] if items[c] >= 0 else len(start) - 2
        best[:] = 0.0
        for p in range(start[row], start[row + 1]):
            if place[word[p]] >= 0:
                for j in range(len(sought)):
                    if sought[j] == word[p]:
                        best[term[j]] = max(best[term[j]], credit[j])
        for t in range(len(weight)):
            out[c] += weight[t] * best[t]
    return out
