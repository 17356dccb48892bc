"""Vocabulary of a catalogue: the meaning of query words as vectors, and the items that contain them; no text encoder.

A request cannot wait for an encoder, so the nightly run gives every word a vector: half the mean of the items that
contain it, half the encoder's own vector of the word. A query is the sum of its words, weighted by rarity. A word that
no item contains is replaced by the words that it may be a misspelling of (Damerau-Levenshtein, with the distances that
Lucene allows) or a prefix of.

Of scripts without spaces, the words are characters and pairs of them (`features.text.tokens`), which are not replaced:
a wrong or unknown character leaves the others of the query to match.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.arrays import F32, F64, I32, I64, U64, Bool
from features.catalogue import Catalogue
from features.kernels.compiled import compiled
from features.kernels.dots import I8Matrix
from features.kernels.strings import U8, StringIndex, Strings
from features.text.tokens import is_pair, is_part, tokenize
from features.text.vectors import Vectors

MAX_QUERY_WORDS = 16
"""Maximum number of words read from a query; the rest is ignored."""
MAX_QUERY_PARTS = 48
"""Maximum number of characters and pairs read from a query in a script without spaces: those of 24 characters."""
_ENOUGH_ITEMS = 5_000
"""Once the rarest words of a query are in this many items, no other items are searched for its common words."""
_MAX_REPLACEMENTS = 4
"""Maximum number of known words that replace one unknown word."""
_SHARE_OF_ITEMS = 0.5
"""Weight of the mean of a word's items in its vector; the rest is the encoder's vector of the word. Shares from .4 to
.5 order products for judged queries alike (docs/decisions.md)."""
_MIN_LETTERS = 3
"""An unknown word with fewer letters than this is not replaced."""


class Query(NamedTuple):
    """A query in the words of a catalogue.

    weight: float64[t], weight of each query word; they add up to 1, and are empty for a query without words.
    word, term, credit: int32[k], int32[k], float64[k]: catalogue words, the query word that each one stands for, and
    how well: 1 for the word itself, less for a replacement. direction: float64[d], the meaning of the whole query, not
    normalised; all 0 if none of its words is known.
    """

    weight: F64
    word: I32
    term: I32
    credit: F64
    direction: F64


@dataclass(frozen=True)
class Vocabulary:
    """The words of a catalogue.

    names: in ascending byte order. rarity: float32[w], inverse document frequency as in BM25 (Robertson and Zaragoza,
    2009). vectors: of words, without a row for the unknown. strength: float32[w], weight of each word's unit vector in
    the vector of a query: how similar the items with the word are, times `rarity`. start, word: int64[n + 2],
    int32[...]; the words of item i are `word[start[i]:start[i + 1]]`, ascending and distinct; the unknown item has
    none.
    """

    names: Strings
    rarity: F32
    vectors: Vectors
    strength: F32
    start: I64
    word: I32

    @classmethod
    def build(cls, catalogue: Catalogue, vectors: F32) -> Vocabulary:
        """Vocabulary of titles, brands, categories and tags, with word vectors from `vectors` (float32[n + 1, d])."""
        return cls.without_vectors(catalogue).with_vectors(vectors)

    @classmethod
    def without_vectors(cls, catalogue: Catalogue) -> Vocabulary:
        """Vocabulary of a catalogue without word vectors: their dimension is 0."""
        names, start, word = _index_words(_catalogue_words(catalogue))
        items_with = np.bincount(word, minlength=len(names))
        rarity = np.log1p((len(catalogue) - items_with + 0.5) / (items_with + 0.5)).astype(np.float32)
        none = np.zeros(len(names), np.float32)
        return cls(names, rarity, Vectors(np.empty((len(names), 0), np.int8), none), none, start, word)

    def with_vectors(self, vectors: F32, own: NDArray[np.floating] | None = None) -> Vocabulary:
        """The same words, with word vectors based on item vectors, and on those of an encoder if there are any.

        vectors: float32[n + 1, d], of the items. own: float[w, d], unit vectors of the words themselves; NaN for a word
        without one, whose vector is then that of its items alone.
        """
        word_vectors = _word_vectors(self.start, self.word, len(self.names), np.ascontiguousarray(vectors))
        if own is not None and len(known := np.flatnonzero(np.isfinite(own).all(axis=1))):
            read = own[known].astype(np.float32)
            word_vectors[known] = _SHARE_OF_ITEMS * word_vectors[known] + (1 - _SHARE_OF_ITEMS) * (read - read.mean(0))
        strength = self.rarity * np.sqrt((word_vectors.astype(np.float64) ** 2).sum(axis=1)).astype(np.float32)
        return replace(self, vectors=Vectors.quantise(word_vectors), strength=strength)

    def with_vectors_of(self, other: Vocabulary) -> Vocabulary:
        """The same words, with the vectors that they have in another vocabulary; none for words that it lacks."""
        found = other._places.find(list(self.names))
        known = np.flatnonzero(found >= 0)
        row, n = found[known], len(self.names)
        code, scale = np.zeros((n, other.vectors.code.shape[1]), np.int8), np.full(n, np.nan, np.float32)
        strength = np.zeros(n, np.float32)
        code[known], scale[known], strength[known] = (
            other.vectors.code[row],
            other.vectors.scale[row],
            other.strength[row],
        )
        return replace(self, vectors=Vectors(code, scale), strength=strength)

    def most_common(self, most: int) -> I64:
        """int64, ascending: numbers of the words that are in most items, at most so many."""
        items_with = np.bincount(self.word, minlength=len(self.names))
        return np.sort(np.argsort(-items_with, kind="stable")[:most])

    def of(self, catalogue: Catalogue, rows: Sequence[int]) -> list[I32]:
        """int32 for each of these items, ascending: the known words in its current texts."""
        out = []
        for row in rows:
            words = self._places.find(sorted(set(_item_words(catalogue, row))))
            out.append(np.sort(words[words >= 0]))
        return out

    def over(self, changed: Mapping[int, I32], added: Sequence[I32]) -> Vocabulary:
        """A copy with the words of some items replaced, and those of added items inserted before the unknown item.

        changed, added: words as `of` returns them, ascending and distinct.
        """
        parts = [self.word[a:b] for a, b in pairwise(self.start[:-1].tolist())]
        for row, words in changed.items():
            parts[row] = words
        parts += added
        start = np.zeros(len(parts) + 2, np.int64)
        np.cumsum([len(p) for p in parts], out=start[1:-1])
        start[-1] = start[-2]
        return replace(self, start=start, word=np.concatenate([*parts, np.empty(0, np.int32)]).astype(np.int32))

    @cached_property
    def _places(self) -> StringIndex:
        return StringIndex.of(self.names)

    @cached_property
    def _letters(self) -> tuple[U64, I32, I32]:
        """uint64[w], int32[w], int32[w]: see `_summarise_letters`."""
        return _summarise_letters(self.names.start, self.names.text)

    def read(self, text: str) -> Query:
        """Parse a query; any text is accepted."""
        typed, known = self._query_words(text)
        # A word that no item contains gets the largest weight: what is searched for is not in the catalogue.
        weight = np.full(len(typed), math.log1p(2 * len(self.start)))
        word: list[int] = []
        term: list[int] = []
        credit: list[float] = []
        for t, (place, name) in enumerate(zip(known, typed, strict=True)):
            matches, similarity = ([place], [1.0]) if place >= 0 else self._replacements(name)
            word += matches
            credit += similarity
            term += [t] * len(matches)
            if matches:
                weight[t] = self.rarity[matches[0]]
        if len(weight):
            weight /= weight.sum()
        words, terms, credits = np.array(word, np.int32), np.array(term, np.int32), np.array(credit, np.float64)
        code, scale = self.vectors.code, self.vectors.scale
        return Query(weight, words, terms, credits, _query_vector(code, scale, self.strength, words, terms, credits))

    def _query_words(self, text: str) -> tuple[list[str], list[int]]:
        """The distinct words of a query, up to the maximum of each kind, and their places, -1 for an unknown word."""
        words: list[str] = []
        parts: list[str] = []
        for word in dict.fromkeys(tokenize(text)):
            if is_part(word):
                parts.append(word)
            else:
                words.append(word)
        words, parts = words[:MAX_QUERY_WORDS], parts[:MAX_QUERY_PARTS]
        places = self._places.find([*words, *parts]).tolist()
        # Most pairs that no item contains are of two words that happen to be neighbours. They say nothing that their
        # characters, which are words of their own, do not say.
        typed = [(w, at) for w, at in zip([*words, *parts], places, strict=True) if at >= 0 or not is_pair(w)]
        return [word for word, _ in typed], [at for _, at in typed]

    def _replacements(self, name: str) -> tuple[list[int], list[float]]:
        """The known words that an unknown word may stand for, and the credit of each."""
        if len(name) < _MIN_LETTERS or is_part(name):
            return [], []
        given = np.array([ord(letter) for letter in name], np.int32)
        bits, length, initial = self._letters
        low, high = np.searchsorted(initial, np.array([given[0], given[0] + 1], np.int32)).tolist()
        found, similarity = _similar_words(self.names.start, self.names.text, bits, length, low, high, given)
        # Of equally similar words, the more common one is more likely to be meant.
        best = np.lexsort((found, self.rarity[found], -similarity))[:_MAX_REPLACEMENTS]
        return found[best].tolist(), similarity[best].tolist()

    def holding(self, query: Query, admitted: Bool | None = None) -> I32:
        """int32, ascending: the items that contain any of the matched words.

        Items that contain only common words are left out once the rarer words are in `_ENOUGH_ITEMS` items. admitted:
        bool[n], items that may be returned; None for all.
        """
        first, row = self._index
        words = np.unique(query.word)
        found, count = np.zeros(len(self.start) - 2, np.bool_), 0
        for word in words[np.argsort(first[words + 1] - first[words], kind="stable")].tolist():
            if count >= _ENOUGH_ITEMS:
                break
            items = row[first[word] : first[word + 1]]
            items = items if admitted is None else items[admitted[items]]
            found[items] = True
            count += len(items)
        return np.flatnonzero(found).astype(np.int32)

    @cached_property
    def _index(self) -> tuple[I64, I32]:
        return _items_by_word(self.start, self.word, len(self.rarity))

    def match(self, query: Query, items: I32) -> F64:
        """float64, like `items`, 0 to 1: the share of the query's weight that is found among each item's words.

        items: int32[c] catalogue rows, `-1` unknown, which has no words. All NaN for a query without words.
        """
        if not len(query.weight):
            return np.full(len(items), np.nan)
        return _match_share(self.start, self.word, *query[:4], items)


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
    """The distinct words in order, then `start` and `word` of `Vocabulary`."""
    number: dict[str, int] = {}
    of_item = [[number.setdefault(word, len(number)) for word in dict.fromkeys(words)] for words in texts]
    names = sorted(number, key=lambda word: word.encode("utf-8", "surrogatepass"))
    rank = np.empty(len(number), np.int32)
    rank[[number[name] for name in names]] = np.arange(len(names), dtype=np.int32)
    start = np.zeros(len(of_item) + 2, np.int64)
    np.cumsum([len(words) for words in of_item], out=start[1:-1])
    start[-1] = start[-2]
    parts = [np.sort(rank[words]) for words in of_item if words]
    return Strings.of(names), start, np.concatenate(parts) if parts else np.empty(0, np.int32)


@compiled
def _word_vectors(start: I64, word: I32, n_words: int, vectors: F32) -> F32:
    """float32[w, d]: mean vector of the items with each word minus the mean of all items; 0 if none has a vector."""
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
    """int64[w + 1], int32[...]: start of each word's items, and the items themselves, ascending within a word."""
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
def _letters_of(text: U8, first: int, end: int, out: I32) -> int:
    """Write the code points of a word in UTF-8 into `out`, as many as fit. Returns their number."""
    count = 0
    for p in range(first, end):
        byte = np.int32(text[p])
        if byte & 0xC0 == 0x80 and count:
            out[count - 1] = out[count - 1] << 6 | byte & 0x3F
        elif count == len(out):
            break
        else:
            out[count] = byte & (0x7F if byte < 0x80 else 0x1F if byte < 0xE0 else 0x0F if byte < 0xF0 else 0x07)
            count += 1
    return count


