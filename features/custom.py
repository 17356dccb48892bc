"""Custom features: small functions in a module of your own, named in the configuration.

    # my_features.py
    from features.custom import Moment, feature

    @feature(about="room for a discount", unit="log price", missing="no price")
    def headroom(m: Moment):
        price = m.items.catalogue.price[m.candidates]
        return np.log1p(price) - np.log1p(m.items.catalogue.price[m.engaged.item].min(initial=np.inf))

A feature is computed from a `Moment` alone, so it cannot see the future. `violations` checks it against the contract of
all features before a nightly run trains on it.
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
    """A custom feature cannot be used; the message names it, the problem and the fix."""


def feature(
    about: str, unit: str, missing: str, reason: str | None = None, reason_against: str | None = None
) -> Callable[[Callable[[Moment], F64 | F32 | float]], Feature]:
    """Declare a function of a `Moment` as a feature; it returns one number per candidate, or one for all.

    about: description for reports, such as "room for a discount". unit: of the value. missing: when it is NaN, or
    "never". reason, reason_against: texts for a contribution that raises or lowers a score; derived from `about` if
    None.
    """
    reasons = Reasons(reason or f"{about} counts in its favour", reason_against or f"{about} counts against it")

    def declare(compute: Callable[[Moment], F64 | F32 | float]) -> Feature:
        return Feature(compute.__name__, about, unit, missing, compute, reasons=reasons)

    return declare


def load(references: Sequence[str]) -> tuple[Feature, ...]:
    """Load features named as `module:function`, from an importable module or one in the working directory.

    Raises FeatureError for a name that is not of that form, a module that cannot be imported, or an attribute of it
    that was not declared with `feature`.
    """
    return tuple(_load_one(name) for name in references)


def _load_one(reference: str) -> Feature:
    module_name, _, name = reference.partition(":")
    if not module_name or not name:
        raise FeatureError(f"{reference!r}: not of the form module:function, such as my_features:headroom")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as e:
        raise FeatureError(f"{reference!r}: {module_name} cannot be imported: {type(e).__name__}: {e}") from e
    finally:
        if added:
            sys.path.remove(here)
    attribute = getattr(module, name, None)
    if not isinstance(attribute, Feature):
        raise FeatureError(
            f"{reference!r}: {module_name} has no feature {name!r}; put @feature(...) before the function"
        )
    source = Path(str(module.__file__)).read_bytes()
    return attribute._replace(origin=f"{reference} sha256:{hashlib.sha256(source).hexdigest()[:16]}")


def violations(
    custom: Feature, items: Items, history: History, candidates: I32, at: float, context: Context = NO_CONTEXT
) -> list[str]:
    """Violations of the feature contract, as sentences; empty if there are none.

    The feature is computed for this list and user, for an unknown user, for the unknown item, for one candidate and for
    none, each without columns of the request. It must return finite numbers or NaN, one per candidate or one for all;
    leave its inputs unchanged; return the same values again; and not depend on the order of the candidates.
    """
    if custom.name in names(replace(items, custom=())):
        return [f"{custom.name}: a feature of this name already exists; choose another name"]
    items, out = replace(items, custom=(custom,)), []
    context = context._replace(columns=None)  # they have a value per candidate of the list, and others are tried here
    before = [hashlib.sha256(a.tobytes()).digest() for a in _writable_arrays(items)]
    with_unknown = np.append(candidates, np.int32(-1))
    for user, user_history in (("a known user", history), ("an unknown user", EMPTY)):
        for label, tried in (
            ("a list", with_unknown),
            ("one candidate", with_unknown[:1]),
            ("no candidates", with_unknown[:0]),
        ):
            problem = _contract_violation(items, user_history, tried, at, context)
            if problem:
                out.append(f"{custom.name}, {user}, {label}: {problem}")
    if before != [hashlib.sha256(a.tobytes()).digest() for a in _writable_arrays(items)]:
        out.append(f"{custom.name}: changes its inputs; copy an array before writing to it")
    return out


def _contract_violation(items: Items, history: History, candidates: I32, at: float, context: Context) -> str | None:
    h = history
    history = History(h.item.copy(), h.kind.copy(), h.at.copy(), h.shown_item.copy(), h.shown_at.copy())
    candidates, backwards = candidates.copy(), candidates[::-1].copy()
    for array in (*history, candidates, backwards):
        array.setflags(write=False)
    try:
        first, second = (rows(items, history, candidates, at, context)[:, -1] for _ in range(2))
        reversed_ = rows(items, history, backwards, at, context)[::-1, -1]
    except Exception as e:
        return f"raises {type(e).__name__}: {e}"
    if np.isinf(first).any():
        return "is infinite; use NaN for missing values"
    if not np.array_equal(first, second, equal_nan=True):
        return "returns different values when computed again; use only the Moment, no clock and no random numbers"
    if not np.array_equal(first, reversed_, equal_nan=True):
        return "depends on the order of the candidates; sum over sorted values"
    return None


def _writable_arrays(items: Items) -> list[np.ndarray]:
    """Arrays that a feature could change by mistake."""
    c = items.catalogue
    return [c.price, c.numbers, c.available_from, c.category, c.brand, c.tag, items.prior, items.state.value]
