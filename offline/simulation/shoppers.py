"""The simulated shop's people: hidden tastes, budgets and moods, and what these make them do with what they see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.arrays import F32, F64, I32
from offline.simulation.products import Products
from offline.simulation.vocabulary import ATTRIBUTES, CIRCLES, DEPARTMENTS, FACETS

_USES = np.array([k for k, a in enumerate(ATTRIBUTES) if a.facet == FACETS[-1]], np.int32)

_BASE = -4.6
_APPEAL = 0.9
_DEPARTMENT = 0.5
_MOOD_DEPARTMENT = 0.7
_MOOD_USE = 1.0
_TOO_DEAR = 0.9
_TOO_CHEAP = 0.3
_OWNED = -3.0
"""Log-odds of a click on an examined item, by what causes it; taste and fashion carry their own scale."""


@dataclass(frozen=True)
class Shoppers:
    """Everyone who may come, hidden part included; row u is the user with id `u...` of that number.

    taste: float32[u, attributes] in log-odds, mostly 0. department: float32[u, departments], standardised liking.
    budget: float64[u], the price level (log of price over the department's median) a shopper is used to.
    tolerance: float64[u], how far above it they go. eagerness: float64[u], log-odds. visits: float64[u], mean 1.
    """

    taste: F32
    department: F32
    budget: F64
    tolerance: F64
    eagerness: F64
    visits: F64

    def __len__(self) -> int:
        return len(self.budget)

    @classmethod
    def invent(cls, rng: np.random.Generator, n: int) -> Shoppers:
        """n shoppers. Each shares the taste of one circle, a little of a second, and has whims of their own."""
        circle = _circles()
        first, second = rng.integers(0, len(circle), (2, n))
        taste = circle[first] + 0.5 * circle[second] + 0.8 * _whims(rng, n, likes=3, dislikes=2)
        circle_department = rng.normal(0, 1, (len(circle), len(DEPARTMENTS)))
        department = 0.6 * circle_department[first] + 0.8 * rng.normal(0, 1, (n, len(DEPARTMENTS)))
        visits = rng.lognormal(-0.5, 1.0, n)
        return cls(
            taste=(1.4 * taste).astype(np.float32),
            department=department.astype(np.float32),
            budget=rng.normal(0, 0.5, n),
            tolerance=rng.uniform(0.15, 0.6, n),
            eagerness=rng.normal(0, 0.45, n),
            visits=visits,
        )


def _circles() -> F32:
    """float32[circles, attributes]: +1 what a circle likes, -1 what it does not, 0 elsewhere."""
    row = {a.name: k for k, a in enumerate(ATTRIBUTES)}
    out = np.zeros((len(CIRCLES), len(ATTRIBUTES)), np.float32)
    for c, circle in enumerate(CIRCLES):
        out[c, [row[name] for name in circle.likes]] = 1
        out[c, [row[name] for name in circle.dislikes]] = -1
    return out


def _whims(rng: np.random.Generator, n: int, likes: int, dislikes: int) -> F32:
    """float32[n, attributes]: a few likes around +1 and dislikes around -1 a row, 0 elsewhere."""
    order = np.argsort(rng.random((n, len(ATTRIBUTES)), np.float32), axis=1)
    out = np.zeros((n, len(ATTRIBUTES)), np.float32)
    strength = rng.uniform(0.6, 1.4, (n, likes + dislikes)).astype(np.float32)
    strength[:, likes:] *= -1
    np.put_along_axis(out, order[:, : likes + dislikes], strength, axis=1)
    return out


class Mood(NamedTuple):
    """What a visit is about: a department (`-1` none) and a use (`-1` none, else a row of `ATTRIBUTES`), int32[n]."""

    department: I32
    use: I32

    @classmethod
    def draw(cls, rng: np.random.Generator, shoppers: Shoppers, user: I32) -> Mood:
        """A mood for each visit: two in three have a department in mind, one in two a use."""
        liking = shoppers.department[user] * 0.8 + rng.gumbel(size=(len(user), len(DEPARTMENTS)))
        department = np.where(rng.random(len(user)) < 0.65, liking.argmax(1), -1)
        use = np.where(rng.random(len(user)) < 0.5, rng.choice(_USES, len(user)), -1)
        return cls(department.astype(np.int32), use.astype(np.int32))


class Response(NamedTuple):
    """Chances of each act on items that are looked at: float64[n, items]; cart given click, purchase given cart."""

    click: F64
    cart: F64
    purchase: F64

    @property
    def expected_gain(self) -> F64:
        """Expected gain of the best act (click 1, cart 2, purchase 3): a cart follows a click, a purchase a cart."""
        out: F64 = self.click * (1 + self.cart * (1 + self.purchase))
        return out


def response(
    shoppers: Shoppers,
    products: Products,
    user: I32,
    mood: Mood,
    item: I32,
    fashion: F64,
    owned: NDArray[np.bool_],
    sought: F64 | float = 0.0,
) -> Response:
    """What shoppers would do with products, whatever the place these are shown at.

    user: int32[n], a mood each. item: int32[n, m]. fashion: float64[attributes], the day's log-odds. owned: bool[n, m].
    sought: float64[n, m], the log-odds that items gain, or lose, by being what was searched for, or not.
    """
    latent = products.latent[item]
    wish = shoppers.taste[user] + fashion.astype(np.float32)
    liking = np.einsum("nk,nmk->nm", wish, latent).astype(np.float64)
    department = products.department[item]
    liking += _DEPARTMENT * np.take_along_axis(shoppers.department[user], department, axis=1)
    liking += _MOOD_DEPARTMENT * (department == mood.department[:, None])
    wanted = np.take_along_axis(latent, np.maximum(mood.use, 0)[:, None, None], axis=2)[:, :, 0]
    liking += _MOOD_USE * wanted * (mood.use >= 0)[:, None]
    dearer = products.price_level[item] - shoppers.budget[user][:, None]
    too_dear = np.maximum(dearer - shoppers.tolerance[user][:, None], 0)
    price = -_TOO_DEAR * too_dear - _TOO_CHEAP * np.maximum(-dearer - 0.5, 0)
    click = (
        _BASE
        + shoppers.eagerness[user][:, None]
        + _APPEAL * products.appeal[item]
        + liking
        + price
        + _OWNED * owned
        + sought
    )
    return Response(
        click=_sigmoid(click),
        cart=_sigmoid(-1.3 + 0.3 * liking + 1.0 * price),
        purchase=_sigmoid(-0.2 + 0.2 * liking + 1.5 * price),
    )


def fashions(rng: np.random.Generator, days: int) -> F64:
    """float64[days, attributes] in log-odds: a mean-reverting walk of each attribute's appeal, with spread 0.3."""
    keep = 0.95
    out = np.empty((days, len(ATTRIBUTES)))
    now = rng.normal(0, 0.3, len(ATTRIBUTES))
    for day in range(days):
        out[day] = now
        now = keep * now + rng.normal(0, 0.3 * np.sqrt(1 - keep**2), len(ATTRIBUTES))
    return out


def _sigmoid(x: F64) -> F64:
    out: F64 = 1.0 / (1.0 + np.exp(-x))
    return out
