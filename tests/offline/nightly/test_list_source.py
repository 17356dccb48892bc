"""The query groups of a run: their source when a shop of purchases starts to log what it shows, and their length."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from features.log import Kind
from offline.config import load
from offline.nightly.evaluate import _list_counts
from offline.nightly.inputs import Inputs
from tests.worlds import LogRow, make_events


def inputs(lists: int, source: str = "auto") -> Inputs:
    """A log of 40 purchases at 40 times, and of lists that were clicked at once."""
    rows: list[LogRow] = [(float(k), 0, 1, Kind.PURCHASE, -1) for k in range(40)]
    for k in range(lists):
        rows += [(100.0 + 10 * k, 1, 2, Kind.IMPRESSION, k), (101.0 + 10 * k, 1, 2, Kind.CLICK, k)]
    out = Inputs(load(None, lists={"source": source}), None, ())
    log = make_events(rows, n_users=2)
    out.__dict__["data"] = SimpleNamespace(shown=log, events=log)  # in the cache of the property
    return out


@pytest.mark.parametrize(("lists", "is_logged"), [(0, False), (3, False), (4, False), (5, True)])
def test_logged_lists_are_used_once_they_are_a_tenth_of_the_baskets(lists: int, is_logged: bool) -> None:
    """40 purchases and one click per list are 40 + n baskets: 4 lists are less than 4.4, 5 are more than 4.5."""
    assert inputs(lists).is_logged == is_logged


def test_a_run_says_why_it_rebuilds_lists() -> None:
    assert inputs(3).list_note == (
        "Lists were rebuilt, because only 3 logged lists have an action, fewer than 10% of the 43 that can be rebuilt "
        "(lists.logged_share)."
    )
    assert [inputs(n).list_note for n in (0, 5)] == [None, None]


def test_a_source_that_is_set_is_used_whatever_the_counts() -> None:
    assert inputs(3, "logged").is_logged
    assert not inputs(30, "rebuilt").is_logged
    assert inputs(30, "rebuilt").list_note is None


def test_a_list_too_long_for_lambdarank_is_left_out() -> None:
    """Of lists of 10,050 and of 2 items, the ranker trains on the second."""
    rows: list[LogRow] = [(0.0, 0, item, Kind.IMPRESSION, 0) for item in range(10_050)]
    rows += [(50.0, 1, item, Kind.IMPRESSION, 1) for item in range(2)]
    rows += [(51.0, 0, 1, Kind.CLICK, 0), (52.0, 1, 1, Kind.CLICK, 1)]
    run = Inputs(load(None), None, ())
    log = make_events(rows, n_users=2)
    run.__dict__["data"] = SimpleNamespace(shown=log, events=log)
    assert [list(block.request_ids) for block in run.lists()] == [["r1"]]
    assert [_list_counts(block) for block in run.logged_lists()] == [(2, 0, 1)]
