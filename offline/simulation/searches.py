"""The simulated shop's searches: what a shopper has in mind, the words typed for it, and what the shop's engine finds.

The engine is a plain one: it knows exact words of titles and tags, and popularity. Who types a synonym or slips gets
what sells; what was meant is in the click law alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.arrays import F64, I32, I64
from features.text.vocabulary import tokenize
from offline.simulation.products import Products
from offline.simulation.vocabulary import ATTRIBUTES

_SOUGHT, _BESIDE = 4.0, 2.0
"""Log-odds of a click that an item has for being all that was sought, and that each lacks in a search: who looks for a
feeder does not choose a kettlebell he would have liked at another time."""
_NAMES_THE_THING = 0.7
_SECOND_ATTRIBUTE = 0.5
_BY_NAME = 0.2
"""Chance that an attribute is typed by its name; else in any of the ways of saying it."""
_PLURAL = 0.2
_SLIP = 0.06
_MATCH = 3.0
"""What an item that holds all the words gains on popularity (in log) in the engine's order."""


class SearchIntent(NamedTuple):
    """What one search is for. attributes: rows of `ATTRIBUTES`, one or two. noun: what it should be, empty for any."""

    attributes: Sequence[int]
    noun: str


@dataclass
class Searches:
    """Wishes and what they find. rng: of its own, so that a shop in which nobody searches is as it was."""

    stock: Products
    rng: np.random.Generator
    texts: list[str] = field(default_factory=list)
    """What was typed so far, in order."""

    @cached_property
    def _is(self) -> NDArray[np.str_]:
        return np.array(self.stock.noun)

    @cached_property
    def _holding(self) -> dict[str, I32]:
        """The rows of the items whose title or tags hold a word."""
        columns = zip(self.stock.table["title"].to_pylist(), self.stock.table["tags"].to_pylist(), strict=True)
        rows: dict[str, list[int]] = {}
        for item, (title, tags) in enumerate(columns):
            for word in set(tokenize(" ".join([title, *(tags or ())]))):
                rows.setdefault(word, []).append(item)
        return {word: np.array(items, np.int32) for word, items in rows.items()}

    def wish(self, item: int) -> SearchIntent:
        """Something like an item: one or two of its attributes, and mostly what it is."""
        has = np.flatnonzero(self.stock.latent[item])
        count = min(len(has), 1 + int(self.rng.random() < _SECOND_ATTRIBUTE))
        noun = self.stock.noun[item] if self.rng.random() < _NAMES_THE_THING else ""
        return SearchIntent(sorted(self.rng.choice(has, count, replace=False).tolist()), noun)

    def typed(self, wish: SearchIntent) -> str:
        """A wish in words, with a slip now and then."""
        said = []
        for attribute in (ATTRIBUTES[a] for a in wish.attributes):
            ways = attribute.modifiers
            said.append(attribute.name if self.rng.random() < _BY_NAME else ways[int(self.rng.integers(len(ways)))])
        if wish.noun:
            said.append(wish.noun + ("s" if self.rng.random() < _PLURAL else ""))
        return " ".join(self.slipped(word) for word in " ".join(said).lower().split())

    def slipped(self, word: str) -> str:
        """The word, or, now and then, a letter of it left out, doubled, or swapped with the next."""
        if len(word) < 4 or self.rng.random() >= _SLIP:
            return word
        at = int(self.rng.integers(1, len(word) - 1))
        left, out, swapped = word[:at] + word[at + 1 :], word[: at + 1] + word[at:], list(word)
        swapped[at], swapped[at + 1] = swapped[at + 1], swapped[at]
        return (left, out, "".join(swapped))[int(self.rng.integers(3))]

    def found(self, text: str, weight: F64, pool: I64, length: int) -> I32:
        """int32[length]: what the engine shows for these words: matches and what sells, best first by its reckoning.

        weight: float64[items], of popularity, minus infinity for what is not there. pool: rows that are shown at all
        where they match nothing.
        """
        words = dict.fromkeys(tokenize(text))
        share = np.zeros(len(weight))
        for word in words:
            share[self._holding.get(word, np.empty(0, np.int32))] += 1 / len(words)
        rows = np.union1d(pool, np.flatnonzero((share > 0) & np.isfinite(weight)))
        score = weight[rows] + _MATCH * share[rows] + self.rng.gumbel(size=len(rows))
        return rows[np.argsort(-score, kind="stable")[:length]].astype(np.int32)

    def odds(self, wish: SearchIntent, items: I32) -> F64:
        """float64, like `items`: log-odds of a click that each gains or loses by being, or not, what is sought."""
        parts = [self.stock.latent[items][..., a] > 0 for a in wish.attributes]
        if wish.noun:
            parts.append(self._is[items] == wish.noun)
        out: F64 = _SOUGHT * np.mean(parts, axis=0) - _BESIDE
        return out


@dataclass
class SearchIntents:
    """What some lists of a day are to find. query: int32[lists], which of the texts of `searches`, `-1` for none."""

    searches: Searches
    query: I32
    wishes: dict[int, SearchIntent]

    @classmethod
    def nothing(cls, searches: Searches, lists: int) -> SearchIntents:
        """Nothing sought yet, by so many lists."""
        return cls(searches, np.full(lists, -1, np.int32), {})

    def by(self, row: int, wish: SearchIntent) -> str:
        """Let a list seek something; what is typed for it."""
        self.query[row], self.wishes[row] = len(self.searches.texts), wish
        self.searches.texts.append(text := self.searches.typed(wish))
        return text

    def odds(self, item: I32) -> F64:
        """float64, like `item` (int32[lists, n]): see `Searches.odds`; 0 where nothing is sought."""
        out = np.zeros(item.shape)
        for row, wish in self.wishes.items():
            out[row] = self.searches.odds(wish, item[row])
        return out
