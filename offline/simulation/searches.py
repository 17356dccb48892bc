"""Searches in the simulated shop: search intents, the queries typed for them, and the results of the search engine.

The engine is simple: it matches exact words of titles and tags, and adds popularity. A query with synonyms or typos
returns popular items. Clicks depend on the intent, not on the query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.arrays import F64, I32, I64
from features.text.tokens import tokenize
from offline.simulation.products import Products
from offline.simulation.vocabulary import ATTRIBUTES

_MATCH_LOG_ODDS, _SEARCH_PENALTY = 4.0, 2.0
"""Effects on the log-odds of a click in a search: the bonus of an item that matches the intent fully, and a penalty for
every item, because shoppers ignore items they would otherwise like while they look for something else."""
_NOUN_PROBABILITY = 0.7
_SECOND_ATTRIBUTE_PROBABILITY = 0.5
_ATTRIBUTE_NAME_PROBABILITY = 0.2
"""Probability that an attribute is typed by its name, rather than one of its modifiers."""
_PLURAL_PROBABILITY = 0.2
_TYPO_PROBABILITY = 0.06
_MATCH_WEIGHT = 3.0
"""Bonus of an item that matches all words, relative to the log of popularity."""


class SearchIntent(NamedTuple):
    """Target of a search. attributes: one or two rows of `ATTRIBUTES`. noun: kind of product, empty for any."""

    attributes: Sequence[int]
    noun: str


@dataclass
class Searches:
    """Search intents, queries and results. rng: separate, so that a shop without searches does not change."""

    stock: Products
    rng: np.random.Generator
    texts: list[str] = field(default_factory=list)
    """All queries so far, in order."""

    @cached_property
    def _nouns(self) -> NDArray[np.str_]:
        return np.array(self.stock.noun)

    @cached_property
    def _items_by_word(self) -> dict[str, I32]:
        """Rows of the items with a word in their title or tags, by word."""
        columns = zip(self.stock.table["title"].to_pylist(), self.stock.table["tags"].to_pylist(), strict=True)
        rows: dict[str, list[int]] = {}
        for item, (title, tags) in enumerate(columns):
            for word in set(tokenize(" ".join([title, *(tags or ())]))):
                rows.setdefault(word, []).append(item)
        return {word: np.array(items, np.int32) for word, items in rows.items()}

    def wish(self, item: int) -> SearchIntent:
        """An intent for items similar to `item`: one or two of its attributes and, with some probability, its noun."""
        has = np.flatnonzero(self.stock.latent[item])
        count = min(len(has), 1 + int(self.rng.random() < _SECOND_ATTRIBUTE_PROBABILITY))
        noun = self.stock.noun[item] if self.rng.random() < _NOUN_PROBABILITY else ""
        return SearchIntent(sorted(self.rng.choice(has, count, replace=False).tolist()), noun)

    def typed(self, intent: SearchIntent) -> str:
        """A query for an intent, with occasional typos."""
        words = []
        for attribute in (ATTRIBUTES[a] for a in intent.attributes):
            modifiers = attribute.modifiers
            use_name = self.rng.random() < _ATTRIBUTE_NAME_PROBABILITY
            words.append(attribute.name if use_name else modifiers[int(self.rng.integers(len(modifiers)))])
        plural = "s" if intent.noun and self.rng.random() < _PLURAL_PROBABILITY else ""
        words += [intent.noun] if intent.noun else []
        typed = [
            " ".join(self.slipped(word) for word in phrase.lower().split())
            for phrase in [*words[:-1], words[-1] + plural]
        ]
        if not (own := self.stock.phrases):
            return " ".join(typed)
        # A slip in the English words stands for a character that is left out.
        slips = [phrase.lower() + (plural if k == len(words) - 1 else "") != typed[k] for k, phrase in enumerate(words)]
        return "".join(own[p][: len(own[p]) - slip] or own[p] for p, slip in zip(words, slips, strict=True))

    def slipped(self, word: str) -> str:
        """The word, sometimes with a typo: a letter omitted, doubled or swapped with the next."""
        if len(word) < 4 or self.rng.random() >= _TYPO_PROBABILITY:
            return word
        at = int(self.rng.integers(1, len(word) - 1))
        omitted, doubled, swapped = word[:at] + word[at + 1 :], word[: at + 1] + word[at:], list(word)
        swapped[at], swapped[at + 1] = swapped[at + 1], swapped[at]
        return (omitted, doubled, "".join(swapped))[int(self.rng.integers(3))]

    def results(self, text: str, weight: F64, pool: I64, length: int) -> I32:
        """int32[length]: search results for a query, best first by match and popularity.

        weight: float64[items], log popularity, minus infinity for unavailable items. pool: rows that may be shown
        without a match.
        """
        words = dict.fromkeys(tokenize(text))
        share = np.zeros(len(weight))
        for word in words:
            share[self._items_by_word.get(word, np.empty(0, np.int32))] += 1 / len(words)
        rows = np.union1d(pool, np.flatnonzero((share > 0) & np.isfinite(weight)))
        score = weight[rows] + _MATCH_WEIGHT * share[rows] + self.rng.gumbel(size=len(rows))
        return rows[np.argsort(-score, kind="stable")[:length]].astype(np.int32)

    def odds(self, intent: SearchIntent, items: I32) -> F64:
        """float64, like `items`: effect of the intent on the log-odds of a click on each item."""
        matches = [self.stock.latent[items][..., a] > 0 for a in intent.attributes]
        if intent.noun:
            matches.append(self._nouns[items] == intent.noun)
        out: F64 = _MATCH_LOG_ODDS * np.mean(matches, axis=0) - _SEARCH_PENALTY
        return out


@dataclass
class SearchIntents:
    """The search intents of lists. query: int32[lists], index into `searches.texts`, `-1` for none."""

    searches: Searches
    query: I32
    intents: dict[int, SearchIntent]

    @classmethod
    def empty(cls, searches: Searches, lists: int) -> SearchIntents:
        """No intents, for this number of lists."""
        return cls(searches, np.full(lists, -1, np.int32), {})

    def add(self, row: int, intent: SearchIntent) -> str:
        """Set the intent of a list. Returns the query typed for it."""
        self.query[row], self.intents[row] = len(self.searches.texts), intent
        self.searches.texts.append(text := self.searches.typed(intent))
        return text

    def odds(self, item: I32) -> F64:
        """float64, like `item` (int32[lists, n]): `Searches.odds` of each list, 0 for lists without an intent."""
        out = np.zeros(item.shape)
        for row, intent in self.intents.items():
            out[row] = self.searches.odds(intent, item[row])
        return out
