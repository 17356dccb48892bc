"""Shoppers of the simulated shop: hidden tastes, budgets and moods, and the click model based on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.arrays import F32, F64, I32
from offline.simulation.products import Products
from offline.simulation.vocabulary import ATTRIBUTES, DEPARTMENTS, FACETS, LIFESTYLES

_USES = np.array([k for k, a in enumerate(ATTRIBUTES) if a.facet == FACETS[-1]], np.int32)

_BASE = -4.6
_APPEAL = 0.9
_DEPARTMENT = 0.5
_MOOD_DEPARTMENT = 0.7
_MOOD_USE = 1.0
_TOO_EXPENSIVE = 0.9
_TOO_CHEAP = 0.3
_OWNED = -3.0
"""Coefficients of the log-odds of a click on an examined item. Taste and trends are already in log-odds."""


@dataclass(frozen=True)
class Shoppers:
    """All potential shoppers with their hidden properties. Row u is the user with number u in their ID.

    taste: float32[u, attributes], log-odds, mostly 0. department: float32[u, departments], standardised preference.
    budget: float64[u], usual price level (log of the price relative to the median of the department). tolerance:
    float64[u], price level above the budget without a penalty. eagerness: float64[u], log-odds. visits: float64[u],
    relative number of sessions, mean 1.
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
        """Draw n shoppers. A taste combines one lifestyle, half of a second one, and individual likes and dislikes."""
        lifestyle = _lifestyle_tastes()
        first, second = rng.integers(0, len(lifestyle), (2, n))
        taste = lifestyle[first] + 0.5 * lifestyle[second] + 0.8 * _individual_tastes(rng, n, likes=3, dislikes=2)
        lifestyle_department = rng.normal(0, 1, (len(lifestyle), len(DEPARTMENTS)))
        department = 0.6 * lifestyle_department[first] + 0.8 * rng.normal(0, 1, (n, len(DEPARTMENTS)))
        visits = rng.lognormal(-0.5, 1.0, n)
        return cls(
            taste=(1.4 * taste).astype(np.float32),
            department=department.astype(np.float32),
            budget=rng.normal(0, 0.5, n),
            tolerance=rng.uniform(0.15, 0.6, n),
            eagerness=rng.normal(0, 0.45, n),
            visits=visits,
        )


def _lifestyle_tastes() -> F32:
    """float32[lifestyles, attributes]: +1 for liked attributes, -1 for disliked ones, 0 for others."""
    row = {a.name: i for i, a in enumerate(ATTRIBUTES)}
    out = np.zeros((len(LIFESTYLES), len(ATTRIBUTES)), np.float32)
    for k, lifestyle in enumerate(LIFESTYLES):
        out[k, [row[name] for name in lifestyle.likes]] = 1
        out[k, [row[name] for name in lifestyle.dislikes]] = -1
    return out


def _individual_tastes(rng: np.random.Generator, n: int, likes: int, dislikes: int) -> F32:
    """float32[n, attributes]: per row some likes around +1 and dislikes around -1, 0 for other attributes."""
    order = np.argsort(rng.random((n, len(ATTRIBUTES)), np.float32), axis=1)
    out = np.zeros((n, len(ATTRIBUTES)), np.float32)
    strength = rng.uniform(0.6, 1.4, (n, likes + dislikes)).astype(np.float32)
    strength[:, likes:] *= -1
    np.put_along_axis(out, order[:, : likes + dislikes], strength, axis=1)
    return out


class Mood(NamedTuple):
    """Interest of a session, int32[n] each. department: `-1` for none. use: row of `ATTRIBUTES`, `-1` for none."""

    department: I32
    use: I32

    @classmethod
    def draw(cls, rng: np.random.Generator, shoppers: Shoppers, user: I32) -> Mood:
        """Draw a mood for each session: two in three have a department, one in two has a use."""
        preference = shoppers.department[user] * 0.8 + rng.gumbel(size=(len(user), len(DEPARTMENTS)))
        department = np.where(rng.random(len(user)) < 0.65, preference.argmax(1), -1)
        use = np.where(rng.random(len(user)) < 0.5, rng.choice(_USES, len(user)), -1)
        return cls(department.astype(np.int32), use.astype(np.int32))


class Response(NamedTuple):
    """float64[n, items]: P(click) of examined items, P(cart | click) and P(purchase | cart)."""

    click: F64
    cart: F64
    purchase: F64

    @property
    def expected_gain(self) -> F64:
        """Expected gain of the best action: click 1, cart 2, purchase 3."""
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
    search_log_odds: F64 | float = 0.0,
) -> Response:
    """Probabilities of actions on items that users examine, independent of position.

    user: int32[n], with one mood each. item: int32[n, m]. fashion: float64[attributes], trends of the day in log-odds.
    owned: bool[n, m]. search_log_odds: float64[n, m], effect of a search, see `Searches.odds`.
    """
    latent = products.latent[item]
    taste = shoppers.taste[user] + fashion.astype(np.float32)
    liking = np.einsum("nk,nmk->nm", taste, latent).astype(np.float64)
    department = products.department[item]
    liking += _DEPARTMENT * np.take_along_axis(shoppers.department[user], department, axis=1)
    liking += _MOOD_DEPARTMENT * (department == mood.department[:, None])
    useful = np.take_along_axis(latent, np.maximum(mood.use, 0)[:, None, None], axis=2)[:, :, 0]
    liking += _MOOD_USE * useful * (mood.use >= 0)[:, None]
    excess = products.price_level[item] - shoppers.budget[user][:, None]
    too_expensive = np.maximum(excess - shoppers.tolerance[user][:, None], 0)
    price = -_TOO_EXPENSIVE * too_expensive - _TOO_CHEAP * np.maximum(-excess - 0.5, 0)
    click = (
        _BASE
        + shoppers.eagerness[user][:, None]
        + _APPEAL * products.appeal[item]
        + liking
        + price
        + _OWNED * owned
        + search_log_odds
    )
    return Response(
        click=_sigmoid(click),
        cart=_sigmoid(-1.3 + 0.3 * liking + 1.0 * price),
        purchase=_sigmoid(-0.2 + 0.2 * liking + 1.5 * price),
    )


def fashions(rng: np.random.Generator, days: int) -> F64:
    """Draw trends: float64[days, attributes], log-odds. Each is a mean-reverting walk with standard deviation 0.3."""
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
