"""Catalogue of the simulated shop: products with latent attributes, and product texts that mention most of them.

The latent vector and the text of an item come from the same attributes, so a user's taste over the vectors can be
learned from texts. It cannot be learned completely: texts leave out some attributes and use varying words for the rest.

All choices are made with English phrases. Another language has a phrase for each, so that the shop is the same in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import pyarrow as pa

from features.arrays import F32, F64, I32, I64
from offline.simulation import chinese
from offline.simulation.vocabulary import (
    ATTRIBUTES,
    BRANDS,
    DEPARTMENTS,
    FACETS,
    FACTS,
    LIFESTYLES,
    LINES,
    MIDDLES,
    OPENERS,
    SUFFIXES,
    Attribute,
    Department,
)

T = TypeVar("T")
DAY_US = 86_400_000_000
_FACET_ROWS = {f: np.array([k for k, a in enumerate(ATTRIBUTES) if a.facet == f]) for f in FACETS}
_ROW = {a.name: k for k, a in enumerate(ATTRIBUTES)}
_MENTION_PROBABILITY = 0.9
"""Probability that the text of an item mentions one of its attributes."""

_PHRASES: dict[str, Mapping[str, str]] = {"zh": chinese.PHRASES}
"""Phrases by English phrase, of the languages other than English."""

_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        ("description", pa.string()),
        ("category", pa.string()),
        ("brand", pa.string()),
        ("price", pa.float64()),
        ("available_from", pa.timestamp("us", tz="UTC")),
        ("tags", pa.list_(pa.string())),
        ("rating_average", pa.float64()),
        ("weight_kg", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Products:
    """The full catalogue, including hidden columns. Rows are sorted by ID.

    latent: float32[n, attributes], 0 if the item does not have the attribute, else 0.8 to 1.2. appeal: float64[n],
    effect on the log-odds of a click by any user, mean 0, with a long right tail. price: float64[n], never missing.
    price_level: float64[n], log of the price relative to the median of its department. department: int32[n], index into
    `vocabulary.DEPARTMENTS`. noun: the kind of product. available_us: int64[n], Unix microseconds. table: the columns
    that the shop knows, with missing values. phrases: phrase in the language of the shop by English phrase; empty for
    English.
    """

    latent: F32
    appeal: F64
    price: F64
    price_level: F64
    department: I32
    noun: Sequence[str]
    available_us: I64
    table: pa.Table
    phrases: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.price)


@dataclass(frozen=True)
class _Brands:
    """Brands: sampling weight of each attribute, price level and appeal, and the brands of each department."""

    attribute_weight: F64
    price_level: F64
    appeal: F64
    of_department: Sequence[I64]

    @classmethod
    def invent(cls, rng: np.random.Generator) -> _Brands:
        n = len(BRANDS)
        weight = np.ones((n, len(ATTRIBUTES)))
        for brand, lifestyle in enumerate(rng.permutation(np.arange(n) % len(LIFESTYLES)).tolist()):
            weight[brand, [_ROW[name] for name in LIFESTYLES[lifestyle].likes]] = 6.0
            weight[brand, rng.choice(len(ATTRIBUTES), 3, replace=False)] = 4.0
        of_department = [np.sort(rng.choice(n, 8, replace=False)) for _ in DEPARTMENTS]
        return cls(weight, rng.normal(0, 0.35, n), rng.normal(0, 0.25, n), of_department)


def make_products(
    rng: np.random.Generator, opening: int, arrivals: I64, opening_us: int, language: str = "en"
) -> Products:
    """Draw a catalogue with `opening` items from the two years before day 0, and `arrivals[d]` new ones on day d.

    opening_us: start of day 0, Unix microseconds. New items become available at a random time of their day. language:
    of all texts, en or zh; it changes nothing else.
    """
    n = opening + int(arrivals.sum())
    share = rng.dirichlet(np.full(len(DEPARTMENTS), 12.0))
    department = rng.choice(len(DEPARTMENTS), n, p=share).astype(np.int32)
    brands = _Brands.invent(rng)
    popularity = rng.gamma(2.0, 0.5, len(ATTRIBUTES)) + 0.2
    brand = np.array([rng.choice(brands.of_department[d]) for d in department.tolist()])
    attributes = [
        _draw_attributes(rng, DEPARTMENTS[d], popularity * brands.attribute_weight[b])
        for d, b in zip(department, brand, strict=True)
    ]
    latent = np.zeros((n, len(ATTRIBUTES)), np.float32)
    for i, rows in enumerate(attributes):
        latent[i, rows] = rng.uniform(0.8, 1.2, len(rows))
    appeal = brands.appeal[brand] + latent @ rng.normal(0, 0.12, len(ATTRIBUTES)) + 0.6 * (rng.gamma(1.0, 1.0, n) - 1)
    appeal -= appeal.mean()
    level = brands.price_level[brand] + latent @ _price_of_attributes() + rng.normal(0, 0.35, n)
    price = np.round(np.array([d.price for d in DEPARTMENTS])[department] * np.exp(level), 2)
    available = _available(rng, opening, arrivals, opening_us)
    phrases = _PHRASES.get(language, {})
    table, noun = _table(rng, department, brand, attributes, appeal, np.maximum(price, 0.5), available, phrases)
    return Products(latent, appeal, np.maximum(price, 0.5), level, department, noun, available, table, phrases)


def with_margins(products: Products, rng: np.random.Generator) -> Products:
    """The products with the attribute `margin`: the profit per sale, in the currency of the price.

    The share of the price differs by brand and by item, around 0.3. A few are loss leaders with a negative margin, and
    some margins are missing. No shopper sees or reacts to it.
    """
    n, brands = len(products), products.table["brand"].combine_chunks().dictionary_encode()
    of_brand = np.append(rng.normal(0.3, 0.08, len(brands.dictionary)), 0.3)
    code = brands.indices.fill_null(len(brands.dictionary)).to_numpy()
    share = of_brand[code] + rng.normal(0, 0.12, n)
    share[rng.random(n) < 0.03] = -0.1
    margin = pa.array(np.round(products.price * share, 2), mask=rng.random(n) < 0.04)
    return replace(products, table=products.table.append_column("margin", margin))


def _price_of_attributes() -> F64:
    effect = np.zeros(len(ATTRIBUTES))
    for name, value in (
        ("luxurious", 0.6),
        ("affordable", -0.6),
        ("handmade", 0.25),
        ("smart", 0.3),
        ("collectors", 0.3),
    ):
        effect[_ROW[name]] = value
    return effect


def _draw_attributes(rng: np.random.Generator, department: Department, weight: F64) -> list[int]:
    """Draw the attributes of one item: one or two per facet, one colour, and an audience for half of the items.

    weight: float64[attributes]. Returns rows of `ATTRIBUTES`.
    """
    out: list[int] = []
    for facet, rows in _FACET_ROWS.items():
        allowed = {"material": department.materials, "use": department.uses}.get(facet)
        if allowed is not None:
            rows = np.array([_ROW[name] for name in allowed])
        second = {"style": 0.2, "colour": 0.0, "audience": -0.5}.get(facet, 0.35)
        count = int(1 + (rng.random() < second)) if second >= 0 else int(rng.random() < -second)
        p = weight[rows] / weight[rows].sum()
        out.extend(rng.choice(rows, count, replace=False, p=p).tolist())
    return out


def _available(rng: np.random.Generator, opening: int, arrivals: I64, opening_us: int) -> I64:
    """int64[n], Unix microseconds: opening items over the two years before day 0, new ones at a minute of their day."""
    minute = DAY_US // 1440
    before = opening_us - rng.integers(1440, 730 * 1440, opening) * minute
    day = np.repeat(np.arange(len(arrivals)), arrivals)
    during = opening_us + day * DAY_US + rng.integers(0, 1440, len(day)) * minute
    return np.concatenate([before, during]).astype(np.int64)


def _table(
    rng: np.random.Generator,
    department: I32,
    brand: I64,
    attributes: list[list[int]],
    appeal: F64,
    price: F64,
    available: I64,
    phrases: Mapping[str, str],
) -> tuple[pa.Table, list[str]]:
    """The table of items, with some values missing, and the noun of each product, in English."""
    n = len(price)
    titles, descriptions, tags, nouns = [], [], [], []
    for i, rows in enumerate(attributes):
        writer = _Writer(rng, DEPARTMENTS[department[i]], BRANDS[brand[i]], [ATTRIBUTES[k] for k in rows], phrases)
        titles.append(writer.title())
        descriptions.append(writer.description())
        tags.append([phrases.get(tag, tag) for tag in _tags(rng, rows)])
        nouns.append(writer.noun)
    newest = available > np.quantile(available, 0.97)
    rating = np.round(np.clip(3.9 + 0.35 * appeal + rng.normal(0, 0.35, n), 1.0, 5.0), 1)
    weight = np.array([d.weight_kg for d in DEPARTMENTS])[department] * np.exp(rng.normal(0, 0.5, n))
    width = max(5, len(str(n)))
    columns = [
        pa.array([f"p{i:0{width}d}" for i in range(n)]),
        pa.array(titles),
        pa.array(descriptions, mask=rng.random(n) < 0.06),
        pa.array(
            [phrases.get(d.name, d.name) for d in map(DEPARTMENTS.__getitem__, department.tolist())],
            mask=rng.random(n) < 0.01,
        ),
        pa.array([phrases.get(BRANDS[b], BRANDS[b]) for b in brand.tolist()], mask=rng.random(n) < 0.08),
        pa.array(price, mask=rng.random(n) < 0.03),
        pa.array(available, pa.timestamp("us", tz="UTC"), mask=rng.random(n) < 0.02),
        pa.array(tags, pa.list_(pa.string())),
        pa.array(rating, mask=newest | (rng.random(n) < 0.1)),
        pa.array(np.round(weight, 2), mask=rng.random(n) < 0.05),
    ]
    return pa.Table.from_arrays(columns, schema=_SCHEMA), nouns


def _tags(rng: np.random.Generator, attributes: list[int]) -> list[str]:
    """About half of the attributes of an item as tags, sometimes with a random one added."""
    rows = [k for k in attributes if rng.random() < 0.5]
    if rng.random() < 0.15:
        rows.append(int(rng.integers(len(ATTRIBUTES))))
    return [ATTRIBUTES[k].name for k in dict.fromkeys(rows)]


class _Writer:
    """Writes the texts of one product. The description may mention attributes of the title again, in other words."""

    def __init__(
        self,
        rng: np.random.Generator,
        department: Department,
        brand: str,
        attributes: list[Attribute],
        phrases: Mapping[str, str],
    ) -> None:
        self.rng = rng
        self.phrases = phrases
        self.noun = self._pick(department.nouns)
        self.brand = brand
        self.line = self._pick(LINES)
        self.mentioned = [a for a in attributes if rng.random() < _MENTION_PROBABILITY] or attributes[:1]

    def title(self) -> str:
        """A title of about 2 to 9 words, such as `Norrfell Alder Weathered Olive Oak Armchair, large`."""
        attributes = self._sample(self.mentioned, 2 + int(self.rng.integers(3)))
        attributes.sort(key=lambda a: FACETS.index(a.facet))
        words = [*dict.fromkeys(self._pick(a.modifiers) for a in attributes), self.noun]
        if self.rng.random() < 0.35:
            words.insert(0, self.line)
        if self.rng.random() < 0.6:
            words.insert(0, self.brand)
        suffix = self._pick(SUFFIXES) if self.rng.random() < 0.25 else ""
        if self.phrases:
            return translated([*words, suffix], self.phrases)
        return " ".join(_capitalised(word) for word in " ".join(words).split()) + suffix

    def description(self) -> str:
        """A description of 25 to 60 words, sometimes with facts that are unrelated to the attributes."""
        predicates = self._predicates()
        own: list[str] = []
        sentences = [self._sentence(self._pick(OPENERS), predicates, own)]
        while _word_count(sentences) < 25 or (len(sentences) < 4 and self.rng.random() < 0.6):
            fact = len(sentences) > 1 and self.rng.random() < 0.25
            frame = self._pick(FACTS) if fact else self._pick(MIDDLES)
            sentence = self._sentence(frame, predicates, own)
            if sentence not in sentences and _word_count([*sentences, sentence]) <= 60:
                sentences.append(sentence)
            elif own:
                own.pop()
        return "".join(own) or " ".join(sentences)

    def _predicates(self) -> Iterator[str]:
        """Predicates of the mentioned attributes, all attributes in turn, without direct repetitions."""
        last = ""
        while True:
            for attribute in self._sample(self.mentioned, len(self.mentioned)):
                last = self._pick([p for p in attribute.predicates if p != last])
                yield last

    def _sentence(self, frame: str, predicates: Iterator[str], own: list[str]) -> str:
        """A sentence in English. In the language of the shop, if it is another, it is added to `own`."""
        mod = self._pick(self._pick(self.mentioned).modifiers)
        filled = {"mod": mod, "noun": self.noun, "line": self.line, "n": str(int(self.rng.integers(6, 60)))}
        filled |= {"p": next(predicates), "q": next(predicates) if "{q}" in frame else ""}
        if self.phrases:
            own.append(self.phrases[frame].format(**{name: self.phrases.get(t, t) for name, t in filled.items()}))
        text = frame.format(
            a=_article(mod),
            A=_article(mod).capitalize(),
            an=_article(self.noun),
            An=_article(self.noun).capitalize(),
            **filled,
        )
        return _capitalised(text)

    def _pick(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]

    def _sample(self, options: list[Attribute], count: int) -> list[Attribute]:
        return [options[k] for k in self.rng.permutation(len(options))[:count]]


def translated(phrases: Sequence[str], by_english: Mapping[str, str]) -> str:
    """English phrases in another language, one after the other without spaces."""
    return "".join(by_english.get(phrase, phrase) for phrase in phrases)


def _article(word: str) -> str:
    return "an" if word[0].lower() in "aeiou" else "a"


def _capitalised(word: str) -> str:
    return word[0].upper() + word[1:]


def _word_count(sentences: list[str]) -> int:
    return sum(len(s.split()) for s in sentences)
