"""The simulated shop's catalogue: latent attributes first, then the product text that tells most of them.

An item's latent vector and its text come from the same attributes, so taste over the vectors can be read from the
words; but not all of it, since the writer leaves some attributes out and says the rest in changing words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa

from features.arrays import F32, F64, I32, I64
from offline.simulation.vocabulary import (
    ATTRIBUTES,
    BRANDS,
    CIRCLES,
    DEPARTMENTS,
    FACETS,
    FACTS,
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
_TOLD = 0.9
"""Chance that the text mentions an attribute that the item has."""

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
    """The catalogue as it truly is, hidden part included; row order is id order.

    latent: float32[n, attributes], 0 where an item lacks the attribute, else 0.8 to 1.2. appeal: float64[n], what
    everyone likes or not about an item, in log-odds, mean 0, long right tail. price: float64[n], never missing.
    price_level: float64[n], log of price over its department's median. department: int32[n] into
    `vocabulary.DEPARTMENTS`. noun: what each is, in a word or two. available_us: int64[n], Unix microseconds. table:
    what the shop itself knows, with gaps.
    """

    latent: F32
    appeal: F64
    price: F64
    price_level: F64
    department: I32
    noun: Sequence[str]
    available_us: I64
    table: pa.Table

    def __len__(self) -> int:
        return len(self.price)


@dataclass(frozen=True)
class _Brands:
    """Each brand's leaning to attributes (a weight to draw by), price level and appeal; each department's brands."""

    lean: F64
    price_level: F64
    appeal: F64
    of_department: Sequence[I64]

    @classmethod
    def invent(cls, rng: np.random.Generator) -> _Brands:
        n = len(BRANDS)
        lean = np.ones((n, len(ATTRIBUTES)))
        for brand, circle in enumerate(rng.permutation(np.arange(n) % len(CIRCLES)).tolist()):
            lean[brand, [_ROW[name] for name in CIRCLES[circle].likes]] = 6.0
            lean[brand, rng.choice(len(ATTRIBUTES), 3, replace=False)] = 4.0
        sells = [np.sort(rng.choice(n, 8, replace=False)) for _ in DEPARTMENTS]
        return cls(lean, rng.normal(0, 0.35, n), rng.normal(0, 0.25, n), sells)


def make_products(rng: np.random.Generator, opening: int, arrivals: I64, opening_us: int) -> Products:
    """The catalogue: `opening` items of the years before, then `arrivals[d]` new ones during day `d`.

    opening_us: Unix microseconds at which day 0 begins. Items that arrive become available within their day.
    """
    n = opening + int(arrivals.sum())
    share = rng.dirichlet(np.full(len(DEPARTMENTS), 12.0))
    department = rng.choice(len(DEPARTMENTS), n, p=share).astype(np.int32)
    brands = _Brands.invent(rng)
    popularity = rng.gamma(2.0, 0.5, len(ATTRIBUTES)) + 0.2
    brand = np.array([rng.choice(brands.of_department[d]) for d in department.tolist()])
    has = [
        _draw_attributes(rng, DEPARTMENTS[d], popularity * brands.lean[b])
        for d, b in zip(department, brand, strict=True)
    ]
    latent = np.zeros((n, len(ATTRIBUTES)), np.float32)
    for i, attributes in enumerate(has):
        latent[i, attributes] = rng.uniform(0.8, 1.2, len(attributes))
    appeal = brands.appeal[brand] + latent @ rng.normal(0, 0.12, len(ATTRIBUTES)) + 0.6 * (rng.gamma(1.0, 1.0, n) - 1)
    appeal -= appeal.mean()
    level = brands.price_level[brand] + latent @ _price_of_attributes() + rng.normal(0, 0.35, n)
    price = np.round(np.array([d.price for d in DEPARTMENTS])[department] * np.exp(level), 2)
    available = _available(rng, opening, arrivals, opening_us)
    table, noun = _table(rng, department, brand, has, appeal, np.maximum(price, 0.5), available)
    return Products(latent, appeal, np.maximum(price, 0.5), level, department, noun, available, table)


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
    """Rows of the attributes of one item, by facet: one or two of most, an audience for some."""
    out: list[int] = []
    for facet, rows in _FACET_ROWS.items():
        sensible = {"material": department.materials, "use": department.uses}.get(facet)
        if sensible is not None:
            rows = np.array([_ROW[name] for name in sensible])
        more = {"style": 0.2, "colour": 0.0, "audience": -0.5}.get(facet, 0.35)
        count = int(1 + (rng.random() < more)) if more >= 0 else int(rng.random() < -more)
        p = weight[rows] / weight[rows].sum()
        out.extend(rng.choice(rows, count, replace=False, p=p).tolist())
    return out


def _available(rng: np.random.Generator, opening: int, arrivals: I64, opening_us: int) -> I64:
    """int64[n] microseconds: opening stock over two years before, new items at some minute of their day."""
    minute = DAY_US // 1440
    before = opening_us - rng.integers(1440, 730 * 1440, opening) * minute
    day = np.repeat(np.arange(len(arrivals)), arrivals)
    during = opening_us + day * DAY_US + rng.integers(0, 1440, len(day)) * minute
    return np.concatenate([before, during]).astype(np.int64)


def _table(
    rng: np.random.Generator, department: I32, brand: I64, has: list[list[int]], appeal: F64, price: F64, available: I64
) -> tuple[pa.Table, list[str]]:
    """What the shop knows: text, tags and numbers, each missing here and there; and what each product is."""
    n = len(price)
    titles, descriptions, tags, nouns = [], [], [], []
    for i, attributes in enumerate(has):
        writer = _Writer(rng, DEPARTMENTS[department[i]], BRANDS[brand[i]], [ATTRIBUTES[k] for k in attributes])
        titles.append(writer.title())
        descriptions.append(writer.description())
        tags.append(_tags(rng, attributes))
        nouns.append(writer.noun)
    newest = available > np.quantile(available, 0.97)
    rating = np.round(np.clip(3.9 + 0.35 * appeal + rng.normal(0, 0.35, n), 1.0, 5.0), 1)
    weight = np.array([d.weight_kg for d in DEPARTMENTS])[department] * np.exp(rng.normal(0, 0.5, n))
    width = max(5, len(str(n)))
    columns = [
        pa.array([f"p{i:0{width}d}" for i in range(n)]),
        pa.array(titles),
        pa.array(descriptions, mask=rng.random(n) < 0.06),
        pa.array([DEPARTMENTS[d].name for d in department.tolist()], mask=rng.random(n) < 0.01),
        pa.array([BRANDS[b] for b in brand.tolist()], mask=rng.random(n) < 0.08),
        pa.array(price, mask=rng.random(n) < 0.03),
        pa.array(available, pa.timestamp("us", tz="UTC"), mask=rng.random(n) < 0.02),
        pa.array(tags, pa.list_(pa.string())),
        pa.array(rating, mask=newest | (rng.random(n) < 0.1)),
        pa.array(np.round(weight, 2), mask=rng.random(n) < 0.05),
    ]
    return pa.Table.from_arrays(columns, schema=_SCHEMA), nouns


def _tags(rng: np.random.Generator, attributes: list[int]) -> list[str]:
    """Half of an item's attributes, and now and then a wrong one."""
    rows = [k for k in attributes if rng.random() < 0.5]
    if rng.random() < 0.15:
        rows.append(int(rng.integers(len(ATTRIBUTES))))
    return [ATTRIBUTES[k].name for k in dict.fromkeys(rows)]


