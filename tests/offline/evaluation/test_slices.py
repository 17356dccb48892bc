"""Slices by column: by value or by quarter, other and missing values apart, and unknown columns rejected."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.log import Lists
from offline.data.log import LogFiles
from offline.data.query_groups import Targets
from offline.data.schema import EVENTS_SCHEMA
from offline.evaluation.slices import MISSING, OTHER, VALUES, check_columns, event_column_slices, item_column_slices
from offline.runtime.errors import DataError
from tests.worlds import make_lists


def targets(items: list[int]) -> Targets:
    """One target per list."""
    n = len(items)
    return Targets(np.arange(n, dtype=np.int64), np.array(items, np.int32), np.ones(n, np.int8))


def sliced(column: pa.Array, items: list[int] | None = None) -> dict[str, list[bool]]:
    """Slices of targets by the column `x` of the items; by default each item is one target."""
    found = item_column_slices(pa.table({"x": column}), ["x", "elsewhere"], targets(items or list(range(len(column)))))
    return {name: mask.tolist() for name, mask in found.items()}


def test_each_text_is_a_slice_and_so_are_missing_texts() -> None:
    """The targets are items 0, 1, 1, 2, 3: blue, red, red, None and the empty text."""
    found = sliced(pa.array(["blue", "red", None, ""]), [0, 1, 1, 2, 3])
    assert found == {
        "x:red": [False, True, True, False, False],
        "x:blue": [True, False, False, False, False],
        f"x:{MISSING}": [False, False, False, True, True],
    }


def test_an_item_with_several_values_is_in_the_slice_of_each() -> None:
    found = sliced(pa.array([["a", "b"], ["b"], [], None], pa.list_(pa.string())))
    assert found["x:a"] == [True, False, False, False]
    assert found["x:b"] == [True, True, False, False]
    assert found[f"x:{MISSING}"] == [False, False, True, True]


def test_only_the_most_frequent_values_have_their_own_slice() -> None:
    """Ten values: the eight with two rows have a slice each, and the other two share one."""
    found = sliced(pa.array([f"v{k}" for k in range(10)] + [f"v{k}" for k in range(VALUES)]))
    own = [name for name in found if name not in (f"x:{MISSING}", f"x:{OTHER}")]
    assert own == [f"x:v{k}" for k in range(VALUES)]
    assert sum(found[f"x:{OTHER}"]) == 2


def test_numbers_are_split_into_quarters_named_by_their_ends() -> None:
    """0 to 99 gives quarters of about 25, and two values are missing."""
    found = sliced(pa.array([*map(float, range(100)), None, float("nan")]))
    assert list(found) == ["x:0 to 25", "x:over 25 to 50", "x:over 50 to 74", "x:over 74 to 99", f"x:{MISSING}"]
    assert [sum(mask) for mask in found.values()] == [26, 25, 24, 25, 2]


def test_a_few_distinct_numbers_or_flags_are_slices_by_value() -> None:
    assert set(sliced(pa.array([1, 2, 2, 3]))) == {"x:1", "x:2", "x:3", f"x:{MISSING}"}
    assert set(sliced(pa.array([True, False]))) == {"x:true", "x:false", f"x:{MISSING}"}


def test_times_are_split_into_quarters_named_by_day() -> None:
    days = [datetime(2024, 1, d, tzinfo=UTC) for d in range(1, 22)]
    found = sliced(pa.array(days, pa.timestamp("us", "UTC")))
    assert next(iter(found)) == "x:2024-01-01 to 2024-01-06"


columns = st.one_of(
    st.lists(st.one_of(st.none(), st.text(max_size=4)), max_size=20).map(lambda v: pa.array(v, pa.string())),
    st.lists(st.one_of(st.none(), st.floats()), max_size=20).map(lambda v: pa.array(v, pa.float64())),
    st.lists(st.one_of(st.none(), st.integers(-(2**60), 2**60)), max_size=20).map(lambda v: pa.array(v, pa.int64())),
    st.lists(st.lists(st.text(max_size=2), max_size=3), max_size=9).map(lambda v: pa.array(v, pa.list_(pa.string()))),
)


@settings(max_examples=60, deadline=None)
@given(columns)
def test_every_target_is_in_a_slice(column: pa.Array) -> None:
    """For any column: each target is either in the slice of a value or in that of missing values, not in both."""
    found = item_column_slices(pa.table({"x": column}), ["x"], targets(list(range(len(column)))))
    has_value = np.zeros(len(column), np.bool_)
    for name, mask in found.items():
        has_value |= mask & (name != f"x:{MISSING}")
    assert np.array_equal(has_value, ~found[f"x:{MISSING}"])


@pytest.fixture
def shop(tmp_path: Path) -> tuple[Path, Lists]:
    """List r0 has device mobile on its first impression and desktop on its second, r1 only on its click, r2 nowhere."""
    rows = [
        ("impression", "r0", "mobile"),
        ("impression", "r0", "desktop"),
        ("impression", "r1", None),
        ("click", "r1", "tablet"),
        ("impression", "r2", None),
        ("impression", None, "app"),
    ]
    records = [
        {"event_id": f"e{n}", "event": e, "user_id": "u", "item_id": "a", "timestamp": n, "request_id": r, "device": d}
        for n, (e, r, d) in enumerate(rows)
    ]
    events = pa.Table.from_pylist(records, EVENTS_SCHEMA)
    pq.write_table(events, tmp_path / "events.parquet")
    pq.write_table(pa.table({"item_id": ["a"], "brand": ["b"]}), tmp_path / "items.parquet")
    return tmp_path, make_lists([0, 1, 2], [0, 0, 0], [[0], [0], [0]])


def test_a_list_has_the_value_of_its_first_impression_and_not_of_its_clicks(shop: tuple[Path, Lists]) -> None:
    folder, lists = shop
    found = event_column_slices(LogFiles.of(folder), ["device", "brand"], lists, but=["brand"])
    assert {name: mask.tolist() for name, mask in found.items()} == {
        "device:mobile": [True, False, False],
        f"device:{MISSING}": [False, True, True],
    }


def test_an_unknown_column_is_rejected_with_the_available_ones(shop: tuple[Path, Lists]) -> None:
    check_columns(shop[0], LogFiles.of(shop[0]).event_columns, ["brand", "device"])
    with pytest.raises(DataError, match=r"slice 'colour': no such column; items have item_id, brand; events"):
        check_columns(shop[0], LogFiles.of(shop[0]).event_columns, ["colour"])
