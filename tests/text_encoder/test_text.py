"""`catalogue_texts`: item texts from an Arrow table of items, independent of the order of columns and list values."""

from __future__ import annotations

import datetime
from random import Random

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from text_encoder.text import catalogue_texts, item_texts

TEXT_LIST = pa.list_(pa.string())


def table(**columns: pa.Array | list[object]) -> pa.Table:
    return pa.table(columns)


def one_list(values: list[str | None]) -> pa.Table:
    """One item with the given tags."""
    return table(tags=pa.array([values], TEXT_LIST))


values = st.none() | st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(["red", " red", "re\td", ""])


@settings(max_examples=100, deadline=None)
@given(st.lists(values, max_size=8), st.randoms(use_true_random=False))
@example(["b", "a", "a b", "a  b", None, ""], Random(0))
def test_order_and_repeats_of_list_values_do_not_matter(tags: list[str | None], random: Random) -> None:
    changed = [*tags, *random.choices(tags, k=3)] if tags else []
    random.shuffle(changed)
    for template in ("{tags}", "{attributes}"):
        assert catalogue_texts(template, one_list(changed)) == catalogue_texts(template, one_list(tags))


@settings(max_examples=50, deadline=None)
@given(st.permutations(["title", "mood", "colour", "tags"]))
def test_the_order_of_the_columns_does_not_matter(names: list[str]) -> None:
    columns = {
        "title": pa.array(["Lamp", "Rug"]),
        "mood": pa.array(["calm", None]),
        "colour": pa.array([["red"], ["blue", "green"]], TEXT_LIST),
        "tags": pa.array([None, ["new"]], TEXT_LIST),
    }
    texts = catalogue_texts("{title}. {attributes}", pa.table({name: columns[name] for name in names}))
    assert texts == ["Lamp. red, calm", "Rug. blue, green, new"]


def test_attributes_are_ordered_by_column_name_and_then_by_value() -> None:
    """Columns in ascending order: colour, material, size. Values are not sorted across columns."""
    items = table(size=["XL"], material=pa.array([["wool", "cotton"]], TEXT_LIST), colour=["red"])
    assert catalogue_texts("{attributes}", items) == ["red, cotton, wool, XL"]


def test_a_value_in_two_columns_occurs_twice_in_attributes() -> None:
    items = table(colour=["orange"], scent=pa.array([["orange", "orange"]], TEXT_LIST))
    assert catalogue_texts("{attributes}", items) == ["orange, orange"]


def test_large_text_columns_and_lists_are_attributes() -> None:
    """Arrow's 64-bit types, which other libraries write."""
    items = table(
        colour=pa.array(["red"], pa.large_string()), tags=pa.array([["b", "a"]], pa.large_list(pa.large_string()))
    )
    assert catalogue_texts("{attributes}", items) == ["red, a, b"]


def test_standard_columns_are_not_attributes() -> None:
    standard = {name: ["x"] for name in ("item_id", "title", "description", "category", "brand")}
    assert catalogue_texts("{attributes}", table(**standard, colour=["red"])) == ["red"]


def test_numbers_dates_and_booleans_are_not_attributes() -> None:
    """Neither as values nor in lists. A template can still name such a column."""
    items = table(
        colour=["red"],
        price=[9.5],
        year=[1999],
        sizes=pa.array([[10, 9]], pa.list_(pa.int64())),
        on_sale=[True],
        released=[datetime.date(2024, 5, 1)],
        seen=[datetime.datetime(2024, 5, 1, 12)],
    )
    assert catalogue_texts("{attributes}", items) == ["red"]
    assert catalogue_texts("{colour}; {year}; {on_sale}; {released}; {seen}", items) == [
        "red; 1999; yes; 2024-05-01; 2024-05-01"
    ]


def test_a_column_that_the_table_does_not_have_is_missing_for_all_items() -> None:
    items = table(title=["Lamp", "Rug"])
    assert catalogue_texts("{title}. {brand}. {attributes}", items) == ["Lamp", "Rug"]
    assert catalogue_texts("{brand}", items) == ["", ""]


def test_a_list_column_in_the_template_becomes_its_distinct_values_in_ascending_order() -> None:
    items = table(tags=pa.array([["warm", "cosy", "warm"], [], None, ["b", None, ""]], TEXT_LIST))
    assert catalogue_texts("{tags}", items) == ["cosy, warm", "", "", "b"]


def test_values_of_a_list_of_numbers_are_ordered_as_text() -> None:
    items = table(sizes=pa.array([[9, 10, 9, 100]], pa.list_(pa.int64())))
    assert catalogue_texts("{sizes}", items) == ["10, 100, 9"]


@pytest.mark.parametrize("template", ["{tags}", "{attributes}"])
def test_white_space_is_folded_before_values_are_compared(template: str) -> None:
    """Values that only differ in white space are the same value."""
    assert catalogue_texts(template, one_list(["dark  red", " dark red", "dark\nred\t", "blue"])) == ["blue, dark red"]


def test_an_item_without_values_has_no_text() -> None:
    """Not even the prompt. Other items in the table are not affected."""
    items = table(title=[None, "Lamp"], tags=pa.array([[" "], None], TEXT_LIST))
    assert catalogue_texts("passage: {title}. {attributes}", items) == ["", "passage: Lamp"]
    assert catalogue_texts("{title}", items.slice(0, 0)) == []


def test_texts_do_not_depend_on_the_chunks_of_the_table() -> None:
    items = table(title=["Lamp", "Rug"], tags=pa.array([["b", "a"], ["c"]], TEXT_LIST))
    chunked = pa.concat_tables([items.slice(0, 1), items.slice(1)])
    assert chunked["tags"].num_chunks == 2
    assert catalogue_texts("{title}. {tags}", chunked) == catalogue_texts("{title}. {tags}", items)


def test_attribute_names_and_punctuation_of_other_scripts_are_known() -> None:
    """The marks of a Hindi or Thai name belong to it. A Chinese full stop ends a sentence as an English one does."""
    columns = {"रंग": ["लाल"], "สี": ["แดง"], "标题": ["红椅。"], "brand": ["禾洛"]}
    assert item_texts("{标题}. {brand}. {रंग}, {สี}", columns) == ["红椅。 禾洛. लाल, แดง"]


def test_an_invalid_template_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"text template '\{title'"):
        catalogue_texts("{title", table(title=["Lamp"]))


def test_a_column_of_structs_is_rejected_with_attribute_and_row() -> None:
    with pytest.raises(TypeError, match="attribute 'size', row 1: dict"):
        catalogue_texts("{size}", table(size=[None, {"width": 3}]))
