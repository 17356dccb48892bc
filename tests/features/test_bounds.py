"""Bounds: one form for each ID, and one decision about what can be one."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated

import duckdb
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter, ValidationError

from features.bounds import COLUMN_NAME, ID_BYTES, IdError, are_clean, check_attribute_names, clean_id

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["undefined", " p1", "e\u0301", "é", "\u00a0", "p 1", "x" * 257, "é" * 128, "é" * 129, "\x85a", "\x1fa"]
)


@pytest.mark.parametrize(
    ("given", "canonical"),
    [("p1", "p1"), (" p1\t", "p1"), ("p 1", "p 1"), ("\u00a0p1", "p1"), ("e\u0301", "\u00e9"), ("é" * 128, "é" * 128)],
)
def test_surrounding_white_space_is_removed_and_accents_are_composed(given: str, canonical: str) -> None:
    """The last one has 128 * 2 = 256 bytes."""
    assert clean_id(given) == canonical


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("", "missing_id", "is blank"),
        (" \u00a0\n", "missing_id", "is blank"),
        ("undefined", "placeholder_id", "stands for a missing ID"),
        (" null ", "placeholder_id", "stands for a missing ID"),
        ("[object Object]", "placeholder_id", "stands for a missing ID"),
        ("a\x00b", "control_character", "contains a control character"),
        ("a\x9fb", "control_character", "contains a control character"),
        ("é" * 129, "id_too_long", "has 258 bytes; the maximum is 256"),
        ("x" * 257, "id_too_long", "has 257 bytes; the maximum is 256"),
    ],
)
def test_a_text_that_cannot_be_an_id_is_refused_with_the_reason(text: str, code: str, message: str) -> None:
    with pytest.raises(IdError, match=f"^{message}$") as refused:
        clean_id(text)
    assert refused.value.code == code


@given(texts)
def test_a_canonical_id_stays_as_it_is(text: str) -> None:
    try:
        once = clean_id(text)
    except IdError:
        return
    assert clean_id(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert len(once.encode()) <= ID_BYTES


@given(st.lists(texts, max_size=5))
@example([])
@example(["a", ""])
def test_the_fast_check_of_a_list_never_passes_an_id_that_needs_cleaning(ids: list[str]) -> None:
    if all(len(i) <= ID_BYTES for i in ids) and are_clean(ids):
        assert [clean_id(i) for i in ids] == ids


@pytest.mark.parametrize("name", ["item_id", "title", "embedding", "available", "", " x", "x\n", "x" * 65])
def test_an_attribute_cannot_have_the_name_of_a_field_or_an_invisible_one(name: str) -> None:
    with pytest.raises(ValueError, match=r"is reserved for a field of the item|is not a valid name"):
        check_attribute_names([name])


def test_the_name_of_a_column_has_no_white_space_of_any_kind_for_python_rust_and_re2() -> None:
    """As Python's `str.isspace`, which knows all 25 of Unicode and the separators U+001C to U+001F."""
    blanks = [chr(c) for c in range(0x10000) if chr(c).isspace()]
    assert len(blanks) == 29
    in_rust = TypeAdapter(Annotated[str, Field(pattern=COLUMN_NAME)])
    for name in (f"unit{blank}price" for blank in blanks):
        assert re.fullmatch(COLUMN_NAME, name) is None
        with pytest.raises(ValidationError):
            in_rust.validate_python(name)
        assert duckdb.execute("SELECT regexp_matches(?, ?)", [name, COLUMN_NAME]).fetchone() == (False,)
    assert in_rust.validate_python("单价_größe[eu]") == "单价_größe[eu]"
