"""Items that the catalogue marks as not available: their events count, but no list has them until a write says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.context import NO_CONTEXT
from features.history import EMPTY
from serving.ranking.live import Live
from serving.ranking.overlay import Overlay
from serving.release.release import load_release
from serving.store.written import ItemFields
from tests.serving.test_release import CUT_OFF, planted_items, publish

DRAFT = "red-03"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Live:
    """A release in which `DRAFT` is not available."""
    items = planted_items()
    row = np.array([list(items.catalogue.item_ids).index(DRAFT)], np.int32)
    items = replace(items, catalogue=replace(items.catalogue, withdrawn=row))
    path: Path = publish(tmp_path_factory.mktemp("releases"), items)
    return Live.of(load_release(path))


def written(live: Live, **fields: object) -> Live:
    """The release after a write of `DRAFT`."""
    return live.with_overlay(Overlay({DRAFT: ItemFields(CUT_OFF + 1, fields)}, {}))


def shown(live: Live) -> set[str]:
    """Whether `DRAFT` is in each kind of list; its name stands for yes."""
    ids = live.items.catalogue.item_ids
    at = CUT_OFF + 10
    found = live.retriever.candidates_now(EMPTY, at, 20, None, NO_CONTEXT, None, None).item
    return {
        name
        for name, listed in (
            ("whole catalogue", live.rank(EMPTY, None, at, None).item_ids),
            ("given candidates", live.rank(EMPTY, [DRAFT, "red-05"], at, None).item_ids),
            ("retrieval", [ids[row] for row in found]),
        )
        if DRAFT in listed
    }


EVERY = {"whole catalogue", "given candidates", "retrieval"}


def test_an_item_that_is_not_available_is_in_no_list(live: Live) -> None:
    assert shown(live) == set()
    assert live.withdrawn == {DRAFT}


def test_a_new_price_does_not_put_it_on_sale(live: Live) -> None:
    assert shown(written(live, price=2.0)) == set()


def test_a_write_puts_it_on_sale_as_old_as_it_is(live: Live) -> None:
    restored = written(live, available=True)
    assert shown(restored) == EVERY
    row = restored.items.catalogue.rows([DRAFT])[0]
    assert restored.items.catalogue.available_from[row] == CUT_OFF - 9e6


def test_the_arrays_of_the_release_keep_its_date(live: Live) -> None:
    """The gate scores the release on lists from when the item was on sale."""
    catalogue = live.release.items.catalogue
    assert catalogue.available_from[catalogue.rows([DRAFT])[0]] == CUT_OFF - 9e6
