"""Custom features: named in the configuration, checked against the contract of the table, not stored in a release."""

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
    """A user's module in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_features", raising=False)
    (tmp_path / "my_features.py").write_text(GOOD, "utf-8")
    return tmp_path / "my_features.py"


def test_a_custom_feature_is_loaded_by_name_and_is_the_last_column(module: Path) -> None:
    """`my_features:round_price` becomes a column like any other."""
    own = load(["my_features:round_price"])
    items = replace(ITEMS, custom=own)
    items.catalogue.price[[0, 3]] = [5.0, 5.5]
    assert names(items)[-1] == "round_price"
    assert rows(items, HISTORY, np.array([0, 3, -1], np.int32), AT)[:, -1].tolist()[:2] == [1, 0]
    assert violations(own[0], ITEMS, HISTORY, EVERY, AT) == []


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("round_price", "not of the form module:function, such as my_features:headroom"),
        ("no_such:thing", "no_such cannot be imported: ModuleNotFoundError: No module named 'no_such'"),
        ("my_features:nothing", "my_features has no feature 'nothing'; put @feature(...) before the function"),
        ("my_features:plain", "my_features has no feature 'plain'; put @feature(...) before the function"),
    ],
)
def test_loading_an_invalid_feature_reports_the_reason(module: Path, reference: str, reason: str) -> None:
    """The message contains the name, the problem and the fix."""
    with pytest.raises(FeatureError) as error:
        load([reference])
    assert str(error.value) == f"{reference!r}: {reason}"


def infinite(m: Moment) -> F64:
    return np.full(len(m.candidates), np.inf)


def random(m: Moment) -> F64:
    return np.full(len(m.candidates), float(next(COUNTER)))


def order_dependent(m: Moment) -> F64:
    return np.arange(len(m.candidates), dtype=np.float64)


def wrong_length(m: Moment) -> F64:
    return np.zeros(len(m.candidates) + 1)


def modifies_inputs(m: Moment) -> float:
    m.items.catalogue.price[0] = next(COUNTER)
    return 0.0


def needs_history(m: Moment) -> float:
    return float(m.engaged.at[0])


COUNTER = itertools.count()


@pytest.mark.parametrize(
    ("compute", "reason"),
    [
        (infinite, "is infinite; use NaN for missing values"),
        (random, "returns different values when computed again"),
        (order_dependent, "depends on the order of the candidates"),
        (wrong_length, "raises ValueError: could not broadcast"),
        (modifies_inputs, "changes its inputs; copy an array before writing to it"),
        (needs_history, "an unknown user, a list: raises IndexError"),
    ],
)
def test_every_contract_violation_is_reported(compute: object, reason: str) -> None:
    """Finite or NaN, repeatable, independent of order, one value per candidate, no changed inputs, any user."""
    invalid = feature("invalid", "none", "never")(compute)  # type: ignore[arg-type]
    assert any(reason in message for message in violations(invalid, ITEMS, HISTORY, EVERY, AT))


def test_a_duplicate_feature_name_is_rejected() -> None:
    """Columns are identified by name."""
    duplicate = feature("x", "x", "x")(infinite)._replace(name="text_pooled")
    assert violations(duplicate, ITEMS, HISTORY, EVERY, AT) == [
        "text_pooled: a feature of this name already exists; choose another name"
    ]


def test_built_in_features_satisfy_the_same_contract() -> None:
    """Each built-in feature is checked under another name, as if it were custom."""
    for own in features(ITEMS):
        compute = single_column(own)
        if not own.name.endswith(("_rank", "_over_mean")):  # these read other columns by name
            assert violations(own._replace(name=f"my_{own.name}", compute=compute), ITEMS, HISTORY, EVERY, AT) == []


def single_column(own: Feature) -> Callable[[Moment], F64]:
    """The function that computes one feature of a group that shares a function."""
    group = [f.name for f in features(ITEMS) if f.compute is own.compute]
    return lambda m: np.reshape(own.compute(m), (len(group), -1))[group.index(own.name)]


def test_a_release_loads_only_with_the_same_custom_features(module: Path, tmp_path: Path) -> None:
    """A release stores the names of its features and a checksum of their code, and compares both on loading."""
    own = load(["my_features:round_price"])
    items = replace(planted_items(), custom=own)
    path = publish(tmp_path / "releases", items, model_text=planted_model(items))
    assert names(load_release(path, custom=own).items)[-1] == "round_price"
    with pytest.raises(ReleaseError, match=r"my_features:round_price sha256:\w+.*but none are configured"):
        load_release(path)
    module.write_text(GOOD + "\n# changed\n", "utf-8")
    del sys.modules["my_features"]
    with pytest.raises(ReleaseError, match="with the same code, or make a new release"):
        load_release(path, custom=load(["my_features:round_price"]))