class _Writer:
    """Writes up one product. What the title told, the description may tell again in other words."""

    def __init__(
        self, rng: np.random.Generator, department: Department, brand: str, attributes: list[Attribute]
    ) -> None:
        self.rng = rng
        self.noun = self._pick(department.nouns)
        self.brand = brand
        self.line = self._pick(LINES)
        self.told = [a for a in attributes if rng.random() < _TOLD] or attributes[:1]

    def title(self) -> str:
        """For example `Norrfell Alder Weathered Olive Oak Armchair, large`; 2 to 9 words or so."""
        some = self._sample(self.told, 2 + int(self.rng.integers(3)))
        some.sort(key=lambda a: FACETS.index(a.facet))
        words = [*dict.fromkeys(self._pick(a.modifiers) for a in some), self.noun]
        if self.rng.random() < 0.35:
            words.insert(0, self.line)
        if self.rng.random() < 0.6:
            words.insert(0, self.brand)
        suffix = self._pick(SUFFIXES) if self.rng.random() < 0.25 else ""
        return " ".join(_capitalised(word) for word in " ".join(words).split()) + suffix

    def description(self) -> str:
        """An opening and more sentences, 25 to 60 words, now and then a fact that says nothing of taste."""
        predicates = self._predicates()
        sentences = [self._sentence(self._pick(OPENERS), predicates)]
        while _words(sentences) < 25 or (len(sentences) < 4 and self.rng.random() < 0.6):
            fact = len(sentences) > 1 and self.rng.random() < 0.25
            frame = self._pick(FACTS) if fact else self._pick(MIDDLES)
            sentence = self._sentence(frame, predicates)
            if sentence not in sentences and _words([*sentences, sentence]) <= 60:
                sentences.append(sentence)
        return " ".join(sentences)

    def _predicates(self) -> Iterator[str]:
        """Ways of telling the attributes, each attribute once before any twice; never one wording twice in a row."""
        last = ""
        while True:
            for attribute in self._sample(self.told, len(self.told)):
                last = self._pick([p for p in attribute.predicates if p != last])
                yield last

    def _sentence(self, frame: str, predicates: Iterator[str]) -> str:
        mod = self._pick(self._pick(self.told).modifiers)
        text = frame.format(
            a=_article(mod),
            A=_article(mod).capitalize(),
            an=_article(self.noun),
            An=_article(self.noun).capitalize(),
            mod=mod,
            noun=self.noun,
            line=self.line,
            n=int(self.rng.integers(6, 60)),
            p=next(predicates),
            q=next(predicates) if "{q}" in frame else "",
        )
        return _capitalised(text)

    def _pick(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]

    def _sample(self, options: list[Attribute], count: int) -> list[Attribute]:
        return [options[k] for k in self.rng.permutation(len(options))[:count]]


def _article(word: str) -> str:
    return "an" if word[0].lower() in "aeiou" else "a"


def _capitalised(word: str) -> str:
    return word[0].upper() + word[1:]


def _words(sentences: list[str]) -> int:
    return sum(len(s.split()) for s in sentences)
