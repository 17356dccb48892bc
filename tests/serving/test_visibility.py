"""Several worker processes: events sent to one are visible to all, and a new item is ranked by its text."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from serving.store.embedded import connect_url
from tests.bench.visibility import Shop, running, shop

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Two service processes and an embedding worker with the packaged encoder."""
    root = tmp_path_factory.mktemp("shop")
    with connect_url(None, root / "redis") as url, running(url, shop(root, time.time() - 3600)) as running_shop:
        yield running_shop


def test_a_click_affects_the_next_ranking_of_every_worker(running_shop: Shop) -> None:
    """Asked once each, without waiting: the user's lists are in Redis before the event is acknowledged."""
    for n in range(20):
        user, similar = f"asked{n}", f"i{(n + 8) % 240:03d}"
        before = [running_shop.scores(w, [similar], user)[similar] for w in (0, 1)]
        running_shop.ask[n % 2].post("/v1/events", json={"event": "click", "user_id": user, "item_id": f"i{n:03d}"})
        after = [running_shop.scores(w, [similar], user)[similar] for w in (0, 1)]
        assert after[0] != before[0]
        assert after[1] != before[1]


def test_item_state_withdrawals_and_new_items_reach_every_worker(running_shop: Shop) -> None:
    """`python -m tests.bench.visibility` measures the delay; this only checks that they arrive."""
    assert set(running_shop.clicked(100)) == {
        "own_list_same_worker",
        "own_list_other_worker",
        "item_state_same_worker",
        "item_state_other_worker",
    }
    assert running_shop.withdrawn(3)
    assert running_shop.new(5)
