"""Columns of a request: their codes, their features, and what happens to values that cannot be used."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.bounds import MAX_NUMBER
from features.columns import Column, ColumnError, Scalar, Sent, encode, encode_usable, has_lists, pick, table
from features.context import Context
from features.history import EMPTY
from features.moment import Items
from features.replay import Replay
from features.table import features, names, rows, schema_hash
from tests.worlds import DAY, START, make_catalogue, make_events, make_lists, make_vectors

BM25 = Column("bm25", "number")
IN_STOCK = Column("in_stock", "flag")
COUNTRY = Column("country", "category", "request", ("AT", "DE"))
DECLARED = (BM25, IN_STOCK, COUNTRY)
EVERY = np.arange(4, dtype=np.int32)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["AT", "DE", "", "x", "true"]),
)


def make_replay(columns: tuple[Column, ...] = DECLARED) -> Replay:
    return Replay(make_catalogue(), make_vectors(), make_events([], 1), np.array([START]), columns=columns)


def items(columns: tuple[Column, ...] = DECLARED) -> Items:
    return make_replay(columns).items_at(START)


def computed(sent: Sent, columns: tuple[Column, ...] = DECLARED) -> dict[str, list[float]]:
    """The features of the columns, for four candidates."""
    them = items(columns)
    context = Context(columns=table(columns, sent))
    out = rows(them, EMPTY, EVERY, START + DAY, context)
    return {n: out[:, k].tolist() for k, n in enumerate(names(them)) if n.startswith("request_")}


@pytest.mark.parametrize(
    ("column", "value", "code"),
    [
        (BM25, 3.25, 3.25),
        (BM25, -2, -2.0),
        (IN_STOCK, True, 1.0),
        (IN_STOCK, 0, 0.0),
        (IN_STOCK, "true", 1.0),
        (COUNTRY, "AT", 0.0),
        (COUNTRY, "DE", 1.0),
        (COUNTRY, "FR", 2.0),
        (Column("store", "category", "request", ("7", "12")), 12.0, 1.0),
    ],
)
def test_a_value_has_a_code(column: Column, value: Scalar, code: float) -> None:
    """A number is itself, a flag is 1 or 0, and a category is the place of its value; all others share the next."""
    assert column.code(value) == code
    assert encode(column, [value, value]).tolist() == [code, code]


@pytest.mark.parametrize(("column", "value"), [(BM25, None), (IN_STOCK, None), (COUNTRY, None), (COUNTRY, "")])
def test_a_missing_value_is_nan(column: Column, value: Scalar) -> None:
    assert math.isnan(column.code(value))
    assert np.isnan(encode(column, [value])).all()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (BM25, "3.2", "'3.2' is not a number"),
        (BM25, True, "true is not a number"),
        (BM25, 1e16, "is not between -1e.15 and 1e.15"),
        (IN_STOCK, "yes", "'yes' is not true or false"),
        (IN_STOCK, 2.0, "2.0 is not true or false"),
        (COUNTRY, False, "false is not a text"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_its_place(column: Column, value: Scalar, message: str) -> None:
    """In a request. In a log it is missing, because the column may have been declared later."""
    with pytest.raises(ColumnError, match=message) as error:
        encode(column, [None, value])
    assert (error.value.column, error.value.index) == (column.name, 1)
    assert np.isnan(encode_usable(column, [None, value])).all()


@given(st.sampled_from(DECLARED), st.lists(SCALARS, max_size=8))
def test_values_are_encoded_one_by_one(column: Column, values: list[Scalar]) -> None:
    """The fast paths for a whole list give what `Column.code` gives for each value."""

    def one(value: Scalar) -> float:
        try:
            return float(np.float32(column.code(value)))
        except ColumnError:
            return math.nan

    np.testing.assert_array_equal(encode_usable(column, values), np.array([one(v) for v in values], np.float32))
    assert not (np.abs(encode_usable(column, values)) > np.float32(MAX_NUMBER)).any()


def test_a_number_of_each_candidate_has_three_features() -> None:
    """Its value, and its rank and difference from the mean in the list: scores of a search engine have no scale.

    Ranks of 4, 1, 1 and none: the share of known values below, and half of the ties: (2 + 3)/6, (0 + 2)/6.
    Mean: (4 + 1 + 1)/3 = 2.
    """
    found = computed({"bm25": [4.0, 1.0, 1.0, None]}, (BM25,))
    nan = math.nan
    assert list(found) == ["request_bm25", "request_bm25_rank", "request_bm25_over_mean"]
    np.testing.assert_allclose(found["request_bm25"], [4, 1, 1, nan])
    np.testing.assert_allclose(found["request_bm25_rank"], [5 / 6, 2 / 6, 2 / 6, nan])
    np.testing.assert_allclose(found["request_bm25_over_mean"], [2, -1, -1, nan])


def test_one_value_holds_for_every_candidate() -> None:
    found = computed({"country": "DE", "in_stock": True})
    assert found["request_country"] == [1, 1, 1, 1]
    assert found["request_in_stock"] == [1, 1, 1, 1]
    assert np.isnan(found["request_bm25"]).all(), "a column that is not sent is missing"


def test_a_column_that_is_not_declared_is_not_used() -> None:
    sent: dict[str, list[Scalar]] = {"bm25": [1.0, 2.0, 3.0, 4.0]}
    declared, more = computed(sent), computed({**sent, "margin": [0.1] * 4})
    assert list(declared) == list(more)
    np.testing.assert_equal(more, declared)


def test_columns_are_part_of_the_schema() -> None:
    """A category with other values has other codes, so rows made with the one are not rows of the other."""
    other = COUNTRY._replace(values=("DE", "AT"))
    hashes = {schema_hash(items(columns)) for columns in ((), (BM25,), (COUNTRY,), (other,))}
    assert len(hashes) == 4
    of_country = next(f for f in features(items()) if f.name == "request_country")
    assert (of_country.unit, of_country.group, of_country.reasons) == ("0 AT, 1 DE, 2 other", "request", None)
    assert next(f for f in features(items()) if f.name == "request_bm25").reasons is not None


def test_a_name_that_the_trees_cannot_hold_is_renamed() -> None:
    """And one that an attribute has taken gets a number."""
    found = computed({"a:b": [1.0, 2, 3, 4]}, (Column("a:b", "number"), Column("a,b", "number")))
    assert list(found)[:2] == ["request_a_b", "request_a_b_2"]
    assert found["request_a_b"] == [1, 2, 3, 4]


@given(
    st.lists(st.one_of(st.none(), st.floats(-1e9, 1e9)), min_size=4, max_size=4),
    st.one_of(st.none(), st.sampled_from(["AT", "DE", "FR"])),
    st.permutations(range(4)),
)
def test_replay_computes_the_rows_of_the_service(
    scores: list[float | None], country: str | None, order: list[int]
) -> None:
    """To the bit, whatever the order of the candidates."""
    replay = make_replay()
    sent = table(DECLARED, {"bm25": scores, "country": country})
    lists = make_lists([DAY], [0], [EVERY.tolist()])
    lists = type(lists)(**{**vars(lists), "columns": np.broadcast_to(sent, (3, 4))})
    live = rows(replay.items_at(START), EMPTY, EVERY[order], START + DAY, Context(columns=sent[:, order]))
    assert replay.rows(lists)[order].tobytes() == live.tobytes()


def test_lists_carry_their_columns() -> None:
    """List 1 has rows 2 to 4, and list 0 rows 0 and 1: taken in the order 1, 0, the columns follow."""
    lists = make_lists([0, DAY], [0, 0], [[0, 1], [2, 3, 4]])
    lists = type(lists)(**{**vars(lists), "columns": np.arange(5, dtype=np.float32)[None]})
    taken = lists.take(np.array([1, 0]))
    assert taken.columns.tolist() == [[2, 3, 4, 0, 1]]
    first = taken.columns_of(0)
    assert first is not None
    assert first.tolist() == [[2, 3, 4]]
    assert make_lists([0], [0], [[1]]).columns_of(0) is None


def test_a_record_keeps_the_values_of_the_items_shown() -> None:
    sent: Sent = {"bm25": [1.0, 2.0, 3.0], "country": "AT"}
    assert pick(sent, [2, 0]) == {"bm25": [3.0, 1.0], "country": "AT"}
    assert has_lists(sent)
    assert not has_lists({"country": "AT"})
