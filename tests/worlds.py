"""Small planted worlds whose right answers are obvious, and random ones for property tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from features.catalogue import Catalogue
from features.context import NO_DEVICE
from features.log import Events, Kind, Lists
from features.replay import Replay
from features.sequence import WEIGHTS, WIDTH, SequenceModel, tower_size
from features.text.vectors import Vectors

DAY = 86400.0
START = 1_700_000_000.0

LogRow = tuple[float, int, int, Kind, int]
"""(seconds after START, user, item, kind, request)."""


def make_catalogue(n: int = 12, seed: int = 0) -> Catalogue:
    """n items in three categories and two brands, with two tag attributes, a number and a date; item 1 lacks most."""
    rng = np.random.default_rng(seed)
    category = np.append(np.arange(n) % 3, 3).astype(np.int32)
    brand = np.append(np.where(np.arange(n) == 1, 2, np.arange(n) % 2), 2).astype(np.int32)
    price = np.append(rng.uniform(1, 100, n), np.nan)
    born = np.append(START - rng.uniform(0, 100, n) * DAY, np.nan)
    price[1] = born[1] = np.nan
    counts = np.append(rng.integers(0, 4, n), 0)
    tags = np.concatenate([rng.permutation(5)[:c] for c in counts]).astype(np.int32)
    stars, released = np.append(rng.uniform(1, 5, n), np.nan), np.append(rng.uniform(40, 54, n), np.nan)
    ids = [f"i{k:03d}" for k in range(n)]
    return Catalogue(
        ids,
        [f"Item {k}" for k in range(n)],
        price,
        category,
        ["a", "b", "c"],
        brand,
        ["x", "y"],
        born,
        np.column_stack([stars, released]),
        ["stars", "released"],
        np.concatenate(([0], np.cumsum(counts))),
        tags,
        [f"{'style' if k % 2 else 'use'}={k}" for k in range(5)],
        ["released"],
    )


def make_vectors(n: int = 12, d: int = 8, seed: int = 0) -> np.ndarray:
    """float32[n + 1, d] unit vectors; item 2 and the unknown item have none."""
    v = np.random.default_rng(seed).normal(size=(n + 1, d)).astype(np.float32)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    v[2] = v[n] = np.nan
    return v


def make_events(rows: list[LogRow], n_users: int, n_requests: int = 1000, sessions: list[int] | None = None) -> Events:
    """Events from rows (seconds after START, user, item, kind, request) in any order, with optional sessions."""
    session = np.full(len(rows), -1, np.int32) if sessions is None else np.array(sessions, np.int32)
    at = np.array([START + r[0] for r in rows], np.float64)
    user, item = (np.array([r[k] for r in rows], np.int32) for k in (1, 2))
    kind, request = np.array([r[3] for r in rows], np.int8), np.array([r[4] for r in rows], np.int32)
    order = np.lexsort((item, kind, at))
    return Events(
        at[order],
        user[order],
        item[order],
        kind[order],
        request[order],
        np.zeros(len(rows), np.int16),
        np.full(len(rows), np.nan),
        [f"u{k}" for k in range(n_users)],
        [f"r{k}" for k in range(n_requests)],
        session[order],
        np.full(len(rows), NO_DEVICE, np.int8),
    )


def make_lists(
    at: list[float],
    users: list[int],
    items: list[list[int]],
    devices: list[int] | None = None,
    queries: list[str] | None = None,
) -> Lists:
    """Lists from seconds after START, users and items, with optional devices and queries; all gains are 0."""
    sizes = [len(i) for i in items]
    rows = sum(sizes)
    return Lists(
        START + np.array(at, np.float64),
        np.array(users, np.int32),
        [f"r{k}" for k in range(len(at))],
        np.concatenate(([0], np.cumsum(sizes))).astype(np.int64),
        np.array([i for row in items for i in row], np.int32),
        np.zeros(rows, np.int16),
        np.zeros(rows, np.int8),
        np.zeros((len(at), 3), np.int32),
        np.array([NO_DEVICE] * len(at) if devices is None else devices, np.int8),
        [""] * len(at) if queries is None else queries,
    )


@st.composite
def logs(draw: st.DrawFn, n_items: int = 12, n_users: int = 3) -> list[LogRow]:
    """Rows for `make_events`: a few dozen events of every kind over ten days, many at equal times."""
    seconds = st.integers(0, 60).map(lambda k: k * DAY / 6)
    row = st.tuples(
        seconds,
        st.integers(0, n_users - 1),
        st.integers(-1, n_items - 1),
        st.sampled_from(list(Kind)),
        st.integers(-1, 5),
    )
    return draw(st.lists(row, max_size=40))


def make_replay(events: Events, refresh_days: tuple[float, ...] = (2.0, 5.0), n: int = 12) -> Replay:
    """A replay of these events over the planted catalogue."""
    return Replay(make_catalogue(n), make_vectors(n), events, START + DAY * np.array(refresh_days))


def make_sequence_model(n: int, dimension: int, seed: int = 0) -> SequenceModel:
    """A sequence model of n items with random weights."""
    rng = np.random.default_rng(seed)
    items = np.vstack([rng.normal(size=(n, WIDTH)), np.zeros((1, WIDTH))]).astype(np.float32)
    return SequenceModel(
        rng.normal(0, 0.1, WEIGHTS).astype(np.float32),
        Vectors.quantise(items),
        rng.normal(0, 0.1, tower_size(dimension)).astype(np.float32),
    )
