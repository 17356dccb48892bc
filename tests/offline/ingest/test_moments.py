"""Reading a column's moments: columns of one common form are cast, which gives the same as the general expression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offline.config import Column
from offline.ingest.cells.moments import moments
from offline.ingest.reading import Library

CLOCK = st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1))
OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
ZONE = "Europe/London"
GENERAL = "2024-1-2"
"""A value that no cast reads: with it in the column, the general expression reads every value."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    library = Library(tmp_path_factory.mktemp("database"))
    library.lock()
    yield library
    library.close()


def read(library: Library, values: Sequence[str]) -> tuple[list[int | None], str]:
    """Microseconds of some texts in one column, and the expression that read them."""
    library.sql.execute("CREATE OR REPLACE TEMP TABLE cells (n BIGINT, v VARCHAR)")
    library.sql.executemany("INSERT INTO cells VALUES (?, ?)", [[n, v] for n, v in enumerate(values)])
    found = moments(library, "cells", "v", "VARCHAR", Column(path="v"), ZONE).sql
    return [row[0] for row in library.rows(f"SELECT {found} FROM cells ORDER BY n")], found


def both(library: Library, written: Sequence[str]) -> list[int | None]:
    """Microseconds by a cast, after a check that the general expression gives the same."""
    by_cast, sql = read(library, written)
    assert "regexp_extract" not in sql
    general, sql = read(library, [*written, GENERAL])
    assert "regexp_extract" in sql
    assert by_cast == general[:-1]
    return by_cast


def microseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


@given(st.lists(st.tuples(CLOCK, OFFSETS), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_moments_with_an_offset_are_those_that_python_reads(
    library: Library, found: Sequence[tuple[datetime, timezone]]
) -> None:
    at = [clock.replace(tzinfo=zone) for clock, zone in found]
    assert both(library, [moment.isoformat() for moment in at]) == [microseconds(moment) for moment in at]


@given(st.lists(CLOCK, min_size=1, max_size=5), st.sampled_from(["Z", " UTC"]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_moments_in_utc_are_those_that_python_reads(library: Library, clocks: Sequence[datetime], suffix: str) -> None:
    expected = [microseconds(clock.replace(tzinfo=UTC)) for clock in clocks]
    assert both(library, [clock.isoformat(" ") + suffix for clock in clocks]) == expected


@given(st.lists(CLOCK, min_size=1, max_size=5))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_moments_without_an_offset_are_in_the_zone_of_the_shop(library: Library, clocks: Sequence[datetime]) -> None:
    found = both(library, [clock.isoformat() for clock in clocks])
    for clock, us in zip(clocks, found, strict=True):
        # An hour repeated in autumn may be either; one left out in spring is moved by an hour.
        likely = {microseconds(clock.replace(tzinfo=ZoneInfo(ZONE), fold=fold)) for fold in (0, 1)}
        assert us in likely


def test_days_that_do_not_exist_and_offsets_beyond_a_day_are_missing(library: Library) -> None:
    assert both(library, ["2024-02-30T10:00:00Z", "2024-02-29T10:00:00Z"]) == [None, 1709200800000000]
    assert read(library, ["2024-02-29T10:00:00+99:00"])[0] == [None]


def test_one_value_of_another_form_does_not_change_how_the_others_are_read(library: Library) -> None:
    """The first 2,000 values decide whether all are looked at; the odd one is behind them."""
    found, _ = read(library, [*["2024-02-29T10:00:00Z"] * 2500, "29/02/2024 10:00"])
    assert found == [1709200800000000] * 2501
