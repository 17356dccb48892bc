"""The feature table: every feature declared once, and `rows`, the only function that computes them.

Replay calls `rows` for each list of the past and the service for each request, with the same arguments at the same
moment: that is the whole of training-serving parity.
"""

from __future__ import annotations

from dataclasses import dataclass

from features.catalogue import Catalogue
from features.decay import ItemState
from features.history import History
from features.log import F32, I32
from features.neighbours import Neighbours


@dataclass(frozen=True)
class Items:
    """All that is known of items: what a release carries (first four) and what events change (`state`).

    vectors: float32[n + 1, d], unit length, NaN where the item has no text. prior: float32[n + 1], the click rate that
    text and attributes predict, NaN where nothing was logged to learn it from. Row -1 is the unknown item.
    """

    catalogue: Catalogue
    vectors: F32
    prior: F32
    neighbours: Neighbours
    state: ItemState


def names(items: Items) -> tuple[str, ...]:
    """The columns of `rows`, in order: the declared features, then one or two for each attribute of the catalogue."""
    raise NotImplementedError


def schema_hash(items: Items) -> str:
    """SHA-256 over names, units and missing rules: equal exactly when rows mean the same."""
    raise NotImplementedError


def rows(items: Items, history: History, candidates: I32, at: float) -> F32:
    """float32[candidates, features]: what is known of each candidate for this user strictly before `at`.

    candidates: int32[c] rows of the catalogue, `-1` unknown. at: Unix seconds. Missing is NaN.
    The order of the candidates does not matter: each row depends on the set.
    """
    raise NotImplementedError
