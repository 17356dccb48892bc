"""Loading a data set: codes, missing values, attribute types, order of equal times, and invalid files."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.catalogue import Catalogue
from features.log import Kind
from offline.data.dataset import load_dataset, read_catalogue
from offline.data.written_items import overlay_written
from offline.runtime.errors import DataError
from serving.store import ItemFields
from text_encoder.text import catalogue_texts

MOMENT = pa.timestamp("us", "UTC")
NEW_YEAR = datetime(1971, 1, 1, tzinfo=UTC)


def items(n: int = 3, **columns: pa.Array | list[Any]) -> pa.Table:
    """n items A, B, C, ... with default columns. columns: replace default columns or are added."""
    ids = [chr(65 + k) for k in range(n)]
    table = {
        "item_id": pa.array(ids),
        "title": pa.array([f"Title {i}" for i in ids]),
        "description": pa.nulls(n, pa.string()),
        "category": pa.nulls(n, pa.string()),
        "brand": pa.nulls(n, pa.string()),
        "price": pa.nulls(n, pa.float64()),
        "available_from": pa.nulls(n, MOMENT),
    }
    return pa.table(table | columns)


ROWS: list[dict[str, Any]] = [
    {"event": "click", "item_id": "A", "at": 20},
    {"event": "impression", "item_id": "B", "at": 10, "request_id": "r1", "position": 1},
    {"event": "impression", "item_id": "A", "at": 10, "request_id": "r1", "position": 0},
    {"event": "purchase", "item_id": "gone", "at": 30, "value": 9.5, "user_id": "v"},
]


def events(rows: list[dict[str, Any]] = ROWS) -> pa.Table:
    """Events from dicts, with `at` in Unix seconds. The default user is u; request, position and value may be null."""
    return pa.table(
        {
            "event_id": pa.array([r.get("event_id", f"e{k}") for k, r in enumerate(rows)], pa.string()),
            "event": pa.array([r["event"] for r in rows], pa.string()),
            "user_id": pa.array([r.get("user_id", "u") for r in rows], pa.string()),
            "item_id": pa.array([r["item_id"] for r in rows], pa.string()),
            "timestamp": pa.array([None if r["at"] is None else int(r["at"] * 1e6) for r in rows], MOMENT),
            "request_id": pa.array([r.get("request_id") for r in rows], pa.string()),
            "position": pa.array([r.get("position") for r in rows], pa.int16()),
            "value": pa.array([r.get("value") for r in rows], pa.float64()),
            "session_id": pa.nulls(len(rows), pa.string()),
        }
    )


def write_dataset(directory: Path, items_: pa.Table | None = None, events_: pa.Table | None = None) -> Path:
    """Write a data set, by default `items()` and `events()`, and return its directory."""
    pq.write_table(items() if items_ is None else items_, directory / "items.parquet")
    pq.write_table(events() if events_ is None else events_, directory / "events.parquet")
    return directory


def tags(catalogue: Catalogue) -> list[list[str]]:
    """The tags of every row. The last row is the unknown item."""
    return [
        [catalogue.tag_names[t] for t in catalogue.tag[a:b]]
        for a, b in zip(catalogue.tag_start[:-1], catalogue.tag_start[1:], strict=True)
    ]


def test_events_are_sorted_and_encoded_with_missing_values_marked(tmp_path: Path) -> None:
    """Equal times are sorted by kind, then item. Missing request: -1, position: -1, value: NaN, unknown item: -1."""
    dataset = load_dataset(write_dataset(tmp_path))
    e = dataset.events
    assert e.at.tolist() == [10, 10, 20, 30]
    assert e.item.tolist() == [0, 1, 0, -1]
    assert e.kind.tolist() == [Kind.IMPRESSION, Kind.IMPRESSION, Kind.CLICK, Kind.PURCHASE]
    assert [e.user_ids[u] for u in e.user] == ["u", "u", "u", "v"]
    assert [e.request_ids[r] if r >= 0 else None for r in e.request] == ["r1", "r1", None, None]
    assert e.position.tolist() == [0, 1, -1, -1]
    np.testing.assert_array_equal(e.value, [np.nan, np.nan, np.nan, 9.5])
    assert list(dataset.event_id) == ["e2", "e1", "e0", "e3"]
    dtypes = [a.dtype for a in (e.at, e.user, e.item, e.kind, e.request, e.position, e.value)]
    assert dtypes == [np.float64, np.int32, np.int32, np.int8, np.int32, np.int16, np.float64]


def test_the_order_of_rows_in_the_files_does_not_matter(tmp_path: Path) -> None:
    """The arrays are the same; codes of users may differ, but decode to the same IDs."""
    (tmp_path / "back").mkdir()
    a = load_dataset(write_dataset(tmp_path))
    b = load_dataset(write_dataset(tmp_path / "back", items()[::-1], events(ROWS[::-1])))
    assert a.catalogue.item_ids == b.catalogue.item_ids
    for name in ("at", "item", "kind", "position", "value"):
        np.testing.assert_array_equal(getattr(a.events, name), getattr(b.events, name))
    assert [a.events.user_ids[u] for u in a.events.user] == [b.events.user_ids[u] for u in b.events.user]


def test_timestamps_keep_fractions_of_a_second(tmp_path: Path) -> None:
    rows = [{"event": "click", "item_id": "A", "at": t} for t in (1_700_000_000.25, 1_700_000_000.125)]
    assert load_dataset(write_dataset(tmp_path, None, events(rows))).events.at.tolist() == [
        1_700_000_000.125,
        1_700_000_000.25,
    ]


def test_an_empty_log_can_be_loaded(tmp_path: Path) -> None:
    found = load_dataset(write_dataset(tmp_path, None, events([])))
    assert len(found.events) == found.events.n_users == len(found.event_id) == 0
    assert found.truth is None


def test_an_empty_catalogue_has_only_the_unknown_item(tmp_path: Path) -> None:
    found = load_dataset(write_dataset(tmp_path, items(0)))
    assert len(found.catalogue) == 0
    assert len(found.catalogue.price) == 1
    assert found.events.item.tolist() == [-1] * 4


def test_missing_categories_and_brands_have_the_number_of_names_as_code() -> None:
    found = read_catalogue(items(category=["b", None, "a"], brand=["", "x", "x"]))
    assert found.category_names == ["a", "b"]
    assert found.category.tolist() == [1, 2, 0, 2]
    assert found.brand_names == ["x"]
    assert found.brand.tolist() == [1, 0, 0, 1]


def test_missing_and_infinite_prices_are_nan() -> None:
    np.testing.assert_array_equal(
        read_catalogue(items(price=pa.array([1.5, None, np.inf]))).price, [1.5, np.nan, np.nan, np.nan]
    )


def test_dates_are_unix_seconds_and_missing_ones_nan() -> None:
    found = read_catalogue(items(available_from=pa.array([NEW_YEAR, None, None], MOMENT)))
    np.testing.assert_array_equal(found.available_from, [365 * 86400, np.nan, np.nan, np.nan])


def test_numbers_booleans_and_dates_are_numeric_attributes() -> None:
    """True is 1, and a date is in years since 1970: 365 days are 365 / 365.25 years."""
    found = read_catalogue(
        items(
            stars=pa.array([4.5, None, np.nan]),
            pieces=pa.array([3, None, 2**60], pa.int64()),
            vegan=pa.array([True, False, None]),
            first_sold=pa.array([NEW_YEAR, None, None], MOMENT),
        )
    )
    assert list(found.number_names) == ["stars", "pieces", "vegan", "first_sold"]
    gap = np.nan
    np.testing.assert_array_equal(
        found.numbers, [[4.5, 3, 1, 365 / 365.25], [gap, gap, 0, gap], [gap, 2.0**60, gap, gap], [gap, gap, gap, gap]]
    )


def test_strings_and_lists_of_strings_are_tags() -> None:
    """A tag is `attribute=value`. Null lists, empty lists, nulls in lists and empty strings give no tags."""
    found = read_catalogue(
        items(4, styles=pa.array([["mod", "pop"], None, [], [None, "", "pop"]]), colour=["red", None, "", "red"])
    )
    assert tags(found) == [["styles=mod", "styles=pop", "colour=red"], [], [], ["styles=pop", "colour=red"], []]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.large_list(pa.large_string())])
def test_large_arrow_types_are_read_like_small_ones(kind: pa.DataType) -> None:
    value = "red" if pa.types.is_large_string(kind) else ["red"]
    assert tags(read_catalogue(items(1, colour=pa.array([value], kind)))) == [["colour=red"], []]


def test_a_slice_of_a_table_is_read_without_the_rows_outside_it() -> None:
    """The list array of a slice keeps the offsets of the whole table."""
    whole = items(3, styles=pa.array([["a"], ["b", "c"], ["d"]]))
    assert tags(read_catalogue(whole[1:])) == [["styles=b", "styles=c"], ["styles=d"], []]


def test_a_catalogue_without_attributes_has_no_numbers_and_tags() -> None:
    found = read_catalogue(items())
    assert found.numbers.shape == (4, 0)
    assert tags(found) == [[]] * 4


def test_a_column_of_nulls_is_ignored() -> None:
    found = read_catalogue(items(nothing=pa.nulls(3)))
    assert list(found.number_names) == []
    assert tags(found) == [[]] * 4


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([{"x": 1}] * 3), "struct<x: int64>"),
        (pa.array([[1, 2]] * 3), "list<element: int64>"),
        (pa.array([[["a"]]] * 3), "list<element: list<element: string>>"),
        (pa.array([b"x"] * 3), "binary"),
        (pa.array([[("k", "v")]] * 3, pa.map_(pa.string(), pa.string())), "map<string, string"),
    ],
)
def test_an_attribute_of_another_type_is_an_error(tmp_path: Path, column: pa.Array, kind: str) -> None:
    with pytest.raises(DataError) as error:
        load_dataset(write_dataset(tmp_path, items(odd=column)))
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'items.parquet'}, column 'odd': has type {kind}")
    assert message.endswith(
        "; an attribute must be a number, a string, a list of strings or a timestamp: load the file with "
        "`shelfwise import`, or remove the column"
    )


def test_the_title_of_an_item_without_one_is_its_id() -> None:
    assert read_catalogue(items(title=pa.array(["Chair", None, ""]))).titles == ["Chair", "B", "C"]


@pytest.mark.parametrize("name", ["items.parquet", "events.parquet"])
def test_the_error_for_a_missing_file_says_how_to_create_it(tmp_path: Path, name: str) -> None:
    (write_dataset(tmp_path) / name).unlink()
    with pytest.raises(FileNotFoundError) as error:
        load_dataset(tmp_path)
    assert str(error.value) == (
        f"{tmp_path / name}: no such file; create it with `shelfwise import` or `shelfwise simulate`"
    )


def test_a_file_that_is_not_parquet_is_an_error(tmp_path: Path) -> None:
    (write_dataset(tmp_path) / "events.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"events\.parquet: cannot be read as Parquet \(.*\); recreate the data set"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("name", ["event_id", "user_id", "timestamp", "request_id"])
def test_a_missing_column_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"events\.parquet: has no column '{name}'; recreate the data set"):
        load_dataset(write_dataset(tmp_path, None, events().drop_columns(name)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"event": "wishlist"},
            "column 'event': 'wishlist' is not one of impression, view, click, cart, purchase, rat",
        ),
        ({"event": None}, "column 'event': is null"),
        ({"at": None}, "column 'timestamp': is null"),
        ({"user_id": None}, "column 'user_id': is null"),
        ({"item_id": None}, "column 'item_id': is null"),
    ],
)
def test_an_invalid_cell_is_an_error_with_its_row(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    wrong = events([*ROWS, {"event": "click", "item_id": "A", "at": 40} | row])
    with pytest.raises(DataError) as error:
        load_dataset(write_dataset(tmp_path, None, wrong))
    assert str(error.value).startswith(f"{tmp_path / 'events.parquet'}, row 4, {message}")


def test_a_duplicate_id_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"items\.parquet, column 'item_id': 'A' is not unique"):
        load_dataset(write_dataset(tmp_path, items(item_id=["B", "A", "A"])))


def test_truth_gives_the_utility_by_request_and_item(tmp_path: Path) -> None:
    truth = pa.table({"request_id": ["r1", "r1"], "item_id": ["A", "B"], "utility": [0.5, 0.25]})
    pq.write_table(truth, tmp_path / "truth.parquet")
    found = load_dataset(write_dataset(tmp_path)).truth
    assert found
    assert found.of(["r1"]) == {("r1", "A"): 0.5, ("r1", "B"): 0.25}
    assert found.of(["r2"]) == {}


def test_ids_in_any_script_are_sorted_as_in_python(tmp_path: Path) -> None:
    """Arrow sorts by UTF-8 bytes and Python by code points, which gives the same order."""
    ids = ["é", "Z", "a", "\U0001f600", "\uffee", "中", " ", "10", "9"]
    found = load_dataset(write_dataset(tmp_path, items(len(ids), item_id=ids)))
    assert list(found.catalogue.item_ids) == sorted(ids)


def test_variants_have_the_code_of_their_group_and_other_items_the_number_of_groups() -> None:
    """Groups are sorted. A blank is no group, and a column of nothing is no column."""
    catalogue = read_catalogue(items(4, group_id=["mug", None, "cap", ""]))
    assert list(catalogue.group_names) == ["cap", "mug"]
    assert catalogue.group is not None
    assert catalogue.group.tolist() == [1, 2, 0, 2, 2]
    assert not len(catalogue.tag_names)
    assert read_catalogue(items(4, group_id=pa.nulls(4, pa.string()))).group is None
    with pytest.raises(DataError, match="'group_id': has type list"):
        read_catalogue(items(1, group_id=[["a"]]))


def test_a_group_is_no_part_of_the_text_of_an_item() -> None:
    table, template = items(2, group_id=["mug-group", "mug-group"], colour=["red", "blue"]), "{title}. {attributes}"
    assert catalogue_texts(template, table) == catalogue_texts(template, table.drop(["group_id"]))


def test_written_groups_reach_a_catalogue_that_had_none() -> None:
    written = {"A": ItemFields(1.0, {"group_id": "mug"}), "Z": ItemFields(1.0, {"title": "Z", "group_id": "mug"})}
    table = overlay_written(items(2), written).sort_by("item_id")
    assert table["group_id"].to_pylist() == ["mug", None, "mug"]
    without = overlay_written(items(2), {"A": ItemFields(1.0, {"group_id": None})})
    assert "group_id" not in without.column_names


def test_items_that_are_not_available_are_withdrawn_and_no_attribute_tells_them() -> None:
    """Missing counts as available."""
    catalogue = read_catalogue(items(3, available=pa.array([False, None, True])))
    assert catalogue.withdrawn.tolist() == [0]
    assert (catalogue.number_names, catalogue.tag_names) == ([], [])


def test_the_column_available_must_be_true_or_false() -> None:
    with pytest.raises(DataError, match=r"column 'available': has type string, expected true or false"):
        read_catalogue(items(1, available=["soon"]))


def test_items_withdrawn_and_restored_by_a_write_are_so_in_the_next_catalogue() -> None:
    """A is withdrawn, B is restored, and a new price leaves C as it was."""
    imported = items(3, available=pa.array([True, False, False]))
    fields: dict[str, dict[str, Any]] = {"A": {"available": False}, "B": {"available": True}, "C": {"price": 2.0}}
    written = {item_id: ItemFields(1.0, given) for item_id, given in fields.items()}
    assert read_catalogue(overlay_written(imported, written).sort_by("item_id")).withdrawn.tolist() == [0, 2]
    first = overlay_written(items(2), {"B": ItemFields(1.0, {"available": False})}).sort_by("item_id")
    assert read_catalogue(first).withdrawn.tolist() == [1], "the column is added"
