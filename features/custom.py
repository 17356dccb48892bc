"""Features of the user's own: small functions in the user's own module, named in the configuration.

    # my_features.py
    from features.custom import Moment, feature

    @feature(about="room for a discount", unit="log price", missing="no price")
    def headroom(m: Moment):
        price = m.items.catalogue.price[m.candidates]
        return np.log1p(price) - np.log1p(m.items.catalogue.price[m.engaged.item].min(initial=np.inf))

It computes from a `Moment` alone, so it sees nothing of the future; `violations` holds it to what every feature of the
table keeps, before a night trains on it.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from features.arrays import F32, F64, I32
from features.context import NO_CONTEXT, Context
from features.history import EMPTY, History
from features.moment import Feature, Items, Moment, Reasons
from features.table import names, rows

__all__ = ["FeatureError", "Moment", "feature", "load", "violations"]


class FeatureError(ValueError):
    """A feature of the user's own cannot be used; the message names it, what is wrong, and what to do."""


def feature(
    about: str, unit: str, missing: str, reason: str | None = None, reason_against: str | None = None
) -> Callable[[Callable[[Moment], F64 | F32 | float]], Feature]:
    """Declares a function of a `Moment` as a feature; it returns one number a candidate, or one for all.

    about: description for reports, as "room for a discount". unit: of the value. missing: when it is NaN, or "never".
    reason, reason_against: what a contribution that raises, or lowers, a score is called; made from `about` if None.
    """
    reasons = Reasons(reason or f"{about} speaks for it", reason_against or f"{about} speaks against it")

    def declare(compute: Callable[[Moment], F64 | F32 | float]) -> Feature:
        return Feature(compute.__name__, about, unit, missing, compute, reasons=reasons)

    return declare


def load(named: Sequence[str]) -> tuple[Feature, ...]:
    """The features named as `module:function`, the module found as Python finds it or in the working directory.

    Raises FeatureError for a name that is not of that form, a module that cannot be imported, or anything in it that
    was not declared with `feature`.
    """
    return tuple(_one(name) for name in named)


def _one(named: str) -> Feature:
    module_name, _, name = named.partition(":")
    if not module_name or not name:
        raise FeatureError(f"{named!r}: name a feature as module:function, e.g. my_features:headroom")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as e:
        raise FeatureError(f"{named!r}: {module_name} cannot be imported: {type(e).__name__}: {e}") from e
    finally:
        if added:
            sys.path.remove(here)
    found = getattr(module, name, None)
    if not isinstance(found, Feature):
        raise FeatureError(f"{named!r}: {module_name} has no feature {name!r}; put @feature(...) before the function")
    source = Path(str(module.__file__)).read_bytes()
    return found._replace(origin=f"{named} sha256:{hashlib.sha256(source).hexdigest()[:16]}")


def violations(
    own: Feature, items: Items, history: History, candidates: I32, at: float, context: Context = NO_CONTEXT
) -> list[str]:
    """What a feature does that none may, in sentences; empty where it keeps the contract.

    Tried on this list and user, on a user nobody knows, on the unknown item, on one candidate and on none: it must give
    finite numbers or NaN, one a candidate or one for all; leave its inputs alone; give the same again; and not depend
    on the order of the candidates.
    """
    if own.name in names(replace(items, custom=())):
        return [f"{own.name}: there is a feature of this name already"]
    items, out = replace(items, custom=(own,)), []
    before = [hashlib.sha256(a.tobytes()).digest() for a in _touchable(items)]
    with_unknown = np.append(candidates, np.int32(-1))
    for whom, known in (("a known user", history), ("a user nobody knows", EMPTY)):
        for what, chosen in (("a list", with_unknown), ("one candidate", with_unknown[:1]), ("none", with_unknown[:0])):
            problem = _problem(items, known, chosen, at, context)
            if problem:
                out.append(f"{own.name}, {whom}, {what}: {problem}")
    if before != [hashlib.sha256(a.tobytes()).digest() for a in _touchable(items)]:
        out.append(f"{own.name}: changes what it was given; copy before you write")
    return out


def _problem(items: Items, history: History, candidates: I32, at: float, context: Context) -> str | None:
    h = history
    history = History(h.item.copy(), h.kind.copy(), h.at.copy(), h.shown_item.copy(), h.shown_at.copy())
    candidates, backwards = candidates.copy(), candidates[::-1].copy()
    for array in (*history, candidates, backwards):
        array.setflags(write=False)
    try:
        found, again = (rows(items, history, candidates, at, context)[:, -1] for _ in range(2))
        other = rows(items, history, backwards, at, context)[::-1, -1]
    except Exception as e:
        return f"raises {type(e).__name__}: {e}"
    if np.isinf(found).any():
        return "is infinite; use NaN for what is missing"
    if not np.array_equal(found, again, equal_nan=True):
        return "gives another value when computed again: use nothing but the moment, no clock and no chance"
    if not np.array_equal(found, other, equal_nan=True):
        return "depends on the order of the candidates: sum over sorted values"
    return None


def _touchable(items: Items) -> list[np.ndarray]:
    """The arrays a feature could write into, were it careless."""
    c = items.catalogue
    return [c.price, c.numbers, c.available_from, c.category, c.brand, c.tag, items.prior, items.state.value]
