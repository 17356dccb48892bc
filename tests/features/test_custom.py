"""Features of the user's own: named in the configuration, held to the table's contract, never carried by a release."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.arrays import F64
from features.custom import FeatureError, Moment, feature, load, violations
from features.history import Histories
from features.log import Kind
from features.moment import Feature
from features.table import features, names, rows
from serving.release.manifest import ReleaseError
from serving.release.release import load_release as load_release
from tests.serving.test_release import planted_items, planted_model, publish
from tests.worlds import DAY, START, make_events, make_replay

AT = START + 9.5 * DAY
EVENTS = make_events([(0.1 * DAY * k, k % 3, k % 12, list(Kind)[k % 6], k % 4) for k in range(90)], 3)
ITEMS = make_replay(EVENTS).items_at(AT)
HISTORY = Histories.of(EVENTS).read(0, AT)
EVERY = np.arange(12, dtype=np.int32)

GOOD = """
import numpy as np
from features.custom import Moment, feature

@feature(about="a round price", unit="0 or 1", missing="no price")
def round_price(m: Moment):
    price = m.items.catalogue.price[m.candidates]
    return np.where(np.isnan(price), np.nan, price % 1 == 0)

def plain(m):
    return 0.0
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_features", raising=False)
    (tmp_path / "my_features.py").write_text(GOOD, "utf-8")
    return tmp_path / "my_features.py"


def test_a_feature_is_found_by_name_and_stands_last_in_the_table(module: Path) -> None:
    """`my_features:round_price` is a column like any other."""
    own = load(["my_features:round_price"])
    items = replace(ITEMS, custom=own)
    items.catalogue.price[[0, 3]] = [5.0, 5.5]
    assert names(items)[-1] == "round_price"
    assert rows(items, HISTORY, np.array([0, 3, -1], np.int32), AT)[:, -1].tolist()[:2] == [1, 0]
    assert violations(own[0], ITEMS, HISTORY, EVERY, AT) == []


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ("round_price", "name a feature as module:function, e.g. my_features:headroom"),
        ("no_such:thing", "no_such cannot be imported: ModuleNotFoundError: No module named 'no_such'"),
        ("my_features:nothing", "my_features has no feature 'nothing'; put @feature(...) before the function"),
        ("my_features:plain", "my_features has no feature 'plain'; put @feature(...) before the function"),
    ],
)
def test_a_feature_that_cannot_be_loaded_says_why(module: Path, named: str, why: str) -> None:
    """What was named, what is wrong, what to do."""
    with pytest.raises(FeatureError) as error:
        load([named])
    assert str(error.value) == f"{named!r}: {why}"


def infinite(m: Moment) -> F64:
    return np.full(len(m.candidates), np.inf)


def by_chance(m: Moment) -> F64:
    return np.full(len(m.candidates), float(next(COUNTER)))


def by_order(m: Moment) -> F64:
    return np.arange(len(m.candidates), dtype=np.float64)


def too_many(m: Moment) -> F64:
    return np.zeros(len(m.candidates) + 1)


def careless(m: Moment) -> float:
    m.items.catalogue.price[0] = next(COUNTER)
    return 0.0


def needs_history(m: Moment) -> float:
    return float(m.engaged.at[0])


COUNTER = itertools.count()


@pytest.mark.parametrize(
    ("compute", "why"),
    [
        (infinite, "is infinite; use NaN for what is missing"),
        (by_chance, "gives another value when computed again"),
        (by_order, "depends on the order of the candidates"),
        (too_many, "raises ValueError: could not broadcast"),
        (careless, "changes what it was given; copy before you write"),
        (needs_history, "a user nobody knows, a list: raises IndexError"),
    ],
)
def test_each_way_to_break_the_contract_is_told(compute: object, why: str) -> None:
    """Finite or NaN, repeatable, blind to order, one value a candidate, inputs untouched, anybody answered."""
    bad = feature("bad", "none", "never")(compute)  # type: ignore[arg-type]
    assert any(why in said for said in violations(bad, ITEMS, HISTORY, EVERY, AT))


def test_a_name_that_is_taken_is_refused() -> None:
    """Columns are known by name."""
    taken = feature("x", "x", "x")(infinite)._replace(name="text_pooled")
    assert violations(taken, ITEMS, HISTORY, EVERY, AT) == ["text_pooled: there is a feature of this name already"]


def test_the_tables_own_features_keep_the_same_contract() -> None:
    """What is asked of users is kept at home: each feature under another name, as if it were theirs."""
    for own in features(ITEMS):
        compute = one_of(own)
        if not own.name.endswith(("_rank", "_over_mean")):  # those compare with columns by name
            assert violations(own._replace(name=f"my_{own.name}", compute=compute), ITEMS, HISTORY, EVERY, AT) == []


def one_of(own: Feature) -> Callable[[Moment], F64]:
    """What a feature computes by itself, where it shares a function with its neighbours."""
    together = [f.name for f in features(ITEMS) if f.compute is own.compute]
    return lambda m: np.reshape(own.compute(m), (len(together), -1))[together.index(own.name)]


def test_a_release_is_loaded_with_the_same_features_or_not_at_all(module: Path, tmp_path: Path) -> None:
    """It names its features and their code's checksum; without them, or with other code, it stops with both values."""
    own = load(["my_features:round_price"])
    items = replace(planted_items(), custom=own)
    made = publish(tmp_path / "releases", items, model_text=planted_model(items))
    assert names(load_release(made, custom=own).items)[-1] == "round_price"
    with pytest.raises(ReleaseError, match=r"my_features:round_price sha256:\w+.*here are none"):
        load_release(made)
    module.write_text(GOOD + "\n# changed\n", "utf-8")
    del sys.modules["my_features"]
    with pytest.raises(ReleaseError, match="with the same code, or make a new release"):
        load_release(made, custom=load(["my_features:round_price"]))
