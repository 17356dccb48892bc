"""A synthetic shop with realistic sizes and skew, built directly as arrays, for benchmarks of speed and memory.

`offline.simulation` is not used: it models taste that can be learned, and generates texts, users and utilities. Here
only sizes, skew and the mix of event kinds matter, and ten million events have to be ready within seconds.
"""

from __future__ import annotations

import numpy as np

from features.catalogue import Catalogue
from features.decay import ItemState
from features.linear import Linear
from features.linear.model import MOST_ITEMS, RANK, WEIGHTS
from features.log import Events, Kind
from features.moment import Items
from features.neighbours import Neighbours
from features.sequence import WEIGHTS as SEQUENCE_WEIGHTS
from features.sequence import WIDTH, SequenceModel, tower_size
from features.text.vectors import Vectors

START = 1_700_000_000.0
DAY = 86400.0
DAYS = 90
AT = START + DAYS * DAY
"""End of the log, Unix seconds."""
SHOWN = 24
"""Items per logged list."""
DIMENSIONS = 384
_AFTER = ((Kind.CLICK, 0.08, 60.0), (Kind.CART, 0.2, 120.0), (Kind.PURCHASE, 0.4, 600.0))
"""Event kind, share of the previous kind that leads to it, and mean delay in seconds."""


def skewed(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    """int32[size]: rows below n, drawn by Zipf's law with exponent 1. The first tenth gets most of the draws."""
    # Inverse of the continuous cumulative distribution of 1/k: k = (n + 1)^u.
    rank = ((n + 1.0) ** rng.random(size)).astype(np.int64) - 1
    # Popularity must not depend on the row, or caches would work better than in practice.
    return np.random.default_rng(0).permutation(n)[np.clip(rank, 0, n - 1)].astype(np.int32)


def made_up_catalogue(rng: np.random.Generator, items: int) -> Catalogue:
    """Items in 200 categories and 1,000 brands, with 5 of 500 tags each and two numbers.

    A tenth of each attribute is missing.
    """

    def codes(names: int) -> np.ndarray:
        drawn = np.where(rng.random(items + 1) < 0.1, names, rng.integers(0, names, items + 1))
        drawn[items] = names
        return drawn.astype(np.int32)

    def numbers(values: np.ndarray) -> np.ndarray:
        values[rng.random(values.shape) < 0.1] = np.nan
        values[items] = np.nan
        return values

    tags = np.append(np.arange(items + 1) * 5, items * 5)
    return Catalogue(
        [f"sku-{k:08d}" for k in range(items)],
        [""] * items,
        numbers(rng.lognormal(3, 1, items + 1)),
        codes(200),
        [f"c{k}" for k in range(200)],
        codes(1000),
        [f"b{k}" for k in range(1000)],
        numbers(START - rng.uniform(0, 365, items + 1) * DAY),
        numbers(rng.normal(size=(items + 1, 2))),
        ["weight", "stars"],
        tags,
        rng.integers(0, 500, items * 5, np.int32),
        [f"style={k}" for k in range(500)],
    )


def made_up_vectors(rng: np.random.Generator, items: int, dimensions: int = DIMENSIONS) -> np.ndarray:
    """float32[items + 1, dimensions]: unit vectors around 50 directions; NaN for the unknown item."""
    topic = rng.normal(size=(50, dimensions)).astype(np.float32)
    out = rng.standard_normal((items + 1, dimensions), np.float32)
    out += topic[rng.integers(0, 50, items + 1)]
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    out[items] = np.nan
    return out


def made_up_events(rng: np.random.Generator, count: int, users: int, items: int) -> Events:
    """`count` events over 90 days: lists of 24 impressions, and the clicks, carts and purchases that follow."""
    rates, rate = [], 1.0
    for _, share, _ in _AFTER:
        rate *= share
        rates.append(rate)
    lists = max(1, int(count / SHOWN / (1 + sum(rates))))
    # Lists are uniform in time; users are drawn by the skewed distribution.
    list_at = START + np.floor(rng.uniform(0, DAYS * DAY, lists))
    list_user = skewed(rng, users, lists)
    at, user = np.repeat(list_at, SHOWN), np.repeat(list_user, SHOWN)
    item, request = skewed(rng, items, lists * SHOWN), np.repeat(np.arange(lists, dtype=np.int32), SHOWN)
    parts = [(at, user, item, np.zeros(len(at), np.int8), request)]
    for kind, share, after_s in _AFTER:
        at, user, item, _, request = parts[-1]
        follows = rng.random(len(at)) < share
        later = np.floor(at[follows] + 1 + rng.exponential(after_s, int(follows.sum())))
        parts.append((later, user[follows], item[follows], np.full(len(later), kind, np.int8), request[follows]))
    at, user, item, kinds, request = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((item, kinds, at))
    n = len(order)
    return Events(
        at[order],
        user[order],
        item[order],
        kinds[order],
        request[order],
        np.full(n, -1, np.int16),
        np.full(n, np.nan),
        [f"user-{k}" for k in range(users)],
        [f"list-{k}" for k in range(lists)],
        np.full(n, -1, np.int32),
        np.full(n, -1, np.int8),
    )


def made_up_items(rng: np.random.Generator, n: int, events: int) -> Items:
    """Items with the state at the end of a log.

    Neighbours, linear model and prior are random, because their cost does not depend on their values.
    """
    catalogue, log = made_up_catalogue(rng, n), made_up_events(rng, events, n // 2, n)
    state = ItemState.empty(catalogue.category, len(catalogue.category_names))
    state.apply(log.item, log.kind, log.at)
    near, weight = skewed(rng, n, 50 * n).reshape(n, 50), np.sort(rng.random((n, 50), np.float32))[:, ::-1]
    neighbours = Neighbours(
        np.vstack([near, np.full((1, 50), -1, np.int32)]), np.vstack([weight, np.zeros((1, 50), np.float32)])
    )
    prior = rng.uniform(0.02, 0.12, n + 1).astype(np.float32)
    vectors = Vectors.quantise(made_up_vectors(rng, n))
    return Items(catalogue, vectors, prior, neighbours, state, linear=made_up_linear(rng, n))


def made_up_sequence(rng: np.random.Generator, n: int) -> SequenceModel:
    """A sequence model with random weights over n items."""
    return SequenceModel(
        rng.normal(0, 0.1, SEQUENCE_WEIGHTS).astype(np.float32),
        Vectors.quantise(made_up_vectors(rng, n, WIDTH)),
        rng.normal(0, 0.1, tower_size(DIMENSIONS)).astype(np.float32),
    )


def made_up_linear(rng: np.random.Generator, n: int) -> Linear:
    """A random linear model over the first items, as many as it has at most."""
    known = min(n, MOST_ITEMS)
    into = Neighbours.none(n, WEIGHTS)
    into.item[:known] = rng.integers(0, known, (known, WEIGHTS), dtype=np.int32)
    into.weight[:known] = rng.normal(0, 0.01, (known, WEIGHTS))
    factors = np.zeros((2, n + 1, RANK), np.float32)
    factors[:, :known] = rng.normal(0, 0.1, (2, known, RANK))
    offered = np.full((n + 1, 20), -1, np.int32)
    offered[:known] = rng.integers(0, known, (known, 20), dtype=np.int32)
    return Linear(into, factors[0], factors[1], offered)