@compiled
def _summarise_letters(start: I64, text: U8) -> tuple[U64, I32, I32]:
    """uint64[w], int32[w], int32[w]: of each word a bit mask of the lowest 6 bits of its letters, their number, and
    its first letter.

    A letter is a code point.
    """
    n = len(start) - 1
    bits, length, initial = np.zeros(n, np.uint64), np.zeros(n, np.int32), np.zeros(n, np.int32)
    letter = np.zeros(1, np.int32)
    for w in range(n):
        if _letters_of(text, start[w], start[w + 1], letter):
            initial[w] = letter[0]
        for p in range(start[w], start[w + 1]):
            if text[p] & 0xC0 != 0x80:
                length[w] += 1
            # The last byte of a letter has its lowest 6 bits.
            if p + 1 == start[w + 1] or text[p + 1] & 0xC0 != 0x80:
                bits[w] |= np.uint64(1) << np.uint64(text[p] & 63)
    return bits, length, initial


@compiled
def _similar_words(start: I64, text: U8, bits: U64, letters: I32, low: int, high: int, given: I32) -> tuple[I32, F64]:
    """int32[k], float64[k]: the words that a word may be a misspelling or a prefix of, and the credit of each.

    given: code points. The credit is 1 minus edits per letter, or the share of the word that was typed. Edits are
    deletions, insertions, substitutions and swaps of neighbouring letters: one is allowed in up to 5 letters, two in
    longer words, none in the first letter, so that only the words from `low` to below `high` are compared. bits,
    letters: of `_summarise_letters`.
    """
    n, max_edits = len(given), 1 if len(given) <= 5 else 2
    given_bits = np.uint64(0)
    for p in range(n):
        given_bits |= np.uint64(1) << np.uint64(given[p] & 63)
    word, credit = np.empty(high - low, np.int32), np.empty(high - low)
    name = np.empty(n + max_edits, np.int32)
    count = 0
    for w in range(low, high):
        length = letters[w]
        may_begin = length > n and (given_bits & ~bits[w]) == 0
        # An edit changes at most one letter on either side.
        may_differ = abs(length - n) <= max_edits and _popcount(given_bits ^ bits[w]) <= 2 * max_edits
        if not (may_begin or may_differ):
            continue
        known = _letters_of(text, start[w], start[w + 1], name)
        similarity = 0.0
        if may_begin:
            same = True
            for p in range(n):
                same = same and name[p] == given[p]
            similarity = n / length if same else 0.0
        if may_differ:
            edits = _edit_distance(name[:known], given, max_edits)
            if edits <= max_edits:
                similarity = max(similarity, 1.0 - edits / max(length, n))
        if similarity > 0.0:
            word[count], credit[count] = w, similarity
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
def _edit_distance(a: I32, b: I32, most: int) -> int:
    """Restricted Damerau-Levenshtein distance of two words; any value above `most` if it is larger than `most`."""
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
    """float64[d]: the weighted sum of word vectors; the replacements of one query word count as one word, by credit."""
    out = np.zeros(code.shape[1])
    for j in range(len(word)):
        if np.isnan(scale[word[j]]):
            continue
        total = 0.0
        for i in range(len(word)):
            if term[i] == term[j]:
                total += credit[i]
        weight = credit[j] * credit[j] / total * strength[word[j]] * scale[word[j]]
        for k in range(len(out)):
            out[k] += weight * code[word[j], k]
    return out


@compiled
def _match_share(start: I64, word: I32, weight: F64, matched: I32, term: I32, credit: F64, items: I32) -> F64:
    """See `Vocabulary.match`. Each query word counts by the best match among the item's words."""
    order = np.argsort(matched, kind="mergesort")
    out = np.zeros(len(items))
    best = np.empty(len(weight))
    for c in range(len(items)):
        row = items[c] if items[c] >= 0 else len(start) - 2
        best[:] = 0.0
        # Both lists of words are ascending. Several query words may match the same catalogue word.
        j = 0
        for p in range(start[row], start[row + 1]):
            while j < len(order) and matched[order[j]] < word[p]:
                j += 1
            if j == len(order):
                break
            while j < len(order) and matched[order[j]] == word[p]:
                best[term[order[j]]] = max(best[term[order[j]]], credit[order[j]])
                j += 1
        for t in range(len(weight)):
            out[c] += weight[t] * best[t]
    return out
